//! A lease on each event, for effects outside a database.
//!
//! Invariants: the effect runs only while this instance holds the event's lease, which is extended meanwhile; a result
//! that comes after the lease was lost is refused by the store, and the event is claimed anew.
//!
//! It deliberately promises less than a transaction: an effect that happened just before a crash happens again. The
//! lease's token, the same for every call of one attempt, is there for services that deduplicate themselves.

use std::time::Duration;

use super::{Done, Mode, Scope};
use crate::{
    claim::{Claim, Claimed, Claims, work},
    consumer::{
        Effect, Event,
        failure::AttemptError,
        retention::{EXPIRED_MAX, is_too_old},
    },
    inbox::InboxError,
};

/// Handles each event under a lease. Made by `.claims(…).effect(…)`.
#[derive(Debug)]
pub struct Leased<C, E> {
    pub(crate) claims: C,
    pub(crate) lease: Duration,
    pub(crate) effect: E,
}

#[allow(private_interfaces, reason = "sealed")]
impl<C: Claims, E: Effect> Mode for Leased<C, E> {
    type Session = ();

    async fn attempt(&self, scope: &Scope, events: &[&Event], (): &mut ()) -> Result<Done, AttemptError> {
        let mut done = Done::default();
        for event in events {
            let claimed = self.claims.claim(&scope.consumer, &event.dedup_key(), self.lease).await;
            match claimed.map_err(AttemptError::Inbox)? {
                Claimed::Yours(claim) if is_too_old(event, scope.window) => {
                    // Nothing of it is to stay, or a repeat would find it being worked on. A lease that cannot be given
                    // back runs out by itself.
                    let _ = self.claims.release(&claim).await;
                    return Err(AttemptError::TooOld);
                }
                Claimed::Yours(claim) => {
                    self.perform(event, &claim).await?;
                    done.handled += 1;
                }
                Claimed::Done(_) => done.duplicates += 1,
                Claimed::Held { left } => return Err(AttemptError::Held(left)),
                Claimed::Conflict => return Err(AttemptError::Conflict),
                Claimed::TooOld => return Err(AttemptError::TooOld),
            }
        }
        Ok(done)
    }

    async fn expire(&self, consumer: &str, older_than: Duration) -> Result<u64, InboxError> {
        self.claims.expire(consumer, older_than, EXPIRED_MAX).await
    }
}

impl<C: Claims, E: Effect> Leased<C, E> {
    async fn perform(&self, event: &Event, claim: &Claim) -> Result<(), AttemptError> {
        // It may panic before it is awaited.
        let effect = async { self.effect.perform(event, claim).await };
        let performed = work::complete(&self.claims, claim, self.lease, effect).await;
        performed.map(drop).map_err(AttemptError::of_work)
    }
}
