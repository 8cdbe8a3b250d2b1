//! outboxd: a transactional outbox run as a service.
//!
//! Dependencies go one way: `main → app → {api, relay, ops} → {catalog, store} → model`. `api` and `relay` never
//! import each other: they meet in the outbox table. prost types stop at `api`, SQL at `store` and `catalog`,
//! rdkafka at `relay::kafka`. `tests/it/tidy.rs` holds these rules.

pub mod catalog;
pub mod config;
pub mod model;
pub mod relay;
pub mod store;
