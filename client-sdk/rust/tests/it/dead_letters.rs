//! Records that cannot be handled go to the dead-letter topic, and come back to one consumer only.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use outbox_harness::kafka::{bootstrap_servers, fresh_topic, header, read_topic};
use outbox_proto::record::Attributes;
use outbox_sdk::{ConsumerError, Event, Handler, HandlerError, Redrive, Transaction};
use rdkafka::Message as _;

use crate::rig::{Effect, Rig, Running, SOON, effect, event, events, publish_junk};

type Fail = fn() -> HandlerError;
type Expected = fn(&ConsumerError) -> bool;

/// Fails for events of the type `poison`, in the given way; has its effect for others.
struct Picky {
    seen: Arc<AtomicU64>,
    fail: Fail,
}

impl Handler for Picky {
    async fn handle(&self, event: &Event, tx: &mut Transaction) -> Result<(), HandlerError> {
        effect("mailer", event, tx).await?;
        if event.event_type() != "poison" {
            return Ok(());
        }
        self.seen.fetch_add(1, SeqCst);
        Err((self.fail)())
    }
}

fn poison() -> Attributes {
    Attributes { event_type: "poison".into(), ..event() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hopeless_record_goes_to_the_dead_letter_topic_with_its_origin_and_the_rest_goes_on() {
    let letters = fresh_topic("letters", 1).await;
    let cases: [(Fail, u64); 3] = [
        (|| HandlerError::new("the mail server is away"), 3),
        (|| HandlerError::dead_letter("no such user"), 1),
        (|| panic!("a bug in the handler"), 3),
    ];
    for (fail, attempts) in cases {
        let rig = Rig::new(1).await;
        let before = read_topic(&letters).len();
        let bad = poison();
        rig.publish(events(1).into_iter().map(|event| (0, event))).await;
        rig.publish_records([(0, Some("user-7"), bad.clone(), r#"{"user":7}"#)]).await;
        rig.publish(events(1).into_iter().map(|event| (0, event))).await;
        let seen = Arc::new(AtomicU64::new(0));
        let handler = Picky { seen: Arc::clone(&seen), fail };

        let consumer = rig.builder("mailer").max_attempts(3).dead_letters(&letters).handler(handler);
        let running = Running::start(consumer.build().unwrap());
        rig.until_committed("mailer", 0, 3).await;

        assert_eq!((seen.load(SeqCst), running.stats().dead_lettered), (attempts, 1));
        running.shut_down().await.unwrap();
        assert_eq!(rig.effects("mailer").await, (2, 2), "the hopeless one has no effect");
        let put = read_topic(&letters);
        assert_eq!(put.len(), before + 1);
        let put = &put[before];
        assert_eq!((put.key(), put.payload()), (Some(b"user-7".as_slice()), Some(br#"{"user":7}"#.as_slice())));
        let expected = [
            ("ce_id", bad.id.to_string()),
            ("outbox-origin-topic", rig.topic.clone()),
            ("outbox-origin-partition", "0".into()),
            ("outbox-origin-offset", "1".into()),
            ("outbox-origin-consumer", "mailer".into()),
            ("outbox-origin-attempts", attempts.to_string()),
        ];
        for (name, value) in expected {
            assert_eq!(header(put, name).as_deref(), Some(value.as_str()), "{name}");
        }
        let reason = header(put, "outbox-origin-reason").unwrap();
        assert!(reason.starts_with("the handler "), "{reason}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_is_no_event_is_dead_lettered_with_its_bytes() {
    let (rig, letters) = (Rig::new(1).await, fresh_topic("letters", 1).await);
    publish_junk(&rig.topic, 0).await;
    rig.publish(events(1).into_iter().map(|event| (0, event))).await;

    let consumer = rig.builder("mailer").dead_letters(&letters).handler(Effect("mailer"));
    let running = Running::start(consumer.build().unwrap());
    rig.until_committed("mailer", 0, 2).await;
    running.shut_down().await.unwrap();

    let put = &read_topic(&letters)[..];
    let [put] = put else { panic!("one record: {put:?}") };
    assert_eq!(put.payload(), Some(b"junk".as_slice()));
    let reason = header(put, "outbox-origin-reason").unwrap();
    assert!(reason.contains("ce_specversion"), "{reason}");
    assert_eq!(rig.effects("mailer").await, (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_5_the_offset_does_not_pass_a_record_that_the_dead_letter_topic_has_not_got() {
    let rig = Rig::new(1).await;
    rig.publish_records([(0, None, poison(), "{}")]).await;
    let fail = || HandlerError::dead_letter("no such user");
    let handler = Picky { seen: Arc::default(), fail };

    // A topic that cannot be: Kafka refuses it for good.
    let consumer = rig.builder("mailer").dead_letters("no such topic!").handler(handler);
    let error = Running::start(consumer.build().unwrap()).ended().await.expect_err("it must not go on");

    assert!(matches!(error, ConsumerError::DeadLetterRefused { .. }), "{error:?}");
    assert_eq!(rig.committed("mailer", 0), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_dead_letter_topic_the_consumer_stops_and_names_the_event() {
    let rig = Rig::new(1).await;
    let bad = poison();
    rig.publish_records([(0, None, bad.clone(), "{}")]).await;
    let outcomes: [(Fail, Expected); 2] = [
        (|| HandlerError::dead_letter("no such user"), |e| matches!(e, ConsumerError::NoDeadLetters { .. })),
        (|| HandlerError::fatal("no such table"), |e| matches!(e, ConsumerError::Fatal { .. })),
    ];
    for (fail, expected) in outcomes {
        let handler = Picky { seen: Arc::default(), fail };
        // Nothing is left to drain: with a budget that is longer than the test waits, it ends all the same.
        let consumer = rig.builder("mailer").drain_budget(2 * SOON).handler(handler).build().unwrap();
        let error = Running::start(consumer).ended().await.expect_err("it must not go on");
        assert!(expected(&error), "{error:?}");
        assert!(error.to_string().contains(&bad.id.to_string()), "{error}");
        assert_eq!(rig.committed("mailer", 0), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_event_under_the_same_id_is_dead_lettered_and_not_skipped() {
    let (rig, letters) = (Rig::new(1).await, fresh_topic("letters", 1).await);
    let event = event();
    let with = |payload| (0, Some("user-7"), event.clone(), payload);
    rig.publish_records([with("activated"), with("activated"), with("deleted")]).await;

    let consumer = rig.builder("mailer").dead_letters(&letters).handler(Effect("mailer"));
    let running = Running::start(consumer.build().unwrap());
    rig.until_committed("mailer", 0, 3).await;

    let stats = running.stats();
    assert_eq!((stats.handled, stats.duplicates, stats.conflicts, stats.dead_lettered), (1, 1, 1, 1));
    running.shut_down().await.unwrap();
    assert_eq!(read_topic(&letters)[0].payload(), Some(b"deleted".as_slice()));
}

/// Asks to wait for a while, the first time.
struct Patient(AtomicU64);

impl Handler for Patient {
    async fn handle(&self, event: &Event, tx: &mut Transaction) -> Result<(), HandlerError> {
        if self.0.fetch_add(1, SeqCst) == 0 {
            return Err(HandlerError::retry_after(Duration::from_millis(700), "busy"));
        }
        effect("mailer", event, tx).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_can_say_when_to_try_again() {
    let rig = Rig::new(1).await;
    rig.publish(events(1).into_iter().map(|event| (0, event))).await;
    let running = Running::start(rig.builder("mailer").handler(Patient(AtomicU64::new(0))).build().unwrap());
    running.until("the first attempt to fail", |stats| stats.retries == 1).await;
    let asked = std::time::Instant::now();
    rig.until_effects("mailer", 1).await;
    assert!(asked.elapsed() > Duration::from_millis(500), "tried again after {:?}", asked.elapsed());
    running.shut_down().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_10_what_is_sent_again_reaches_the_one_consumer_that_could_not_handle_it() {
    let (rig, letters) = (Rig::new(1).await, fresh_topic("letters", 2).await);
    let bad = [poison(), poison()];
    rig.publish_records(bad.iter().map(|event| (0, Some("user-7"), event.clone(), "{}"))).await;
    let fail = || HandlerError::dead_letter("no such user");
    let broken = rig.builder("mailer").dead_letters(&letters).handler(Picky { seen: Arc::default(), fail });
    let running = Running::start(broken.build().unwrap());
    rig.until_committed("mailer", 0, 2).await;
    running.shut_down().await.unwrap();
    let redrive = |consumer: &str| Redrive::new(consumer, &letters).kafka(bootstrap_servers()).run();

    assert_eq!(redrive("auditor").await.unwrap(), 0, "they are not the auditor's");
    assert_eq!(redrive("mailer").await.unwrap(), 2);
    assert_eq!(redrive("mailer").await.unwrap(), 0, "they were sent before");

    let mended = Running::start(rig.builder("mailer").handler(Effect("mailer")).build().unwrap());
    let auditor = Running::start(rig.builder("auditor").handler(Effect("auditor")).build().unwrap());
    rig.until_effects("mailer", 2).await;
    auditor.until("the auditor to read all four", |stats| stats.handled + stats.duplicates + stats.passed == 4).await;

    let stats = auditor.stats();
    assert_eq!((stats.handled, stats.passed), (2, 2), "the originals are its own, the copies are not");
    assert_eq!(rig.effects("mailer").await, (2, 2));
    mended.shut_down().await.unwrap();
    auditor.shut_down().await.unwrap();
}
