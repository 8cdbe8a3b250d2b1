//! What an application supplies: the handler of events.
//!
//! It deliberately gets no way to say "handled": returning `Ok` is saying so, and the transaction decides.

use std::{error::Error, fmt};

use super::Event;
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
///   sent, another service called) happens once per *attempt*.
/// - *Concurrency*: events of one partition are handled one at a time, in order; those of several at the same time.
/// - *Failure*: `Err` and a panic roll `tx` back, and the same event is tried again; the partition waits.
/// - *Cancellation*: when the partition is taken away, or on shutdown, the future is dropped once the drain budget is
///   spent, and `tx` rolls back.
/// - `tx` is committed by the consumer. Ending it with SQL of one's own (`commit`, `rollback`) breaks the promise.
pub trait Handler: Send + Sync + 'static {
    /// Handles one event.
    fn handle(&self, event: &Event, tx: &mut Transaction) -> impl Future<Output = Result<(), HandlerError>> + Send;
}

/// A function or closure that can be a [`Handler`]; what makes `async fn` one. Not meant to be implemented.
pub trait HandlerFn<'a>: Fn(&'a Event, &'a mut Transaction) -> Self::Handled {
    /// The function's future.
    type Handled: Future<Output = Result<(), HandlerError>> + Send + 'a;
}

impl<'a, F, R> HandlerFn<'a> for F
where
    F: Fn(&'a Event, &'a mut Transaction) -> R,
    R: Future<Output = Result<(), HandlerError>> + Send + 'a,
{
    type Handled = R;
}

impl<F> Handler for F
where
    F: for<'a> HandlerFn<'a> + Send + Sync + 'static,
{
    async fn handle(&self, event: &Event, tx: &mut Transaction) -> Result<(), HandlerError> {
        self(event, tx).await
    }
}

/// Why an event could not be handled this time. Every error converts into it with `?`.
pub struct HandlerError(Box<dyn Error + Send + Sync>);

impl HandlerError {
    /// An error that is a message.
    pub fn new(message: impl Into<String>) -> Self {
        Self(message.into().into())
    }

    pub(super) fn into_source(self) -> Box<dyn Error + Send + Sync> {
        self.0
    }
}

// `HandlerError` deliberately is no `Error` itself: this conversion would then overlap with that of a type to itself.
impl<E: Error + Send + Sync + 'static> From<E> for HandlerError {
    fn from(error: E) -> Self {
        Self(Box::new(error))
    }
}

impl fmt::Debug for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}
