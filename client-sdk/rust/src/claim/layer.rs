//! Deduplication as a tower layer: for webhooks, other brokers, or any service that is called with the same thing
//! twice.
//!
//! Invariant: the inner service is called only by the holder of the request's lease, and a repeat gets the first
//! answer. It deliberately does not wait for another holder: whoever sent the request will send it again.

use std::{
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::future::BoxFuture;
use tower::{Layer, Service};

use super::{
    Claimed, Claims,
    work::{self, Unfinished},
};
use crate::inbox::{EventKey, InboxError};

/// A request that says what it is deduplicated by.
pub trait Keyed {
    /// Its identity.
    fn key(&self) -> EventKey<'_>;
}

impl Keyed for crate::Event {
    fn key(&self) -> EventKey<'_> {
        self.dedup_key()
    }
}

/// Makes a service answer each request once, by its [key](Keyed::key); repeats get the first answer.
///
/// ```
/// use std::time::Duration;
/// use outbox_sdk::{EventKey, claim::{DedupLayer, Keyed, MemoryClaims}};
/// use tower::{Layer, ServiceExt as _, service_fn};
///
/// struct Webhook { delivery: String }
///
/// impl Keyed for Webhook {
///     fn key(&self) -> EventKey<'_> {
///         EventKey::named("stripe", &self.delivery)
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let layer = DedupLayer::new("payments", MemoryClaims::new(10_000), Duration::from_secs(30));
/// let service = layer.layer(service_fn(async |_: Webhook| Ok::<_, std::io::Error>(b"paid".to_vec())));
/// for _ in 0..2 {
///     let answer = service.clone().oneshot(Webhook { delivery: "evt_1".into() }).await.unwrap();
///     assert_eq!(answer, b"paid");
/// }
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct DedupLayer<C> {
    consumer: Arc<str>,
    claims: C,
    lease: Duration,
}

/// The service that [`DedupLayer`] makes.
#[derive(Clone, Debug)]
pub struct Dedup<S, C> {
    layer: DedupLayer<C>,
    inner: S,
}

/// Why a request was not answered.
#[derive(Debug, thiserror::Error)]
pub enum DedupError<E> {
    /// The inner service failed; the request may be sent again at once.
    #[error("the service failed")]
    Service(#[source] E),
    /// Another call with the same key is under way.
    #[error("the same request is being answered, for another {0:?} at most")]
    Held(Duration),
    /// Another request was answered under this key.
    #[error("another request was answered under the same key")]
    Conflict,
    /// The request is older than the store keeps claims, and not known: it may have been answered.
    #[error("the request is so old that it is not known any more whether it was answered")]
    TooOld,
    /// The lease ran out before the answer was stored, and another took it: the service may be called twice.
    #[error("the lease on the request was lost while it was answered")]
    Late,
    /// The store of claims failed.
    #[error(transparent)]
    Store(#[from] InboxError),
}

impl<C: Claims> DedupLayer<C> {
    /// Deduplicates within `consumer`. `lease` is how long a repeat has to wait for a call whose process has died; while
    /// the service works on its answer, the lease is extended. An answer that the store does not take is offered again for
    /// as long as a lease lasts, which the caller waits for.
    pub fn new(consumer: impl Into<Arc<str>>, claims: C, lease: Duration) -> Self {
        Self { consumer: consumer.into(), claims, lease }
    }
}

impl<S, C: Clone> Layer<S> for DedupLayer<C> {
    type Service = Dedup<S, C>;

    fn layer(&self, inner: S) -> Dedup<S, C> {
        Dedup { layer: self.clone(), inner }
    }
}

impl<S, C, R> Service<R> for Dedup<S, C>
where
    S: Service<R> + Clone + Send + 'static,
    S::Response: AsRef<[u8]> + From<Vec<u8>> + Send,
    S::Error: Send,
    S::Future: Send,
    R: Keyed + Send + Sync + 'static,
    C: Claims,
{
    type Response = S::Response;
    type Error = DedupError<S::Error>;
    type Future = BoxFuture<'static, Result<S::Response, DedupError<S::Error>>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context).map_err(DedupError::Service)
    }

    fn call(&mut self, request: R) -> Self::Future {
        // The one that was polled ready is the one to call.
        let fresh = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, fresh);
        let DedupLayer { consumer, claims, lease } = self.layer.clone();
        Box::pin(async move {
            let claim = match claims.claim(&consumer, &request.key(), lease).await? {
                Claimed::Yours(claim) => claim,
                Claimed::Done(result) => return Ok(result.into()),
                Claimed::Held { left } => return Err(DedupError::Held(left)),
                Claimed::Conflict => return Err(DedupError::Conflict),
                Claimed::TooOld => return Err(DedupError::TooOld),
            };
            // The call may panic before it is awaited.
            let answer = async move { inner.call(request).await };
            let answered = work::complete(&claims, &claim, lease, answer).await;
            answered.map_err(|unfinished| match unfinished {
                Unfinished::Failed(error) => DedupError::Service(error),
                Unfinished::Late => DedupError::Late,
                Unfinished::Store(error) => DedupError::Store(error),
            })
        })
    }
}
