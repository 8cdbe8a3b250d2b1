//! Draining a backlog reads each of its events about once, however many are stored.

use std::time::Duration;

use outbox_harness::{
    backlog, eventually,
    stream::Source,
    touched::{self, Touched},
};
use outbox_server::config;
use sqlx::Connection as _;

use crate::{
    numbers_cost::{PER_TRANSACTION, settled},
    support::outbox::Outbox,
};

const SETTLED: usize = 60_000;
const BACKLOG: usize = 10_000;
const WITHIN: Duration = Duration::from_secs(120);

/// Positions and transactions go hand in hand, of which the planner knows nothing: it supposes next to nothing to be beyond
/// both, and to sort next to nothing looks cheap.
#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_behind_many_settled_events_is_read_once() {
    let (outbox, mut connection) = settled("planned", SETTLED).await;
    let pool = sqlx::PgPool::connect(&outbox.url).await.expect("the database can be reached");
    let end = backlog::store(&pool, &outbox.topic, BACKLOG, PER_TRANSACTION).await;
    pool.close().await;

    let drain = async {
        let pool = sqlx::PgPool::connect(&outbox.url).await.expect("the database can be reached");
        let relay = outbox.relay_with(small_pages());
        backlog::settled(&pool, Source::Poll, &end, WITHIN, || ()).await;
        relay.stop().await;
        pool.close().await;
    };
    let (touched, ()) = touched::by(&mut connection, drain).await;
    assert_read_once(touched, BACKLOG);
}

/// What was open when the relay looked last is found by its transaction.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_transaction_that_was_open_for_long_is_read_once() {
    let (outbox, mut connection) = settled("large", SETTLED).await;

    let drain = async {
        let mut writer = outbox.connect().await;
        let mut large = writer.begin().await.expect("it begins");
        let emit =
            "select count(outbox.emit($1, 'test', to_jsonb(n), 'key-' || n % 100)) from generate_series(1, $2) n";
        sqlx::query(emit).bind(&outbox.topic).bind(BACKLOG as i32).execute(&mut *large).await.expect("they are stored");
        let relay = outbox.relay_with(small_pages());
        let mut looker = outbox.connect().await;
        let read_with_it =
            "select bool_and(not pg_visible_in_snapshot($1::xid8, snapshot) and pg_snapshot_xmax(snapshot) > $1::xid8
                                            or target is not null) from outbox.progress";
        let xid: String =
            sqlx::query_scalar("select pg_current_xact_id()::text").fetch_one(&mut *large).await.expect("one");
        eventually("the relay has looked while it is open", WITHIN, async || {
            // What comes after it has the snapshot move on.
            sqlx::query("select outbox.emit($1, 'test', '1', 'a')")
                .bind(&outbox.topic)
                .execute(&mut looker)
                .await
                .ok()?;
            let looked: bool = sqlx::query_scalar(read_with_it).bind(&xid).fetch_one(&mut looker).await.ok()?;
            looked.then_some(())
        })
        .await;
        large.commit().await.expect("it commits");
        let passed =
            "select bool_and(target is null and pg_visible_in_snapshot($1::xid8, snapshot)) from outbox.progress";
        eventually("it is settled", WITHIN, async || {
            let passed: bool = sqlx::query_scalar(passed).bind(&xid).fetch_one(&mut looker).await.ok()?;
            passed.then_some(())
        })
        .await;
        relay.stop().await;
        writer.close().await.expect("it can be closed");
        looker.close().await.expect("it can be closed");
    };
    let (touched, ()) = touched::by(&mut connection, drain).await;
    assert_read_once(touched, BACKLOG);
}

/// Many of them for a backlog.
fn small_pages() -> config::Relay {
    config::Relay { in_flight_events_max: 2_000, ..Outbox::relay_config() }
}

#[track_caller]
fn assert_read_once(touched: Touched, events: usize) {
    let (rows, blocks) = (touched.rows / events as i64, touched.blocks / events as i64);
    assert!(rows <= 2 && blocks <= 8, "of each event {rows} rows and {blocks} blocks: {touched:?}");
}
