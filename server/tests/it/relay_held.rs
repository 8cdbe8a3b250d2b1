//! Holding: what cannot be published is set aside, and what must not pass it waits; draining meets the stream.

use std::{collections::BTreeSet, time::Duration};

use outbox_harness::{eventually, kafka};
use outbox_server::{
    config::{self, HeldPolicy},
    relay::publisher::Fault,
    store::{held::Target, relay as store},
};
use uuid::Uuid;

use crate::support::{
    faulty::{Faults, faulty},
    outbox::{Outbox, PATIENCE, Published, key},
};

fn failing(faults: &Faults, id: Uuid) {
    faults.change(|plan| {
        plan.fail.insert(id, Fault::Record("rejected for the test".into()));
    });
}

async fn published(topic: &str) -> Published {
    let topic = topic.to_owned();
    Published(tokio::task::spawn_blocking(move || kafka::read_topic(&topic)).await.expect("it can be read"))
}

async fn unpark_event(outbox: &Outbox, id: Uuid) {
    let unparked = outbox.operator().unpark("default", &Target::Event(id), None).await.expect("it is answered");
    assert!(unparked.is_some(), "it is held");
}

/// Kafka itself rejects the batch: the one record at fault is found, and only its key waits.
#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_kafka_rejects_is_held_with_its_key_and_nothing_else_waits() {
    let outbox = Outbox::fresh("unused", 1).await;
    let topic = format!("small-{}", Uuid::now_v7().simple());
    kafka::create_topic(&topic, 1, &[("max.message.bytes", "2000")]).await;
    let (mut expected, mut held) = (Vec::new(), Vec::new());
    for n in 0..40 {
        if n == 20 {
            held.push(outbox.emit_to(&topic, Some("large"), &"x".repeat(3_000)).await);
            held.push(outbox.emit_to(&topic, Some("large"), "behind it").await);
        }
        expected.push(outbox.emit_to(&topic, Some("small"), &format!("{n}")).await);
    }
    let relay = outbox.relay();

    outbox.until_held(&[(held[0], "failed"), (held[1], "behind")]).await;
    outbox.all_settled().await;

    // Later ones queue behind it, too.
    held.push(outbox.emit_to(&topic, Some("large"), "later").await);
    expected.push(outbox.emit_to(&topic, Some("small"), "later").await);
    outbox.until_held(&[(held[0], "failed"), (held[1], "behind"), (held[2], "behind")]).await;
    outbox.all_settled().await;
    let found = published(&topic).await.by_key();
    assert_eq!(found.len(), 1, "nothing of the large event's key");
    assert_eq!(found[&key("small")], expected);
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_the_policy_says_pass_only_the_failed_event_is_held() {
    let outbox = Outbox::fresh("pass", 1).await;
    let mut ids = Vec::new();
    for n in 0..10 {
        ids.push(outbox.emit_to(&outbox.topic, Some("a"), &n.to_string()).await);
    }
    let faults = Faults::default();
    failing(&faults, ids[4]);
    let mut config = Outbox::relay_config();
    config.held_policy_by_topic.insert(outbox.topic.clone(), HeldPolicy::Pass);
    let relay = faulty(&outbox, &faults, config);

    outbox.until_held(&[(ids[4], "failed")]).await;
    outbox.all_settled().await;

    let others: Vec<Uuid> = ids.iter().copied().filter(|id| *id != ids[4]).collect();
    assert_eq!(outbox.published().await.by_key()[&key("a")], others);
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_event_without_a_key_is_held_alone() {
    let outbox = Outbox::fresh("keyless", 1).await;
    let mut ids = Vec::new();
    for n in 0..10 {
        ids.push(outbox.emit_to(&outbox.topic, None, &n.to_string()).await);
    }
    let faults = Faults::default();
    failing(&faults, ids[4]);
    let relay = faulty(&outbox, &faults, Outbox::relay_config());

    outbox.until_held(&[(ids[4], "failed")]).await;
    outbox.all_settled().await;
    let others: BTreeSet<Uuid> = ids.iter().copied().filter(|id| *id != ids[4]).collect();
    let distinct = async || {
        let counts = outbox.published().await.counts();
        assert!(
            counts.values().all(|times| *times <= 2),
            "only what was on its way when the record failed is repeated"
        );
        counts.into_keys().collect::<BTreeSet<_>>()
    };
    assert_eq!(distinct().await, others);

    faults.change(|plan| plan.fail.clear());
    unpark_event(&outbox, ids[4]).await;
    outbox.until_held(&[]).await;
    assert_eq!(distinct().await, ids.into_iter().collect());
    relay.stop().await;
}

/// Trap 7: events of the key go on coming while it is drained.
#[tokio::test(flavor = "multi_thread")]
async fn a_drain_meets_the_stream_in_order() {
    let outbox = Outbox::fresh("meets", 1).await;
    let failed = outbox.emit_to(&outbox.topic, Some("key-0"), "first").await;
    outbox.emit(300, 1).await;
    let faults = Faults::default();
    failing(&faults, failed);
    // Small pages, so that the drain takes many of them.
    let config = config::Relay { in_flight_events_max: 40, ..Outbox::relay_config() };
    let relay = faulty(&outbox, &faults, config);
    let all_held = async || (outbox.held().await.len() == 301).then_some(());
    eventually("the key is held", PATIENCE, all_held).await;

    faults.change(|plan| plan.fail.clear());
    unpark_event(&outbox, failed).await;
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

    assert_eq!(outbox.assert_all_published_in_order().await, 0, "nothing is repeated");
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_in_the_middle_of_a_drain_repeats_and_keeps_the_order() {
    let outbox = Outbox::fresh("drain-crash", 1).await;
    let failed = outbox.emit_to(&outbox.topic, Some("key-0"), "first").await;
    outbox.emit(60, 1).await;
    let faults = Faults::default();
    failing(&faults, failed);
    let config = config::Relay { in_flight_events_max: 40, ..Outbox::relay_config() };
    let relay = faulty(&outbox, &faults, config.clone());
    let all_held = async || (outbox.held().await.len() == 61).then_some(());
    eventually("the key is held", PATIENCE, all_held).await;
    relay.crash().await;

    // Twice: what is drained is in Kafka, and the relay never hears of it.
    for _ in 0..2 {
        faults.change(|plan| {
            plan.fail.clear();
            plan.hold_reports = true;
            plan.unreported = 0;
        });
        let relay = faulty(&outbox, &faults, config.clone());
        unpark_event(&outbox, failed).await;
        let under_way = async || (faults.plan().unreported >= 10).then_some(());
        eventually("held events are under way", PATIENCE, under_way).await;
        outbox.emit(5, 1).await;
        relay.crash().await;
        assert_eq!(outbox.held().await[0].0, failed, "the crash landed in the middle");
    }
    faults.change(|plan| plan.hold_reports = false);
    let relay = outbox.relay_with(config);
    outbox.until_held(&[]).await;
    outbox.all_settled().await;

    outbox.assert_all_published_in_order().await;
    relay.stop().await;
}

/// Trap 5: what is held is held before progress passes it, and read again it is neither lost nor published past its
/// hold.
#[tokio::test(flavor = "multi_thread")]
async fn a_crash_between_holding_and_progress_loses_nothing() {
    let outbox = Outbox::fresh("between", 1).await;
    let late = kafka::fresh_topic("late", 1).await;
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
    eventually("the other event is under way", PATIENCE, under_way).await;
    relay.crash().await;
    assert!(outbox.unsettled().await > 0, "progress has not passed them all");

    // The topic is there now, but the hold is not due.
    let relay = outbox.relay_with(config);
    outbox.all_settled().await;
    outbox.until_held(&[(first, "failed"), (second, "behind")]).await;
    assert!(published(&late).await.0.is_empty(), "nothing passes the hold");

    unpark_event(&outbox, first).await;
    outbox.until_held(&[]).await;
    assert_eq!(published(&late).await.by_key()[&key("a")], [first, second]);
    relay.stop().await;
}

/// A missing topic holds its own events, of every key, and they are published by themselves once it is there.
#[tokio::test(flavor = "multi_thread")]
async fn events_of_a_missing_topic_are_held_until_it_is_there() {
    let outbox = Outbox::fresh("there", 1).await;
    let late = kafka::fresh_topic("late", 1).await;
    let keys = outbox.keys_in_different_lanes(&late, 3).await;
    let mut ids = Vec::new();
    for n in 0..30 {
        ids.push(outbox.emit_to(&late, Some(&keys[n % 3]), &n.to_string()).await);
    }
    outbox.emit(50, 5).await;
    let faults = Faults::default();
    faults.change(|plan| {
        plan.missing.insert(late.clone());
    });
    let relay = faulty(&outbox, &faults, Outbox::relay_config());

    outbox.all_settled().await;
    assert_eq!(outbox.held().await.len(), 30);
    for n in 30..45 {
        ids.push(outbox.emit_to(&late, Some(&keys[n % 3]), &n.to_string()).await);
    }
    outbox.emit(50, 5).await;
    outbox.all_settled().await;
    assert_eq!(outbox.assert_all_published_in_order().await, 0, "no other topic waits");
    let holds: i64 = sqlx::query_scalar("select count(*) from outbox.holds where kind = 'topic'")
        .fetch_one(&mut outbox.connect().await)
        .await
        .expect("holds can be counted");
    assert_eq!(holds, 3, "one for each lane, whatever the number of events");

    faults.change(|plan| plan.missing.clear());
    outbox.until_held(&[]).await;
    let found = published(&late).await.by_key();
    for (n, name) in keys.iter().enumerate() {
        let expected: Vec<Uuid> = ids.iter().copied().skip(n).step_by(3).collect();
        assert_eq!(found[&key(name)], expected);
    }
    relay.stop().await;
}

/// Kafka's own refusal: no topic can have this name, though its characters are right.
#[tokio::test(flavor = "multi_thread")]
async fn events_of_a_topic_that_kafka_refuses_are_held() {
    let outbox = Outbox::fresh("refused", 1).await;
    let refused = outbox.emit_to("..", Some("a"), "1").await;
    let relay = outbox.relay();

    outbox.until_held(&[(refused, "failed")]).await;
    outbox.all_settled().await;
    let reason: String = sqlx::query_scalar("select reason from outbox.holds")
        .fetch_one(&mut outbox.connect().await)
        .await
        .expect("there is one");
    assert!(reason.contains("InvalidTopic"), "{reason}");
    relay.stop().await;
}

/// An event that fails while its topic's hold is drained takes what follows of its key with it, and no more.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_fails_while_its_topic_is_drained_gets_a_hold_of_its_own() {
    let outbox = Outbox::fresh("unused", 1).await;
    let late = kafka::fresh_topic("late", 1).await;
    let mut ids = Vec::new();
    for n in 0..40 {
        ids.push(outbox.emit_to(&late, Some(["a", "b"][n % 2]), &n.to_string()).await);
    }
    let faults = Faults::default();
    faults.change(|plan| {
        plan.missing.insert(late.clone());
    });
    failing(&faults, ids[10]);
    let relay = faulty(&outbox, &faults, Outbox::relay_config());
    let all_held = async || (outbox.held().await.len() == 40).then_some(());
    eventually("the topic is held", PATIENCE, all_held).await;

    faults.change(|plan| plan.missing.clear());
    let held: Vec<Uuid> = ids.iter().copied().skip(10).step_by(2).collect();
    let expected: Vec<_> = held.iter().map(|id| (*id, if *id == ids[10] { "failed" } else { "behind" })).collect();
    outbox.until_held(&expected).await;
    let found = published(&late).await.by_key();
    assert_eq!(found[&key("a")], ids.iter().copied().step_by(2).take(5).collect::<Vec<_>>());
    assert_eq!(found[&key("b")], ids.iter().copied().skip(1).step_by(2).collect::<Vec<_>>());

    faults.change(|plan| plan.fail.clear());
    unpark_event(&outbox, ids[10]).await;
    outbox.until_held(&[]).await;
    assert_eq!(published(&late).await.by_key()[&key("a")], ids.iter().copied().step_by(2).collect::<Vec<_>>());
    relay.stop().await;
}

/// A row that should not be there: whatever it is, it keeps nothing else back.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_cannot_be_read_is_held_alone() {
    let outbox = Outbox::fresh("unreadable", 1).await;
    outbox.emit(20, 3).await;
    let unreadable = "select outbox.append_events('default', array[outbox.uuidv7()], array[$1], array['key-1'::bytea],
        array['s'], array['t'], array[null]::text[], array[null]::bytea[], array[null]::text[], array[null]::jsonb[],
        array['infinity'::timestamptz], array[null]::text[], array[null]::text[])";
    let mut connection = outbox.connect().await;
    sqlx::query(unreadable).bind(&outbox.topic).execute(&mut connection).await.expect("it is stored");
    outbox.emit(20, 3).await;
    let relay = outbox.relay();

    outbox.all_settled().await;
    let held = outbox.held().await;
    assert_eq!(held.len(), 1);
    assert_eq!(outbox.published().await.0.len(), 40, "everything else");

    // Trying again changes nothing, and stops nothing.
    unpark_event(&outbox, held[0].0).await;
    let again = async || {
        let attempts: i32 = sqlx::query_scalar("select attempts from outbox.holds where retry_at is null")
            .fetch_optional(&mut connection)
            .await
            .expect("holds can be read")?;
        (attempts > 1).then_some(())
    };
    eventually("it is tried and held again", PATIENCE, again).await;
    outbox.emit(20, 3).await;
    outbox.all_settled().await;
    assert_eq!(outbox.published().await.0.len(), 60);
    relay.stop().await;
}

/// Trap 6: a former owner neither holds nor drains.
#[tokio::test]
async fn holds_are_changed_only_under_the_lanes_present_epoch() {
    let outbox = Outbox::fresh("epoch", 1).await;
    let id = outbox.emit_to(&outbox.topic, Some("a"), "1").await;
    let mut connection = outbox.connect().await;
    let (owner, ttl) = (Uuid::now_v7(), Duration::from_secs(60));
    store::lease::register(&mut connection, owner, "host", ttl).await.expect("it registers");
    let lanes = store::lease::share(&mut connection, owner, None).await.expect("it claims").claimed;
    let now = store::fetch::now(&mut connection).await.expect("there is a snapshot");
    let base = outbox_server::model::progress::Base { seen: now.snapshot, floor: 0 };
    let request = store::fetch::Request {
        lanes: (0..64).collect(),
        from: lanes[0].progress.start(base),
        rows_max: 10,
        bytes_max: 1_000,
    };
    let rows = store::fetch::page(&mut connection, &request).await.expect("it is read").rows;
    let row = &rows[0];
    let epoch = lanes.iter().find(|lane| lane.lane == row.lane()).expect("it owns it").epoch;
    let owned = |epoch| store::held::Owner { instance: owner, lanes: vec![row.lane()], epochs: vec![epoch] };
    let cause = store::held::Cause {
        kind: store::held::Kind::Key,
        reason: "for the test".into(),
        attempts: 1,
        retry_after: Some(Duration::ZERO),
    };
    let event = row.event().expect("it can be read");

    let aside = store::held::set_aside(&mut connection, (owner, row.lane(), epoch - 1), (&event, 1), &cause).await;
    assert!(!aside.expect("it is answered"), "not under an earlier epoch");
    let aside = store::held::set_aside(&mut connection, (owner, row.lane(), epoch), (&event, 1), &cause).await;
    assert!(aside.expect("it is answered"));
    let held = store::held::hold(&mut connection, &owned(epoch - 1), &[row]).await.expect("it is answered");
    assert!(held.is_empty() && outbox.held().await.is_empty(), "not under an earlier epoch");
    let held = store::held::hold(&mut connection, &owned(epoch), &[row]).await.expect("it is answered");
    assert_eq!(held, [id]);

    let due = store::drain::due(&mut connection, &[row.lane()], 10).await.expect("it is answered");
    let begun = store::drain::begin(&mut connection, &owned(epoch - 1), &[due[0].hold]).await;
    assert!(begun.expect("it is answered").is_empty(), "not under an earlier epoch");
    let begun = store::drain::begin(&mut connection, &owned(epoch), &[due[0].hold]).await.expect("it is answered");
    let none = store::delivery::Columns::default();
    let end = store::drain::end(&mut connection, &owned(epoch - 1), &begun, &[id], &none).await;
    end.expect("it is answered");
    assert_eq!(outbox.held().await.len(), 1, "not under an earlier epoch");
    let end = store::drain::end(&mut connection, &owned(epoch), &begun, &[id], &none).await;
    end.expect("it is answered");
    assert!(outbox.held().await.is_empty());
}
