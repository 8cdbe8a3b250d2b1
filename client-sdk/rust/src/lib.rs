//! Client and idempotent Kafka consumer for outboxd.
//!
//! - [`Client`] sends commits: business-state commands and events, applied together or not at all, safe to retry.
//! - [`Consumer`] handles each event once: the mark that an event is handled commits with the handler's effects.
//! - [`PostgresInbox`] is that guarantee by itself, without Kafka.
//!
//! Both join OpenTelemetry traces through `tracing`; see `examples/commit.rs` and `examples/consumer.rs`.
//!
//! It deliberately publishes nothing itself: events reach Kafka through the server's outbox only.

mod backoff;
pub mod client;
pub mod consumer;
pub mod inbox;
mod trace;

pub use client::{
    Client, ClientBuilder, Command, Commit, CommitError, Committed, ConnectError, Disposition, Failure, FieldViolation,
    FromValue, Interval, IntoValue, NewEvent, Numeric, OperationResult, ReadError, Row, ValueError,
};
pub use consumer::{
    BuildError, Consumer, ConsumerBuilder, ConsumerError, Event, Handler, HandlerError, HandlerFn, PayloadError,
    RecordPlace, Stats, StatsReader,
};
pub use inbox::{Begun, InboxError, PostgresInbox, Transaction};
