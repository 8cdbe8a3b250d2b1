//! How fast the relay drains a backlog, against a bare librdkafka loop that sends the same records.
//!
//! Both send the same number of records with the same keys, payloads and headers under the same producer properties
//! (acks, idempotence, no gaps, linger), and both count a delivery report for each. The bare loop has its records in
//! memory; the relay reads them from Postgres and writes its progress. By turns, each with a topic of its own.

#![allow(clippy::expect_used, clippy::print_stdout, reason = "a benchmark that cannot run says why")]

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use clap::Parser;
use outbox_harness::{eventually, kafka, outboxd::Outboxd, postgres::Database};
use outbox_proto::record::Attributes;
use rdkafka::{
    ClientContext,
    error::{KafkaError, RDKafkaErrorCode},
    message::{Header, OwnedHeaders},
    producer::{BaseRecord, DeliveryResult, Producer as _, ProducerContext, ThreadedProducer},
};
use sqlx::{AssertSqlSafe, PgPool};
use uuid::Uuid;

const KEYS: usize = 10_000;
const PAYLOAD_BYTES: usize = 300;
const BATCH: usize = 10_000;
const PARTITIONS: i32 = 6;

/// Compares the relay's drain with a bare librdkafka loop.
#[derive(Debug, Parser)]
struct Options {
    /// The outboxd executable
    #[arg(long, default_value = "target/release/outboxd")]
    outboxd: PathBuf,
    /// Events in the backlog
    #[arg(long, default_value_t = 1_000_000)]
    events: usize,
    /// Rounds of both
    #[arg(long, default_value_t = 3)]
    rounds: usize,
}

#[tokio::main]
async fn main() {
    let options = Options::parse();
    println!("{options:?}");
    let mut ratios = Vec::new();
    for round in 1..=options.rounds {
        let bare = tokio::task::spawn_blocking({
            let events = options.events;
            move || bare(events)
        });
        let bare = bare.await.expect("the bare loop ends well");
        let (relay, memory_kib) = relay(&options).await;
        println!("round {round}: bare {bare:.0}/s, relay {relay:.0}/s, peak memory {} MiB", memory_kib / 1_024);
        ratios.push(relay / bare);
    }
    ratios.sort_by(f64::total_cmp);
    println!("median of ratios: relay/bare {:.2}", ratios[ratios.len() / 2]);
}

struct Count(Arc<AtomicUsize>);

impl ClientContext for Count {}

impl ProducerContext for Count {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        assert!(result.is_ok(), "a record failed: {result:?}");
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Records per second, from the first one sent to the last one acknowledged.
fn bare(events: usize) -> f64 {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let topic = runtime.block_on(kafka::fresh_topic("bare", PARTITIONS));
    let acknowledged = Arc::new(AtomicUsize::new(0));
    let producer: ThreadedProducer<Count> = kafka::client()
        .set("acks", "all")
        .set("enable.idempotence", "true")
        .set("enable.gapless.guarantee", "true")
        .set("message.timeout.ms", "0")
        .set("partitioner", "murmur2_random")
        .set("linger.ms", "2")
        .set("batch.num.messages", "10000")
        .create_with_context(Count(Arc::clone(&acknowledged)))
        .expect("a producer can be made");
    let payload = vec![b'x'; PAYLOAD_BYTES];
    let now = chrono::Utc::now();
    let start = Instant::now();
    for n in 0..events {
        let attributes = Attributes {
            id: Uuid::now_v7(),
            source: "bench".into(),
            event_type: "drained".into(),
            subject: None,
            time: Some(now),
            content_type: Some("application/json".into()),
            traceparent: None,
            tracestate: None,
            headers: Vec::new(),
        };
        let mut headers = Some(OwnedHeaders::new());
        attributes.encode(|key, value| {
            headers = headers.take().map(|headers| headers.insert(Header { key, value: Some(value) }));
        });
        let key = (n % KEYS).to_string();
        let mut record = BaseRecord::to(&topic).key(&key).payload(&payload).headers(headers.expect("they are there"));
        while let Err((error, unsent)) = producer.send(record) {
            let full = matches!(error, KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull));
            assert!(full, "a record cannot be sent: {error}");
            record = unsent;
            std::thread::sleep(Duration::from_micros(200));
        }
    }
    producer.flush(Duration::from_secs(120)).expect("every record is acknowledged");
    assert_eq!(acknowledged.load(Ordering::Relaxed), events);
    events as f64 / start.elapsed().as_secs_f64()
}

/// Events per second, from the relay's start until all are settled, and its peak of resident memory.
async fn relay(options: &Options) -> (f64, u64) {
    let database = Database::fresh().await;
    let log = std::env::temp_dir().join(format!("outboxd-drain-{}.log", Uuid::now_v7()));
    let server = Outboxd::new(&options.outboxd, &database.url, log.clone());
    let migrated =
        std::process::Command::new(&options.outboxd).args(["migrate", "--database-url", &database.url]).output();
    assert!(migrated.expect("outboxd can be run").status.success(), "the migrations fail");
    let pool = database.pool().await;
    let topic = kafka::fresh_topic("drain", PARTITIONS).await;
    fill(&pool, &topic, options.events).await;

    let start = Instant::now();
    let running = server.start();
    eventually("every event to be settled", Duration::from_secs(600), async || {
        let settled = "select bool_and(pg_visible_in_snapshot((select max(xid) from outbox.events), p.snapshot))
                       from outbox.progress p";
        let settled: bool = sqlx::query_scalar(settled).fetch_one(&pool).await.expect("progress can be read");
        settled.then_some(())
    })
    .await;
    let (elapsed, memory) = (start.elapsed(), running.peak_memory_kib());
    running.end();
    std::fs::remove_file(&log).expect("the log can be removed");
    (options.events as f64 / elapsed.as_secs_f64(), memory)
}

async fn fill(pool: &PgPool, topic: &str, events: usize) {
    let payload = "x".repeat(PAYLOAD_BYTES);
    for first in (0..events).step_by(BATCH) {
        let last = (first + BATCH).min(events) - 1;
        let batch = format!(
            "with e as (select outbox.uuidv7() as id, convert_to((n % {KEYS})::text, 'UTF8') as key
                        from generate_series({first}, {last}) as n)
             select outbox.append_events('default', array_agg(id), array_agg('{topic}'::text), array_agg(key),
                 array_agg('bench'::text), array_agg('drained'::text), array_agg(null::text),
                 array_agg('{payload}'::bytea), array_agg('application/json'::text), array_agg(null::jsonb),
                 array_agg(now()), array_agg(null::text), array_agg(null::text)) from e"
        );
        sqlx::query(AssertSqlSafe(batch)).execute(pool).await.expect("events can be stored");
    }
    sqlx::query("vacuum (analyze) outbox.events").execute(pool).await.expect("the table can be analysed");
}
