//! What consuming costs: the SDK's modes beside bare librdkafka loops that read the same topic.
//!
//! Every contender reads one topic as a group of its own and is timed from its first record to its last, so that joining
//! the group does not count. A bare loop only counts, or reads each event's id, or writes what the batch mode's handler
//! writes, in transactions of the same size, without deduplication. There is one over all partitions, as a consumer is
//! usually written, and one for each partition with a client, a thread and a database connection of its own, which is the
//! most that can be had. Where nothing but reading is compared, the processor time that all of this process's threads took
//! is told as well, Kafka's client among them. With `key-ordered` each event takes a millisecond; what the workers could do
//! at most is told by how long the handler really took.

#![allow(clippy::expect_used, clippy::print_stdout, reason = "a benchmark that cannot run says why")]

mod bare;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use clap::Parser;
use futures_util::future::join_all;
use outbox_harness::{figures, kafka, postgres::Database};
use outbox_proto::record::Attributes;
use outbox_sdk::{
    BatchEffect, BatchHandler, Consumer, ConsumerBuilder, Effect, Event, Handler, HandlerError, PostgresInbox,
    Transaction,
    claim::{Claim, MemoryClaims},
};
use rdkafka::{
    message::{Header, OwnedHeaders},
    producer::{FutureProducer, FutureRecord},
};
use rustix::time::{ClockId, clock_gettime};
use sqlx::{PgPool, postgres::PgPoolOptions};
use uuid::Uuid;

use self::bare::Loops;

const PARTITIONS: i32 = 6;
const KEYS: usize = 10_000;
const PAYLOAD_BYTES: usize = 300;
const LEASE: Duration = Duration::from_secs(60);

/// Compares the SDK's modes with bare loops over the same topic.
#[derive(Clone, Debug, Parser)]
struct Options {
    /// Events in the topic
    #[arg(long, default_value_t = 1_000_000)]
    events: usize,
    /// Of them, how many the slow ones read: one transaction, or one millisecond, for each
    #[arg(long, default_value_t = 60_000)]
    slow_events: usize,
    /// Events in one transaction
    #[arg(long, default_value_t = 500)]
    batch: usize,
    /// Workers per partition of the key-ordered one
    #[arg(long, default_value_t = 8)]
    workers: usize,
    /// Claims that memory has room for; then the oldest go, as in a consumer that has run for long
    #[arg(long, default_value_t = 200_000)]
    claims: usize,
    /// Rounds of all
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Only what takes no database: bare loops that read, and claims in memory
    #[arg(long)]
    reading: bool,
}

/// Events per second, and what they took of the processors.
#[derive(Clone, Copy)]
struct Cost {
    rate: f64,
    /// Microseconds for each event.
    processor: f64,
}

/// Events per second.
struct Round {
    reading: Reading,
    /// Unless only reading is compared.
    working: Option<Working>,
}

struct Reading {
    bare: Cost,
    bare_most: f64,
    stream: Cost,
    ids: Cost,
    memory: Cost,
    memory_batch: Cost,
}

struct Working {
    bare_write: f64,
    bare_write_most: f64,
    single: f64,
    batch: f64,
    ordered: f64,
    /// What its workers could do at most.
    ordered_most: f64,
}

#[tokio::main]
async fn main() {
    let options = Options::parse();
    println!("{options:?}");
    let topic = kafka::fresh_topic("consume", PARTITIONS).await;
    fill(&topic, options.events).await;
    let mut rounds = Vec::new();
    for _ in 0..options.rounds {
        rounds.push(round(&options, &topic).await);
    }
    println!("\n| contender | events/s (median of {}) | ratio | aim |\n|---|---|---|---|", options.rounds);
    let working: Vec<&Working> = rounds.iter().filter_map(|round| round.working.as_ref()).collect();
    tell_reading(&rounds.iter().map(|round| &round.reading).collect::<Vec<_>>());
    if !working.is_empty() {
        tell_working(&working);
    }
    kafka::delete_topic(&topic).await;
}

fn tell_reading(rounds: &[&Reading]) {
    println!("| one librdkafka loop, only counting | {} | | |", cost(rounds, |r| r.bare));
    let most = figures::median(rounds.iter().map(|r| r.bare_most));
    println!("| such a loop for each partition | {most:.0} | | |");
    println!("| one task that awaits each record, only counting | {} | | |", cost(rounds, |r| r.stream));
    println!("| one librdkafka loop that reads ids | {} | | |", cost(rounds, |r| r.ids));
    tell_memory(rounds, "singly", |r| r.memory);
    tell_memory(rounds, "in batches", |r| r.memory_batch);
}

fn tell_memory(rounds: &[&Reading], how: &str, memory: fn(&Reading) -> Cost) {
    let of = |other: fn(&Reading) -> f64| figures::median(rounds.iter().map(|r| memory(r).rate / other(r)));
    let (one, most, stream, ids) =
        (of(|r| r.bare.rate), of(|r| r.bare_most), of(|r| r.stream.rate), of(|r| r.ids.rate));
    println!(
        "| claims in memory, {how} | {} | {one:.2} and {most:.2} of only counting, {stream:.2} of doing so in a task, \
         {ids:.2} of reading ids | 0.5 |",
        cost(rounds, memory)
    );
}

/// The medians of rate and processor time.
fn cost(rounds: &[&Reading], of: fn(&Reading) -> Cost) -> String {
    let rate = figures::median(rounds.iter().map(|round| of(round).rate));
    let processor = figures::median(rounds.iter().map(|round| of(round).processor));
    format!("{rate:.0} ({processor:.2} µs)")
}

fn tell_working(rounds: &[&Working]) {
    let median = |of: fn(&Working) -> f64| figures::median(rounds.iter().map(|round| of(round)));
    println!("| one librdkafka loop, batched write without dedup | {:.0} | | |", median(|r| r.bare_write));
    println!("| such a loop for each partition | {:.0} | | |", median(|r| r.bare_write_most));
    println!("| transactional, singly | {:.0} | | |", median(|r| r.single));
    let (one, most) = (median(|r| r.batch / r.bare_write), median(|r| r.batch / r.bare_write_most));
    let batch = median(|r| r.batch);
    println!("| transactional, in batches | {batch:.0} | {one:.2} and {most:.2} of the same write | 0.6 |");
    let (ratio, most) = (median(|r| r.ordered / r.ordered_most), median(|r| r.ordered_most));
    println!("| key-ordered, 1 ms each | {:.0} | {ratio:.2} of {most:.0} | 0.8 |", median(|r| r.ordered));
}

async fn round(options: &Options, topic: &str) -> Round {
    let reading = reading(options, topic).await;
    let working = if options.reading { None } else { Some(working(options, topic).await) };
    Round { reading, working }
}

async fn reading(options: &Options, topic: &str) -> Reading {
    let read = async |read: fn(&str, usize, Loops) -> f64, loops| {
        let (topic, events) = (topic.to_owned(), options.events);
        blocking(move || read(&topic, events, loops)).await
    };
    let bare = costing(options.events, read(bare::read, Loops::One)).await;
    let bare_most = read(bare::read, Loops::PerPartition).await;
    // A task of its own: the main thread's has a slower way to be woken.
    let stream = tokio::spawn(bare::read_stream(topic.to_owned(), options.events));
    let stream = costing(options.events, async { stream.await.expect("it ends well") }).await;
    let ids = costing(options.events, read(bare::read_ids, Loops::One)).await;
    let memory = builder(topic).claims(MemoryClaims::new(options.claims), LEASE).effect(Nothing);
    let memory = run(memory.partition_bound(2_000, 16 << 20), options.events);
    let memory = costing(options.events, memory).await;
    let batch = builder(topic).claims(MemoryClaims::new(options.claims), LEASE).batch_effect(options.batch, Nothing);
    let batch = run(batch.partition_bound(2_000, 16 << 20), options.events);
    let memory_batch = costing(options.events, batch).await;
    println!(
        "bare {:.0} ({:.2} µs) and {bare_most:.0}/s, stream {:.0} ({:.2} µs), ids {:.0}/s ({:.2} µs), memory {:.0}/s ({:.2} µs), in \
         batches {:.0}/s ({:.2} µs)",
        bare.rate,
        bare.processor,
        stream.rate,
        stream.processor,
        ids.rate,
        ids.processor,
        memory.rate,
        memory.processor,
        memory_batch.rate,
        memory_batch.processor
    );
    Reading { bare, bare_most, stream, ids, memory, memory_batch }
}

async fn working(options: &Options, topic: &str) -> Working {
    let slow = options.slow_events.min(options.events);
    let write = async |loops| {
        let (topic, events, batch) = (topic.to_owned(), options.events, options.batch);
        let runtime = tokio::runtime::Handle::current();
        blocking(move || bare::write(&runtime, &topic, events, loops, batch)).await
    };
    let (bare_write, bare_write_most) = (write(Loops::One).await, write(Loops::PerPartition).await);
    let database = ledger().await;
    let pool = pool(&database.url).await;
    let single = run(builder(topic).inbox(PostgresInbox::new(pool)).handler(Ledger), slow).await;
    let database = ledger().await;
    let pool = self::pool(&database.url).await;
    let batch = builder(topic).inbox(PostgresInbox::new(pool)).batch_handler(options.batch, Ledger);
    let batch = run(batch.partition_bound(options.batch * 4, 16 << 20), options.events).await;

    let took = Arc::new(AtomicU64::new(0));
    let ordered = builder(topic).claims(MemoryClaims::new(options.claims), LEASE);
    let ordered = ordered.concurrency(options.workers).effect(Millisecond(Arc::clone(&took)));
    let ordered = run(ordered.partition_bound(5_000, 16 << 20), slow).await;
    let workers = options.workers as f64 * f64::from(PARTITIONS);
    // It handles some more before it has stopped: at most as many as are in flight.
    let mean = Duration::from_nanos(took.load(Relaxed)).as_secs_f64() / slow as f64;
    let ordered_most = workers / mean.max(0.001);
    println!(
        "bare write {bare_write:.0} and {bare_write_most:.0}/s, single {single:.0}/s, batch {batch:.0}/s, key-ordered \
         {ordered:.0}/s of {ordered_most:.0}/s"
    );
    Working { bare_write, bare_write_most, single, batch, ordered, ordered_most }
}

/// Runs what handles so many events and tells its rate.
async fn costing(events: usize, run: impl Future<Output = f64>) -> Cost {
    let used = || Duration::try_from(clock_gettime(ClockId::ProcessCPUTime)).expect("it counts from zero");
    let before = used();
    let rate = run.await;
    Cost { rate, processor: (used() - before).as_secs_f64() * 1e6 / events as f64 }
}

async fn blocking(work: impl FnOnce() -> f64 + Send + 'static) -> f64 {
    tokio::task::spawn_blocking(work).await.expect("it ends well")
}

async fn ledger() -> Database {
    let database = Database::fresh().await;
    let mut connection = database.connect().await;
    let table = "create table effects (event_id uuid not null, payload bytea not null)";
    sqlx::query(table).execute(&mut connection).await.expect("the ledger can be made");
    PostgresInbox::new(database.pool().await).ensure_schema().await.expect("the inbox can be made");
    database
}

async fn pool(url: &str) -> PgPool {
    let connections = u32::try_from(PARTITIONS).expect("few") + 2;
    PgPoolOptions::new().max_connections(connections).connect(url).await.expect("the database is there")
}

/// With the SDK's own settings of Kafka's client, which fetch less ahead than a bare loop does.
fn builder(topic: &str) -> ConsumerBuilder<()> {
    Consumer::builder(format!("bench-{}", Uuid::now_v7())).kafka(kafka::bootstrap_servers()).topics([topic])
}

/// Runs a consumer until it has handled so many events; the rate from its first one on.
async fn run<M: outbox_sdk::consumer::Mode>(consumer: ConsumerBuilder<M>, events: usize) -> f64 {
    let consumer = consumer.build().expect("it can be built");
    let stats = consumer.stats();
    let (mut began, events) = (None, events as u64);
    let until = async {
        loop {
            let handled = stats.read().handled;
            let (at, before) = *began.get_or_insert((Instant::now(), handled));
            if handled == 0 {
                began = None;
            } else if handled >= events {
                return (handled - before) as f64 / at.elapsed().as_secs_f64();
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let (ended, rate) = tokio::sync::oneshot::channel();
    let watched = async {
        // Nobody waits any more when the consumer has failed.
        let _ = ended.send(until.await);
    };
    consumer.run(watched).await.expect("it runs well");
    rate.await.expect("it was measured")
}

struct Ledger;

const INSERT: &str = "insert into effects (event_id, payload) select * from unnest($1::uuid[], $2::bytea[])";

impl Handler for Ledger {
    async fn handle(&self, event: &Event, tx: &mut Transaction) -> Result<(), HandlerError> {
        let insert = sqlx::query("insert into effects (event_id, payload) values ($1, $2)");
        insert.bind(event.id()).bind(event.payload().unwrap_or_default()).execute(&mut **tx).await?;
        Ok(())
    }
}

impl BatchHandler for Ledger {
    async fn handle(&self, events: &[&Event], tx: &mut Transaction) -> Result<(), HandlerError> {
        let ids: Vec<Uuid> = events.iter().map(|event| event.id()).collect();
        let payloads: Vec<&[u8]> = events.iter().map(|event| event.payload().unwrap_or_default()).collect();
        sqlx::query(INSERT).bind(ids).bind(payloads).execute(&mut **tx).await?;
        Ok(())
    }
}

struct Nothing;

impl Effect for Nothing {
    async fn perform(&self, _: &Event, _: &Claim) -> Result<Vec<u8>, HandlerError> {
        Ok(Vec::new())
    }
}

impl BatchEffect for Nothing {
    async fn perform(&self, _: &[&Event], _: &[Claim]) -> Result<(), HandlerError> {
        Ok(())
    }
}

/// Takes a millisecond, and adds up the nanoseconds that it really took.
struct Millisecond(Arc<AtomicU64>);

impl Effect for Millisecond {
    async fn perform(&self, _: &Event, _: &Claim) -> Result<Vec<u8>, HandlerError> {
        let began = Instant::now();
        tokio::time::sleep(Duration::from_millis(1)).await;
        self.0.fetch_add(u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX), Relaxed);
        Ok(Vec::new())
    }
}

async fn fill(topic: &str, events: usize) {
    let producer: FutureProducer =
        kafka::client().set("enable.idempotence", "true").set("linger.ms", "5").create().expect("a producer");
    let payload = vec![b'x'; PAYLOAD_BYTES];
    let now = chrono::Utc::now();
    for first in (0..events).step_by(10_000) {
        let sent = (first..events.min(first + 10_000)).map(|n| {
            let attributes = Attributes {
                id: Uuid::now_v7(),
                source: "bench".into(),
                event_type: "consumed".into(),
                subject: None,
                time: Some(now),
                content_type: Some("application/json".into()),
                traceparent: None,
                tracestate: None,
                headers: Vec::new(),
            };
            let mut headers = OwnedHeaders::new();
            attributes.encode(|key, value| {
                headers = std::mem::take(&mut headers).insert(Header { key, value: Some(value) });
            });
            let key = (n % KEYS).to_string();
            let record = FutureRecord::to(topic).key(&key).payload(&payload).headers(headers);
            producer.send_result(record).map_err(|(error, _)| error).expect("the queue has room")
        });
        let sent: Vec<_> = sent.collect();
        for delivery in join_all(sent).await {
            delivery.expect("the producer lives").map_err(|(error, _)| error).expect("Kafka takes the record");
        }
    }
}
