//! Which events the relay sees: by transaction, never by position alone, and only what is flushed.

use outbox_harness::eventually;
use sqlx::{Connection as _, Executor as _, PgConnection};
use uuid::Uuid;

use crate::support::outbox::{Outbox, PATIENCE};

async fn emit(connection: &mut PgConnection, topic: &str, key: Option<&str>) -> Uuid {
    sqlx::query_scalar("select outbox.emit($1, 'test.counted', '1', $2)")
        .bind(topic)
        .bind(key)
        .fetch_one(connection)
        .await
        .expect("the event is stored")
}

async fn wait_for(outbox: &Outbox, id: Uuid) {
    let arrived = async || outbox.published().await.counts().contains_key(&id).then_some(());
    eventually("the event is in kafka", PATIENCE, arrived).await;
}

/// Trap 1.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_commits_late_is_not_skipped_although_later_positions_were_published() {
    let outbox = Outbox::fresh("late", 1).await;
    let relay = outbox.relay();
    let (mut early, mut other) = (outbox.connect().await, outbox.connect().await);

    early.execute("begin").await.expect("it begins");
    let first = emit(&mut early, &outbox.topic, Some("a")).await;
    let second = emit(&mut other, &outbox.topic, Some("b")).await;
    wait_for(&outbox, second).await;
    outbox.all_settled().await;
    early.execute("commit").await.expect("it commits");

    wait_for(&outbox, first).await;
    outbox.all_settled().await;
    assert_eq!(outbox.assert_all_published_in_order().await, 0);
    relay.stop().await;
}

/// Trap 1, in the corner where the running transaction is the newest of all: a snapshot's xmax is not above it, and a
/// bound on positions that was read with the snapshot is.
#[tokio::test(flavor = "multi_thread")]
async fn the_newest_transaction_is_not_skipped_when_it_commits_after_many_polls() {
    let outbox = Outbox::fresh("newest", 1).await;
    let mut relay = outbox.relay();
    relay.until("it owns its lanes", |s| s.lanes_owned == 64).await;
    let mut writer = outbox.connect().await;
    for round in 0..20 {
        let before = emit(&mut writer, &outbox.topic, Some("before")).await;
        wait_for(&outbox, before).await;
        writer.execute("begin").await.expect("it begins");
        let id = emit(&mut writer, &outbox.topic, Some("newest")).await;
        // Held over a few polls: between none and one renewal of the lease.
        let (from, hold) = (std::time::Instant::now(), 20 + round * 20);
        eventually("polls pass", PATIENCE, async || (from.elapsed().as_millis() > hold).then_some(())).await;
        writer.execute("commit").await.expect("it commits");
        wait_for(&outbox, id).await;
    }
    assert_eq!(outbox.assert_all_published_in_order().await, 0);
    relay.stop().await;
}

/// Trap 2.
#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_held_open_stalls_nothing() {
    let outbox = Outbox::fresh("held", 3).await;
    let relay = outbox.relay();
    let mut held = outbox.connect().await;
    held.execute("begin").await.expect("it begins");
    let late = emit(&mut held, &outbox.topic, Some("held")).await;

    // Others go on, round after round, and are settled although it is still open.
    for _ in 0..5 {
        outbox.emit(50, 7).await;
        outbox.all_settled().await;
    }
    assert!(!outbox.published().await.counts().contains_key(&late), "an open transaction's event is not published");
    let keyless = emit(&mut outbox.connect().await, &outbox.topic, None).await;
    wait_for(&outbox, keyless).await;
    held.execute("commit").await.expect("it commits");

    wait_for(&outbox, late).await;
    outbox.all_settled().await;
    assert_eq!(outbox.assert_all_published_in_order().await, 0);
    relay.stop().await;
}

/// No phantom: what is rolled back is not published, and its positions stall nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_rolled_back_event_is_not_published() {
    let outbox = Outbox::fresh("rollback", 1).await;
    let relay = outbox.relay();
    let mut writer = outbox.connect().await;
    let mut transaction = writer.begin().await.expect("it begins");
    emit(&mut transaction, &outbox.topic, Some("a")).await;
    transaction.rollback().await.expect("it rolls back");

    let id = emit(&mut writer, &outbox.topic, Some("a")).await;
    wait_for(&outbox, id).await;

    assert_eq!(outbox.assert_all_published_in_order().await, 0);
    relay.stop().await;
}
