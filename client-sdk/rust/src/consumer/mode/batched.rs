//! Many events, one transaction.
//!
//! It deliberately is all that tells this mode from [`Transactional`](super::Transactional): the rest is in
//! `transaction`.

use std::time::Duration;

use super::{
    Done, Mode, Scope,
    transaction::{self, Work},
};
use crate::{
    consumer::{BatchHandler, Event, HandlerError, failure::AttemptError, retention::EXPIRED_MAX},
    inbox::{Inbox, InboxError, Session, Transaction},
};

/// Handles events by the batch. Made by `.inbox(…).batch_handler(…)`.
#[derive(Debug)]
pub struct Batched<I, H> {
    pub(crate) inbox: I,
    pub(crate) handler: H,
    pub(crate) events_max: usize,
}

impl<I: Inbox, H: BatchHandler<I::Database>> Work<I> for Batched<I, H> {
    async fn work(&self, fresh: &[&Event], transaction: &mut Transaction<I::Database>) -> Result<(), HandlerError> {
        self.handler.handle(fresh, transaction).await
    }
}

#[allow(private_interfaces, reason = "sealed")]
impl<I: Inbox, H: BatchHandler<I::Database>> Mode for Batched<I, H> {
    type Session = Session<I::Database>;

    fn batch_max(&self) -> usize {
        self.events_max
    }

    async fn attempt(
        &self,
        scope: &Scope,
        events: &[&Event],
        session: &mut Self::Session,
    ) -> Result<Done, AttemptError> {
        transaction::attempt(&self.inbox, self, scope, events, session).await
    }

    async fn expire(&self, consumer: &str, older_than: Duration) -> Result<u64, InboxError> {
        self.inbox.expire(consumer, older_than, EXPIRED_MAX).await
    }

    async fn rest(&self, session: &mut Self::Session) -> Option<Duration> {
        session.roll_back().await;
        session.keep_for()
    }
}
