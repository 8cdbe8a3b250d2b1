//! Holding, draining and attempts while the log is streamed, and while the source changes.

use outbox_harness::{eventually, kafka};
use outbox_server::{
    config,
    model::source::Source,
    relay::publisher::Fault,
    store::held::{Discarded, Target},
};
use uuid::Uuid;

use crate::support::{
    faulty::{Faults, faulty, held_after_deaths},
    outbox::{Outbox, PATIENCE, Published, key},
};

fn config() -> config::Relay {
    // Small pages, so that a drain takes many of them.
    config::Relay { in_flight_events_max: 40, ..Outbox::relay_config() }
}

fn failing(id: Uuid) -> Faults {
    let faults = Faults::default();
    faults.change(|plan| {
        plan.fail.insert(id, Fault::Record("rejected for the test".into()));
    });
    faults
}

async fn published(topic: &str) -> Published {
    let topic = topic.to_owned();
    Published(tokio::task::spawn_blocking(move || kafka::read_topic(&topic)).await.expect("it can be read"))
}

async fn until_held(outbox: &Outbox, count: usize) {
    let held = async || (outbox.held().await.len() == count).then_some(());
    eventually(&format!("{count} events are held"), PATIENCE, held).await;
}

async fn unpark(outbox: &Outbox, target: &Target) {
    let unparked = outbox.operator().unpark("default", target, None).await.expect("it is answered");
    assert!(unparked.is_some(), "it is held");
}

/// Trap 7: events of the key go on coming from the log while it is drained.
#[tokio::test(flavor = "multi_thread")]
async fn a_drain_meets_the_log_in_order() {
    let outbox = Outbox::fresh("meets-log", 1).await;
    let relay = outbox.relay_with(config());
    outbox.switch(Source::Wal).await;
    relay.stop().await;
    let failed = outbox.emit_to(&outbox.topic, Some("key-0"), "first").await;
    outbox.emit(300, 1).await;
    let faults = failing(failed);
    let relay = faulty(&outbox, &faults, config());
    until_held(&outbox, 301).await;

    faults.change(|plan| plan.fail.clear());
    unpark(&outbox, &Target::Event(failed)).await;
    let mut rounds = 0;
    let drained = async || {
        outbox.emit(5, 1).await;
        rounds += 1;
        (outbox.held().await.is_empty() && rounds > 20).then_some(())
    };
    eventually("the key is drained", PATIENCE, drained).await;
    outbox.emit(5, 1).await;
    outbox.all_settled().await;
    outbox.until_held(&[]).await;

    assert_eq!(outbox.stream().await.source, Source::Wal);
    assert_eq!(outbox.assert_all_published_in_order().await, 0, "nothing is repeated");
    relay.stop().await;
}

/// Trap 5: what was held before a crash comes from the log again, and is neither lost nor published past its hold.
#[tokio::test(flavor = "multi_thread")]
async fn a_crash_between_holding_and_progress_in_the_log_loses_nothing() {
    let outbox = Outbox::fresh("between-log", 1).await;
    let late = kafka::fresh_topic("late", 1).await;
    let relay = outbox.relay();
    outbox.switch(Source::Wal).await;
    relay.stop().await;
    let faults = Faults::default();
    faults.change(|plan| {
        plan.hold_reports = true;
        plan.missing.insert(late.clone());
    });
    let slow = outbox.emit_to(&outbox.topic, None, "slow").await;
    let first = outbox.emit_to(&late, Some("a"), "1").await;
    let second = outbox.emit_to(&late, Some("a"), "2").await;
    let config = config::Relay { held_retry_ms: 3_600_000, ..Outbox::relay_config() };
    let relay = faulty(&outbox, &faults, config.clone());
    outbox.until_held(&[(first, "failed"), (second, "behind")]).await;
    let under_way = async || faults.plan().enqueued.contains(&slow).then_some(());
    eventually("what comes before is under way", PATIENCE, under_way).await;
    let settled = outbox.stream().await.slot.expect("there is one").settled;
    relay.crash().await;

    // The topic is there now, but the hold is not due.
    let relay = outbox.relay_with(config);
    outbox.all_settled().await;
    assert!(outbox.stream().await.slot.expect("there is one").settled > settled, "progress had not passed them");
    outbox.until_held(&[(first, "failed"), (second, "behind")]).await;
    assert!(published(&late).await.0.is_empty(), "nothing passes the hold");

    unpark(&outbox, &Target::Event(first)).await;
    outbox.until_held(&[]).await;
    assert_eq!(published(&late).await.by_key()[&key("a")], [first, second]);
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_in_the_middle_of_a_drain_meets_the_log_in_order() {
    let outbox = Outbox::fresh("drain-log", 1).await;
    let relay = outbox.relay();
    outbox.switch(Source::Wal).await;
    relay.stop().await;
    let failed = outbox.emit_to(&outbox.topic, Some("key-0"), "first").await;
    outbox.emit(60, 1).await;
    let faults = failing(failed);
    let relay = faulty(&outbox, &faults, config());
    until_held(&outbox, 61).await;
    relay.crash().await;

    // Twice: what is drained is in Kafka, and the relay never hears of it.
    for _ in 0..2 {
        faults.change(|plan| {
            plan.fail.clear();
            plan.hold_reports = true;
            plan.unreported = 0;
        });
        let relay = faulty(&outbox, &faults, config());
        unpark(&outbox, &Target::Event(failed)).await;
        let under_way = async || (faults.plan().unreported >= 10).then_some(());
        eventually("held events are under way", PATIENCE, under_way).await;
        outbox.emit(5, 1).await;
        relay.crash().await;
        assert_eq!(outbox.held().await[0].0, failed, "the crash landed in the middle");
    }
    faults.change(|plan| plan.hold_reports = false);
    let relay = outbox.relay_with(config());
    outbox.until_held(&[]).await;
    outbox.all_settled().await;

    assert_eq!(outbox.stream().await.source, Source::Wal);
    outbox.assert_all_published_in_order().await;
    relay.stop().await;
}

/// Trap 7: a hold knows nothing of sources. What comes of its key queues behind it whichever is in force, and a drain
/// that one source has begun meets the stream of the other.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_stays_held_while_the_source_changes_and_its_drain_goes_on() {
    let outbox = Outbox::fresh("held-change", 1).await;
    let failed = outbox.emit_to(&outbox.topic, Some("key-0"), "first").await;
    // Of no other key: what is on its way when a record fails may be repeated.
    outbox.emit(5, 1).await;
    let faults = failing(failed);
    let relay = faulty(&outbox, &faults, config());
    let mut held = 6;
    until_held(&outbox, held).await;

    for source in [Source::Wal, Source::Poll, Source::Wal] {
        outbox.switch(source).await;
        outbox.emit(1_200, 2).await;
        outbox.all_settled().await;
        held += 600;
        until_held(&outbox, held).await;
    }
    assert!(!outbox.published().await.by_key().contains_key(&key("key-0")), "nothing passes the hold");

    faults.change(|plan| plan.fail.clear());
    unpark(&outbox, &Target::Event(failed)).await;
    let begun = async || (outbox.held().await.len() < held).then_some(());
    eventually("the drain has begun", PATIENCE, begun).await;
    let mut changes = 0;
    for source in [Source::Poll, Source::Wal, Source::Poll, Source::Wal] {
        outbox.switch(source).await;
        changes += usize::from(!outbox.held().await.is_empty());
        outbox.emit(20, 2).await;
    }
    assert!(changes > 0, "no change landed in the drain");
    outbox.until_held(&[]).await;
    outbox.emit(20, 2).await;
    outbox.all_settled().await;
    outbox.until_held(&[]).await;

    assert_eq!(outbox.assert_all_published_in_order().await, 0, "nothing is repeated");
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_parked_unparked_and_discarded_from_the_log_keeps_its_order() {
    let outbox = Outbox::fresh("parked-log", 1).await;
    let relay = outbox.relay();
    outbox.switch(Source::Wal).await;
    let (operator, of_key) = (outbox.operator(), b"key-0".to_vec());
    operator.park_key("default", &outbox.topic, &of_key, "its consumer is ill").await.expect("it is parked");
    let noticed = async || {
        let id = outbox.emit_to(&outbox.topic, Some("key-0"), "1").await;
        outbox.all_settled().await;
        outbox.held().await.iter().any(|(held, _)| *held == id).then_some(id)
    };
    let first = eventually("the park is noticed", PATIENCE, noticed).await;
    let second = outbox.emit_to(&outbox.topic, Some("key-0"), "2").await;
    outbox.emit(20, 2).await;
    outbox.all_settled().await;
    until_held(&outbox, 12).await;
    assert_eq!(outbox.held().await[..2], [(first, "parked".to_owned()), (second, "parked".to_owned())]);

    let discarded = operator.discard("default", second, "a wrong amount").await.expect("it is answered");
    assert_eq!(discarded, Discarded::Discarded);
    unpark(&outbox, &Target::Key { topic: outbox.topic.clone(), key: of_key }).await;
    outbox.until_held(&[]).await;
    outbox.emit(20, 2).await;
    outbox.all_settled().await;

    let (stored, published) = (outbox.stored().await, outbox.published().await);
    let mut expected: Vec<Uuid> = stored.iter().filter(|(_, k)| *k == key("key-0")).map(|(id, _)| *id).collect();
    expected.retain(|id| *id != second);
    assert_eq!(published.by_key()[&key("key-0")], expected);
    assert_eq!(published.0.len(), stored.len() - 1, "nothing is repeated");
    relay.stop().await;
}

/// Trap 8.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_ends_the_process_while_the_log_is_streamed_is_held() {
    let outbox = Outbox::fresh("deadly-log", 1).await;
    let relay = outbox.relay();
    outbox.switch(Source::Wal).await;
    relay.stop().await;
    let mut ids = Vec::new();
    for n in 0..30 {
        ids.push(outbox.emit_to(&outbox.topic, Some(["a", "b", "c"][n % 3]), &n.to_string()).await);
    }
    let deadly = ids[12];
    let faults = Faults::default();
    faults.change(|plan| plan.die_before = Some(deadly));
    let config = config::Relay { attempts_max: 2, lease_ttl_ms: 1_000, ..Outbox::relay_config() };

    // Each event that its lane passes before it has the deaths counted anew.
    let (relay, deaths) = held_after_deaths(&outbox, &faults, &config, deadly, 30).await;
    outbox.all_settled().await;

    assert!(deaths > 2, "the first deaths are not taken for the event's fault");
    assert_eq!(outbox.stream().await.source, Source::Wal);
    let found = outbox.published().await.by_key();
    let of_key = |n: usize| ids.iter().copied().skip(n).step_by(3);
    assert_eq!(found[&key("a")], of_key(0).take_while(|id| *id != deadly).collect::<Vec<_>>());
    assert_eq!(found[&key("b")], of_key(1).collect::<Vec<_>>());
    assert_eq!(found[&key("c")], of_key(2).collect::<Vec<_>>());
    relay.stop().await;
}
