//! What the consumer's tests share: a database with an inbox and a ledger of effects, topics, and running consumers.
//!
//! It deliberately keeps no unique constraint on the ledger: a second effect must show, not fail.

use std::{
    sync::atomic::{AtomicU64, Ordering::SeqCst},
    time::Duration,
};

use futures_util::future::join_all;
use outbox_harness::{kafka, postgres::Database};
use outbox_proto::record::Attributes;
use outbox_sdk::{
    Consumer, ConsumerBuilder, ConsumerError, Event, Handler, HandlerError, PostgresInbox, Stats, StatsReader,
    Transaction,
};
use rdkafka::{
    ClientConfig,
    message::{Header, OwnedHeaders},
    producer::{FutureProducer, FutureRecord},
};
use sqlx::PgPool;
use tokio::{sync::oneshot, task::JoinHandle};
use uuid::Uuid;

pub(crate) use outbox_harness::eventually;

/// How long a test waits for something that takes a second or two.
pub(crate) const SOON: Duration = Duration::from_secs(60);

pub(crate) struct Rig {
    pub(crate) pool: PgPool,
    pub(crate) topic: String,
    pub(crate) database: Database,
}

impl Rig {
    pub(crate) async fn new(partitions: i32) -> Self {
        crate::trace::Spans::collect();
        let database = Database::fresh().await;
        let pool = database.pool().await;
        PostgresInbox::new(pool.clone()).ensure_schema().await.expect("the schema can be made");
        sqlx::query("create table effects (consumer text, source text, event_id uuid)").execute(&pool).await.unwrap();
        Self { pool, topic: kafka::fresh_topic("sdk", partitions).await, database }
    }

    /// Settings with Kafka's own timeouts.
    pub(crate) fn lasting(&self, name: &str) -> ConsumerBuilder<PostgresInbox> {
        plain(name, &self.topic).inbox(PostgresInbox::new(self.pool.clone()))
    }

    pub(crate) fn builder(&self, name: &str) -> ConsumerBuilder<PostgresInbox> {
        builder(name, &self.topic, &self.pool)
    }

    /// Publishes events without keys, in this order per partition.
    pub(crate) async fn publish(&self, events: impl IntoIterator<Item = (i32, Attributes)>) {
        self.publish_records(events.into_iter().map(|(partition, event)| (partition, None, event, "{}"))).await;
    }

    /// Publishes events of this key to partition 0.
    pub(crate) async fn publish_keyed(&self, key: &str, events: &[Attributes]) {
        self.publish_records(events.iter().map(|event| (0, Some(key), event.clone(), "{}"))).await;
    }

    /// Publishes records: partition, key, headers, payload.
    pub(crate) async fn publish_records<'a>(
        &self,
        records: impl IntoIterator<Item = (i32, Option<&'a str>, Attributes, &'a str)>,
    ) {
        let producer: FutureProducer = kafka::client().set("enable.idempotence", "true").create().unwrap();
        let sent = records.into_iter().map(|(partition, key, attributes, payload)| {
            let headers = headers(&attributes);
            let mut record = FutureRecord::to(&self.topic).partition(partition).headers(headers).payload(payload);
            record.key = key;
            producer.send_result(record).map_err(|(error, _)| error).expect("the record can be queued")
        });
        for delivered in join_all(sent).await {
            delivered.expect("the producer lives").map_err(|(error, _)| error).expect("Kafka takes the record");
        }
    }

    /// How often each event had an effect: the number of different events, and of effects.
    pub(crate) async fn effects(&self, consumer: &str) -> (i64, i64) {
        let query = "select count(distinct (source, event_id)), count(*) from effects where consumer = $1";
        sqlx::query_as(query).bind(consumer).fetch_one(&self.pool).await.expect("the ledger can be read")
    }

    pub(crate) async fn until_effects(&self, consumer: &str, events: i64) {
        let what = format!("{consumer} to have handled {events} events");
        eventually(&what, SOON, async || (self.effects(consumer).await.0 >= events).then_some(())).await;
    }

    /// The committed offset of a consumer's group in a partition; 0 when there is none.
    pub(crate) fn committed(&self, name: &str, partition: i32) -> i64 {
        kafka::committed(&group(name, &self.topic), &self.topic, partition + 1)[partition as usize]
    }

    pub(crate) async fn until_committed(&self, group: &str, partition: i32, offset: i64) {
        let what = format!("{group} to have committed {offset}");
        eventually(&what, SOON, async || (self.committed(group, partition) >= offset).then_some(())).await;
    }
}

/// Every test has groups of its own: members of one group wait for each other.
fn group(name: &str, topic: &str) -> String {
    format!("{name}-{topic}")
}

/// A consumer's settings for tests: quick to notice and to retry.
pub(crate) fn builder(name: &str, topic: &str, pool: &PgPool) -> ConsumerBuilder<PostgresInbox> {
    unstored(name, topic).inbox(PostgresInbox::new(pool.clone()))
}

/// The same without a place to remember what was handled.
pub(crate) fn unstored(name: &str, topic: &str) -> ConsumerBuilder<()> {
    plain(name, topic).property("session.timeout.ms", "6000").property("heartbeat.interval.ms", "500")
}

fn plain(name: &str, topic: &str) -> ConsumerBuilder<()> {
    Consumer::builder(name)
        .kafka(kafka::bootstrap_servers())
        .topics([topic])
        .group(group(name, topic))
        .retry_backoff(Duration::from_millis(10), Duration::from_millis(100))
        .commit_interval(Duration::from_millis(50))
}

pub(crate) fn event() -> Attributes {
    Attributes {
        id: Uuid::now_v7(),
        source: "/shop".into(),
        event_type: "user.activated".into(),
        subject: None,
        time: None,
        content_type: Some("application/json".into()),
        traceparent: None,
        tracestate: None,
        headers: vec![],
    }
}

pub(crate) fn events(count: usize) -> Vec<Attributes> {
    (0..count).map(|_| event()).collect()
}

fn headers(attributes: &Attributes) -> OwnedHeaders {
    let mut headers = OwnedHeaders::new();
    attributes.encode(|key, value| {
        headers = std::mem::take(&mut headers).insert(Header { key, value: Some(value) });
    });
    headers
}

/// Publishes a record that is no event.
pub(crate) async fn publish_junk(topic: &str, partition: i32) {
    let producer: FutureProducer = ClientConfig::clone(&kafka::client()).create().unwrap();
    let record = FutureRecord::<(), _>::to(topic).partition(partition).payload("junk");
    producer.send(record, SOON).await.expect("Kafka takes the record");
}

/// Writes the effect of handling an event.
pub(crate) async fn effect(consumer: &str, event: &Event, tx: &mut Transaction) -> Result<(), HandlerError> {
    let insert = sqlx::query("insert into effects (consumer, source, event_id) values ($1, $2, $3)");
    insert.bind(consumer).bind(event.source()).bind(event.id()).execute(&mut **tx).await?;
    Ok(())
}

/// A handler that only has its effect.
pub(crate) struct Effect(pub(crate) &'static str);

impl Handler for Effect {
    async fn handle(&self, event: &Event, tx: &mut Transaction) -> Result<(), HandlerError> {
        effect(self.0, event, tx).await
    }
}

/// Has its effect, then fails in the given way the first `failures` times.
pub(crate) struct FailsFirst {
    pub(crate) name: &'static str,
    pub(crate) failures: u64,
    pub(crate) seen: AtomicU64,
    pub(crate) fail: fn() -> Result<(), HandlerError>,
}

impl Handler for FailsFirst {
    async fn handle(&self, event: &Event, tx: &mut Transaction) -> Result<(), HandlerError> {
        effect(self.name, event, tx).await?;
        if self.seen.fetch_add(1, SeqCst) < self.failures { (self.fail)() } else { Ok(()) }
    }
}

/// A consumer that runs in the background.
pub(crate) struct Running {
    stats: StatsReader,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), ConsumerError>>,
}

impl Running {
    pub(crate) fn start(consumer: Consumer) -> Self {
        let (stop, stopped) = oneshot::channel();
        let stats = consumer.stats();
        let task = tokio::spawn(consumer.run(async move { stopped.await.unwrap_or(()) }));
        Self { stats, stop, task }
    }

    pub(crate) fn stats(&self) -> Stats {
        self.stats.read()
    }

    pub(crate) async fn until(&self, what: &str, check: impl Fn(Stats) -> bool) {
        eventually(what, SOON, async || check(self.stats()).then_some(())).await;
    }

    /// Asks it to shut down and waits for it.
    pub(crate) async fn shut_down(self) -> Result<(), ConsumerError> {
        self.stop.send(()).expect("it still runs");
        ended(self.task).await
    }

    /// Waits for it to stop by itself.
    pub(crate) async fn ended(self) -> Result<(), ConsumerError> {
        ended(self.task).await
    }

    /// Drops it without a drain.
    pub(crate) async fn kill(self) {
        self.task.abort();
        assert!(self.task.await.is_err_and(|e| e.is_cancelled()), "it was still running");
    }
}

async fn ended(task: JoinHandle<Result<(), ConsumerError>>) -> Result<(), ConsumerError> {
    tokio::time::timeout(SOON, task).await.expect("it ends in time").expect("it does not panic")
}
