//! The inbox: what makes a handler's effects happen once per event.
//!
//! Invariant: the mark of an event is the first statement of the very transaction that holds its effects, so both are
//! durable or neither is. It stands by itself and knows nothing of Kafka.
//!
//! It deliberately has no way to mark an event outside a transaction, nor to ask whether one is marked: checking
//! first and inserting later lets two instances both find nothing (trap 9).

mod postgres;

pub use postgres::{Begun, InboxError, PostgresInbox, Transaction};
