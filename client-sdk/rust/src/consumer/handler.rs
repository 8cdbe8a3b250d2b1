//! What an application supplies: the handler of events.
//!
//! It deliberately gets no way to say "handled": returning `Ok` is saying so, and the transaction decides.

use sqlx::{Database, Postgres};

use super::{Event, HandlerError};
use crate::inbox::Transaction;

/// Handles events. Implemented by a type of one's own, or by a function:
///
/// ```
/// use outbox_sdk::{Event, Handler, HandlerError, Transaction};
///
/// async fn welcome(event: &Event, tx: &mut Transaction) -> Result<(), HandlerError> {
///     let user: serde_json::Value = event.json()?;
///     sqlx::query("insert into mails (user_id) values ($1)").bind(user["id"].as_str()).execute(&mut **tx).await?;
///     Ok(())
/// }
///
/// struct Welcome {
///     greeting: String,
/// }
///
/// impl Handler for Welcome {
///     async fn handle(&self, event: &Event, tx: &mut Transaction) -> Result<(), HandlerError> {
///         let mail = sqlx::query("insert into mails (event_id, text) values ($1, $2)");
///         mail.bind(event.id()).bind(&self.greeting).execute(&mut **tx).await?;
///         Ok(())
///     }
/// }
///
/// fn is_handler(_: impl Handler) {}
/// is_handler(welcome);
/// is_handler(async |_: &Event, _: &mut Transaction| -> Result<(), HandlerError> { Ok(()) });
/// is_handler(Welcome { greeting: "hello".into() });
/// ```
///
/// An async closure must not capture anything; a handler with state is a type of one's own.
///
/// # Contract
/// - *Effects*: what is done through `tx` happens exactly once per event and consumer. What is done elsewhere (a mail
///   sent, another service called) happens once per *attempt*: that is what [`Effect`](super::Effect) is for.
/// - *Concurrency*: events of one partition are handled one at a time, in order, unless the consumer's `concurrency`
///   is more; then this holds for events of one key. Those of several partitions are handled at the same time.
/// - *Failure*: `Err` and a panic roll `tx` back. What happens next, [`HandlerError`] says.
/// - *Cancellation*: when the partition is taken away, or on shutdown, the future is dropped once the drain budget is
///   spent, and `tx` rolls back.
/// - `tx` is committed by the consumer. Ending it with SQL of one's own (`commit`, `rollback`) breaks the promise. An
///   error of the database that is caught and not passed on fails the commit: Postgres has given the transaction up.
pub trait Handler<DB: Database = Postgres>: Send + Sync + 'static {
    /// Handles one event.
    fn handle(&self, event: &Event, tx: &mut Transaction<DB>) -> impl Future<Output = Result<(), HandlerError>> + Send;
}

/// Handles events by the batch, in one transaction: far fewer round trips, where effects can be written together.
///
/// ```
/// use outbox_sdk::{BatchHandler, Event, HandlerError, Transaction};
///
/// struct Count;
///
/// impl BatchHandler for Count {
///     async fn handle(&self, events: &[&Event], tx: &mut Transaction) -> Result<(), HandlerError> {
///         let ids: Vec<_> = events.iter().map(|event| event.id()).collect();
///         sqlx::query("insert into seen (event_id) select unnest($1::uuid[])").bind(ids).execute(&mut **tx).await?;
///         Ok(())
///     }
/// }
/// ```
///
/// # Contract
/// As [`Handler`]'s. `events` are in the order of their partition, at least one, none handled before. When the batch
/// fails, everything is rolled back and each event is handled singly: then only the failing one is retried. A handler that
/// asks for time ([`HandlerError::retry_after`]) is called with the batch once more before that.
pub trait BatchHandler<DB: Database = Postgres>: Send + Sync + 'static {
    /// Handles events.
    fn handle(
        &self,
        events: &[&Event],
        tx: &mut Transaction<DB>,
    ) -> impl Future<Output = Result<(), HandlerError>> + Send;
}

/// A function or closure that can be a [`Handler`]; what makes `async fn` one. Not meant to be implemented.
pub trait HandlerFn<'a, DB: Database>: Fn(&'a Event, &'a mut Transaction<DB>) -> Self::Handled {
    /// The function's future.
    type Handled: Future<Output = Result<(), HandlerError>> + Send + 'a;
}

impl<'a, DB: Database, F, R> HandlerFn<'a, DB> for F
where
    F: Fn(&'a Event, &'a mut Transaction<DB>) -> R,
    R: Future<Output = Result<(), HandlerError>> + Send + 'a,
{
    type Handled = R;
}

impl<DB: Database, F> Handler<DB> for F
where
    F: for<'a> HandlerFn<'a, DB> + Send + Sync + 'static,
{
    async fn handle(&self, event: &Event, tx: &mut Transaction<DB>) -> Result<(), HandlerError> {
        self(event, tx).await
    }
}
