//! outboxd: a transactional outbox run as a service.
//!
//! Dependencies go one way: `main → cli → app → {api, relay, ops} → commit → {catalog, store} → model`. `api` and
//! `relay` never import each other: they meet in the outbox table. prost types stop at `api`, SQL at `store` and
//! `catalog`, rdkafka at `relay::kafka`. `tests/it/tidy.rs` holds these rules.

pub mod api;
pub mod app;
pub mod catalog;
pub mod cli;
pub mod commit;
pub mod config;
pub mod demo;
pub mod dev;
pub mod model;
pub mod ops;
pub mod relay;
pub mod store;
pub mod telemetry;
