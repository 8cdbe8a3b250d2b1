//! Leases on events, for effects that no transaction of ours can hold: a mail sent, another service called.
//!
//! Whoever claims an event holds a lease on it until it completes, releases or lets the lease run out; then another may
//! claim it. Invariants: at most one lease on an event at a time; what is completed stays completed, with its result;
//! a completion by anyone but the present holder is refused.
//!
//! It deliberately does not promise that an effect happens once: a holder that dies after its effect and before its
//! completion leaves an event whose effect will be repeated.

mod layer;
mod memory;
mod postgres;
mod rows;
mod server;
#[cfg(feature = "sqlite")]
mod sqlite;
pub(crate) mod work;

use std::time::Duration;

use uuid::Uuid;

#[cfg(feature = "sqlite")]
pub use self::sqlite::SqliteClaims;
pub use self::{
    layer::{Dedup, DedupError, DedupLayer, Keyed},
    memory::MemoryClaims,
    postgres::PostgresClaims,
    server::ServerClaims,
};
use crate::inbox::{EventKey, InboxError};

/// A lease on an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    scope: Scope,
    event_id: Uuid,
    token: Uuid,
    attempt: u32,
}

/// How the store that granted a lease finds its scope again.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Scope {
    /// By the number that it gave it.
    Number(i32),
    /// By its names.
    Names { consumer: String, source: String },
}

impl Claim {
    fn new(scope: i32, event_id: Uuid, token: Uuid, attempt: u32) -> Self {
        Self { scope: Scope::Number(scope), event_id, token, attempt }
    }

    /// The scope's number; one that no scope has when the claim is another kind of store's.
    fn number(&self) -> i32 {
        match self.scope {
            Scope::Number(number) => number,
            Scope::Names { .. } => -1,
        }
    }

    /// The event's id.
    pub fn event_id(&self) -> Uuid {
        self.event_id
    }

    /// Names this lease; a lease after it has another. Effects that take an idempotency key are better given the
    /// event's id, which stays.
    pub fn token(&self) -> Uuid {
        self.token
    }

    /// How often the event has been claimed, this time included. More than 1: an earlier holder may have had the
    /// effect, wholly or in part.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }
}

/// What claiming an event came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claimed {
    /// The lease is the caller's.
    Yours(Claim),
    /// The event is completed, with this result.
    Done(Vec<u8>),
    /// Another holds the lease.
    Held {
        /// How long at most, unless it is extended.
        left: Duration,
    },
    /// Another event was claimed or completed under the same identity.
    Conflict,
    /// The event is older than the store keeps claims, and not known: whether it was completed is not known any more.
    TooOld,
}

/// Whether a lease still is the caller's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// It is, and what was asked for is done.
    Kept,
    /// Another has claimed the event since, or it is completed: nothing was done.
    Lost,
}

/// A store of claims: in memory, in Postgres, in SQLite, or the server's.
///
/// # Contract
/// - Time is the store's, never the caller's: clocks of several callers may differ.
/// - A lease that has run out stays its holder's until another claims the event: completing late is refused when it
///   would contradict another holder, and not before.
/// - [`complete`](Self::complete) again by the same holder is `Kept`: the answer to the first may have been lost.
/// - Cancellation of any call leaves it done or not done.
pub trait Claims: Clone + Send + Sync + 'static {
    /// Claims an event for this long.
    fn claim(
        &self,
        consumer: &str,
        key: &EventKey<'_>,
        lease: Duration,
    ) -> impl Future<Output = Result<Claimed, InboxError>> + Send;

    /// Holds the lease for this long from now on.
    fn extend(&self, claim: &Claim, lease: Duration) -> impl Future<Output = Result<Hold, InboxError>> + Send;

    /// The effect has happened. `result` is what later claims are answered.
    fn complete(&self, claim: &Claim, result: &[u8]) -> impl Future<Output = Result<Hold, InboxError>> + Send;

    /// Gives the lease back: another may claim the event at once.
    fn release(&self, claim: &Claim) -> impl Future<Output = Result<Hold, InboxError>> + Send;

    /// Claims these events, and answers in their order what [`claim`](Self::claim) would, one after the other: an event that
    /// is given twice, and is to be had, is held the second time. When it fails, leases that it got are given back or run out.
    ///
    /// Unless a store has a better way, this and the next three take the events one by one.
    fn claim_all(
        &self,
        consumer: &str,
        keys: &[EventKey<'_>],
        lease: Duration,
    ) -> impl Future<Output = Result<Vec<Claimed>, InboxError>> + Send {
        async move {
            let mut claimed = Vec::with_capacity(keys.len());
            for key in keys {
                match self.claim(consumer, key, lease).await {
                    Ok(answer) => claimed.push(answer),
                    Err(error) => {
                        give_back(self, claimed).await;
                        return Err(error);
                    }
                }
            }
            Ok(claimed)
        }
    }

    /// Extends each of these leases. When it fails, some may be extended.
    fn extend_all(
        &self,
        claims: &[Claim],
        lease: Duration,
    ) -> impl Future<Output = Result<Vec<Hold>, InboxError>> + Send {
        one_by_one(claims, move |claim| self.extend(claim, lease))
    }

    /// Completes each of these, without a result. When it fails, some may be completed.
    fn complete_all(&self, claims: &[Claim]) -> impl Future<Output = Result<Vec<Hold>, InboxError>> + Send {
        one_by_one(claims, move |claim| self.complete(claim, b""))
    }

    /// Gives each of these leases back. When it fails, some may be given back.
    fn release_all(&self, claims: &[Claim]) -> impl Future<Output = Result<Vec<Hold>, InboxError>> + Send {
        one_by_one(claims, move |claim| self.release(claim))
    }

    /// Forgets up to `max` of what the consumer completed longer ago than this; says how many.
    fn expire(
        &self,
        consumer: &str,
        older_than: Duration,
        max: i64,
    ) -> impl Future<Output = Result<u64, InboxError>> + Send;
}

async fn one_by_one<'c, F: Future<Output = Result<Hold, InboxError>>>(
    claims: &'c [Claim],
    call: impl Fn(&'c Claim) -> F,
) -> Result<Vec<Hold>, InboxError> {
    let mut holds = Vec::with_capacity(claims.len());
    for claim in claims {
        holds.push(call(claim).await?);
    }
    Ok(holds)
}

/// Gives back the leases among what several events were answered. Those that cannot be given back run out.
async fn give_back(claims: &impl Claims, claimed: Vec<Claimed>) {
    let yours = |answer| if let Claimed::Yours(claim) = answer { Some(claim) } else { None };
    let held: Vec<Claim> = claimed.into_iter().filter_map(yours).collect();
    let _ = claims.release_all(&held).await;
}
