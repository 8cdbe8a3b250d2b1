//! The tower layer, in front of a service that is called by others than Kafka.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    time::Duration,
};

use outbox_sdk::{
    EventKey,
    claim::{DedupError, DedupLayer, Keyed, MemoryClaims},
    inbox::Content,
};
use tokio::{sync::Semaphore, time::timeout};
use tower::{Layer as _, Service, ServiceExt as _, service_fn};

use crate::rig::SOON;

/// A delivery and what it says.
struct Webhook(&'static str, &'static str);

impl Keyed for Webhook {
    fn key(&self) -> EventKey<'_> {
        EventKey::named("stripe", self.0).holding(Content::of([self.1.as_bytes()]))
    }
}

/// Answers with the number of the call, once it is permitted; every first one of a delivery that says "fail" fails.
fn service(
    lease: Duration,
    calls: &Arc<AtomicU32>,
    permits: &Arc<Semaphore>,
) -> impl Service<Webhook, Response = Vec<u8>, Error = DedupError<&'static str>, Future: Send> + Clone + use<> {
    let (calls, permits) = (Arc::clone(calls), Arc::clone(permits));
    DedupLayer::new("payments", MemoryClaims::new(100), lease).layer(service_fn(move |Webhook(_, says)| {
        let (call, permits) = (calls.fetch_add(1, SeqCst) + 1, Arc::clone(&permits));
        async move {
            permits.acquire().await.map_err(|_| "closed")?.forget();
            if says == "fail" && call == 1 { Err("it fails") } else { Ok(call.to_string().into_bytes()) }
        }
    }))
}

#[tokio::test]
async fn a_repeat_gets_the_first_answer_and_a_failure_none() {
    let (calls, permits) = (Arc::default(), Arc::new(Semaphore::new(10)));
    let service = service(SOON, &calls, &permits);
    let call = async |id, says| service.clone().oneshot(Webhook(id, says)).await;

    assert!(matches!(call("evt_1", "fail").await, Err(DedupError::Service("it fails"))));
    assert_eq!(call("evt_1", "fail").await.unwrap(), b"2", "the lease was given back");
    assert_eq!(call("evt_1", "fail").await.unwrap(), b"2");
    assert!(matches!(call("evt_1", "another").await, Err(DedupError::Conflict)));
    assert_eq!(call("evt_2", "another").await.unwrap(), b"3");
    assert_eq!(calls.load(SeqCst), 3);
}

/// Several leases long: the service is called once, since its lease is extended meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_lease_lasts_as_long_as_the_service_works_on_its_answer() {
    let lease = Duration::from_millis(300);
    let (calls, permits) = (Arc::default(), Arc::new(Semaphore::new(0)));
    let service = service(lease, &calls, &permits);
    let first = tokio::spawn(service.clone().oneshot(Webhook("evt_1", "pay")));
    let until = tokio::time::Instant::now() + 4 * lease;
    while tokio::time::Instant::now() < until {
        if calls.load(SeqCst) > 0 {
            let again = timeout(SOON, service.clone().oneshot(Webhook("evt_1", "pay"))).await;
            assert!(matches!(again, Ok(Err(DedupError::Held(_)))), "{again:?}");
        }
        tokio::time::sleep(lease / 10).await;
    }
    permits.add_permits(10);
    assert_eq!(first.await.unwrap().unwrap(), b"1");
    assert_eq!(service.oneshot(Webhook("evt_1", "pay")).await.unwrap(), b"1");
    assert_eq!(calls.load(SeqCst), 1);
}
