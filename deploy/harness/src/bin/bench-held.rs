//! What a write transaction that somebody holds open costs commits and polls.
//!
//! The same load, callers in a closed loop whose commits store one event each, with and without a transaction that has
//! written and is not ended, by turns and the other first in every second round. Compared are commits per second, and
//! what the database needs for the relay's reading, as pg_stat_statements has it. The commits change no rows of a
//! business: versions of those that nobody can clean away meanwhile are the held transaction's doing, not the outbox's.

#![allow(clippy::expect_used, clippy::print_stdout, reason = "a benchmark that cannot run says why")]

use std::{path::PathBuf, time::Duration};

use clap::Parser;
use outbox_harness::{
    commits::{self, Pace},
    eventually,
    figures::median,
    kafka,
    outboxd::{Outboxd, Running},
    postgres::Database,
};
use rand::rngs::StdRng;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection, PgPool};
use uuid::Uuid;

const KEYS: i64 = 200;
const PAYLOAD_BYTES: usize = 300;

/// Compares commits and polls with and without a write transaction held open.
#[derive(Debug, Parser)]
#[command(after_help = "\
Examples:
  bench-held                              300 s without and 300 s with it
  bench-held --seconds 60 --rounds 3      shorter, three times

Needs a Postgres with shared_preload_libraries = pg_stat_statements; to have one:
  deploy/postgres/run start DIR shared_preload_libraries=pg_stat_statements

Ends with code 1 when the medians of the ratios differ from 1 by more than --percent-max the wrong way.")]
struct Options {
    /// The outboxd executable
    #[arg(long, default_value = "target/release/outboxd")]
    outboxd: PathBuf,
    /// Callers at once
    #[arg(long, default_value_t = 32)]
    callers: usize,
    /// Seconds of each measurement, for which the transaction is held
    #[arg(long, default_value_t = 300)]
    seconds: u64,
    /// Rounds of both
    #[arg(long, default_value_t = 1)]
    rounds: usize,
    /// How much worse either may be
    #[arg(long, value_name = "PERCENT", default_value_t = 20)]
    percent_max: u32,
}

/// What the database needed for reading events.
#[derive(Clone, Copy, Debug, sqlx::FromRow)]
struct Reads {
    calls: i64,
    events: i64,
    /// Milliseconds of its statements.
    ms: f64,
    /// Blocks that they touched.
    blocks: i64,
}

struct Phase {
    pace: Pace,
    reads: Reads,
}

impl Phase {
    fn ms_per_1000_events(&self) -> f64 {
        self.reads.ms * 1_000.0 / self.reads.events as f64
    }

    fn blocks_per_event(&self) -> f64 {
        self.reads.blocks as f64 / self.reads.events as f64
    }
}

#[tokio::main]
async fn main() {
    let options = Options::parse();
    println!("{options:?}");
    let database = Database::fresh().await;
    let pool = database.pool().await;
    watch_statements(&pool).await;
    pool.execute("create table held (n bigint)").await.expect("a table can be made");
    let topic = kafka::fresh_topic("held", 6).await;
    let log = std::env::temp_dir().join(format!("outboxd-held-{}.log", Uuid::now_v7()));
    let server = Outboxd::new(&options.outboxd, &database.url, log.clone());
    let running = server.start();
    server.serving().await;
    eprintln!("this takes about {} s", options.rounds as u64 * 2 * options.seconds + 5);
    warm_up(&options, &server, &running, &topic).await;

    println!(
        "\n| round | transaction | commits/s | server CPU, µs/commit | reading, ms/1,000 events | blocks/event | reads |"
    );
    println!("|---|---|---|---|---|---|---|");
    let (mut rates, mut costs) = (Vec::new(), Vec::new());
    for round in 1..=options.rounds {
        let first = phase(&options, round, round % 2 == 0, &database, &server, &running, &topic).await;
        let second = phase(&options, round, round % 2 == 1, &database, &server, &running, &topic).await;
        let (without, with) = if round % 2 == 1 { (first, second) } else { (second, first) };
        rates.push(with.pace.per_second / without.pace.per_second);
        costs.push(with.ms_per_1000_events() / without.ms_per_1000_events());
    }
    running.end();
    std::fs::remove_file(&log).expect("the log can be removed");
    let (rate, cost) = (median(rates), median(costs));
    let allowed = f64::from(options.percent_max) / 100.0;
    println!("\nmedian of ratios with/without: commits {rate:.2}, time of reading an event {cost:.2}");
    if rate < 1.0 - allowed || cost > 1.0 + allowed {
        eprintln!("not good enough: {}% worse at most", options.percent_max);
        std::process::exit(1);
    }
}

/// Has pg_stat_statements count what `copy` runs under one name, whatever its bounds are.
async fn watch_statements(pool: &PgPool) {
    let database: String =
        sqlx::query_scalar("select current_database()").fetch_one(pool).await.expect("it has a name");
    let statements = "create extension pg_stat_statements; select count(*) from pg_stat_statements".to_owned();
    let watched = sqlx::raw_sql(AssertSqlSafe(statements)).execute(pool).await;
    watched.expect("pg_stat_statements is loaded: see --help for how to start a Postgres that has it");
    let set = format!("alter database {database} set pg_stat_statements.track_utility = off");
    pool.execute(AssertSqlSafe(set)).await.expect("a superuser can set it");
}

async fn warm_up(options: &Options, server: &Outboxd, running: &Running, topic: &str) {
    load(options, server, running, topic, 5).await;
}

async fn load(options: &Options, server: &Outboxd, running: &Running, topic: &str, seconds: u64) -> Pace {
    let (topic, payload) = (topic.to_owned(), "x".repeat(PAYLOAD_BYTES));
    let request = move |random: &mut StdRng| commits::emit(&topic, commits::any_key(random, KEYS), &payload);
    commits::closed_loop(server, running, options.callers, Duration::from_secs(seconds), request).await
}

async fn phase(
    options: &Options,
    round: usize,
    held: bool,
    database: &Database,
    server: &Outboxd,
    running: &Running,
    topic: &str,
) -> Phase {
    let mut connection = database.connect().await;
    settled(&mut connection).await;
    // What the phase before has left would be cleaned away in this one.
    connection.execute("vacuum outbox.progress, outbox.relays, outbox.stream").await.expect("they can be vacuumed");
    let mut holder = database.connect().await;
    if held {
        holder.execute("begin; insert into held values (1)").await.expect("a row can be written");
    }
    connection.execute("select pg_stat_statements_reset()").await.expect("a superuser can reset them");
    let how = if held { "held" } else { "none" };
    eprintln!("round {round}, transaction {how}: {} s", options.seconds);
    let pace = load(options, server, running, topic, options.seconds).await;
    let reads = "select coalesce(sum(calls), 0)::bigint as calls, coalesce(sum(rows), 0)::bigint as events,
                        coalesce(sum(total_exec_time + total_plan_time), 0)::float8 as ms,
                        coalesce(sum(shared_blks_hit + shared_blks_read), 0)::bigint as blocks
                 from pg_stat_statements s join pg_database d on d.oid = s.dbid and d.datname = current_database()
                 where query ilike 'copy (%from outbox.events%'";
    let reads: Reads = sqlx::query_as(reads).fetch_one(&mut connection).await.expect("the statistics can be read");
    assert!(reads.events > 0, "pg_stat_statements has not seen the relay read: {reads:?}");
    if held {
        holder.execute("rollback").await.expect("it was held until now");
    }
    holder.close().await.expect("it can be closed");
    let phase = Phase { pace, reads };
    println!(
        "| {round} | {how} | {:.0} | {:.0} | {:.2} | {:.2} | {} |",
        pace.per_second,
        pace.cpu_us,
        phase.ms_per_1000_events(),
        phase.blocks_per_event(),
        reads.calls
    );
    phase
}

async fn settled(connection: &mut PgConnection) {
    eventually("what was committed to be settled", Duration::from_secs(120), async || {
        let settled = "select bool_and(pg_visible_in_snapshot((select max(xid) from outbox.events), snapshot))
                       from outbox.progress";
        let settled: Option<bool> =
            sqlx::query_scalar(settled).fetch_one(&mut *connection).await.expect("progress can be read");
        settled.unwrap_or(true).then_some(())
    })
    .await;
}
