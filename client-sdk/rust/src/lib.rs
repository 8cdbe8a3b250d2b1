//! Client and idempotent Kafka consumer for outboxd.
//!
//! - [`Client`] sends commits: business-state commands and events, applied together or not at all, safe to retry.
//! - [`Consumer`] handles each event once: the mark that an event is handled commits with the handler's effects.
//! - [`Inbox`] is that guarantee by itself, without Kafka; [`claim`] is what there is for effects outside a database.
//!
//! Both join OpenTelemetry traces through `tracing`; see `examples/commit.rs` and `examples/transactional.rs`.
//!
//! It deliberately publishes nothing itself: events reach Kafka through the server's outbox only. Dead letters are no
//! exception: they are records that came from there.
#![doc = include_str!("../README.md")]

mod backoff;
pub mod claim;
pub mod client;
pub mod consumer;
pub mod inbox;
pub mod testkit;
mod trace;

pub use client::{
    Client, ClientBuilder, Command, Commit, CommitError, Committed, ConnectError, Disposition, Failure, FieldViolation,
    FromValue, Interval, IntoValue, Isolation, NewEvent, Numeric, OpenTransaction, OperationResult, ReadError,
    Returned, Row, Transact, TransactError, Transacted, ValueError,
};
pub use consumer::{
    BatchEffect, BatchHandler, BatchInTransaction, Beyond, BuildError, Consumer, ConsumerBuilder, ConsumerError,
    Effect, Event, Handler, HandlerError, HandlerFn, InTransaction, Irregularity, IrregularityKind, PayloadError,
    RecordPlace, Redrive, RedriveError, Router, Stats, StatsReader, json, protobuf, service,
};
#[cfg(feature = "sqlite")]
pub use inbox::SqliteInbox;
pub use inbox::{EventKey, Inbox, InboxError, PostgresInbox, ProcessError, Processed, Transaction};
