//! The relay on the write-ahead log when all goes well, and across crashes of its own.

use outbox_harness::eventually;
use outbox_server::{config, model::source::Source, relay::Relay};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _};

use crate::support::{
    faulty::{Faults, Faulty},
    outbox::{Outbox, PATIENCE, Running, publisher},
};

#[tokio::test(flavor = "multi_thread")]
async fn what_is_committed_is_streamed_in_order_and_once() {
    let outbox = Outbox::fresh("wal", 3).await;
    outbox.emit(500, 20).await;
    let relay = outbox.relay();
    outbox.switch(Source::Wal).await;

    outbox.emit(3_000, 40).await;
    outbox.emit_singly(200, 10).await;
    outbox.all_settled().await;

    assert_eq!(outbox.assert_all_published_in_order().await, 0, "nothing is repeated");
    relay.stop().await;
}

/// Trap 4: two transactions whose records interleave in the log come one after the other, and what was rolled back to a
/// savepoint, or as a whole, does not come.
#[tokio::test(flavor = "multi_thread")]
async fn interleaved_transactions_and_savepoints_are_streamed_as_they_commit() {
    let outbox = Outbox::fresh("interleaved", 1).await;
    let relay = outbox.relay();
    outbox.switch(Source::Wal).await;
    let emit = |key: &str, data: usize| {
        AssertSqlSafe(format!("select outbox.emit('{}', 'test', to_jsonb({data}), '{key}')", outbox.topic))
    };
    let (mut first, mut second, mut third) = (outbox.connect().await, outbox.connect().await, outbox.connect().await);
    let (mut first, mut second, mut third) =
        (first.begin().await.unwrap(), second.begin().await.unwrap(), third.begin().await.unwrap());
    for n in 0..50 {
        first.execute(emit("first", n)).await.expect("stored");
        second.execute(emit("second", n)).await.expect("stored");
        third.execute(emit("third", n)).await.expect("stored");
        first.execute("savepoint s").await.expect("a savepoint");
        first.execute(emit("first", 1_000 + n)).await.expect("stored");
        let end = if n % 2 == 0 { "rollback to savepoint s" } else { "release savepoint s" };
        first.execute(end).await.expect("it ends");
    }

    third.rollback().await.expect("rolled back");
    second.commit().await.expect("committed");
    first.commit().await.expect("committed");
    outbox.all_settled().await;

    assert_eq!(outbox.stored().await.len(), 50 + 75);
    assert_eq!(outbox.assert_all_published_in_order().await, 0);
    relay.stop().await;
}

/// Trap 4: a crash in the middle of a huge transaction repeats no more than the window, not all of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_crash_within_a_huge_transaction_repeats_no_more_than_the_window() {
    let outbox = Outbox::fresh("huge", 3).await;
    let config = config::Relay { in_flight_events_max: 200, ..Outbox::relay_config() };
    let relay = outbox.relay_with(config.clone());
    outbox.switch(Source::Wal).await;
    relay.stop().await;
    outbox.emit(20_000, 40).await;
    let (mut crashes, faults) = (0, Faults::default());

    for streamed_at_least in [500, 5_000, 10_000] {
        faults.change(|plan| plan.hold_reports = false);
        let publisher = Faulty::new(publisher(), &faults);
        let relay = Running::start(Relay::with_publisher(config.clone(), &outbox.database_config(), publisher));
        let progressed = async || {
            let settled = outbox.stream().await.slot.expect("there is one").settled;
            (settled.index >= streamed_at_least).then_some(())
        };
        eventually("progress within the transaction", PATIENCE, progressed).await;
        faults.change(|plan| plan.hold_reports = true);
        relay.crash().await;
        crashes += 1;
        let settled = outbox.stream().await.slot.expect("there is one").settled;
        assert!((1..20_000).contains(&settled.index), "the crash landed within the transaction: {settled:?}");
    }
    let relay = outbox.relay_with(config);
    outbox.all_settled().await;

    let repeats = outbox.assert_all_published_in_order().await;
    assert!(repeats <= crashes * 200, "{repeats} repeats after {crashes} crashes");
    relay.stop().await;
}

/// Trap 4: the server is told of what is settled, never of what was only received.
#[tokio::test(flavor = "multi_thread")]
async fn the_server_is_told_only_of_what_is_settled() {
    let outbox = Outbox::fresh("confirm", 1).await;
    let faults = Faults::default();
    let publisher = Faulty::new(publisher(), &faults);
    let relay = Running::start(Relay::with_publisher(Outbox::relay_config(), &outbox.database_config(), publisher));
    outbox.switch(Source::Wal).await;
    // Until then polling may still have events under way, which would be repeated.
    eventually("it streams", PATIENCE, async || sender(&outbox).await).await;
    outbox.emit_singly(10, 1).await;
    outbox.all_settled().await;
    faults.change(|plan| plan.hold_reports = true);

    outbox.emit_singly(1, 1).await;
    // Behind the record of the first commit that is not settled.
    let unsettled = insert_position(&outbox).await;
    outbox.emit_singly(9, 1).await;
    let received = async || (outbox.published().await.0.len() == 20).then_some(());
    eventually("the events are in kafka, and their acknowledgements are not", PATIENCE, received).await;
    // It has read all that, and answered the server since.
    let mut connection = outbox.connect().await;
    let now: chrono::DateTime<chrono::Utc> =
        sqlx::query_scalar("select clock_timestamp() + interval '1 second'").fetch_one(&mut connection).await.unwrap();
    eventually("the server is answered", PATIENCE, async || {
        let answered = "select coalesce(bool_or(r.reply_time > $1), false) from pg_stat_replication r
                        join pg_replication_slots s on s.active_pid = r.pid where s.database = current_database()";
        let answered = sqlx::query_scalar(answered).bind(now).fetch_one(&mut connection).await;
        let answered: bool = answered.expect("it can be read");
        answered.then_some(())
    })
    .await;
    assert!(confirmed(&outbox).await < unsettled, "nothing that is not settled is confirmed");
    relay.crash().await;

    let relay = outbox.relay();
    outbox.all_settled().await;
    assert_eq!(outbox.assert_all_published_in_order().await, 10, "each of the last once more");
    relay.stop().await;
}

/// Trap 12: what other tables write moves the slot on, although there is nothing for the outbox in it.
#[tokio::test(flavor = "multi_thread")]
async fn an_idle_outbox_does_not_pin_the_log() {
    let outbox = Outbox::fresh("quiet", 1).await;
    let relay = outbox.relay();
    outbox.switch(Source::Wal).await;
    outbox.emit_singly(1, 1).await;
    outbox.all_settled().await;

    let mut connection = outbox.connect().await;
    connection.execute("create table other (data text)").await.expect("a table");
    connection.execute("insert into other select repeat('x', 1000) from generate_series(1, 2000)").await.expect("rows");
    let written = insert_position(&outbox).await;

    let moved = async || (confirmed(&outbox).await >= written).then_some(());
    eventually("the slot has moved past what others wrote", PATIENCE, moved).await;
    relay.stop().await;
}

/// The partitions of other days come and go, and columns are added, while the log is streamed.
#[tokio::test(flavor = "multi_thread")]
async fn partitions_and_columns_may_change_in_mid_stream() {
    let outbox = Outbox::fresh("ddl", 1).await;
    let relay = outbox.relay();
    outbox.switch(Source::Wal).await;
    outbox.emit(20, 4).await;
    let mut connection = outbox.connect().await;

    connection.execute("alter table outbox.events add column note text default 'x'").await.expect("a column is added");
    outbox.emit(20, 4).await;
    connection.execute("select outbox.make_partitions(9)").await.expect("partitions are made");
    let day =
        "select outbox.emit($1, 'tomorrow', '1', 'key-1', id => overlay(encode(outbox.uuidv7_time(clock_timestamp()
               + interval '24 hours'), 'hex') || '70008000000000000000' placing '' from 33)::uuid)";
    sqlx::query(day).bind(&outbox.topic).execute(&mut connection).await.expect("an event of tomorrow's partition");
    connection.execute("alter table outbox.events drop column note").await.expect("a column is dropped");
    outbox.emit(20, 4).await;
    outbox.all_settled().await;

    assert_eq!(outbox.stored().await.len(), 61);
    assert_eq!(outbox.assert_all_published_in_order().await, 0);
    relay.stop().await;
}

/// What is ahead of a slow Kafka is bounded, and the connection outlives the time after which the server would cut it.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_kafka_costs_neither_memory_nor_the_connection() {
    let outbox = Outbox::fresh("slow", 1).await;
    let faults = Faults::default();
    let config = config::Relay { in_flight_events_max: 100, ..Outbox::relay_config() };
    let relay = Relay::with_publisher(config, &outbox.database_config(), Faulty::new(publisher(), &faults));
    let relay = Running::start(relay);
    outbox.switch(Source::Wal).await;
    outbox.emit_singly(1, 1).await;
    outbox.all_settled().await;
    let streaming = eventually("it streams", PATIENCE, async || sender(&outbox).await).await;
    faults.change(|plan| plan.hold_reports = true);
    outbox.emit(5_000, 7).await;

    // The connection's wal_sender_timeout is five seconds.
    let from = std::time::Instant::now();
    eventually("seven seconds pass", PATIENCE, async || (from.elapsed().as_secs() >= 7).then_some(())).await;
    assert!(faults.plan().unreported_most <= 100, "{} in flight", faults.plan().unreported_most);
    faults.change(|plan| plan.hold_reports = false);
    outbox.all_settled().await;

    assert_eq!(sender(&outbox).await, Some(streaming), "it is still the same connection");
    assert_eq!(outbox.assert_all_published_in_order().await, 0);
    relay.stop().await;
}

/// The process that streams from the outbox's slot.
pub(crate) async fn sender(outbox: &Outbox) -> Option<i32> {
    let statement = "select active_pid from pg_replication_slots where database = current_database()";
    sqlx::query_scalar(statement)
        .fetch_optional(&mut outbox.connect().await)
        .await
        .expect("slots can be read")
        .flatten()
}

async fn insert_position(outbox: &Outbox) -> i64 {
    let statement = "select (pg_current_wal_insert_lsn() - '0/0')::bigint";
    sqlx::query_scalar(statement).fetch_one(&mut outbox.connect().await).await.expect("the log has an end")
}

async fn confirmed(outbox: &Outbox) -> i64 {
    let statement =
        "select (confirmed_flush_lsn - '0/0')::bigint from pg_replication_slots where database = current_database()";
    sqlx::query_scalar(statement).fetch_one(&mut outbox.connect().await).await.expect("there is a slot")
}
