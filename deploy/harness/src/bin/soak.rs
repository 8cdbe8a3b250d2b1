//! Consumers under faults: several processes of one consumer, killed, stopped past their session's timeout and started
//! again at seeded random moments, while their database is stopped at once and started. A fifth of the records are
//! repeats. Then the ledger of effects must equal the model:
//!
//! - every event has exactly one effect (P6), and no record is stuck: the group's offsets are at the topic's end;
//! - for each key, effects are in the order in which its events were published.
//!
//! The ledger has no unique constraint: a second effect must show, not fail.

#![allow(clippy::expect_used, clippy::print_stdout, reason = "a harness that fails says why")]

use std::{
    collections::HashMap,
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use clap::{Parser, ValueEnum};
use futures_util::future::join_all;
use outbox_harness::{cluster::Cluster, eventually, kafka, zipf::Zipf};
use outbox_proto::record::Attributes;
use outbox_sdk::{BatchHandler, Consumer, Event, Handler, HandlerError, PostgresInbox, Transaction};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use rdkafka::{
    message::{Header, OwnedHeaders},
    producer::{FutureProducer, FutureRecord},
};
use sqlx::{PgPool, postgres::PgPoolOptions};
use uuid::Uuid;

/// How long a process that is stopped stays so: past its session's timeout.
const STOPPED: Duration = Duration::from_secs(8);
const SESSION_TIMEOUT_MS: &str = "6000";
const PARTITIONS: i32 = 6;

/// Kills, stops and starves consumers, and checks that every event has one effect.
#[derive(Clone, Debug, Parser)]
struct Options {
    /// Different events
    #[arg(long, default_value_t = 800_000)]
    events: usize,
    /// Repeats among the records, per cent
    #[arg(long, default_value_t = 20)]
    repeats: usize,
    /// Keys, drawn by Zipf's law
    #[arg(long, default_value_t = 1_000)]
    keys: u32,
    /// Consumer processes
    #[arg(long, default_value_t = 3)]
    processes: usize,
    /// How the consumer handles events
    #[arg(long, value_enum, default_value_t = Mode::Keyed)]
    mode: Mode,
    /// SIGKILLs
    #[arg(long, default_value_t = 200)]
    kills: usize,
    /// Times that a process is stopped past its session's timeout and goes on
    #[arg(long, default_value_t = 10)]
    stops: usize,
    /// Immediate stops of the database
    #[arg(long, default_value_t = 20)]
    restarts: usize,
    /// Milliseconds between two faults, at most
    #[arg(long, default_value_t = 4_000)]
    pause_ms: u64,
    /// Seed of keys, repeats and faults; random unless given
    #[arg(long)]
    seed: Option<u64>,
    /// Runs a consumer: database URL and topic. For the harness itself
    #[arg(long, hide = true, num_args = 2)]
    child: Option<Vec<String>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// Four workers per partition, in order per key
    Keyed,
    /// Up to 200 events in one transaction
    Batch,
}

struct Ledger;

const INSERT: &str = "insert into effects (event_id, key, n) select * from unnest($1::uuid[], $2::text[], $3::int8[])";

async fn write(events: &[&Event], tx: &mut Transaction) -> Result<(), HandlerError> {
    let (mut ids, mut keys, mut numbers) = (Vec::new(), Vec::new(), Vec::new());
    for event in events {
        ids.push(event.id());
        keys.push(String::from_utf8_lossy(event.key().unwrap_or_default()).into_owned());
        numbers.push(event.json::<i64>()?);
    }
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

/// One consumer process, until it is killed.
async fn consume(mode: Mode, url: &str, topic: &str) {
    let options = PgPoolOptions::new().max_connections(16).acquire_timeout(Duration::from_secs(5));
    let inbox = PostgresInbox::new(options.connect_lazy(url).expect("the URL is one"));
    let consumer = Consumer::builder("soak")
        .kafka(kafka::bootstrap_servers())
        .property("session.timeout.ms", SESSION_TIMEOUT_MS)
        .property("heartbeat.interval.ms", "500")
        .group(topic)
        .topics([topic])
        .retry_backoff(Duration::from_millis(20), Duration::from_secs(1))
        .inbox(inbox);
    let consumer = match mode {
        Mode::Keyed => consumer.concurrency(4).handler(Ledger).build(),
        Mode::Batch => consumer.batch_handler(200, Ledger).build(),
    };
    consumer.expect("a consumer can be built").run(std::future::pending()).await.expect("it is never told to stop");
}

/// The running processes of the consumer.
struct Processes {
    options: Options,
    arguments: [String; 2],
    log: PathBuf,
    running: Vec<Child>,
}

impl Processes {
    fn start(&self) -> Child {
        let log = File::options().create(true).append(true).open(&self.log).expect("the log can be opened");
        let mode = self.options.mode.to_possible_value().expect("every mode has a name");
        Command::new(std::env::current_exe().expect("this program has a path"))
            .args(["--mode", mode.get_name(), "--child"])
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("this program can be started again")
    }

    fn kill(&mut self, at: usize) {
        self.running[at].kill().expect("the process can be killed");
        let status = self.running[at].wait().expect("the process can be waited for");
        assert!(status.code().is_none(), "it had ended by itself with {status}; see {}", self.log.display());
        self.running[at] = self.start();
    }

    fn signal(&self, at: usize, signal: &str) {
        let done = Command::new("kill").args([signal, &self.running[at].id().to_string()]).status();
        assert!(done.expect("kill can be run").success(), "the process cannot be signalled");
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        for child in &mut self.running {
            // Already gone is as good.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[tokio::main]
async fn main() {
    let options = Options::parse();
    if let Some([url, topic]) = options.child.as_deref() {
        return consume(options.mode, url, topic).await;
    }
    let seed = options.seed.unwrap_or_else(rand::random);
    println!("{options:?}\nseed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let cluster = Cluster::start(&[]);
    let pool = PgPoolOptions::new().max_connections(2).connect(&cluster.url).await.expect("the database is there");
    let ledger = "create table effects (place bigserial, event_id uuid not null, key text not null, n int8 not null)";
    sqlx::query(ledger).execute(&pool).await.expect("the ledger can be made");
    PostgresInbox::new(pool.clone()).ensure_schema().await.expect("the inbox can be made");
    let topic = kafka::fresh_topic("soak", PARTITIONS).await;

    let began = Instant::now();
    let records = publish(&options, &topic, &mut random).await;
    println!("{records} records with {} events published in {:.1?}", options.events, began.elapsed());
    let log = std::env::temp_dir().join(format!("outbox-soak-{}.log", Uuid::now_v7()));
    let arguments = [cluster.url.clone(), topic.clone()];
    let mut processes = Processes { options: options.clone(), arguments, log, running: Vec::new() };
    processes.running = (0..options.processes).map(|_| processes.start()).collect();

    let began = Instant::now();
    let in_time = torment(&options, &cluster, &pool, &mut processes, &mut random).await;
    let faults = options.kills + options.stops + options.restarts;
    println!("{in_time} of {faults} faults landed while events were left, in {:.1?}", began.elapsed());
    let want = i64::try_from(options.events).expect("a sensible number");
    let done = async || (count(&pool).await? >= want).then_some(());
    eventually("every event to have an effect", Duration::from_secs(1_800), done).await;
    println!("every event has an effect after {:.1?}", began.elapsed());
    let read = async || (committed(&topic) == records as i64).then_some(());
    eventually("the group's offsets to be at the topic's end", Duration::from_secs(60), read).await;
    check(&pool, want).await;
    std::fs::remove_file(Path::new(&processes.log)).expect("the log can be removed");
    println!("every check held");
}

/// Publishes the events, and repeats of some later on; returns how many records that is.
async fn publish(options: &Options, topic: &str, random: &mut StdRng) -> usize {
    let producer: FutureProducer =
        kafka::client().set("enable.idempotence", "true").set("linger.ms", "5").create().expect("a producer");
    let zipf = Zipf::new(options.keys);
    let (mut numbers, mut recent) = (HashMap::<usize, i64>::new(), Vec::<(String, i64, Uuid)>::new());
    let (mut records, mut under_way) = (0, Vec::new());
    let mut fresh = 0;
    while fresh < options.events {
        let repeat = !recent.is_empty() && random.random_range(0..100) < options.repeats;
        let (key, n, id) = if repeat {
            recent[random.random_range(0..recent.len())].clone()
        } else {
            let key = zipf.draw(random);
            let n = numbers.entry(key).or_default();
            *n += 1;
            fresh += 1;
            (format!("key-{key}"), *n, Uuid::now_v7())
        };
        let payload = n.to_string();
        let headers = headers(id);
        let record = FutureRecord::to(topic).key(&key).payload(&payload).headers(headers);
        let sent = producer.send_result(record).map_err(|(error, _)| error).expect("the queue has room");
        under_way.push(sent);
        records += 1;
        if !repeat {
            let at = random.random_range(0..=recent.len().min(999));
            if at == recent.len() { recent.push((key, n, id)) } else { recent[at] = (key, n, id) }
        }
        if under_way.len() == 10_000 {
            delivered(std::mem::take(&mut under_way)).await;
        }
    }
    delivered(under_way).await;
    records
}

async fn delivered(under_way: Vec<rdkafka::producer::DeliveryFuture>) {
    for delivery in join_all(under_way).await {
        delivery.expect("the producer lives").map_err(|(error, _)| error).expect("Kafka takes the record");
    }
}

fn headers(id: Uuid) -> OwnedHeaders {
    let attributes = Attributes {
        id,
        source: "/soak".into(),
        event_type: "counted".into(),
        subject: None,
        time: None,
        content_type: None,
        traceparent: None,
        tracestate: None,
        headers: Vec::new(),
    };
    let mut headers = OwnedHeaders::new();
    attributes.encode(|key, value| {
        headers = std::mem::take(&mut headers).insert(Header { key, value: Some(value) });
    });
    headers
}

/// Does all faults; returns how many of them happened while there were events left.
async fn torment(
    options: &Options,
    cluster: &Cluster,
    pool: &PgPool,
    processes: &mut Processes,
    random: &mut StdRng,
) -> usize {
    let kinds = [("kill", options.kills), ("stop", options.stops), ("restart", options.restarts)];
    let mut faults: Vec<&str> = kinds.iter().flat_map(|(kind, n)| std::iter::repeat_n(*kind, *n)).collect();
    let mut in_time = 0;
    while !faults.is_empty() {
        tokio::time::sleep(Duration::from_millis(random.random_range(0..options.pause_ms))).await;
        let left = count(pool).await.is_none_or(|done| done < options.events as i64);
        in_time += usize::from(left);
        let at = random.random_range(0..processes.running.len());
        match faults.swap_remove(random.random_range(0..faults.len())) {
            "kill" => processes.kill(at),
            "stop" => {
                processes.signal(at, "-STOP");
                tokio::time::sleep(STOPPED).await;
                processes.signal(at, "-CONT");
            }
            _ => {
                cluster.crash();
                cluster.start_again();
            }
        }
    }
    in_time
}

/// The ledger's size; `None` while the database is away.
async fn count(pool: &PgPool) -> Option<i64> {
    sqlx::query_scalar("select count(*) from effects").fetch_one(pool).await.ok()
}

fn committed(topic: &str) -> i64 {
    kafka::committed(topic, topic, PARTITIONS).iter().sum()
}

async fn check(pool: &PgPool, events: i64) {
    let once = "select count(*), count(distinct event_id) from effects";
    let (effects, different): (i64, i64) = sqlx::query_as(once).fetch_one(pool).await.expect("the ledger can be read");
    assert_eq!((effects, different), (events, events), "effects, different events");
    let order = "select count(*) from (
                     select n, row_number() over (partition by key order by place) as expected from effects
                 ) as e where n <> expected";
    let misplaced: i64 = sqlx::query_scalar(order).fetch_one(pool).await.expect("the ledger can be read");
    assert_eq!(misplaced, 0, "effects out of their key's order");
    println!("effects {effects}, different events {different}, out of their key's order {misplaced}");
}
