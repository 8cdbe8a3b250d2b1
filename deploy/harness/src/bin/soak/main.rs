//! Consumers under faults: several processes of one consumer, killed, stopped past their session's timeout and started
//! again at seeded random moments, while their database is stopped at once and started. A fifth of the records are
//! repeats. Then the ledger of effects must equal the model:
//!
//! - every event has exactly one effect (P6), and no record is stuck: the group's offsets are at the topic's end;
//! - for each key, effects are in the order in which its events were published.
//!
//! With claims (`--mode claim`, `claim-batch` and `server`) effects are outside the transaction and may happen again. There the
//! ledger of all changes of claims must show that no lease was taken while another held it, that every event was completed
//! once, in its key's order, and that a late completion was refused.

#![allow(clippy::expect_used, clippy::print_stdout, reason = "a harness that fails says why")]

mod consumer;
mod ledger;
mod processes;
mod publish;

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use clap::{Parser, ValueEnum};
use outbox_harness::{
    cluster::Cluster,
    eventually, kafka,
    outboxd::{Outboxd, Running},
};
use outbox_sdk::PostgresInbox;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use sqlx::{PgPool, postgres::PgPoolOptions};
use uuid::Uuid;

use self::processes::Processes;

/// How long a process that is stopped stays so: past its session's timeout.
const STOPPED: Duration = Duration::from_secs(8);
const SESSION_TIMEOUT_MS: &str = "6000";
const PARTITIONS: i32 = 6;
/// The most frequent key's claims are made one after the other, with four durable commits each.
const DONE_WITHIN: Duration = Duration::from_secs(5_400);
/// Shorter than a process that is stopped stays so: its leases are taken over.
const LEASE: Duration = Duration::from_secs(3);

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
    /// SIGKILLs of the server that keeps the claims, with --mode server
    #[arg(long, default_value_t = 0)]
    server_kills: usize,
    /// The outboxd executable, for --mode server
    #[arg(long, default_value = "target/release/outboxd")]
    outboxd: PathBuf,
    /// Runs a consumer: database URL, topic and server. For the harness itself
    #[arg(long, hide = true, num_args = 3)]
    child: Option<Vec<String>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// Four workers per partition, in order per key
    Keyed,
    /// Up to 200 events in one transaction
    Batch,
    /// Leases in the database, for effects outside the transaction
    Claim,
    /// The same, with one effect for up to 50 events
    ClaimBatch,
    /// The same, with leases that outboxd keeps
    Server,
}

impl Mode {
    /// The table of claims, where there are any.
    fn claims(self) -> Option<&'static str> {
        match self {
            Self::Keyed | Self::Batch => None,
            Self::Claim | Self::ClaimBatch => Some("outbox_inbox.claims"),
            Self::Server => Some("outbox.claims"),
        }
    }
}

/// What is tormented.
struct Stage {
    cluster: Cluster,
    pool: PgPool,
    processes: Processes,
    server: Option<(Outboxd, Running)>,
}

#[tokio::main]
async fn main() {
    let options = Options::parse();
    if let Some([url, topic, server]) = options.child.as_deref() {
        return consumer::consume(options.mode, url, topic, server).await;
    }
    let seed = options.seed.unwrap_or_else(rand::random);
    println!("{options:?}\nseed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let cluster = Cluster::start(&[]);
    let pool = PgPoolOptions::new().max_connections(2).connect(&cluster.url).await.expect("the database is there");
    PostgresInbox::new(pool.clone()).ensure_schema().await.expect("the inbox can be made");
    let server = match options.mode {
        Mode::Server => Some(serve(&options, &cluster).await),
        Mode::Keyed | Mode::Batch | Mode::Claim | Mode::ClaimBatch => None,
    };
    ledger::make(&pool, options.mode).await;
    let topic = kafka::fresh_topic("soak", PARTITIONS).await;

    let began = Instant::now();
    let records = publish::publish(&options, &topic, &mut random).await;
    println!("{records} records with {} events published in {:.1?}", options.events, began.elapsed());
    let endpoint = server.as_ref().map(|(outboxd, _)| format!("http://{}", outboxd.listen)).unwrap_or_default();
    let processes = Processes::start_all(&options, vec![cluster.url.clone(), topic.clone(), endpoint]);
    let mut stage = Stage { cluster, pool, processes, server };

    let began = Instant::now();
    let in_time = torment(&options, &mut stage, &mut random).await;
    let faults = options.kills + options.stops + options.restarts + options.server_kills;
    println!("{in_time} of {faults} faults landed while events were left, in {:.1?}", began.elapsed());
    assert!(in_time * 4 >= faults, "a soak whose faults come after the events shows nothing: give it more --events");
    let want = i64::try_from(options.events).expect("a sensible number");
    let done = async || (ledger::done(&stage.pool, options.mode).await? >= want).then_some(());
    eventually("every event to be done with", DONE_WITHIN, done).await;
    println!("every event is done with after {:.1?}", began.elapsed());
    let read = async || (committed(&topic) == records as i64).then_some(());
    eventually("the group's offsets to be at the topic's end", Duration::from_secs(60), read).await;
    match options.mode.claims() {
        None => ledger::effects(&stage.pool, want).await,
        Some(table) => ledger::claims(&stage.pool, options.mode, table, want).await,
    }
    std::fs::remove_file(Path::new(&stage.processes.log)).expect("the log can be removed");
    println!("every check held");
}

/// Starts the server that keeps the claims.
async fn serve(options: &Options, cluster: &Cluster) -> (Outboxd, Running) {
    let log = std::env::temp_dir().join(format!("outbox-soak-server-{}.log", Uuid::now_v7()));
    let outboxd = Outboxd::new(&options.outboxd, &cluster.url, log).set("relay.enabled", "false");
    let running = outboxd.start();
    outboxd.serving().await;
    (outboxd, running)
}

/// Does all faults; returns how many of them happened while there were events left.
async fn torment(options: &Options, stage: &mut Stage, random: &mut StdRng) -> usize {
    let kinds = [
        ("kill", options.kills),
        ("stop", options.stops),
        ("restart", options.restarts),
        ("kill the server", options.server_kills),
    ];
    let mut faults: Vec<&str> = kinds.iter().flat_map(|(kind, n)| std::iter::repeat_n(*kind, *n)).collect();
    let mut in_time = 0;
    while !faults.is_empty() {
        tokio::time::sleep(Duration::from_millis(random.random_range(0..options.pause_ms))).await;
        let done = ledger::done(&stage.pool, options.mode).await;
        let left = done.is_none_or(|done| done < options.events as i64);
        in_time += usize::from(left);
        let at = random.random_range(0..stage.processes.len());
        match faults.swap_remove(random.random_range(0..faults.len())) {
            "kill" => stage.processes.kill(at),
            "stop" => {
                stage.processes.signal(at, "-STOP");
                tokio::time::sleep(STOPPED).await;
                stage.processes.signal(at, "-CONT");
            }
            "restart" => {
                stage.cluster.crash();
                stage.cluster.start_again();
            }
            _ => {
                if let Some((outboxd, running)) = &mut stage.server {
                    running.kill();
                    *running = outboxd.start();
                }
            }
        }
    }
    in_time
}

fn committed(topic: &str) -> i64 {
    kafka::committed(topic, topic, PARTITIONS).iter().sum()
}
