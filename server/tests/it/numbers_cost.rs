//! Operators' numbers read a bounded part of the events, however many are stored.
//!
//! What is counted is what the sessions of a real `outboxd relay status` touch, by Postgres's own counters: whatever the
//! planner makes of each of its queries, a scan over all events fails here.

use std::process::Command;

use outbox_harness::{
    backlog,
    touched::{self, Touched},
};
use sqlx::{Connection as _, Executor as _, PgConnection};

use crate::support::outbox::Outbox;

/// So many that reading all of them cannot be taken for probing indexes.
const STORED: usize = 120_000;
pub(crate) const PER_TRANSACTION: usize = 1_000;

/// An outbox with so many events that are settled, and a connection by which to tell what others touch of them.
pub(crate) async fn settled(name: &str, events: usize) -> (Outbox, PgConnection) {
    let outbox = Outbox::fresh(name, 1).await;
    let mut connection = outbox.connect().await;
    touched::by_nobody_else(&mut connection).await;
    let pool = sqlx::PgPool::connect(&outbox.url).await.expect("the database can be reached");
    backlog::store(&pool, &outbox.topic, events, PER_TRANSACTION).await;
    backlog::pass_over(&pool).await;
    pool.close().await;
    (outbox, connection)
}

async fn status(outbox: &Outbox, connection: &mut PgConnection) -> (Touched, serde_json::Value) {
    let run = async {
        let output = Command::new(env!("CARGO_BIN_EXE_outboxd"))
            .args(["relay", "status", "--output", "json", "--database-url", &outbox.url])
            .output()
            .expect("it can be run");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).expect("it prints JSON")
    };
    touched::by(connection, run).await
}

#[tokio::test(flavor = "multi_thread")]
async fn while_everything_is_settled_only_the_ends_of_indexes_are_probed() {
    let (outbox, mut connection) = settled("probes", STORED).await;

    let (touched, numbers) = status(&outbox, &mut connection).await;

    assert_eq!(numbers["unsettled"]["events"], 0);
    assert!(touched.rows <= 100 && touched.blocks <= 500, "{touched:?}");
}

/// An open transaction has every lane look into its snapshot's list, and into what came after it.
#[tokio::test(flavor = "multi_thread")]
async fn a_write_transaction_that_is_held_open_changes_little() {
    let (outbox, mut connection) = settled("held_numbers", STORED).await;
    let (mut holder, mut passer) = (outbox.connect().await, outbox.connect().await);
    holder.execute("create table held (n bigint)").await.expect("a table can be made");
    let mut held = holder.begin().await.expect("it begins");
    held.execute("insert into held values (1)").await.expect("a row can be written");
    passer
        .execute("update outbox.progress set snapshot = pg_current_snapshot()")
        .await
        .expect("progress can be written");
    passer.close().await.expect("it can be closed");
    held.commit().await.expect("it ends");
    holder.close().await.expect("it can be closed");

    let (touched, numbers) = status(&outbox, &mut connection).await;

    assert_eq!(numbers["unsettled"]["events"], 0);
    assert!(touched.rows <= 100 && touched.blocks <= 500, "{touched:?}");
}

/// However large a backlog is, it is counted to the limit and no further.
#[tokio::test(flavor = "multi_thread")]
async fn of_a_large_backlog_only_its_beginning_is_read() {
    let (outbox, mut connection) = settled("backlog_numbers", STORED).await;
    let pool = sqlx::PgPool::connect(&outbox.url).await.expect("the database can be reached");
    backlog::store(&pool, &outbox.topic, STORED, PER_TRANSACTION).await;
    pool.close().await;

    let (touched, numbers) = status(&outbox, &mut connection).await;

    let (events, stored) = (numbers["unsettled"]["events"].as_f64(), STORED as f64);
    assert!(events.is_some_and(|events| (events / stored - 1.0).abs() < 0.2), "{numbers}");
    assert_eq!(numbers["unsettled"]["is_exact"], false);
    // Two readings of a little more than 10,000 each.
    assert!(touched.rows <= 25_000 && touched.blocks <= 8_000, "{touched:?}");
}

/// The events of a huge transaction that was open when progress was last written are no exception.
#[tokio::test(flavor = "multi_thread")]
async fn of_a_huge_transaction_only_its_beginning_is_read() {
    let (outbox, mut connection) = settled("huge_numbers", STORED).await;
    let (mut writer, mut passer) = (outbox.connect().await, outbox.connect().await);
    let mut huge = writer.begin().await.expect("it begins");
    let emit = "select count(outbox.emit($1, 'test', to_jsonb(n), 'key-' || n % 100)) from generate_series(1, 50000) n";
    sqlx::query(emit).bind(&outbox.topic).execute(&mut *huge).await.expect("events can be stored");
    passer
        .execute("update outbox.progress set snapshot = pg_current_snapshot(), floor = (select last_value from outbox.positions)")
        .await
        .expect("progress can be written");
    passer.close().await.expect("it can be closed");
    huge.commit().await.expect("it commits");
    writer.close().await.expect("it can be closed");

    let (touched, numbers) = status(&outbox, &mut connection).await;

    let unsettled = &numbers["unsettled"];
    assert!(unsettled["events"].as_i64() > Some(10_000) && unsettled["is_exact"] == false, "{unsettled}");
    // Two readings, a block for each of their rows at most.
    assert!(touched.rows <= 25_000 && touched.blocks <= 12_000, "{touched:?}");
}
