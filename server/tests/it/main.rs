//! outboxd's server against a real Postgres and a real Kafka. One binary, so that it links once.

#![allow(missing_docs, clippy::expect_used, clippy::unwrap_used, reason = "a test says what fails by failing")]

mod bad_input;
mod catalog;
mod commit;
mod emit;
mod support;
mod tidy;
