//! How fast the relay drains a backlog, against the least that could be done instead.
//!
//! With `poll` that is a bare librdkafka loop which sends the same number of records with the same keys, payloads and
//! headers under the same producer properties (acks, idempotence, no gaps, linger) and counts a delivery report for
//! each; it has its records in memory. With `wal` it is `pg_recvlogical`, which reads the same log through the same
//! publication from a slot of its own, and writes nothing. By turns, each round in a database and topic of its own, and
//! the other one first in every second round.

#![allow(clippy::expect_used, clippy::print_stdout, reason = "a benchmark that cannot run says why")]

mod bare;
mod recvlogical;
mod relay;

use std::path::PathBuf;

use clap::Parser;
use outbox_harness::{figures::median, stream::Source};

use self::relay::{Drained, Outbox};

const PARTITIONS: i32 = 6;

/// Compares the relay's drain with a bare librdkafka loop, or with pg_recvlogical.
#[derive(Debug, Parser)]
#[command(after_help = "\
Examples:
  bench-drain                                                      poll, 1,000,000 events, against librdkafka
  bench-drain --source wal --per-transaction 1 --events 300000     against pg_recvlogical, one event a transaction
  bench-drain --source wal --per-transaction 100
  bench-drain --alone --rounds 1 --events 5000000                  only the relay: its memory over a long drain

Ends with code 1 when the relay's peak memory is above --memory-max-mib, or the median ratio below --ratio-min.")]
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
    /// What the relay reads
    #[arg(long, value_enum, default_value = "poll")]
    source: Source,
    /// Events in each transaction of the backlog [default: 10000 with poll, 100 with wal]
    #[arg(long, value_name = "EVENTS", value_parser = clap::value_parser!(u32).range(1..))]
    per_transaction: Option<u32>,
    /// Only the relay, without what it is compared with
    #[arg(long)]
    alone: bool,
    /// Resident memory that the relay may have at its peak
    #[arg(long, value_name = "MIB", default_value_t = 128)]
    memory_max_mib: u64,
    /// The least median of ratios that is good enough
    #[arg(long, value_name = "RATIO", default_value_t = 0.0)]
    ratio_min: f64,
}

impl Options {
    fn per_transaction(&self) -> usize {
        match (self.per_transaction, self.source) {
            (Some(events), _) => events as usize,
            (None, Source::Poll) => 10_000,
            (None, Source::Wal) => 100,
        }
    }

    fn other(&self) -> &'static str {
        match self.source {
            Source::Poll => "librdkafka",
            Source::Wal => "pg_recvlogical",
        }
    }
}

#[tokio::main]
async fn main() {
    let options = Options::parse();
    println!("{options:?}, {} events a transaction", options.per_transaction());
    println!("\n| round | {} | relay | ratio | relay's peak memory, MiB | first half | second half |", options.other());
    println!("|---|---|---|---|---|---|---|");
    let (mut ratios, mut peak_mib) = (Vec::new(), 0);
    for round in 1..=options.rounds {
        let (other, drained) = both(&options, round % 2 == 1).await;
        let rate = |seconds: f64| options.events as f64 / seconds;
        let [first, second] = drained.halves_mib;
        let (shown, ratio) = match other {
            Some(other) => (format!("{:.0}/s", rate(other)), format!("{:.2}", other / drained.seconds)),
            None => ("-".into(), "-".into()),
        };
        println!(
            "| {round} | {shown} | {:.0}/s | {ratio} | {} | {first} | {second} |",
            rate(drained.seconds),
            drained.peak_mib
        );
        ratios.extend(other.map(|other| other / drained.seconds));
        peak_mib = peak_mib.max(drained.peak_mib);
    }
    let mut good = true;
    if !ratios.is_empty() {
        let ratio = median(ratios);
        println!("\nmedian of ratios: relay/{} {ratio:.2}", options.other());
        good = ratio >= options.ratio_min;
    }
    let max = options.memory_max_mib;
    println!("peak memory: {peak_mib} MiB of {max}");
    if !good || peak_mib > max {
        eprintln!(
            "not good enough: the median ratio must be {} or more, the peak {max} MiB or less",
            options.ratio_min
        );
        std::process::exit(1);
    }
}

/// Seconds of the other one, unless the relay is alone, and how the relay's drain went.
async fn both(options: &Options, other_first: bool) -> (Option<f64>, Drained) {
    let outbox = Outbox::prepare(options).await;
    let drained = if other_first { None } else { Some(outbox.drain().await) };
    let seconds = if options.alone { None } else { Some(other(options, &outbox).await) };
    let drained = match drained {
        Some(drained) => drained,
        None => outbox.drain().await,
    };
    (seconds, drained)
}

async fn other(options: &Options, outbox: &Outbox) -> f64 {
    let (source, events) = (options.source, options.events);
    let (url, end) = (outbox.database.url.clone(), outbox.end.clone());
    let seconds = tokio::task::spawn_blocking(move || match source {
        Source::Poll => bare::send(events),
        Source::Wal => recvlogical::read(&url, &end),
    });
    seconds.await.expect("it ends well")
}
