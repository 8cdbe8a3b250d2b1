//! Events, as callers hand them in and as the outbox stores them.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::delivery::Delivered;

/// An event to be stored: checked, and complete with id and time.
#[derive(Clone, Debug, PartialEq)]
pub struct NewEvent {
    /// UUIDv7; consumers deduplicate by it.
    pub id: Uuid,
    /// Kafka topic.
    pub topic: String,
    /// Kafka key; events of one (namespace, topic, key) keep commit order.
    pub key: Option<Vec<u8>>,
    /// CloudEvents `source`.
    pub source: String,
    /// CloudEvents `type`.
    pub event_type: String,
    /// CloudEvents `subject`.
    pub subject: Option<String>,
    /// The record's value; `None` is a tombstone.
    pub data: Option<Vec<u8>>,
    /// Media type of `data`.
    pub content_type: Option<String>,
    /// Free headers by name.
    pub headers: BTreeMap<String, String>,
    /// When it happened.
    pub time: DateTime<Utc>,
    /// W3C trace context of its creation.
    pub trace: Option<TraceContext>,
    /// When it enters the stream; `None`: at once.
    pub due_at: Option<DateTime<Utc>>,
}

/// A W3C trace context in its header form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceContext {
    /// `traceparent`.
    pub parent: String,
    /// `tracestate`.
    pub state: Option<String>,
}

/// An event as the outbox stores it.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredEvent {
    /// What was handed in.
    pub event: NewEvent,
    /// Tenant.
    pub namespace: String,
    /// The fixed hash class of its key.
    pub lane: i16,
    /// Its place in the order of its lane; 0 while it is scheduled.
    pub position: i64,
}

/// Where an event is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventState {
    /// Stored, and not due yet.
    Scheduled,
    /// Stored, and not known to be in Kafka.
    Pending,
    /// Kafka has acknowledged it.
    Published,
    /// Set aside.
    Held,
    /// Given up by an operator.
    Discarded,
    /// Of steps only: published again on purpose, or about to be.
    Replayed,
}

/// Something that happened to an event.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// What it came to.
    pub state: EventState,
    /// When.
    pub time: DateTime<Utc>,
    /// Where it is, when it was published.
    pub place: Option<Delivered>,
    /// Why it was held, discarded or replayed.
    pub reason: Option<String>,
    /// Who asked for that.
    pub requested_by: Option<String>,
}
