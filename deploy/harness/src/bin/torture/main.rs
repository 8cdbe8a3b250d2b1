//! Commits under faults: several callers, two servers on one database, a write transaction held open all along, and
//! servers killed and paused, the broker killed, Postgres stopped at once, slots dropped, at seeded random moments, while
//! the relay's source may change. Beside them, services emit by SQL that roll back on purpose and commit without a flush.
//! Then database, acknowledgements and the Kafka log must agree:
//!
//! - every call was acknowledged once, after retries with the same request id (P5);
//! - state = acknowledged calls, and their events, with those that services kept, are the table's, and Kafka's: the same
//!   ids, none of them rolled back (P1, P2, P3);
//! - for each key, Kafka's first occurrences are in commit order, and within a commit in its own, without a gap (P4);
//! - repeats are at most faults × the in-flight window.
//!
//! Commit order is known apart from the outbox: each call counts its key's row up and is answered the number.

#![allow(clippy::expect_used, clippy::print_stdout, reason = "a harness that fails says why")]

mod calls;
mod direct;
mod faults;
mod naive;
mod source;
mod verdict;

use std::{
    collections::HashMap,
    num::NonZeroUsize,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use clap::Parser;
use outbox_harness::{
    commits, eventually, kafka,
    outboxd::{Outboxd, Running},
    postgres::Database,
    stream,
};
use rand::RngExt as _;
use sqlx::{Executor as _, PgPool};
use tokio::sync::watch;
use uuid::Uuid;

use self::faults::Victims;

/// Of the servers' relays.
const LEASE_TTL: Duration = Duration::from_secs(1);
/// What each server gives as its host.
const HOSTS: [&str; 2] = ["first", "second"];

/// Makes faults under load and checks that nothing is lost, repeated or reordered
#[derive(Debug, Parser)]
struct Options {
    /// The outboxd executable
    #[arg(long, default_value = "target/release/outboxd")]
    outboxd: PathBuf,
    /// Commits in all
    #[arg(long, default_value_t = 100_000)]
    commits: usize,
    /// Events of a commit: 1 to so many, drawn for each, all of one key
    #[arg(long, default_value = "1")]
    events_max: NonZeroUsize,
    /// Callers at once
    #[arg(long, default_value_t = 32)]
    callers: usize,
    /// Keys, drawn by Zipf's law
    #[arg(long, default_value_t = 200)]
    keys: u32,
    /// Servers killed with SIGKILL
    #[arg(long, default_value_t = 20)]
    kills: usize,
    /// Servers stopped with SIGSTOP for twice their lease
    #[arg(long, default_value_t = 0)]
    pauses: usize,
    /// Times that the broker is killed with SIGKILL
    #[arg(long, default_value_t = 0)]
    kafka_kills: usize,
    /// The folder in which deploy/kafka/run keeps the broker of KAFKA_BOOTSTRAP_SERVERS
    #[arg(long)]
    kafka_folder: Option<PathBuf>,
    /// Times that Postgres is stopped at once
    #[arg(long, default_value_t = 0)]
    postgres_crashes: usize,
    /// The folder in which deploy/postgres/run keeps the cluster of DATABASE_URL
    #[arg(long)]
    postgres_folder: Option<PathBuf>,
    /// The relay's source to begin with: poll or wal
    #[arg(long, default_value = "poll", value_parser = ["poll", "wal"])]
    source: String,
    /// Changes the source every so many seconds; the write transaction is then held for a third of that, at most 1 s,
    /// at a time, since a slot that is made waits for it
    #[arg(long, value_name = "SECONDS")]
    switch_every: Option<u64>,
    /// Times that the slot is dropped from which the log is streamed; unless sources change, too, the write transaction is
    /// then held for 3 s at a time
    #[arg(long, default_value_t = 0)]
    slot_drops: usize,
    /// Milliseconds from one fault's end until callers go on towards the next: relays that are hit every second do little
    /// else than start
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 0)]
    pause_ms: u64,
    /// Instead of outboxd's relays, runs two that keep a cursor over the positions and use SKIP LOCKED. Ends well only if
    /// the checks convict them: it shows that they can
    #[arg(long, conflicts_with_all = ["kills", "pauses", "kafka_kills", "postgres_crashes", "slot_drops", "switch_every"])]
    naive: bool,
    /// Events that one fault may repeat (relay.in_flight_events_max)
    #[arg(long, default_value_t = 2_000)]
    window: usize,
    /// Seed of keys, faults and moments; drawn and printed when absent
    #[arg(long)]
    seed: Option<u64>,
}

struct Run {
    options: Options,
    seed: u64,
    topic: String,
    database: Database,
    servers: Vec<Outboxd>,
    started: AtomicUsize,
    /// Commits that may be started before the next fault: each is to land in mid-work.
    allowed: AtomicUsize,
    /// Where each acknowledged event belongs, by id.
    acknowledged: Mutex<HashMap<Uuid, Place>>,
    /// Callers that wait for an answer, by server.
    waiting: [AtomicUsize; 2],
    retries: AtomicUsize,
}

/// Where an event belongs in the order of its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    key: usize,
    /// Its commit's number among the key's commits, from 1.
    commit: i64,
    /// Its place in the commit, from 0.
    index: usize,
    /// Whether it is the commit's last one.
    last: bool,
}

#[tokio::main]
async fn main() {
    let mut options = Options::parse();
    if options.naive {
        options.kills = 0;
    }
    let (kafka, postgres) = options.services();
    let seed = options.seed.unwrap_or_else(|| rand::rng().random());
    println!("seed {seed}: {options:?}");
    let folder = std::env::temp_dir().join(format!("outboxd-torture-{}", Uuid::now_v7()));
    std::fs::create_dir(&folder).expect("a folder can be made");
    std::fs::write(folder.join("count.sql"), commits::CATALOG).expect("a file can be written");
    let run = Arc::new(Run::prepare(options, seed, &folder).await);
    let pool = run.database.pool().await;
    let mut running: Vec<Running> = Vec::new();
    for server in &run.servers {
        running.push(server.start());
        server.serving().await;
    }

    let (release, released) = watch::channel(false);
    if run.options.naive {
        naive::start(&run, &pool, &released).await;
    } else {
        stream::desire(&pool, &run.options.source).await;
    }
    let held = tokio::spawn(source::hold(Arc::clone(&run), released.clone()));
    let switched = tokio::spawn(source::switch(Arc::clone(&run), pool.clone(), released));
    let start = Instant::now();
    let callers: Vec<_> = (0..run.options.callers).map(|n| tokio::spawn(calls::call(Arc::clone(&run), n))).collect();
    let direct: Vec<_> = (0..direct::SERVICES).map(|n| tokio::spawn(direct::emit(Arc::clone(&run), n))).collect();
    let landed = faults::strike(&run, Victims { servers: &mut running, pool: &pool, kafka, postgres }).await;
    for caller in callers {
        caller.await.expect("a caller ends well");
    }
    let mut emitted = Vec::new();
    for service in direct {
        emitted.push(service.await.expect("a service ends well"));
    }
    let elapsed = start.elapsed();
    let retries = run.retries.load(Ordering::Relaxed);
    println!("{} commits acknowledged in {elapsed:.1?}, {retries} attempts retried", run.options.commits);
    println!(
        "{} of {} faults landed in mid-work; {} while events were on their way to Kafka, in the lanes of the server that was hit",
        landed.landed, landed.faults, landed.mid_publish
    );
    if run.options.naive {
        naive::believes_to_be_done(&pool).await;
    } else if run.options.switch_every.is_none() {
        settled(&pool, "with the write transaction still held").await;
    }
    release.send_replace(true);
    held.await.expect("the write transaction ends");
    let switches = switched.await.expect("the source can be changed");
    if run.options.switch_every.is_some() {
        println!("the source changed {switches} times");
        settled(&pool, "after the last change").await;
    }

    let findings = verdict::check(&run, &pool, landed, &emitted).await;
    drop(running);
    let as_expected = findings.is_empty() != run.options.naive;
    if run.options.naive {
        let verdict = if as_expected { "convicted" } else { "NOT convicted" };
        println!("the naive relays are {verdict}:\n{}", findings.join("\n"));
    } else if as_expected {
        println!("every check held");
    } else {
        println!("FAILED (seed {seed}; logs in {}):\n{}", folder.display(), findings.join("\n"));
    }
    if !as_expected {
        std::process::exit(1);
    }
    std::fs::remove_dir_all(&folder).expect("the folder can be removed");
}

impl Run {
    async fn prepare(options: Options, seed: u64, folder: &std::path::Path) -> Self {
        let database = Database::fresh().await;
        let pool = database.pool().await;
        commits::make_counters(&pool, options.keys.into()).await;
        pool.execute("create table held (n bigint)").await.expect("a table can be made");
        let topic = kafka::fresh_topic("torture", 6).await;
        let server = |host: &str| {
            Outboxd::new(&options.outboxd, &database.url, folder.join(format!("{host}.log")))
                .on_host(host)
                .set("catalog.dir", &folder.display().to_string())
                .set("relay.in_flight_events_max", &options.window.to_string())
                .set("relay.lease_ttl_ms", &LEASE_TTL.as_millis().to_string())
                .set("relay.enabled", if options.naive { "false" } else { "true" })
        };
        let servers = HOSTS.map(server).into();
        Self {
            options,
            seed,
            topic,
            database,
            servers,
            started: AtomicUsize::new(0),
            allowed: AtomicUsize::new(0),
            acknowledged: Mutex::default(),
            waiting: [AtomicUsize::new(0), AtomicUsize::new(0)],
            retries: AtomicUsize::new(0),
        }
    }

    /// How many callers wait, by server.
    fn waiting(&self) -> [usize; 2] {
        self.waiting.each_ref().map(|waiting| waiting.load(Ordering::Relaxed))
    }
}

async fn settled(pool: &PgPool, how: &str) {
    let start = Instant::now();
    eventually("every event to be settled", Duration::from_secs(600), async || {
        // Looking at all of them takes long: only when the newest ones are.
        if faults::unsettled(pool, None).await > 0 {
            return None;
        }
        // As outbox.is_settled says, by one join: called for each event it would look through every version of progress
        // that the open transaction keeps.
        let unsettled = "select count(*) from outbox.events e join outbox.progress p using (lane)
                         where not pg_visible_in_snapshot(e.xid, p.snapshot)
                           and not coalesce(e.position <= p.position and pg_visible_in_snapshot(e.xid, p.target), false)";
        let unsettled: i64 = sqlx::query_scalar(unsettled).fetch_one(pool).await.expect("the table can be read");
        (unsettled == 0).then_some(())
    })
    .await;
    println!("every event settled {:.1?} later, {how}", start.elapsed());
}
