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
///   happen once, unless the process dies, or loses its lease, between the effect and its completion: then again.
/// - *Result*: what is returned is stored with the event, at most a few kilobytes, please.
/// - *Concurrency*, *failure*: as for [`Handler`](super::Handler). A panic keeps the lease until it runs out.
/// - *Cancellation*: the future is dropped when the lease is lost, too.
pub trait Effect: Send + Sync + 'static {
    /// Has the effect of one event.
    fn perform(&self, event: &Event, claim: &Claim) -> impl Future<Output = Result<Vec<u8>, HandlerError>> + Send;
}
