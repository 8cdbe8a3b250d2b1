//! Draining a backlog reads each of its events about once, however many are stored.

use std::time::Duration;

use outbox_harness::{backlog, stream::Source, touched};
use outbox_server::config;

use crate::support::outbox::Outbox;

const SETTLED: usize = 60_000;
const BACKLOG: usize = 10_000;
const PER_TRANSACTION: usize = 1_000;
const WITHIN: Duration = Duration::from_secs(120);

/// Positions and transactions go hand in hand, of which the planner knows nothing: it supposes next to nothing to be beyond
/// both, and to sort next to nothing looks cheap.
#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_behind_many_settled_events_is_read_once() {
    let outbox = Outbox::fresh("planned", 1).await;
    let mut connection = outbox.connect().await;
    touched::by_nobody_else(&mut connection).await;
    let pool = sqlx::PgPool::connect(&outbox.url).await.expect("the database can be reached");
    backlog::store(&pool, &outbox.topic, SETTLED, PER_TRANSACTION).await;
    backlog::pass_over(&pool).await;
    let end = backlog::store(&pool, &outbox.topic, BACKLOG, PER_TRANSACTION).await;
    pool.close().await;

    let drain = async {
        let pool = sqlx::PgPool::connect(&outbox.url).await.expect("the database can be reached");
        let config = config::Relay { in_flight_events_max: 2_000, ..Outbox::relay_config() };
        let relay = outbox.relay_with(config);
        backlog::settled(&pool, Source::Poll, &end, WITHIN, || ()).await;
        relay.stop().await;
        pool.close().await;
    };
    let (touched, ()) = touched::by(&mut connection, drain).await;

    let (rows, blocks) = (touched.rows / BACKLOG as i64, touched.blocks / BACKLOG as i64);
    assert!(rows <= 2 && blocks <= 4, "of each event {rows} rows and {blocks} blocks: {touched:?}");
}
