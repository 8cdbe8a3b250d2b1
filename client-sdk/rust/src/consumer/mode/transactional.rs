//! One event, one transaction.
//!
//! It deliberately is all that tells this mode from [`Batched`](super::Batched): the rest is in `transaction`.

use std::time::Duration;

use super::{
    Done, Mode, Scope,
    transaction::{self, Work},
};
use crate::{
    consumer::{Event, Handler, HandlerError, failure::AttemptError, retention::EXPIRED_MAX},
    inbox::{Inbox, InboxError, Session, Transaction},
};

/// Handles each event in a transaction of its own. Made by `.inbox(…).handler(…)`.
#[derive(Debug)]
pub struct Transactional<I, H> {
    pub(crate) inbox: I,
    pub(crate) handler: H,
}

impl<I: Inbox, H: Handler<I::Database>> Work<I> for Transactional<I, H> {
    async fn work(&self, fresh: &[&Event], transaction: &mut Transaction<I::Database>) -> Result<(), HandlerError> {
        for event in fresh {
            self.handler.handle(event, transaction).await?;
        }
        Ok(())
    }
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
