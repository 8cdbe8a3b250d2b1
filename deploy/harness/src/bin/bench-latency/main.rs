//! How long it takes at a steady rate until an event has arrived: from the call of its Commit, and from the answer.
//!
//! One server with its relay, by either source; every run in a database and topic of its own, the sources by turns. What
//! arrives is seen by a plain consumer of the topic, or by the handler of an SDK consumer with its inbox in the same
//! database. Caller and receiver are in this process and read one clock.

#![allow(clippy::expect_used, clippy::print_stdout, reason = "a benchmark that cannot run says why")]

mod moments;
mod receivers;

use std::{path::PathBuf, sync::Arc, time::Duration};

use clap::{Parser, ValueEnum};
use outbox_harness::{
    figures::median,
    kafka,
    outboxd::Outboxd,
    postgres::Database,
    stream::{self, Source},
};
use outbox_sdk::{Client, NewEvent};
use tokio::task::JoinSet;
use uuid::Uuid;

use self::moments::{Latency, Moments};

const PARTITIONS: i32 = 6;
const KEYS: usize = 200;

/// Measures commit → handler or commit → Kafka at a steady rate.
#[derive(Debug, Parser)]
#[command(after_help = "\
Examples:
  bench-latency                                                    commit → handler, poll, 500 commits a second
  bench-latency --until kafka --source poll --source wal --rate 1000 --rounds 3
                                                                   commit → Kafka, both sources by turns")]
struct Options {
    /// The outboxd executable
    #[arg(long, default_value = "target/release/outboxd")]
    outboxd: PathBuf,
    /// Commits per second
    #[arg(long, default_value_t = 500)]
    rate: u32,
    /// Seconds, after two that do not count
    #[arg(long, default_value_t = 20)]
    seconds: u32,
    /// Where events are received
    #[arg(long, value_enum, default_value = "handler")]
    until: Until,
    /// What the relay reads; may be repeated
    #[arg(long, value_enum, default_value = "poll")]
    source: Vec<Source>,
    /// Rounds of every source
    #[arg(long, default_value_t = 1)]
    rounds: usize,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Until {
    /// A handler of the SDK's consumer has begun
    Handler,
    /// A plain consumer of the topic has the record
    Kafka,
}

#[tokio::main]
async fn main() {
    let options = Options::parse();
    println!("{options:?}, in milliseconds");
    println!("\n| round | source | from the call: p50 | p90 | p99 | from the answer: p50 | p90 | p99 |");
    println!("|---|---|---|---|---|---|---|---|");
    let mut measured: Vec<Vec<[Latency; 2]>> = vec![Vec::new(); options.source.len()];
    for round in 0..options.rounds {
        for n in 0..options.source.len() {
            // Another one first in each round.
            let at = (round + n) % options.source.len();
            let latencies = run(&options, options.source[at]).await;
            println!("| {} | {} | {} |", round + 1, options.source[at].name(), shown(latencies));
            measured[at].push(latencies);
        }
    }
    if options.rounds > 1 {
        for (source, rounds) in options.source.iter().zip(&measured) {
            let middle = |side: usize, of: fn(&Latency) -> f64| median(rounds.iter().map(|round| of(&round[side])));
            let middle = [0, 1].map(|side| Latency {
                p50: middle(side, |latency| latency.p50),
                p90: middle(side, |latency| latency.p90),
                p99: middle(side, |latency| latency.p99),
            });
            println!("| median | {} | {} |", source.name(), shown(middle));
        }
    }
}

fn shown(latencies: [Latency; 2]) -> String {
    latencies.map(|Latency { p50, p90, p99 }| format!("{p50:.1} | {p90:.1} | {p99:.1}")).join(" | ")
}

async fn run(options: &Options, source: Source) -> [Latency; 2] {
    let database = Database::fresh().await;
    let topic = kafka::fresh_topic("latency", PARTITIONS).await;
    let log = std::env::temp_dir().join(format!("outboxd-latency-{}.log", Uuid::now_v7()));
    let server = Outboxd::new(&options.outboxd, &database.url, log.clone());
    let running = server.start();
    server.serving().await;
    stream::desire(&database.pool().await, source.name()).await;

    let warm_up = options.rate as usize * 2;
    let commits = warm_up + (options.rate * options.seconds) as usize;
    let moments = Arc::new(Moments::new(commits));
    let receiving = match options.until {
        Until::Handler => receivers::in_handler(&database, &topic, Arc::clone(&moments)).await,
        Until::Kafka => receivers::in_kafka(&topic, Arc::clone(&moments)),
    };
    let client = Client::connect(format!("http://{}", server.listen)).expect("a client can be made");
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / options.rate);
    let mut calls = JoinSet::new();
    for n in 0..commits {
        ticks.tick().await;
        let event = NewEvent::new(&topic, "timed").key((n % KEYS).to_string());
        let commit = client.commit().event(event.json(&n).expect("a number has a JSON form"));
        let moments = Arc::clone(&moments);
        calls.spawn(async move {
            moments.called(n);
            commit.send().await.expect("the commit is applied");
            moments.committed(n);
        });
    }
    receiving.await.expect("every event is received");
    calls.join_all().await;
    running.end();
    std::fs::remove_file(&log).expect("the log can be removed");
    moments.latencies(warm_up)
}
