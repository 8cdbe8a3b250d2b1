//! The ways in which a consumer handles events, told apart by type.
//!
//! - [`Transactional`]: mark and effects in one transaction; effects happen exactly once.
//! - [`Batched`]: the same, many events in one transaction.
//! - [`Leased`]: a lease on each event, for effects outside a database; they happen once unless the lease is lost.
//! - [`BatchLeased`]: the same, with one effect for many events.
//!
//! Invariant: an attempt that returns `Ok` has settled its events: their effects are durable, or were before.
//! It deliberately decides nothing about failures: `worker` does.

mod batch_leased;
mod batched;
mod leased;
mod transaction;
mod transactional;

use std::time::Duration;

pub use self::{batch_leased::BatchLeased, batched::Batched, leased::Leased, transactional::Transactional};
use super::{Event, failure::AttemptError};
use crate::inbox::InboxError;

/// Within what events are handled once.
#[derive(Clone, Debug)]
pub(crate) struct Scope {
    pub(crate) consumer: String,
    /// Older events are not handled.
    pub(crate) window: Option<Duration>,
}

/// How a consumer handles events: [`Transactional`], [`Batched`], [`Leased`] or [`BatchLeased`]. Not meant to be implemented.
#[allow(private_interfaces, private_bounds, reason = "sealed: what its methods speak of cannot be named outside")]
pub trait Mode: Send + Sync + 'static {
    /// What a worker keeps from one attempt to the next.
    #[doc(hidden)]
    type Session: Default + Send;

    /// How many events of one line to handle at once.
    #[doc(hidden)]
    fn batch_max(&self) -> usize {
        1
    }

    /// Handles events once.
    #[doc(hidden)]
    fn attempt(
        &self,
        scope: &Scope,
        events: &[&Event],
        session: &mut Self::Session,
    ) -> impl Future<Output = Result<Done, AttemptError>> + Send;

    /// Deletes some of what this consumer has remembered for longer than this; says how much.
    #[doc(hidden)]
    fn expire(&self, consumer: &str, older_than: Duration) -> impl Future<Output = Result<u64, InboxError>> + Send;

    /// There is nothing to handle now. Returns how long the worker may wait with what it keeps.
    #[doc(hidden)]
    fn rest(&self, _: &mut Self::Session) -> impl Future<Output = Option<Duration>> + Send {
        async { None }
    }
}

/// What handling events once came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Done {
    /// Events whose effects are durable now.
    pub(crate) handled: u64,
    /// Events whose effects were durable before.
    pub(crate) duplicates: u64,
}
