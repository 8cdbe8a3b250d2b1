//! One process of the consumer: what it does with an event is written to a ledger.

use std::time::Duration;

use outbox_harness::kafka;
use outbox_sdk::{
    BatchEffect, BatchHandler, Client, Consumer, Effect, Event, Handler, HandlerError, PostgresInbox, Transaction,
    claim::{Claim, PostgresClaims, ServerClaims},
};
use sqlx::{PgPool, postgres::PgPoolOptions};
use uuid::Uuid;

use super::{LEASE, Mode, SESSION_TIMEOUT_MS};

struct Ledger;

const INSERT: &str = "insert into effects (event_id, key, n) select * from unnest($1::uuid[], $2::text[], $3::int8[])";

/// The event's key, and its number among those of it.
fn place(event: &Event) -> Result<(String, i64), HandlerError> {
    Ok((String::from_utf8_lossy(event.key().unwrap_or_default()).into_owned(), event.json()?))
}

/// Events as arrays for the database.
#[derive(Default)]
struct Columns {
    ids: Vec<Uuid>,
    keys: Vec<String>,
    /// Among those of the key.
    numbers: Vec<i64>,
}

impl Columns {
    fn of(events: &[&Event]) -> Result<Self, HandlerError> {
        let mut columns = Self::default();
        for event in events {
            let (key, n) = place(event)?;
            columns.ids.push(event.id());
            columns.keys.push(key);
            columns.numbers.push(n);
        }
        Ok(columns)
    }
}

async fn write(events: &[&Event], tx: &mut Transaction) -> Result<(), HandlerError> {
    let Columns { ids, keys, numbers } = Columns::of(events)?;
    sqlx::query(INSERT).bind(ids).bind(keys).bind(numbers).execute(&mut **tx).await?;
    Ok(())
}

impl Handler for Ledger {
    async fn handle(&self, event: &Event, tx: &mut Transaction) -> Result<(), HandlerError> {
        write(&[event], tx).await
    }
}

impl BatchHandler for Ledger {
    async fn handle(&self, events: &[&Event], tx: &mut Transaction) -> Result<(), HandlerError> {
        write(events, tx).await
    }
}

/// An effect outside the claims' transaction: it begins, takes a while, and ends.
struct Deed(PgPool);

impl Effect for Deed {
    async fn perform(&self, event: &Event, claim: &Claim) -> Result<Vec<u8>, HandlerError> {
        let (key, n) = place(event)?;
        let begin = sqlx::query("insert into deeds (event_id, key, n, token) values ($1, $2, $3, $4)");
        begin.bind(event.id()).bind(key).bind(n).bind(claim.token()).execute(&self.0).await?;
        tokio::time::sleep(Duration::from_millis(5)).await;
        let end = sqlx::query("update deeds set ended = true where token = $1").bind(claim.token());
        end.execute(&self.0).await?;
        Ok(claim.token().as_bytes().to_vec())
    }
}

/// The same for many events: it begins for all of them, takes a while, and ends for all.
impl BatchEffect for Deed {
    async fn perform(&self, events: &[&Event], claims: &[Claim]) -> Result<(), HandlerError> {
        let Columns { ids, keys, numbers } = Columns::of(events)?;
        let tokens: Vec<Uuid> = claims.iter().map(Claim::token).collect();
        let begin = "insert into deeds (event_id, key, n, token)
                     select * from unnest($1::uuid[], $2::text[], $3::int8[], $4::uuid[])";
        sqlx::query(begin).bind(ids).bind(keys).bind(numbers).bind(&tokens).execute(&self.0).await?;
        tokio::time::sleep(Duration::from_millis(5)).await;
        let end = sqlx::query("update deeds set ended = true where token = any ($1)").bind(tokens);
        end.execute(&self.0).await?;
        Ok(())
    }
}

/// One consumer process, until it is killed. `server` is outboxd's endpoint, where it keeps the claims.
pub(super) async fn consume(mode: Mode, url: &str, topic: &str, server: &str) {
    let options = PgPoolOptions::new().max_connections(16).acquire_timeout(Duration::from_secs(5));
    let pool = options.connect_lazy(url).expect("the URL is one");
    let consumer = Consumer::builder("soak")
        .kafka(kafka::bootstrap_servers())
        .property("session.timeout.ms", SESSION_TIMEOUT_MS)
        .property("heartbeat.interval.ms", "500")
        .group(topic)
        .topics([topic])
        .retry_backoff(Duration::from_millis(20), Duration::from_secs(1));
    let consumer = match mode {
        Mode::Keyed => consumer.inbox(PostgresInbox::new(pool)).concurrency(4).handler(Ledger).build(),
        Mode::Batch => consumer.inbox(PostgresInbox::new(pool)).batch_handler(200, Ledger).build(),
        Mode::Claim => {
            let claims = PostgresClaims::new(pool.clone());
            consumer.claims(claims, LEASE).concurrency(4).effect(Deed(pool)).build()
        }
        Mode::ClaimBatch => {
            let claims = PostgresClaims::new(pool.clone());
            consumer.claims(claims, LEASE).concurrency(4).batch_effect(50, Deed(pool)).build()
        }
        Mode::Server => {
            let claims = ServerClaims::new(Client::connect(server).expect("an endpoint"));
            consumer.claims(claims, LEASE).concurrency(4).effect(Deed(pool)).build()
        }
    };
    consumer.expect("a consumer can be built").run(std::future::pending()).await.expect("it is never told to stop");
}
