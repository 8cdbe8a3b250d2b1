//! The demo's consumer: a service that "sends" an e-mail for each event, by writing a row.
//!
//! The table has no unique constraint on purpose: a mail sent twice would show. Invariant: nothing but the SDK's inbox
//! keeps that from happening.

use std::time::Duration;

use outbox_sdk::{
    Consumer, ConsumerError, Event, Handler, HandlerError, PostgresInbox, Stats, StatsReader, Transaction,
};
use serde::Deserialize;
use sqlx::PgPool;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::Failure;
use crate::config;

/// The tables of the consumer's own database.
pub(super) const SCHEMA: &str =
    "create table if not exists mails (event_id uuid not null, kind text not null, user_id text not null)";
const COMMIT_INTERVAL: Duration = Duration::from_millis(200);

/// The running consumer.
pub(super) struct Mailer {
    stats: StatsReader,
    shutdown: CancellationToken,
    task: JoinHandle<Result<(), ConsumerError>>,
}

/// How many mails there are: all, and for how many different events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, sqlx::FromRow)]
pub(super) struct Mails {
    pub(super) sent: i64,
    pub(super) events: i64,
}

struct SendMail;

#[derive(Deserialize)]
struct Payload {
    user_id: String,
}

impl Handler for SendMail {
    async fn handle(&self, event: &Event, tx: &mut Transaction) -> Result<(), HandlerError> {
        let kind = match event.event_type() {
            "user.activated" => "welcome",
            "order.placed" => "order confirmation",
            other => return Err(HandlerError::new(format!("no mail is known for {other}"))),
        };
        let payload: Payload = event.json()?;
        let mail = sqlx::query("insert into mails (event_id, kind, user_id) values ($1, $2, $3)");
        mail.bind(event.id()).bind(kind).bind(payload.user_id).execute(&mut **tx).await?;
        Ok(())
    }
}

impl Mailer {
    /// Starts the consumer `name` on `topic`, with its inbox in `database`.
    pub(super) async fn start(
        name: &str,
        kafka: &config::Kafka,
        topic: &str,
        database: PgPool,
    ) -> Result<Self, Failure> {
        let inbox = PostgresInbox::new(database);
        inbox.ensure_schema().await?;
        let mut consumer = Consumer::builder(name).kafka(&kafka.bootstrap_servers).topics([topic]);
        for (key, value) in &kafka.properties {
            consumer = consumer.property(key, value);
        }
        let consumer = consumer.commit_interval(COMMIT_INTERVAL).inbox(inbox).handler(SendMail).build()?;
        let (stats, shutdown) = (consumer.stats(), CancellationToken::new());
        let task = tokio::spawn(consumer.run(shutdown.clone().cancelled_owned()));
        Ok(Self { stats, shutdown, task })
    }

    /// What it has done.
    pub(super) fn stats(&self) -> Stats {
        self.stats.read()
    }

    /// Drains it.
    pub(super) async fn stop(self) -> Result<(), Failure> {
        self.shutdown.cancel();
        Ok(self.task.await??)
    }
}

impl Mails {
    /// Counts all mails.
    pub(super) async fn count(database: &PgPool) -> Result<Self, Failure> {
        let count = sqlx::query_as("select count(*) as sent, count(distinct event_id) as events from mails");
        Ok(count.fetch_one(database).await?)
    }
}
