//! A relay as it is written at home, to be convicted: a cursor over the positions, and SKIP LOCKED so that two can share
//! the work.
//!
//! It is no straw man: it publishes before it moves the cursor, waits for every acknowledgement, and moves the cursor in
//! the transaction that locks what it has read. What it overlooks is that positions are not in commit order from key to
//! key, so that an event which commits late lies behind the cursor; and that what one relay skips because the other has
//! it can be overtaken. Any idle moment hides both.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use outbox_harness::{eventually, kafka};
use rdkafka::{
    message::{Header, OwnedHeaders},
    producer::{FutureProducer, FutureRecord},
};
use sqlx::{Connection as _, Executor as _, PgConnection, PgPool};
use tokio::sync::watch;
use uuid::Uuid;

use crate::Run;

const BATCH: i64 = 100;
const LOOK_EVERY: Duration = Duration::from_millis(5);

#[derive(sqlx::FromRow)]
struct Event {
    position: i64,
    id: Uuid,
    topic: String,
    key: Vec<u8>,
    data: Vec<u8>,
}

/// Starts one for each server, with one cursor for all. They relay until released.
pub(crate) async fn start(run: &Arc<Run>, pool: &PgPool, released: &watch::Receiver<bool>) {
    pool.execute("create table naive_cursor (position bigint not null)").await.expect("a table");
    pool.execute("insert into naive_cursor values (0)").await.expect("a row");
    for _ in &run.servers {
        tokio::spawn(relay(Arc::clone(run), released.clone()));
    }
}

async fn relay(run: Arc<Run>, released: watch::Receiver<bool>) {
    let producer: FutureProducer = kafka::client().set("enable.idempotence", "true").create().expect("a producer");
    let mut connection = PgConnection::connect(&run.database.url).await.expect("a connection");
    while !*released.borrow() {
        if !batch(&mut connection, &producer).await.expect("Postgres answers") {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

/// Publishes a batch; whether there was one.
async fn batch(connection: &mut PgConnection, producer: &FutureProducer) -> sqlx::Result<bool> {
    let mut transaction = connection.begin().await?;
    let events: Vec<Event> = sqlx::query_as(
        "select position, id, topic, key, data from outbox.events
         where position > (select position from naive_cursor)
         order by position limit $1 for update skip locked",
    )
    .bind(BATCH)
    .fetch_all(&mut *transaction)
    .await?;
    let Some(last) = events.last() else { return Ok(false) };
    let sent = events.iter().map(|Event { id, topic, key, data, .. }| {
        let id = id.to_string();
        let headers = OwnedHeaders::new().insert(Header { key: "ce_id", value: Some(&id) });
        producer.send(FutureRecord::to(topic).key(key).payload(data).headers(headers), Duration::from_secs(30))
    });
    for sent in join_all(sent).await {
        sent.expect("Kafka takes the record");
    }
    let moved = "update naive_cursor set position = greatest(position, $1)";
    sqlx::query(moved).bind(last.position).execute(&mut *transaction).await?;
    transaction.commit().await?;
    Ok(true)
}

/// Waits until it believes that it has published everything.
pub(crate) async fn believes_to_be_done(pool: &PgPool) {
    eventually("the naive relay to reach the end", Duration::from_secs(300), async || {
        let behind = "select exists (select from outbox.events where position > (select position from naive_cursor))";
        let behind: bool = sqlx::query_scalar(behind).fetch_one(pool).await.expect("the table can be read");
        (!behind).then_some(())
    })
    .await;
}
