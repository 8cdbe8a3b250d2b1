//! Writes one "welcome e-mail" row per `user.activated` event, however often each is delivered.
//!
//! Needs Kafka and a Postgres database of its own (not outboxd's):
//! `cargo run -p outbox-sdk --example transactional -- localhost:9092 postgres://localhost/mails`

use outbox_sdk::{Consumer, Event, HandlerError, PostgresInbox, Transaction};
use serde::Deserialize;
use sqlx::postgres::PgPoolOptions;

#[derive(Deserialize)]
struct User {
    id: String,
}

/// The row is written exactly once per event: the inbox's mark is part of the same transaction.
async fn welcome(event: &Event, tx: &mut Transaction) -> Result<(), HandlerError> {
    if event.event_type() != "user.activated" {
        return Ok(());
    }
    let user: User = event.json()?;
    let mail = sqlx::query("insert into welcome_mails (event_id, user_id) values ($1, $2)");
    mail.bind(event.id()).bind(&user.id).execute(&mut **tx).await?;
    tracing::info!(user = user.id, event_id = %event.id(), "welcome");
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    tracing_subscriber::fmt().with_max_level(tracing::Level::INFO).init();
    let mut arguments = std::env::args().skip(1);
    let brokers = arguments.next().unwrap_or_else(|| "localhost:9092".to_owned());
    let database = arguments.next().unwrap_or_else(|| "postgres://localhost/mails".to_owned());

    let pool = PgPoolOptions::new().max_connections(8).connect(&database).await?;
    let table = "create table if not exists welcome_mails (event_id uuid not null, user_id text not null)";
    sqlx::query(table).execute(&pool).await?;
    let inbox = PostgresInbox::new(pool);
    inbox.ensure_schema().await?;

    Consumer::builder("welcome-mailer")
        .kafka(brokers)
        .topics(["users"])
        .inbox(inbox)
        .handler(welcome)
        .build()?
        .run(async { tokio::signal::ctrl_c().await.unwrap_or(()) })
        .await?;
    Ok(())
}
