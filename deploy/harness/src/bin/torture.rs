//! Commits under kills: several callers, two servers on one database, a write transaction held open all along,
//! servers killed at seeded random moments. Then database, acknowledgements and the Kafka log must agree:
//!
//! - every call was acknowledged once, after retries with the same request id (P5);
//! - state = acknowledged calls = distinct events in the table = distinct events in Kafka (P1, P2, P3);
//! - for each key, Kafka's first occurrences are in commit order, without a gap (P4);
//! - repeats are at most kills × the in-flight window.
//!
//! Commit order is known apart from the outbox: each call counts its key's row up and is answered the number.

#![allow(clippy::expect_used, clippy::print_stdout, reason = "a harness that fails says why")]

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use clap::Parser;
use outbox_harness::{
    eventually, kafka,
    outboxd::{Outboxd, Running},
    postgres::Database,
    zipf::Zipf,
};
use outbox_proto::v1::{
    CommandCall, CommitRequest, CommitResponse, NewEvent, Operation, Value, new_event::Payload, operation,
    outbox_service_client::OutboxServiceClient, value::Kind,
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use rdkafka::Message as _;
use sqlx::{Connection as _, Executor as _, PgPool};
use tonic::{Request, transport::Channel};
use uuid::Uuid;

const CATALOG: &str = "-- name: count\n-- expect: one\nupdate counters set n = n + 1 where key = :key returning n\n";

/// Kills servers under load and checks that nothing is lost, repeated or reordered.
#[derive(Debug, Parser)]
struct Options {
    /// The outboxd executable
    #[arg(long, default_value = "target/release/outboxd")]
    outboxd: PathBuf,
    /// Commits in all
    #[arg(long, default_value_t = 100_000)]
    commits: usize,
    /// Callers at once
    #[arg(long, default_value_t = 32)]
    callers: usize,
    /// Keys, drawn by Zipf's law
    #[arg(long, default_value_t = 200)]
    keys: u32,
    /// Servers killed with SIGKILL
    #[arg(long, default_value_t = 20)]
    kills: usize,
    /// Events that one kill may repeat (relay.in_flight_events_max)
    #[arg(long, default_value_t = 2_000)]
    window: usize,
    /// Seed of keys and moments; drawn and printed when absent
    #[arg(long)]
    seed: Option<u64>,
}

struct Run {
    options: Options,
    seed: u64,
    topic: String,
    servers: Vec<Outboxd>,
    started: AtomicUsize,
    acknowledged: Mutex<HashMap<Uuid, (usize, i64)>>,
    /// Callers that wait for an answer, by server.
    waiting: [AtomicUsize; 2],
    retries: AtomicUsize,
}

#[tokio::main]
async fn main() {
    let options = Options::parse();
    let seed = options.seed.unwrap_or_else(|| rand::rng().random());
    println!("seed {seed}: {options:?}");
    let folder = std::env::temp_dir().join(format!("outboxd-torture-{}", Uuid::now_v7()));
    std::fs::create_dir(&folder).expect("a folder can be made");
    std::fs::write(folder.join("count.sql"), CATALOG).expect("a file can be written");
    let database = Database::fresh().await;
    let pool = database.pool().await;
    prepare(&pool, options.keys).await;
    let topic = kafka::fresh_topic("torture", 6).await;
    let server = |name: &str| {
        Outboxd::new(&options.outboxd, &database.url, folder.join(name))
            .set("catalog.dir", &folder.display().to_string())
            .set("relay.in_flight_events_max", &options.window.to_string())
            .set("relay.lease_ttl_ms", "1000")
    };
    let servers = vec![server("first.log"), server("second.log")];
    let mut running: Vec<Running> = Vec::new();
    for server in &servers {
        running.push(server.start());
        server.serving().await;
    }
    let run = Arc::new(Run {
        options,
        seed,
        topic,
        servers,
        started: AtomicUsize::new(0),
        acknowledged: Mutex::default(),
        waiting: [AtomicUsize::new(0), AtomicUsize::new(0)],
        retries: AtomicUsize::new(0),
    });

    // The held transaction: with its own transaction id, and open until every commit is acknowledged.
    let mut holder = database.connect().await;
    let mut held = holder.begin().await.expect("a transaction can be begun");
    held.execute("insert into held values (1)").await.expect("a row can be written");

    let start = Instant::now();
    let callers: Vec<_> = (0..run.options.callers).map(|n| tokio::spawn(call(Arc::clone(&run), n))).collect();
    let landed = kill(&run, &mut running).await;
    for caller in callers {
        caller.await.expect("a caller ends well");
    }
    let elapsed = start.elapsed();
    let retries = run.retries.load(Ordering::Relaxed);
    println!("{} commits acknowledged in {elapsed:.1?}, {retries} attempts retried", run.options.commits);
    println!("{landed} of {} kills landed while callers waited on the killed server", run.options.kills);
    settled(&pool, "with the write transaction still open").await;
    held.rollback().await.expect("the held transaction can be rolled back");

    let faults = check(&run, &pool, landed).await;
    drop(running);
    if faults.is_empty() {
        println!("every check held");
        std::fs::remove_dir_all(&folder).expect("the folder can be removed");
    } else {
        println!("FAILED (seed {seed}; logs in {}):\n{}", folder.display(), faults.join("\n"));
        std::process::exit(1);
    }
}

async fn prepare(pool: &PgPool, keys: u32) {
    let keys =
        sqlx::AssertSqlSafe(format!("insert into counters select n, 0 from generate_series(0, {keys} - 1) as n"));
    pool.execute("create table counters (key bigint primary key, n bigint not null)").await.expect("a table");
    pool.execute("create table held (n bigint)").await.expect("a table");
    pool.execute(keys).await.expect("rows");
}

/// Makes commits until enough have been started.
async fn call(run: Arc<Run>, caller: usize) {
    let mut random = StdRng::seed_from_u64(run.seed.wrapping_add(1 + caller as u64));
    let zipf = Zipf::new(run.options.keys);
    let mut clients: Vec<_> = run.servers.iter().map(|s| OutboxServiceClient::new(s.channel())).collect();
    let mut server = caller;
    while run.started.fetch_add(1, Ordering::Relaxed) < run.options.commits {
        server = (server + 1) % clients.len();
        let key = zipf.draw(&mut random);
        let request = request(&run.topic, key);
        loop {
            run.waiting[server].fetch_add(1, Ordering::Relaxed);
            let answer = attempt(&mut clients[server], request.clone()).await;
            run.waiting[server].fetch_sub(1, Ordering::Relaxed);
            match answer {
                Ok(answer) => {
                    acknowledge(&run, key, &answer);
                    break;
                }
                Err(status) if retryable(status.code()) => {
                    run.retries.fetch_add(1, Ordering::Relaxed);
                    server = (server + 1) % clients.len();
                    tokio::time::sleep(Duration::from_millis(random.random_range(5..50))).await;
                }
                Err(status) => panic!("a commit was refused: {status:?}"),
            }
        }
    }
}

fn retryable(code: tonic::Code) -> bool {
    use tonic::Code;
    // A killed server shows as UNAVAILABLE, or UNKNOWN / CANCELLED when the connection broke in mid-answer.
    matches!(
        code,
        Code::Unavailable
            | Code::Unknown
            | Code::Cancelled
            | Code::DeadlineExceeded
            | Code::Aborted
            | Code::ResourceExhausted
    )
}

async fn attempt(
    client: &mut OutboxServiceClient<Channel>,
    request: CommitRequest,
) -> Result<CommitResponse, tonic::Status> {
    let mut request = Request::new(request);
    request.set_timeout(Duration::from_secs(10));
    Ok(client.commit(request).await?.into_inner())
}

fn request(topic: &str, key: usize) -> CommitRequest {
    let number = Value { kind: Some(Kind::Int(key as i64)) };
    let call = CommandCall { name: "count".into(), parameters: [("key".to_owned(), number)].into() };
    CommitRequest {
        request_id: Uuid::now_v7().to_string(),
        operations: vec![Operation { kind: Some(operation::Kind::Command(call)), ..Operation::default() }],
        events: vec![NewEvent {
            topic: topic.to_owned(),
            key: Some(key.to_string().into_bytes().into()),
            r#type: "counted".into(),
            payload: Some(Payload::Text(format!("{{\"key\": {key}}}"))),
            ..NewEvent::default()
        }],
        ..CommitRequest::default()
    }
}

fn acknowledge(run: &Run, key: usize, answer: &CommitResponse) {
    let id = answer.event_ids[0].parse().expect("an event id");
    let Some(Kind::Int(n)) = answer.results[0].rows[0].values[0].kind else { panic!("no number in {answer:?}") };
    let earlier = run.acknowledged.lock().expect("no holder panics").insert(id, (key, n));
    assert!(earlier.is_none(), "event {id} was acknowledged twice");
}

/// Kills a server at each of the seeded moments, which are spread over the commits, and starts it again. Returns how
/// many had callers waiting.
async fn kill(run: &Run, running: &mut [Running]) -> usize {
    let mut random = StdRng::seed_from_u64(run.seed);
    let (commits, kills) = (run.options.commits, run.options.kills);
    let mut landed = 0;
    for kill in 0..kills {
        let moment = commits * kill / kills + random.random_range(0..commits / kills);
        eventually("the next kill's moment", Duration::from_secs(600), async || {
            (run.started.load(Ordering::Relaxed) >= moment).then_some(())
        })
        .await;
        let victim = random.random_range(0..running.len());
        let waiting = run.waiting[victim].load(Ordering::Relaxed);
        running[victim].kill();
        landed += usize::from(waiting > 0);
        println!("kill {}: server {victim} after {moment} commits, {waiting} callers waiting on it", kill + 1);
        running[victim] = run.servers[victim].start();
        run.servers[victim].serving().await;
    }
    landed
}

async fn settled(pool: &PgPool, how: &str) {
    let start = Instant::now();
    eventually("every event to be settled", Duration::from_secs(300), async || {
        let unsettled = "select count(*) from outbox.events e where not outbox.is_settled(e)";
        let unsettled: i64 = sqlx::query_scalar(unsettled).fetch_one(pool).await.expect("the table can be read");
        (unsettled == 0).then_some(())
    })
    .await;
    println!("every event settled {:.1?} later, {how}", start.elapsed());
}

async fn check(run: &Run, pool: &PgPool, landed: usize) -> Vec<String> {
    let one = async |sql: &'static str| -> i64 { sqlx::query_scalar(sql).fetch_one(pool).await.expect("a number") };
    let counted = one("select sum(n)::bigint from counters").await;
    let stored = one("select count(*) from outbox.events").await;
    let topic = run.topic.clone();
    let log = tokio::task::spawn_blocking(move || kafka::read_topic(&topic)).await.expect("the log can be read");
    let acknowledged = run.acknowledged.lock().expect("no holder panics");

    let (mut seen, mut next, mut faults) = (HashSet::new(), HashMap::<usize, i64>::new(), Vec::new());
    for record in &log {
        let place = format!("{}[{}]@{}", record.topic(), record.partition(), record.offset());
        let id: Uuid = kafka::header(record, "ce_id").and_then(|id| id.parse().ok()).expect("every record has an id");
        let Some((key, n)) = acknowledged.get(&id) else {
            faults.push(format!("{place}: phantom event {id}"));
            continue;
        };
        if !seen.insert(id) {
            continue;
        }
        let expected = next.entry(*key).or_insert(1);
        if n != expected {
            faults.push(format!("{place}: key {key} has number {n} where {expected} is due"));
        }
        *expected = n + 1;
    }
    let repeats = log.len() - seen.len();
    let (commits, kills, window) = (run.options.commits, run.options.kills, run.options.window);
    println!(
        "state counts {counted}, table {stored}, acknowledged {}, Kafka {} distinct",
        acknowledged.len(),
        seen.len()
    );
    println!("repeats {repeats}, bound {} = {kills} kills × {window} in flight", kills * window);
    let all = [counted, stored, acknowledged.len() as i64, seen.len() as i64];
    if all.iter().any(|count| *count != commits as i64) {
        faults.push(format!("expected {commits} everywhere, found {all:?}"));
    }
    if repeats > kills * window {
        faults.push(format!("{repeats} repeats"));
    }
    if kills > 0 && landed == 0 {
        faults.push("no kill landed in mid-work: the run proves nothing".into());
    }
    faults.truncate(20);
    faults
}
