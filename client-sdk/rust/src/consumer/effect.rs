//! What an application supplies for effects outside a database.

use super::{Event, HandlerError};
use crate::claim::Claim;

/// Has an effect for each event: sends a mail, calls another service. For effects in a database use
/// [`Handler`](super::Handler), which promises more.
///
/// ```
/// use outbox_sdk::{Effect, Event, HandlerError, claim::Claim};
///
/// struct Mail;
///
/// impl Effect for Mail {
///     async fn perform(&self, event: &Event, claim: &Claim) -> Result<Vec<u8>, HandlerError> {
///         if claim.attempt() > 1 {
///             // Look whether it went out before: an earlier attempt may have got that far.
///         }
///         // The event's id is the mail service's idempotency key.
///         Ok(event.id().as_bytes().to_vec())
///     }
/// }
/// ```
///
/// # Contract
/// - *Effects* happen while this consumer holds the event's lease, which is extended for as long as this runs. They
///   happen once, unless the process dies, loses its lease, or cannot reach the store between the effect and its
///   completion, for as long as a lease lasts, or as the drain budget once the partition is to be given back: then again.
/// - *Result*: what is returned is stored with the event, at most a few kilobytes, please.
/// - *Concurrency*, *failure*: as for [`Handler`](super::Handler).
/// - *Cancellation*: the future is dropped when the lease is lost, too.
pub trait Effect: Send + Sync + 'static {
    /// Has the effect of one event.
    fn perform(&self, event: &Event, claim: &Claim) -> impl Future<Output = Result<Vec<u8>, HandlerError>> + Send;
}

/// Has one effect for many events: a request that carries them all, to a search index or a mail service, say. For effects
/// in a database use [`BatchHandler`](super::BatchHandler), which promises more.
///
/// ```
/// use outbox_sdk::{BatchEffect, Event, HandlerError, claim::Claim};
///
/// struct Index;
///
/// impl BatchEffect for Index {
///     async fn perform(&self, events: &[&Event], _: &[Claim]) -> Result<(), HandlerError> {
///         // The event's id names the document, so that one that is written again is the same one.
///         let documents: Vec<_> = events.iter().map(|event| (event.id(), event.payload())).collect();
///         // bulk(documents).await?
///         # let _ = documents;
///         Ok(())
///     }
/// }
/// ```
///
/// # Contract
/// - *Events*: those of a partition that have arrived and have not been handled before, at most as many as the builder was
///   told, in the partition's order, each once. `claims` has the lease on each at the same place.
/// - *Effects*: as for [`Effect`]; after a crash they may happen again for all events of the batch, or for some.
/// - *Failure*: when this fails for any of them, let it return the error: then each is performed by itself, with an attempt
///   more, those that have had their effect included; after the time that a [`HandlerError::retry_after`] asks for, all are
///   tried together once more. When they cannot be handled together, because another instance is at work on one of them,
///   say, each is performed by itself, too, and nothing has been before.
/// - *Result*: none is stored.
/// - *Concurrency*, *cancellation*: as for [`Effect`]; the future is dropped when any of the leases is lost.
pub trait BatchEffect: Send + Sync + 'static {
    /// Has the effects of these events.
    fn perform(&self, events: &[&Event], claims: &[Claim]) -> impl Future<Output = Result<(), HandlerError>> + Send;
}
