//! Integration tests of the SDK, on a real Postgres and a real Kafka.
//!
//! Every test has a database and topics of its own. It deliberately tests the client against a small server of its
//! own: what matters here is what the client does with answers, and with none. The whole way is tested by the server.

#![allow(clippy::expect_used, clippy::unwrap_used, missing_docs, reason = "a test that cannot go on has failed")]

mod batch;
mod batch_effect;
mod claims;
mod client;
mod crash;
mod dead_letters;
mod faults;
mod inbox;
mod keyed;
mod layer;
mod lean;
mod lost;
mod metrics;
mod once;
mod rebalance;
mod retention;
mod rig;
mod router;
mod sequences;
mod service;
#[cfg(feature = "sqlite")]
mod sqlite;
mod testkit;
mod trace;
