//! Retention: partitions go when nothing needs them any more, and never before.

use outbox_harness::eventually;
use outbox_server::{
    config::Config,
    store::retention::{self, Ages, Expired, Verdict},
};
use sqlx::{Connection as _, Executor as _, PgConnection};
use uuid::Uuid;

use crate::support::outbox::{Outbox, PATIENCE};

/// A day long ago, and its partitions.
pub(crate) const OLD: &str = "
    select outbox.make_partition('events', '20250102', outbox.uuidv7_floor('2025-01-02 00:00Z')::text,
                                 outbox.uuidv7_floor('2025-01-03 00:00Z')::text);
    select outbox.make_partition('deliveries', '20250102', '2025-01-02 00:00Z', '2025-01-03 00:00Z');
    select outbox.make_partition('requests', '20250101', '2025-01-01 00:00Z', '2025-01-08 00:00Z');
    select outbox.make_partition('marks', '20250101', '2025-01-01 00:00Z', '2025-01-08 00:00Z');
    select outbox.make_partition('claims', '20250101', '2025-01-01 00:00Z', '2025-01-08 00:00Z');
";

pub(crate) async fn old(name: &str) -> (Outbox, PgConnection) {
    let outbox = Outbox::fresh(name, 1).await;
    let mut connection = outbox.connect().await;
    connection.execute(OLD).await.expect("old partitions can be made");
    (outbox, connection)
}

/// Stores an event of that day.
pub(crate) async fn emit(connection: &mut PgConnection, topic: &str, key: &str) -> Uuid {
    sqlx::query_scalar(
        "select outbox.emit($1, 'test', '1', $2, id => encode(overlay(
            uuid_send(outbox.uuidv7()) placing outbox.uuidv7_time('2025-01-02 12:00Z') from 1 for 6), 'hex')::uuid)",
    )
    .bind(topic)
    .bind(key)
    .fetch_one(connection)
    .await
    .expect("the event is stored")
}

pub(crate) async fn retain(outbox: &Outbox, dry_run: bool) -> Vec<(String, Verdict)> {
    let expired = retention::run(&mut outbox.connect().await, Ages::new(&Config::default()), dry_run).await;
    expired.expect("it runs").into_iter().map(|Expired { name, verdict }| (name, verdict)).collect()
}

fn verdicts(events: Verdict, deliveries: Verdict) -> Vec<(String, Verdict)> {
    vec![
        ("requests_p20250101".into(), Verdict::Dropped),
        ("marks_p20250101".into(), Verdict::Dropped),
        ("events_p20250102".into(), events),
        ("deliveries_p20250102".into(), deliveries),
        ("claims_p20250101".into(), Verdict::Dropped),
    ]
}

pub(crate) async fn stored(connection: &mut PgConnection, id: Uuid) -> bool {
    sqlx::query_scalar("select exists (select from outbox.events where id = $1)")
        .bind(id)
        .fetch_one(connection)
        .await
        .expect("it is answered")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_old_and_settled_is_dropped_and_what_is_held_is_kept() {
    let (outbox, mut connection) = old("dropped").await;
    let published = emit(&mut connection, &outbox.topic, "a").await;
    let held = emit(&mut connection, "..", "a").await;
    let new = outbox.emit_to(&outbox.topic, Some("a"), "new").await;
    let relay = outbox.relay();
    outbox.all_settled().await;
    outbox.until_held(&[(held, "failed")]).await;
    relay.stop().await;

    let dropped = verdicts(Verdict::Dropped, Verdict::Needed);
    assert_eq!(retain(&outbox, true).await, dropped, "a dry run says what would be");
    assert!(stored(&mut connection, published).await, "and does nothing");
    // The deliveries go with the events.
    assert_eq!(retain(&outbox, false).await, verdicts(Verdict::Dropped, Verdict::Dropped));

    assert!(!stored(&mut connection, published).await && stored(&mut connection, new).await);
    outbox.until_held(&[(held, "failed")]).await;
    assert_eq!(retain(&outbox, false).await, [], "nothing is left to do");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_with_an_unsettled_event_is_kept() {
    let (outbox, mut connection) = old("unsettled").await;
    let id = emit(&mut connection, &outbox.topic, "a").await;

    assert_eq!(retain(&outbox, false).await, verdicts(Verdict::Unsettled, Verdict::Needed));

    assert!(stored(&mut connection, id).await);
    let relay = outbox.relay();
    outbox.all_settled().await;
    outbox.assert_all_published_in_order().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_single_lane_that_lags_keeps_the_partition() {
    let (outbox, mut connection) = old("lagging").await;
    let before: String = sqlx::query_scalar("select pg_current_snapshot()::text")
        .fetch_one(&mut connection)
        .await
        .expect("there is a snapshot");
    let id = emit(&mut connection, &outbox.topic, "a").await;
    let relay = outbox.relay();
    outbox.all_settled().await;
    relay.stop().await;
    let lag =
        "update outbox.progress set snapshot = $1::pg_snapshot, target = null, target_floor = null, position = null
               where lane = (select lane from outbox.events where id = $2)";
    sqlx::query(lag).bind(before).bind(id).execute(&mut connection).await.expect("it can be set");

    assert_eq!(retain(&outbox, false).await, verdicts(Verdict::Unsettled, Verdict::Needed));
    assert!(stored(&mut connection, id).await);
}

/// A transaction that began before, and is seen by no snapshot, may still bring events into it.
#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_still_writes_loses_nothing() {
    let (outbox, mut connection) = old("running").await;
    let early = emit(&mut connection, &outbox.topic, "a").await;
    let relay = outbox.relay();
    outbox.all_settled().await;
    let mut writer = outbox.connect().await;
    let mut transaction = writer.begin().await.expect("it begins");
    let late = emit(&mut transaction, &outbox.topic, "b").await;

    // It waits for the writer, and not for long.
    let expected = verdicts(Verdict::Locked, Verdict::Needed);
    assert_eq!(retain(&outbox, false).await, expected);
    transaction.commit().await.expect("it commits");
    // Whether or not the relay has passed it, it is not lost.
    let dropped = async || (retain(&outbox, false).await.iter().all(|(_, v)| *v == Verdict::Dropped)).then_some(());
    eventually("it is settled and dropped", PATIENCE, dropped).await;

    let counts = outbox.published().await.counts();
    assert!(counts.contains_key(&early) && counts.contains_key(&late));
    relay.stop().await;
}
