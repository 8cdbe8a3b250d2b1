//! Trap 16, and what a crash of Postgres does: on a cluster of the tests' own, which is cut off without a checkpoint.

use outbox_harness::{cluster::Cluster, eventually, kafka};
use outbox_server::{config, relay::Relay};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use uuid::Uuid;

use crate::support::{
    faulty::{Faults, Faulty},
    outbox::{Outbox, PATIENCE, Running, publisher},
};

/// Commits wait for nothing, and the log is written out only every ten seconds.
const UNFLUSHED: [&str; 4] =
    ["synchronous_commit=off", "wal_writer_delay=10s", "autovacuum=off", "bgwriter_lru_maxpages=0"];

/// A caller commits without waiting for the flush; the relay publishes the event, and the database is cut off before
/// the relay has written anything more. What is in Kafka must be in the database, too.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_is_not_flushed_yet_is_not_published() {
    let cluster = Cluster::start(&UNFLUSHED);
    let topic = kafka::fresh_topic("flush", 1).await;
    let outbox = Outbox::at(cluster.url.clone(), topic).await;
    // Neither the lease's own renewals nor progress flush by chance.
    let config = config::Relay { lease_ttl_ms: 120_000, ..Outbox::relay_config() };
    let faults = Faults::default();
    faults.change(|plan| plan.hold_reports = true);
    let publisher = Faulty::new(publisher(), &faults);
    let mut relay = Running::start(Relay::with_publisher(config, &outbox.database_config(), publisher));
    relay.until("it owns its lanes", |s| s.lanes_owned == 64).await;

    let id: Uuid = sqlx::query_scalar("select outbox.emit($1, 'test', '1', 'key')")
        .bind(&outbox.topic)
        .fetch_one(&mut outbox.connect().await)
        .await
        .expect("the event is stored");
    let arrived = async || outbox.published().await.counts().contains_key(&id).then_some(());
    eventually("the event is in kafka", PATIENCE, arrived).await;
    cluster.crash();
    cluster.start_again();

    let stored = outbox.stored().await;
    assert!(stored.iter().any(|(stored, _)| *stored == id), "it is published, and gone from the database");
    relay.crash().await;
}

/// The other half: what the crash took away gives its transaction ids and positions to others, which must be
/// published although the relay had seen those before.
#[tokio::test(flavor = "multi_thread")]
async fn what_follows_a_crash_under_the_same_ids_is_published() {
    let cluster = Cluster::start(&UNFLUSHED);
    let topic = kafka::fresh_topic("reissued", 1).await;
    let outbox = Outbox::at(cluster.url.clone(), topic).await;
    let mut relay = outbox.relay();
    relay.until("it owns its lanes", |s| s.lanes_owned == 64).await;

    for _ in 0..5 {
        // Rolled back, so that nothing flushes them: the relay's snapshots pass over their ids.
        let mut writer = outbox.connect().await;
        for _ in 0..50 {
            let mut transaction = writer.begin().await.expect("it begins");
            let emit = format!("select outbox.emit('{}', 'test', '1', 'key')", outbox.topic);
            transaction.execute(AssertSqlSafe(emit)).await.expect("it is stored");
            transaction.rollback().await.expect("it rolls back");
        }
        outbox.emit(10, 1).await;
        cluster.crash();
        cluster.start_again();
        outbox.emit(10, 1).await;
        durable(&outbox).await;
        outbox.all_settled().await;
        // A lost event may have been given to Kafka only if it was durable: then it is stored.
        outbox.assert_all_published_in_order().await;
    }
    relay.stop().await;
}

async fn durable(outbox: &Outbox) {
    let mut connection: PgConnection = outbox.connect().await;
    let flush = "set synchronous_commit = on; select pg_logical_emit_message(true, 'test', '')";
    connection.execute(flush).await.expect("it is flushed");
}
