//! Handlers and effects that are tower services.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use outbox_harness::kafka::{fresh_topic, header, read_topic};
use outbox_proto::record::Attributes;
use outbox_sdk::{BatchInTransaction, Event, HandlerError, InTransaction, Transaction, claim::MemoryClaims, service};
use tower::{BoxError, ServiceBuilder, service_fn};

use crate::rig::{Rig, Running, SOON, effect, event, unstored};

/// The layer's timeout: far more than an insert takes, and less than what it stops.
const QUICK: Duration = Duration::from_secs(3);

fn of_type(event_type: &str) -> Attributes {
    Attributes { event_type: event_type.into(), ..event() }
}

/// Has its effect, and is then too slow, once, or says that it is hopeless.
async fn mail(event: &Event, tx: &mut Transaction, slow: &AtomicU64) -> Result<(), BoxError> {
    effect("mailer", event, tx).await.map_err(HandlerError::boxed)?;
    match event.event_type() {
        "slow" if slow.fetch_add(1, SeqCst) == 0 => std::future::pending().await,
        "hopeless" => Err(HandlerError::dead_letter("no such user").boxed()),
        _ => Ok(()),
    }
}

#[derive(Clone)]
struct Mail {
    slow: Arc<AtomicU64>,
}

impl<'t> tower::Service<BatchInTransaction<'t>> for Mail {
    type Response = ();
    type Error = BoxError;
    type Future = futures_util::future::BoxFuture<'t, Result<(), BoxError>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), BoxError>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, BatchInTransaction { events, tx }: BatchInTransaction<'t>) -> Self::Future {
        let slow = Arc::clone(&self.slow);
        Box::pin(async move {
            for event in &events {
                mail(event, tx, &slow).await?;
            }
            Ok(())
        })
    }
}

/// What is a batch of one event to the service.
fn alone(InTransaction { event, tx }: InTransaction<'_>) -> BatchInTransaction<'_> {
    BatchInTransaction { events: vec![event], tx }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_in_layers_handles_events_in_their_transactions() {
    let (rig, letters) = (Rig::new(1).await, fresh_topic("letters", 1).await);
    let slow = Arc::<AtomicU64>::default();
    let mail = ServiceBuilder::new().concurrency_limit(1).timeout(QUICK).map_request(alone);
    let mail = mail.service(Mail { slow: Arc::clone(&slow) });
    let hopeless = of_type("hopeless");
    rig.publish([(0, event()), (0, of_type("slow")), (0, hopeless.clone()), (0, event())]).await;

    let consumer = rig.builder("mailer").dead_letters(&letters).handler(service(mail));
    let running = Running::start(consumer.build().unwrap());
    running.until("all to be settled", |stats| stats.handled == 3 && stats.dead_lettered == 1).await;

    assert_eq!(rig.effects("mailer").await, (3, 3), "what was stopped and what was hopeless left nothing");
    assert_eq!((running.stats().retries, slow.load(SeqCst)), (1, 2));
    running.shut_down().await.unwrap();
    let put = &read_topic(&letters)[..];
    let [put] = put else { panic!("one record: {put:?}") };
    assert_eq!(header(put, "ce_id"), Some(hopeless.id.to_string()));
    assert_eq!(header(put, "outbox-origin-reason").as_deref(), Some("the handler failed: no such user"));
}

/// What the layers stop is rolled back as a whole, and handled singly then.
#[tokio::test(flavor = "multi_thread")]
async fn a_service_in_layers_handles_batches_in_their_transactions() {
    let (rig, letters) = (Rig::new(1).await, fresh_topic("letters", 1).await);
    let slow = Arc::<AtomicU64>::default();
    let mail = ServiceBuilder::new().timeout(QUICK).service(Mail { slow: Arc::clone(&slow) });
    rig.publish([(0, event()), (0, of_type("slow")), (0, of_type("hopeless")), (0, event())]).await;

    let consumer = rig.builder("mailer").dead_letters(&letters).batch_handler(4, service(mail));
    let running = Running::start(consumer.build().unwrap());
    running.until("all to be settled", |stats| stats.handled == 3 && stats.dead_lettered == 1).await;

    assert_eq!(rig.effects("mailer").await, (3, 3), "what was stopped and what was hopeless left nothing");
    assert_eq!(slow.load(SeqCst), 2, "the batch was stopped, and no event that was handled singly");
    running.shut_down().await.unwrap();
    assert_eq!(read_topic(&letters).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_in_layers_has_effects_under_leases() {
    let (rig, letters) = (Rig::new(1).await, fresh_topic("letters", 1).await);
    let performed = Arc::<AtomicU64>::default();
    let count = Arc::clone(&performed);
    let perform = service_fn(move |event: Event| {
        let before = count.fetch_add(1, SeqCst);
        async move {
            match event.event_type() {
                "slow" if before == 0 => std::future::pending().await,
                "hopeless" => Err(HandlerError::dead_letter("no such user").boxed()),
                _ => Ok(event.id().as_bytes().to_vec()),
            }
        }
    });
    let perform = ServiceBuilder::new().timeout(QUICK).service(perform);
    rig.publish([(0, of_type("slow")), (0, of_type("hopeless")), (0, event())]).await;

    let consumer = unstored("mailer", &rig.topic).claims(MemoryClaims::new(10), SOON).dead_letters(&letters);
    let running = Running::start(consumer.effect(service(perform)).build().unwrap());
    running.until("all to be settled", |stats| stats.handled == 2 && stats.dead_lettered == 1).await;
    assert_eq!((running.stats().retries, performed.load(SeqCst)), (1, 4));
    running.shut_down().await.unwrap();
    assert_eq!(read_topic(&letters).len(), 1);
}

/// What the layers stop is performed singly then.
#[tokio::test(flavor = "multi_thread")]
async fn a_service_in_layers_has_one_effect_for_many_events() {
    let rig = Rig::new(1).await;
    let performed = Arc::new(Mutex::new(Vec::new()));
    let calls = Arc::clone(&performed);
    let perform = service_fn(move |events: Vec<Event>| {
        let is_first = calls.lock().unwrap().is_empty();
        calls.lock().unwrap().push(events.len());
        async move { if is_first { std::future::pending().await } else { Ok::<_, BoxError>(()) } }
    });
    let perform = ServiceBuilder::new().timeout(QUICK).service(perform);
    rig.publish((0..4).map(|_| (0, event()))).await;

    let consumer = unstored("mailer", &rig.topic).claims(MemoryClaims::new(10), SOON);
    let running = Running::start(consumer.batch_effect(4, service(perform)).build().unwrap());
    running.until("all to be settled", |stats| stats.handled == 4).await;
    running.shut_down().await.unwrap();
    let calls = performed.lock().unwrap().clone();
    assert!(calls[0] > 1 && calls[1..=calls[0]] == vec![1; calls[0]], "{calls:?}");
}
