//! Claims of the inbox: who is handling which event, and what came of it.

use std::time::Duration;

use chrono::{DateTime, Utc};
use uuid::Uuid;

/// An event as one consumer handles it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// Tenant.
    pub namespace: String,
    /// The handler's name.
    pub consumer: String,
    /// The event's CloudEvents `source`.
    pub source: String,
    /// The event's id, unique in its source.
    pub event_id: Uuid,
}

/// A wish to handle an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimDraft {
    /// The event.
    pub delivery: Delivery,
    /// The event's own time; without one it is as old as its first claim.
    pub event_time: Option<DateTime<Utc>>,
    /// A hash of what it holds, if that is to be compared.
    pub content_hash: Option<Vec<u8>>,
    /// How long others wait when the holder dies.
    pub lease: Duration,
    /// Names the lease; sent again it is the same claim.
    pub token: Uuid,
}

/// A lease on an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The event.
    pub delivery: Delivery,
    /// Names it.
    pub token: Uuid,
}

/// What claiming an event came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claimed {
    /// The lease is the caller's.
    Granted {
        /// How often the event has been claimed, this time included.
        attempt: i32,
    },
    /// The effect has happened.
    Completed {
        /// What its holder stored.
        result: Vec<u8>,
        /// When.
        completed_at: DateTime<Utc>,
    },
    /// Another holds the lease.
    Held {
        /// How long at most.
        left: Duration,
    },
    /// Another event was claimed under the same identity.
    Conflict,
    /// The event is older than claims are kept, and not known.
    TooOld,
}

/// What a holder does with its lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Holds it for so long from now on; not at all gives it back.
    Extend(Duration),
    /// Has had the effect, with this result.
    Complete(Vec<u8>),
}
