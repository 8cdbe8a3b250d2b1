//! Events in one transaction: their marks first, then what handles those that are new, then the commit.
//!
//! Invariant: nothing runs between the marks and the commit but the handler, so the transaction holds all effects and all
//! marks, or none. It deliberately does not roll back by itself when a handler panics: dropping the session does; nor
//! does it look for the event that made several fail: the worker tries each singly.

use super::{Done, Scope};
use crate::{
    consumer::{Event, HandlerError, failure::AttemptError, retention::is_too_old},
    inbox::{Inbox, Mark, Session, Transaction},
};

/// What is done in the transaction with events that have not been handled before.
pub(super) trait Work<I: Inbox>: Send + Sync {
    fn work(
        &self,
        fresh: &[&Event],
        transaction: &mut Transaction<I::Database>,
    ) -> impl Future<Output = Result<(), HandlerError>> + Send;
}

/// Handles events once, in a transaction of their own.
pub(super) async fn attempt<I: Inbox>(
    inbox: &I,
    work: &impl Work<I>,
    within: &Scope,
    events: &[&Event],
    session: &mut Session<I::Database>,
) -> Result<Done, AttemptError> {
    let mut keys = Vec::with_capacity(events.len());
    for event in events {
        keys.push((scope(inbox, &within.consumer, event, session).await?, event.dedup_key()));
    }
    let transaction = session.begin(inbox).await.map_err(AttemptError::Inbox)?;
    let marks = match inbox.mark_all(transaction, &keys).await {
        Ok(marks) => marks,
        Err(error) => {
            *session = Session::default();
            return Err(AttemptError::Inbox(error));
        }
    };
    let fresh: Vec<&Event> =
        events.iter().zip(&marks).filter(|(_, mark)| **mark == Mark::Fresh).map(|(event, _)| *event).collect();
    let done = Done { handled: fresh.len() as u64, duplicates: (events.len() - fresh.len()) as u64 };
    let refused = match () {
        () if marks.contains(&Mark::Conflict) => Some(AttemptError::Conflict),
        () if fresh.iter().any(|event| is_too_old(event, within.window)) => Some(AttemptError::TooOld),
        () => None,
    };
    if refused.is_some() || fresh.is_empty() {
        session.roll_back().await;
        return refused.map_or(Ok(done), Err);
    }
    if let Err(error) = work.work(&fresh, transaction).await {
        // Rolling back now instead of on drop lets the next attempt begin without waiting for it.
        session.roll_back().await;
        return Err(AttemptError::Handler(error));
    }
    // When the answer to this is lost, the next attempt finds out: its mark waits for the transaction's end.
    session.commit::<I>().await.map_err(AttemptError::Commit)?;
    Ok(done)
}

/// The number of the event's scope; made, where it is missing, before the event's transaction begins.
async fn scope<I: Inbox>(
    inbox: &I,
    consumer: &str,
    event: &Event,
    session: &mut Session<I::Database>,
) -> Result<i32, AttemptError> {
    if let Some(scope) = inbox.known_scope(consumer, event.source()) {
        return Ok(scope);
    }
    // Its connection goes back first: the pool may hold no other.
    *session = Session::default();
    inbox.add_scope(consumer, event.source()).await.map_err(AttemptError::Inbox)
}
