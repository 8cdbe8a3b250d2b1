//! The outbox in Postgres: the only place that speaks SQL, with `catalog`, which prepares the operator's.
//!
//! It deliberately knows nothing of gRPC and Kafka.

pub mod commit;
mod connections;
mod error;
pub mod event;
pub mod held;
pub mod history;
pub mod inbox;
pub mod migrate;
pub mod numbers;
pub mod relay;
pub mod replay;
pub mod retention;
pub mod sequence;
pub mod session;
pub mod setup;
pub mod state;

pub use error::{ConstraintKind, DocumentFault, Error, Failure, RowCount};
