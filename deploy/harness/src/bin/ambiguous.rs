//! Commits over a link that is cut before, during and after COMMIT: each applied once, every retry the first answer.

#![allow(clippy::expect_used, clippy::print_stdout, reason = "a check that cannot run says why")]

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use clap::Parser;
use outbox_harness::{
    ambiguous::{self, Plan},
    commits::{self, count},
    outboxd::Outboxd,
    postgres::Database,
    proxy::Proxy,
};
use sqlx::PgPool;
use uuid::Uuid;

const KEYS: i64 = 1_000;
const TELL_EVERY: Duration = Duration::from_secs(10);
/// Of requests that are remembered.
const REMEMBERED: &str = "select count(*) from outbox.requests";

/// Cuts the link to the database at the worst moments.
#[derive(Debug, Parser)]
struct Options {
    /// The outboxd executable
    #[arg(long, default_value = "target/release/outboxd")]
    outboxd: PathBuf,
    /// Requests; each is sent until it is answered, then once more
    #[arg(long, default_value_t = 100_000)]
    requests: usize,
    /// Callers at once
    #[arg(long, default_value_t = 32)]
    callers: usize,
    /// How many of a hundred committing messages lose their link
    #[arg(long, default_value_t = 50)]
    cut_percent: u32,
    /// Seed of all random choices
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[tokio::main]
async fn main() {
    let options = Options::parse();
    println!("{options:?}");
    let folder = std::env::temp_dir().join(format!("outboxd-ambiguous-{}", Uuid::now_v7()));
    std::fs::create_dir(&folder).expect("a folder can be made");
    std::fs::write(folder.join("count.sql"), commits::CATALOG).expect("a file can be written");
    let database = Database::fresh().await;
    let pool = database.pool().await;
    commits::make_counters(&pool, KEYS).await;
    let proxy = Proxy::start(&database.url).await;
    let server = Outboxd::new(&options.outboxd, &proxy.url, folder.join("log"))
        .set("catalog.dir", &folder.display().to_string())
        .set("relay.enabled", "false");
    let running = server.start();
    server.serving().await;

    let plan = Plan {
        requests: options.requests,
        callers: options.callers,
        cut_percent: options.cut_percent,
        seed: options.seed,
    };
    let start = Instant::now();
    let progress = tokio::spawn(tell_progress(pool.clone(), options.requests, start));
    let report = ambiguous::run(plan, &proxy, server.channel(), |n| vec![count(n as i64 % KEYS); 1 + n % 2]).await;
    progress.abort();
    println!("{} requests in {:.1?}: {report:?}", options.requests, start.elapsed());

    let number = async |sql: &'static str| -> i64 { sqlx::query_scalar(sql).fetch_one(&pool).await.expect("a number") };
    let expected = i64::try_from(options.requests).expect("not so many");
    // Every second request counts twice.
    assert_eq!(number("select sum(n)::bigint from counters").await, expected + expected / 2, "each applied once");
    assert_eq!(number(REMEMBERED).await, expected, "each remembered once");
    assert_eq!(number("select count(*) from outbox.events").await, expected, "each event stored once");
    println!("every check held");
    drop(running);
    std::fs::remove_dir_all(&folder).expect("the folder can be removed");
}

/// Prints how far it has come until aborted. Asks the database itself, whose link is not cut.
async fn tell_progress(pool: PgPool, requests: usize, start: Instant) {
    loop {
        tokio::time::sleep(TELL_EVERY).await;
        let applied: i64 = sqlx::query_scalar(REMEMBERED).fetch_one(&pool).await.expect("a number");
        println!("{applied} of {requests} requests are applied after {:.0?}", start.elapsed());
    }
}
