//! Counts events by type and day, hundreds of events in one transaction, however often each is delivered.
//!
//! Needs Kafka and a Postgres database of its own (not outboxd's); `outboxd dev` prints the addresses of both:
//! `cargo run -p outbox-sdk --example batch -- localhost:9092 postgres://localhost/mails`

use std::collections::BTreeMap;

use chrono::NaiveDate;
use outbox_sdk::{BatchHandler, Consumer, Event, HandlerError, PostgresInbox, Transaction};
use sqlx::postgres::PgPoolOptions;

struct Count;

impl BatchHandler for Count {
    /// The events are new ones, in the order of their partition; their marks are part of the same transaction. When this
    /// fails, each is handled singly.
    async fn handle(&self, events: &[&Event], tx: &mut Transaction) -> Result<(), HandlerError> {
        let mut counts = BTreeMap::<(NaiveDate, &str), i64>::new();
        for event in events {
            let time = event.time().ok_or_else(|| HandlerError::dead_letter("the event has no time"))?;
            *counts.entry((time.date_naive(), event.event_type())).or_default() += 1;
        }
        // Rows are locked in one order, so that two partitions' batches wait for each other instead of deadlocking.
        for ((day, event_type), count) in counts {
            let add = sqlx::query(
                "insert into event_counts as c (day, type, count) values ($1, $2, $3)
                 on conflict (day, type) do update set count = c.count + excluded.count",
            );
            add.bind(day).bind(event_type).bind(count).execute(&mut **tx).await?;
        }
        tracing::info!(events = events.len(), "counted");
        Ok(())
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    tracing_subscriber::fmt().with_max_level(tracing::Level::INFO).init();
    let mut arguments = std::env::args().skip(1);
    let brokers = arguments.next().unwrap_or_else(|| "localhost:9092".to_owned());
    let database = arguments.next().unwrap_or_else(|| "postgres://localhost/mails".to_owned());

    let pool = PgPoolOptions::new().max_connections(8).connect(&database).await?;
    let table =
        "create table if not exists event_counts (day date, type text, count int8 not null, primary key (day, type))";
    sqlx::query(table).execute(&pool).await?;
    let inbox = PostgresInbox::new(pool);
    inbox.ensure_schema().await?;

    Consumer::builder("event-counter")
        .kafka(brokers)
        .topics(["users"])
        .inbox(inbox)
        .batch_handler(500, Count)
        .build()?
        .run(async { tokio::signal::ctrl_c().await.unwrap_or(()) })
        .await?;
    Ok(())
}
