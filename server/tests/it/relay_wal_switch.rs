//! Changing between the sources while events are committed.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use outbox_harness::eventually;
use outbox_server::{model::source::Source, relay::Relay};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _};

use crate::support::{
    faulty::{Faults, Faulty},
    outbox::{Outbox, PATIENCE, Running, publisher},
};

/// Slots are dropped once `poll` is in force.
async fn no_slot(outbox: &Outbox) {
    let statement = "select count(*) from pg_replication_slots where database = current_database()";
    let none = async || {
        let slots: i64 = sqlx::query_scalar(statement).fetch_one(&mut outbox.connect().await).await.expect("a count");
        (slots == 0).then_some(())
    };
    eventually("the slot is dropped", PATIENCE, none).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn switching_back_and_forth_under_load_loses_repeats_and_reorders_nothing() {
    let outbox = Arc::new(Outbox::fresh("switch", 3).await);
    let (first, second) = (outbox.relay(), outbox.relay());
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let (outbox, stop) = (Arc::clone(&outbox), Arc::clone(&stop));
            tokio::spawn(async move {
                let mut connection = outbox.connect().await;
                let mut n = 0;
                while !stop.load(Ordering::Relaxed) {
                    n += 1;
                    // Some transactions stay open for a while, with a position taken before others'.
                    let pause = if n % 10 == writer { "pg_sleep(0.05)" } else { "1" };
                    let statement = format!(
                        "begin; select outbox.emit('{}', 'test', to_jsonb({n}), 'key-' || {n} % 13); select {pause}; commit",
                        outbox.topic
                    );
                    connection.execute(AssertSqlSafe(statement)).await.expect("an event can be stored");
                }
            })
        })
        .collect();

    for _ in 0..3 {
        outbox.switch(Source::Wal).await;
        let before = outbox.stored().await.len();
        let more = async || (outbox.stored().await.len() > before + 100).then_some(());
        eventually("events are committed meanwhile", PATIENCE, more).await;
        outbox.switch(Source::Poll).await;
    }
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.expect("it does not panic");
    }
    outbox.all_settled().await;

    assert_eq!(outbox.assert_all_published_in_order().await, 0, "nothing is repeated");
    no_slot(&outbox).await;
    first.stop().await;
    second.stop().await;
}

/// A slot waits for whoever is writing; polling must not.
#[tokio::test(flavor = "multi_thread")]
async fn while_a_slot_waits_for_an_open_writer_polling_goes_on() {
    let outbox = Outbox::fresh("waits", 1).await;
    let relay = outbox.relay();
    let mut holder = outbox.connect().await;
    let mut held = holder.begin().await.expect("a transaction");
    let emit = AssertSqlSafe(format!("select outbox.emit('{}', 'held', '1', 'held')", outbox.topic));
    held.execute(emit).await.expect("an event is stored");

    outbox.desire(Source::Wal).await;
    let waiting = "select count(*) from pg_replication_slots where database = current_database()";
    let waits = async || {
        let slots: i64 = sqlx::query_scalar(waiting).fetch_one(&mut outbox.connect().await).await.expect("a count");
        (slots == 1).then_some(())
    };
    eventually("a slot is being made", PATIENCE, waits).await;
    outbox.emit_singly(50, 5).await;
    outbox.all_settled().await;
    assert_eq!(outbox.stream().await.source, Source::Poll, "the slot still waits");

    held.commit().await.expect("committed");
    outbox.in_force(Source::Wal).await;
    outbox.emit_singly(50, 5).await;
    outbox.all_settled().await;
    assert_eq!(outbox.stored().await.len(), 101);
    assert_eq!(outbox.assert_all_published_in_order().await, 0);
    relay.stop().await;
}

/// What the slot does not give has to be settled before anybody streams from it.
#[tokio::test(flavor = "multi_thread")]
async fn the_log_takes_over_only_once_polling_has_settled_what_came_before_the_slot() {
    let outbox = Outbox::fresh("before", 1).await;
    let faults = Faults::default();
    faults.change(|plan| plan.hold_reports = true);
    let publisher = Faulty::new(publisher(), &faults);
    let relay = Running::start(Relay::with_publisher(Outbox::relay_config(), &outbox.database_config(), publisher));
    outbox.emit(50, 5).await;

    outbox.desire(Source::Wal).await;
    let made = async || outbox.stream().await.slot.map(drop);
    eventually("the slot is made", PATIENCE, made).await;
    // A lease's length: several looks at the source.
    let from = std::time::Instant::now();
    eventually("two seconds pass", PATIENCE, async || (from.elapsed().as_secs() >= 2).then_some(())).await;
    assert_eq!(outbox.stream().await.source, Source::Poll, "nothing is settled yet");

    faults.change(|plan| plan.hold_reports = false);
    outbox.in_force(Source::Wal).await;
    outbox.emit(50, 5).await;
    outbox.all_settled().await;
    assert_eq!(outbox.assert_all_published_in_order().await, 0);
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_is_not_wanted_any_more_leaves_no_slot() {
    let outbox = Outbox::fresh("unwanted", 1).await;
    let relay = outbox.relay();
    outbox.switch(Source::Wal).await;
    outbox.emit(10, 2).await;
    outbox.switch(Source::Poll).await;
    no_slot(&outbox).await;

    outbox.desire(Source::Wal).await;
    outbox.desire(Source::Poll).await;
    outbox.emit(10, 2).await;
    outbox.all_settled().await;
    no_slot(&outbox).await;
    assert_eq!(outbox.assert_all_published_in_order().await, 0);
    relay.stop().await;
}
