//! Handling one event without a consumer: webhooks, other brokers, a job of one's own.
//!
//! Invariant: the same as the consumer's, for it is the same transaction. It deliberately does not try again: the
//! caller knows whether whoever sent the event will.

use futures_util::future::BoxFuture;

use super::{EventKey, Inbox, InboxError, Mark, Session, Transaction};

/// What processing an event came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Processed<T> {
    /// It was done now, and is durable.
    Fresh(T),
    /// It had been done before; nothing was done now.
    Duplicate,
    /// Another event has been handled under this identity; nothing was done now.
    Conflict,
}

/// Why an event was not processed. Nothing was changed, but for `Commit`.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError<E> {
    /// The inbox failed.
    #[error(transparent)]
    Inbox(#[from] InboxError),
    /// The work failed, and was rolled back.
    #[error("the work failed")]
    Work(#[source] E),
    /// The transaction was not committed, or the database's answer was lost: calling again finds out.
    #[error("the transaction was not committed")]
    Commit(#[source] sqlx::Error),
}

pub(super) async fn process<I: Inbox, T, E>(
    inbox: &I,
    consumer: &str,
    key: EventKey<'_>,
    work: impl for<'t> FnOnce(&'t mut Transaction<I::Database>) -> BoxFuture<'t, Result<T, E>> + Send,
) -> Result<Processed<T>, ProcessError<E>> {
    let scope = match inbox.known_scope(consumer, key.source()) {
        Some(scope) => scope,
        None => inbox.add_scope(consumer, key.source()).await?,
    };
    let mut session = Session::default();
    let transaction = session.begin(inbox).await?;
    let done = match I::mark(transaction, scope, &key).await? {
        Mark::Fresh => match work(transaction).await {
            Ok(done) => {
                session.commit::<I>().await.map_err(ProcessError::Commit)?;
                Ok(Processed::Fresh(done))
            }
            Err(error) => Err(ProcessError::Work(error)),
        },
        Mark::Duplicate => Ok(Processed::Duplicate),
        Mark::Conflict => Ok(Processed::Conflict),
    };
    session.roll_back().await;
    done
}
