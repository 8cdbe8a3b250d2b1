//! What the number of stored events costs: commits, the relay's drain, and operators' numbers at several sizes.
//!
//! One database for each size, filled with events that count as settled; publishing them is not what is measured. Then in
//! each round, at each size by turns: callers in a closed loop whose commits store one event each, the relay draining what
//! they and a backlog have left, and one `outboxd relay status`. After that what was added is deleted and cleaned away, so
//! that the sizes stay as they are.

#![allow(clippy::expect_used, clippy::print_stdout, reason = "a benchmark that cannot run says why")]

use std::{
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use clap::Parser;
use outbox_harness::{
    backlog,
    commits::{self, Pace},
    figures::median,
    kafka,
    outboxd::Outboxd,
    postgres::Database,
    stream::Source,
    touched::{self, Touched},
};
use rand::rngs::StdRng;
use sqlx::{Connection as _, Executor as _, PgConnection, PgPool};
use uuid::Uuid;

const PARTITIONS: i32 = 6;
/// Of the events that are stored beforehand.
const PER_TRANSACTION: usize = 10_000;
const DRAIN_WITHIN: Duration = Duration::from_secs(600);

/// Compares commits, drains and numbers at several sizes of the events table.
#[derive(Debug, Parser)]
#[command(after_help = "\
Examples:
  bench-size                                       10,000 and 1,000,000 events
  bench-size --rows 10000,1000000,10000000         takes half an hour and 12 GB of disk

Ends with code 1 when at some size commits or drain are slower than --ratio-min of those at the first one, or the numbers
touch more than --blocks-max blocks of the events.")]
struct Options {
    /// The outboxd executable
    #[arg(long, default_value = "target/release/outboxd")]
    outboxd: PathBuf,
    /// Sizes
    #[arg(long, value_delimiter = ',', default_values_t = [10_000, 1_000_000])]
    rows: Vec<usize>,
    /// Rounds of all sizes
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Seconds of commits
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Callers at once
    #[arg(long, default_value_t = 32)]
    callers: usize,
    /// Events in the backlog, besides what the callers have left
    #[arg(long, default_value_t = 100_000)]
    backlog: usize,
    /// What commits and drain may be at least, compared with the first size
    #[arg(long, value_name = "RATIO", default_value_t = 0.8)]
    ratio_min: f64,
    /// Blocks of the events that one reading of the numbers may touch while nothing is unsettled
    #[arg(long, default_value_t = 500)]
    blocks_max: i64,
}

/// An outbox of one size.
struct Outbox {
    rows: usize,
    /// The last position that was there before the first round.
    position: i64,
    topic: String,
    database: Database,
    pool: PgPool,
    server: Outboxd,
    log: PathBuf,
    measured: Vec<Measured>,
}

#[derive(Clone, Copy)]
struct Measured {
    commits: Pace,
    /// Events per second.
    drain: f64,
    /// CPU time of the relay's process for each event, in microseconds.
    drain_cpu_us: f64,
    numbers: Touched,
}

#[tokio::main]
async fn main() {
    let options = Options::parse();
    println!("{options:?}");
    let mut outboxes = Vec::new();
    for rows in &options.rows {
        eprintln!("storing {rows} events");
        outboxes.push(Outbox::fill(&options, *rows).await);
    }
    println!(
        "\n| round | events | commits/s | server CPU, µs/commit | drain, events/s | relay CPU, µs/event | numbers: rows | blocks |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for round in 1..=options.rounds {
        for outbox in &mut outboxes {
            let measured = outbox.round(&options).await;
            println!("| {round} | {} | {} |", outbox.rows, shown(measured));
            outbox.measured.push(measured);
        }
    }
    let mut good = true;
    let first = outboxes.first().map(Outbox::median).expect("there is a size");
    for outbox in &outboxes {
        let middle = outbox.median();
        println!("| median | {} | {} |", outbox.rows, shown(middle));
        let (commits, drain) = (middle.commits.per_second / first.commits.per_second, middle.drain / first.drain);
        eprintln!("{} events: commits {commits:.2}, drain {drain:.2} of those at the first size", outbox.rows);
        good &= commits >= options.ratio_min && drain >= options.ratio_min;
        good &= middle.numbers.blocks <= options.blocks_max;
    }
    if !good {
        eprintln!("not flat: see --help for what is compared");
        std::process::exit(1);
    }
}

fn shown(measured: Measured) -> String {
    let Measured { commits, drain, drain_cpu_us, numbers } = measured;
    format!(
        "{:.0} | {:.0} | {drain:.0} | {drain_cpu_us:.1} | {} | {}",
        commits.per_second, commits.cpu_us, numbers.rows, numbers.blocks
    )
}

impl Outbox {
    async fn fill(options: &Options, rows: usize) -> Self {
        let database = Database::fresh().await;
        let log = std::env::temp_dir().join(format!("outboxd-size-{}.log", Uuid::now_v7()));
        let server = Outboxd::new(&options.outboxd, &database.url, log.clone());
        server.migrate();
        let pool = database.pool().await;
        touched::by_nobody_else(&mut pool.acquire().await.expect("the database can be reached")).await;
        let topic = kafka::fresh_topic("size", PARTITIONS).await;
        backlog::store(&pool, &topic, rows, PER_TRANSACTION).await;
        backlog::pass_over(&pool).await;
        let position = sqlx::query_scalar("select last_value from outbox.positions").fetch_one(&pool).await;
        let position = position.expect("it can be read");
        Self { rows, position, topic, database, pool, server, log, measured: Vec::new() }
    }

    async fn round(&self, options: &Options) -> Measured {
        let committing = self.server.clone().set("relay.enabled", "false");
        let running = committing.start();
        committing.serving().await;
        let (topic, payload) = (self.topic.clone(), "x".repeat(backlog::PAYLOAD_BYTES));
        let request =
            move |random: &mut StdRng| commits::emit(&topic, commits::any_key(random, backlog::KEYS as i64), &payload);
        let span = Duration::from_secs(options.seconds);
        let commits = commits::closed_loop(&committing, &running, options.callers, span, request).await;
        running.end();

        let end = backlog::store(&self.pool, &self.topic, options.backlog, PER_TRANSACTION).await;
        let count = sqlx::query_scalar("select count(*) from outbox.events where position > $1").bind(self.position);
        let events: i64 = count.fetch_one(&self.pool).await.expect("they can be counted");
        let start = Instant::now();
        let running = self.server.start();
        backlog::settled(&self.pool, Source::Poll, &end, DRAIN_WITHIN, || ()).await;
        let (seconds, cpu) = (start.elapsed().as_secs_f64(), running.cpu());
        running.end();

        let numbers = self.numbers(options).await;
        self.clean_up().await;
        Measured {
            commits,
            drain: events as f64 / seconds,
            drain_cpu_us: cpu.as_secs_f64() * 1e6 / events as f64,
            numbers,
        }
    }

    /// What `outboxd relay status` touches when everything is settled.
    async fn numbers(&self, options: &Options) -> Touched {
        let mut connection = PgConnection::connect(&self.database.url).await.expect("the database can be reached");
        // The pool's idle connections are counted, too.
        let others = "select count(pg_terminate_backend(pid)) from pg_stat_activity
                      where datname = current_database() and pid <> pg_backend_pid()";
        connection.execute(others).await.expect("sessions can be ended");
        let status = async || {
            let url = &self.database.url;
            let status = Command::new(&options.outboxd).args(["relay", "status", "--database-url", url]).output();
            let status = status.expect("outboxd can be run");
            assert!(status.status.success(), "{}", String::from_utf8_lossy(&status.stderr));
        };
        touched::by(&mut connection, status()).await.0
    }

    /// Deletes what this round has added.
    async fn clean_up(&self) {
        let delete = sqlx::query("delete from outbox.events where position > $1").bind(self.position);
        delete.execute(&self.pool).await.expect("events can be deleted");
        self.pool.execute("truncate outbox.requests, outbox.deliveries").await.expect("they can be emptied");
        self.pool.execute("vacuum (analyze) outbox.events").await.expect("the table can be vacuumed");
    }

    fn median(&self) -> Measured {
        let middle = |of: fn(&Measured) -> f64| median(self.measured.iter().map(of));
        let commits = Pace { per_second: middle(|m| m.commits.per_second), cpu_us: middle(|m| m.commits.cpu_us) };
        let most = |of: fn(&Touched) -> i64| self.measured.iter().map(|m| of(&m.numbers)).max().unwrap_or_default();
        Measured {
            commits,
            drain: middle(|m| m.drain),
            drain_cpu_us: middle(|m| m.drain_cpu_us),
            numbers: Touched { rows: most(|touched| touched.rows), blocks: most(|touched| touched.blocks) },
        }
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        // It holds nothing that the figures do not; after a panic it is of use.
        if !std::thread::panicking() {
            let _ = std::fs::remove_file(&self.log);
        }
    }
}
