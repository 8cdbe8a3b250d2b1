//! The outbox in Postgres: the only place that speaks SQL, with `catalog`, which prepares the operator's.
//!
//! It deliberately knows nothing of gRPC and Kafka.

pub mod commit;
mod error;
pub mod event;
pub mod held;
pub mod history;
pub mod migrate;
pub mod numbers;
pub mod relay;
pub mod retention;
pub mod session;

pub use error::{ConstraintKind, Error, Failure, RowCount};
