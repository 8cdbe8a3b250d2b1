//! Leases on many events, for one effect of all of them.
//!
//! Invariant: as for a [`Leased`](super::Leased) one, the effect runs only while this instance holds all of the leases. It
//! deliberately has no way to do a part: events that cannot be handled together are handled singly, which the worker sees
//! to.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use super::{Done, Mode, Scope};
use crate::{
    claim::{Claim, Claimed, Claims, Hold, work},
    consumer::{
        BatchEffect, Event,
        failure::AttemptError,
        retention::{EXPIRED_MAX, is_too_old},
    },
    inbox::{EventKey, InboxError},
};

/// Handles events by the batch, each under a lease. Made by `.claims(…).batch_effect(…)`.
#[derive(Debug)]
pub struct BatchLeased<C, E> {
    pub(crate) claims: C,
    pub(crate) lease: Duration,
    pub(crate) effect: E,
    pub(crate) events_max: usize,
}

#[allow(private_interfaces, reason = "sealed")]
impl<C: Claims, E: BatchEffect> Mode for BatchLeased<C, E> {
    type Session = ();

    fn batch_max(&self) -> usize {
        self.events_max
    }

    async fn attempt(&self, scope: &Scope, events: &[&Event], (): &mut ()) -> Result<Done, AttemptError> {
        let keys: Vec<EventKey<'_>> = events.iter().map(|event| event.dedup_key()).collect();
        let began = Instant::now();
        let claimed = self.claims.claim_all(&scope.consumer, &keys, self.lease).await.map_err(AttemptError::Inbox)?;
        let Sorted { fresh, claims, duplicates, mut refused } = Sorted::of(events, claimed, scope.window);
        // The first lease began then, and what extends them in time begins now.
        let soon = self.lease / 3;
        if refused.is_none() && began.elapsed() > soon {
            let began = Instant::now();
            refused = match work::extend_all(&self.claims, &claims, self.lease).await {
                Ok(Hold::Kept) if began.elapsed() <= soon => None,
                // Another has one of them, or may have by now.
                Ok(_) => Some(AttemptError::Held(Duration::ZERO)),
                Err(error) => Some(AttemptError::Inbox(error)),
            };
        }
        if let Some(error) = refused {
            // Leases that cannot be given back run out by themselves.
            let _ = self.claims.release_all(&claims).await;
            return Err(error);
        }
        if !fresh.is_empty() {
            // It may panic before it is awaited.
            let effects = async { self.effect.perform(&fresh, &claims).await };
            work::complete_all(&self.claims, &claims, self.lease, effects).await.map_err(AttemptError::of_work)?;
        }
        Ok(Done { handled: fresh.len() as u64, duplicates })
    }

    async fn expire(&self, consumer: &str, older_than: Duration) -> Result<u64, InboxError> {
        self.claims.expire(consumer, older_than, EXPIRED_MAX).await
    }
}

/// What became of the events of a batch when they were claimed.
struct Sorted<'e> {
    /// Those that are to be handled, and at the same places the leases on them.
    fresh: Vec<&'e Event>,
    claims: Vec<Claim>,
    /// How many are done already, or will be with another of the same batch.
    duplicates: u64,
    /// Why they cannot be handled together.
    refused: Option<AttemptError>,
}

impl<'e> Sorted<'e> {
    fn of(events: &[&'e Event], claimed: Vec<Claimed>, window: Option<Duration>) -> Self {
        let (fresh, claims) = (Vec::with_capacity(events.len()), Vec::with_capacity(events.len()));
        let mut sorted = Self { fresh, claims, duplicates: 0, refused: None };
        let mut held = Vec::new();
        for (event, claimed) in events.iter().zip(claimed) {
            match claimed {
                Claimed::Yours(claim) => {
                    if is_too_old(event, window) {
                        sorted.refused = Some(AttemptError::TooOld);
                    }
                    sorted.fresh.push(event);
                    sorted.claims.push(claim);
                }
                Claimed::Done(_) => sorted.duplicates += 1,
                Claimed::Held { left } => held.push((event, left)),
                Claimed::Conflict => sorted.refused = Some(AttemptError::Conflict),
                Claimed::TooOld => sorted.refused = Some(AttemptError::TooOld),
            }
        }
        if !held.is_empty() {
            let ours: HashSet<_> = sorted.fresh.iter().map(|event| (event.source(), event.id())).collect();
            for (event, left) in held {
                match ours.contains(&(event.source(), event.id())) {
                    true => sorted.duplicates += 1,
                    false => sorted.refused = Some(AttemptError::Held(left)),
                }
            }
        }
        sorted
    }
}
