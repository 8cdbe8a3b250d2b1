//! What an application supplies for effects outside a database.

use std::error::Error;

use tower::{Service, ServiceExt as _};

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

/// Makes an [`Effect`] of a tower service, with whatever layers are around it: timeouts, limits, one's own. Its answer
/// is the result that is stored; its error is tried again.
///
/// ```
/// use std::time::Duration;
/// use outbox_sdk::{Effect, Event, service};
/// use tower::{ServiceBuilder, service_fn};
///
/// let mail = ServiceBuilder::new().timeout(Duration::from_secs(5)).service(service_fn(async |event: Event| {
///     Ok::<_, std::io::Error>(event.id().as_bytes().to_vec())
/// }));
/// fn is_effect(_: impl Effect) {}
/// is_effect(service(mail));
/// ```
pub fn service<S>(service: S) -> ServiceEffect<S> {
    ServiceEffect(service)
}

/// The effect that [`service`] makes.
#[derive(Clone, Debug)]
pub struct ServiceEffect<S>(S);

impl<S> Effect for ServiceEffect<S>
where
    S: Service<Event, Response = Vec<u8>> + Clone + Send + Sync + 'static,
    S::Error: Into<Box<dyn Error + Send + Sync>> + Send,
    S::Future: Send,
{
    async fn perform(&self, event: &Event, _: &Claim) -> Result<Vec<u8>, HandlerError> {
        let answer = self.0.clone().oneshot(event.clone()).await;
        answer.map_err(|error| HandlerError::Retry { after: None, source: error.into() })
    }
}
