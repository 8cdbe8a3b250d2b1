//! The server's integration tests: one binary, on a real Postgres and a real Kafka.
//!
//! `DATABASE_URL` and `KAFKA_BOOTSTRAP_SERVERS` name them; `deploy/test` sets both.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test that cannot go on has failed, and says why")]

mod faulty;
mod relay;
mod relay_faults;
mod relay_flush;
mod relay_share;
mod relay_snapshot;
mod support;
