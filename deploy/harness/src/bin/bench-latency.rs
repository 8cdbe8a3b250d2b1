//! How long it takes from a Commit's call until its event's handler runs, at a steady rate.
//!
//! One server with its relay, one SDK consumer with the Postgres inbox, in the same database; the event carries the
//! moment of the call, and the handler compares it with its own clock: both are in this process.

#![allow(clippy::expect_used, clippy::print_stdout, reason = "a benchmark that cannot run says why")]

use std::{
    path::PathBuf,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use clap::Parser;
use outbox_harness::{kafka, outboxd::Outboxd, postgres::Database};
use outbox_sdk::{Client, Consumer, Event, Handler, HandlerError, NewEvent, PostgresInbox, Transaction};
use tokio::sync::Notify;
use uuid::Uuid;

/// Measures commit → handler at a steady rate.
#[derive(Debug, Parser)]
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
}

struct Measure {
    began: Instant,
    /// Call and handling, in microseconds since `began`.
    seen: Arc<Mutex<Vec<(u64, u64)>>>,
    expected: usize,
    done: Arc<Notify>,
}

impl Handler for Measure {
    async fn handle(&self, event: &Event, _: &mut Transaction) -> Result<(), HandlerError> {
        let now = micros(self.began);
        let called: u64 = event.json()?;
        let mut seen = self.seen.lock().expect("no holder panics");
        seen.push((called, now));
        if seen.len() == self.expected {
            self.done.notify_one();
        }
        Ok(())
    }
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).expect("a short run")
}

#[tokio::main]
async fn main() {
    let options = Options::parse();
    println!("{options:?}");
    let database = Database::fresh().await;
    let topic = kafka::fresh_topic("latency", 6).await;
    let log = std::env::temp_dir().join(format!("outboxd-latency-{}.log", Uuid::now_v7()));
    let server = Outboxd::new(&options.outboxd, &database.url, log.clone());
    let running = server.start();
    server.serving().await;

    let warm_up = options.rate as usize * 2;
    let commits = warm_up + (options.rate * options.seconds) as usize;
    let (seen, done, began) = (Arc::default(), Arc::new(Notify::new()), Instant::now());
    let handler = Measure { began, seen: Arc::clone(&seen), expected: commits, done: Arc::clone(&done) };
    let inbox = PostgresInbox::new(database.pool().await);
    inbox.ensure_schema().await.expect("the inbox can be made");
    let consumer = Consumer::builder("latency")
        .kafka(kafka::bootstrap_servers())
        .property("auto.offset.reset", "earliest")
        .topics([topic.as_str()])
        .inbox(inbox)
        .handler(handler)
        .build()
        .expect("a consumer can be built");
    let consuming = tokio::spawn(async move {
        let all = tokio::time::timeout(Duration::from_secs(300), done.notified());
        consumer.run(async move { all.await.expect("every event is handled within five minutes") }).await
    });

    let client = Client::connect(format!("http://{}", server.listen)).expect("a client can be made");
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / options.rate);
    for n in 0..commits {
        ticks.tick().await;
        let event = NewEvent::new(&topic, "timed").key((n % 200).to_string());
        let event = event.json(&micros(began)).expect("a number has a JSON form");
        let commit = client.commit().event(event);
        tokio::spawn(async move { commit.send().await.expect("the commit is applied") });
    }
    consuming.await.expect("no panic").expect("the consumer ends well");
    running.end();
    std::fs::remove_file(&log).expect("the log can be removed");
    tell(&seen.lock().expect("no holder panics"), warm_up);
}

fn tell(seen: &[(u64, u64)], warm_up: usize) {
    let mut by_call = seen.to_vec();
    by_call.sort_unstable();
    let mut latencies: Vec<u64> = by_call[warm_up..].iter().map(|(called, handled)| handled - called).collect();
    latencies.sort_unstable();
    let at = |share: f64| latencies[(latencies.len() as f64 * share) as usize] as f64 / 1_000.0;
    println!("{} events: p50 {:.1} ms, p90 {:.1} ms, p99 {:.1} ms", latencies.len(), at(0.5), at(0.9), at(0.99));
}
