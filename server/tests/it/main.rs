//! outboxd's server against a real Postgres and a real Kafka. One binary, so that it links once.
//!
//! `DATABASE_URL` and `KAFKA_BOOTSTRAP_SERVERS` name them; `deploy/test` sets both.

#![allow(missing_docs, clippy::expect_used, clippy::unwrap_used, reason = "a test says what fails by failing")]

mod bad_input;
mod catalog;
mod commit;
mod consume;
mod demo;
mod documents;
mod emit;
mod errors;
mod held_api;
mod held_topics;
mod inbox;
mod links;
mod metrics;
mod numbers_cost;
mod outage;
mod queries;
mod readiness;
mod records;
mod relay;
mod relay_attempts;
mod relay_cli;
mod relay_faults;
mod relay_flush;
mod relay_held;
mod relay_read_cost;
mod relay_share;
mod relay_snapshot;
mod relay_standby;
mod relay_takeover;
mod relay_wal;
mod relay_wal_commits;
mod relay_wal_failover;
mod relay_wal_faults;
mod relay_wal_held;
mod relay_wal_partitions;
mod relay_wal_setup;
mod relay_wal_slot;
mod relay_wal_switch;
mod relay_wal_tls;
mod replays;
mod retention;
mod retry;
mod scheduled;
mod sdk_transact;
mod sequences;
mod support;
mod tidy;
mod trace;
mod transact;
mod typed;
mod typed_problems;
mod typed_values;
