//! Many events, one transaction: all marks in one insert, then the handler with those that are new, then the commit.
//!
//! Invariant: the transaction holds all effects of the batch or none. It deliberately does not look for the event that
//! made a batch fail: the worker tries each singly.

use std::time::Duration;

use super::{Done, Mode, Scope, transactional::scope};
use crate::{
    consumer::{
        BatchHandler, Event,
        failure::AttemptError,
        retention::{EXPIRED_MAX, is_too_old},
    },
    inbox::{Inbox, InboxError, Mark, Session},
};

/// Handles events by the batch. Made by `.inbox(…).batch_handler(…)`.
#[derive(Debug)]
pub struct Batched<I, H> {
    pub(crate) inbox: I,
    pub(crate) handler: H,
    pub(crate) events_max: usize,
}

#[allow(private_interfaces, reason = "sealed")]
impl<I: Inbox, H: BatchHandler<I::Database>> Mode for Batched<I, H> {
    type Session = Session<I::Database>;

    fn batch_max(&self) -> usize {
        self.events_max
    }

    async fn attempt(
        &self,
        within: &Scope,
        events: &[&Event],
        session: &mut Self::Session,
    ) -> Result<Done, AttemptError> {
        let mut keys = Vec::with_capacity(events.len());
        for event in events {
            keys.push((scope(&self.inbox, &within.consumer, event, session).await?, event.dedup_key()));
        }
        let transaction = session.begin(&self.inbox).await.map_err(AttemptError::Inbox)?;
        let marks = match I::mark_all(transaction, &keys).await {
            Ok(marks) => marks,
            Err(error) => {
                *session = Session::default();
                return Err(AttemptError::Inbox(error));
            }
        };
        if marks.contains(&Mark::Conflict) {
            session.roll_back().await;
            return Err(AttemptError::Conflict);
        }
        let fresh: Vec<&Event> =
            events.iter().zip(&marks).filter(|(_, mark)| **mark == Mark::Fresh).map(|(event, _)| *event).collect();
        let done = Done { handled: fresh.len() as u64, duplicates: (events.len() - fresh.len()) as u64 };
        if fresh.is_empty() {
            session.roll_back().await;
            return Ok(done);
        }
        if fresh.iter().any(|event| is_too_old(event, within.window)) {
            session.roll_back().await;
            return Err(AttemptError::TooOld);
        }
        if let Err(error) = self.handler.handle(&fresh, transaction).await {
            session.roll_back().await;
            return Err(AttemptError::Handler(error));
        }
        session.commit::<I>().await.map_err(AttemptError::Commit)?;
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
