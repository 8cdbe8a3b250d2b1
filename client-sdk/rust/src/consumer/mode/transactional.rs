//! One event, one transaction: the mark first, the handler's effects, the commit.
//!
//! Invariant: nothing runs between the mark and the commit but the handler. It deliberately does not roll back by
//! itself when a handler panics: dropping the session does.

use std::time::Duration;

use super::{Done, Mode, Scope};
use crate::{
    consumer::{
        Event, Handler,
        failure::AttemptError,
        retention::{EXPIRED_MAX, is_too_old},
    },
    inbox::{Inbox, InboxError, Mark, Session},
};

/// Handles each event in a transaction of its own. Made by `.inbox(…).handler(…)`.
#[derive(Debug)]
pub struct Transactional<I, H> {
    pub(crate) inbox: I,
    pub(crate) handler: H,
}

#[allow(private_interfaces, reason = "sealed")]
impl<I: Inbox, H: Handler<I::Database>> Mode for Transactional<I, H> {
    type Session = Session<I::Database>;

    async fn attempt(
        &self,
        scope: &Scope,
        events: &[&Event],
        session: &mut Self::Session,
    ) -> Result<Done, AttemptError> {
        let mut done = Done::default();
        for event in events {
            match self.one(scope, event, session).await? {
                Mark::Fresh => done.handled += 1,
                Mark::Duplicate => done.duplicates += 1,
                Mark::Conflict => return Err(AttemptError::Conflict),
            }
        }
        Ok(done)
    }

    async fn expire(&self, consumer: &str, older_than: Duration) -> Result<u64, InboxError> {
        self.inbox.expire(consumer, older_than, EXPIRED_MAX).await
    }

    async fn rest(&self, session: &mut Self::Session) -> Option<Duration> {
        session.roll_back().await;
        session.keep_for()
    }
}

impl<I: Inbox, H: Handler<I::Database>> Transactional<I, H> {
    async fn one(
        &self,
        within: &Scope,
        event: &Event,
        session: &mut Session<I::Database>,
    ) -> Result<Mark, AttemptError> {
        let scope = scope(&self.inbox, &within.consumer, event, session).await?;
        let transaction = session.begin(&self.inbox).await.map_err(AttemptError::Inbox)?;
        let mark = match I::mark(transaction, scope, &event.dedup_key()).await {
            Ok(mark) => mark,
            Err(error) => {
                *session = Session::default();
                return Err(AttemptError::Inbox(error));
            }
        };
        if mark != Mark::Fresh {
            session.roll_back().await;
            return Ok(mark);
        }
        if is_too_old(event, within.window) {
            session.roll_back().await;
            return Err(AttemptError::TooOld);
        }
        if let Err(error) = self.handler.handle(event, transaction).await {
            // Rolling back now instead of on drop lets the next attempt begin without waiting for it.
            session.roll_back().await;
            return Err(AttemptError::Handler(error));
        }
        // When the answer to this is lost, the next attempt finds out: its mark waits for the transaction's end.
        session.commit::<I>().await.map_err(AttemptError::Commit)?;
        Ok(Mark::Fresh)
    }
}

/// The number of the event's scope; made, where it is missing, before the event's transaction begins.
pub(super) async fn scope<I: Inbox>(
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
