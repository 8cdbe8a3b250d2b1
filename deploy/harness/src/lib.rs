//! What outboxd's integration tests, torture runs and benchmarks share: a fresh database, a fresh topic, and waiting
//! for a condition with a deadline. Everything here panics with the reason: a test that cannot be set up has failed.
//!
//! `DATABASE_URL` names a Postgres in which databases can be created, `KAFKA_BOOTSTRAP_SERVERS` a Kafka;
//! `deploy/test` sets both.

#![allow(clippy::expect_used, reason = "a test that cannot be set up has failed, and says why")]

pub mod ambiguous;
pub mod backlog;
pub mod claims;
pub mod cluster;
pub mod commits;
pub mod figures;
pub mod kafka;
pub mod outboxd;
pub mod postgres;
pub mod proxy;
pub mod service;
pub mod stream;
pub mod touched;
pub mod zipf;

use std::time::{Duration, Instant};

/// The value of an environment variable that the tests need.
pub(crate) fn required(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run the tests through deploy/test, or set it"))
}

/// Waits until `check` gives a value, looking every 10 ms.
///
/// # Panics
/// When `within` has passed; the message says what was waited for.
pub async fn eventually<T, F: AsyncFnMut() -> Option<T>>(what: &str, within: Duration, mut check: F) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = check().await {
            return value;
        }
        assert!(start.elapsed() < within, "waited {within:?} in vain for: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
