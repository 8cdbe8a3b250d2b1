//! How large the record of an event will be, held against what its topic takes.
//!
//! What Kafka would not take is refused here and not found out by the relay. Invariant: a size is never underestimated; it
//! is that of a record alone in its batch, uncompressed. It deliberately does not know how the limits are learned: while one
//! is not known, only `commit.event_bytes_max` holds.

use chrono::{DateTime, Utc};
use outbox_proto::{record::AttributesRef, structured};
use uuid::Uuid;

use super::limits::event_bytes;
use crate::{
    config::{self, Format},
    model::commit::EventDraft,
};

/// A batch of one record, version 2: the batch's head and the record's lengths, attributes and deltas.
const BATCH_BYTES: usize = 61 + 32;
/// The lengths of a header's name and value.
const HEADER_BYTES: usize = 10;
/// Names and values of the headers that every record has, or may have: `ce_specversion`, `ce_id`, `ce_time`, trace context,
/// replay, and the names of the others.
const OWN_HEADERS_BYTES: usize = 1_024;

/// The records that a commit's events will be.
pub(super) struct Records {
    formats: config::Relay,
    default_source: String,
    bytes_max: Box<BytesMax>,
}

/// Bytes of the largest record that a topic takes, if that is known.
type BytesMax = dyn Fn(&str) -> Option<usize> + Send + Sync;

impl Records {
    /// `bytes_max` tells the largest record that a topic takes, if it is known.
    pub(super) fn new(
        config: &config::Config,
        bytes_max: impl Fn(&str) -> Option<usize> + Send + Sync + 'static,
    ) -> Self {
        let (formats, default_source) = (config.relay.clone(), config.commit.default_source.clone());
        Self { formats, default_source, bytes_max: Box::new(bytes_max) }
    }

    /// Those of which no limit is known: none is too large.
    pub(super) fn unbounded() -> Self {
        Self { formats: config::Relay::default(), default_source: String::new(), bytes_max: Box::new(|_| None) }
    }

    /// What is wrong with the size of an event's record.
    pub(super) fn fault(&self, event: &EventDraft) -> Option<String> {
        let (topic, limit) = (&event.topic, (self.bytes_max)(&event.topic)?);
        let bytes = self.bytes(event);
        (bytes > limit).then(|| format!("makes a record of {bytes} bytes; topic {topic:?} takes at most {limit}"))
    }

    /// How much of the largest record that its topic takes is left for the key, payload and free headers of an event whose
    /// payload will be JSON.
    pub(super) fn room(&self, event: &EventDraft) -> Option<usize> {
        let limit = (self.bytes_max)(&event.topic)?;
        Some(limit.saturating_sub(self.bytes(event).saturating_sub(event_bytes(event))))
    }

    fn bytes(&self, event: &EventDraft) -> usize {
        let attributes = AttributesRef {
            id: Uuid::max(),
            source: event.source.as_deref().unwrap_or(&self.default_source),
            event_type: &event.event_type,
            subject: event.subject.as_deref(),
            time: Some(event.time.unwrap_or(DateTime::<Utc>::UNIX_EPOCH)),
            content_type: event.content_type.as_deref(),
            traceparent: None,
            tracestate: None,
        };
        let texts = [Some(attributes.source), Some(attributes.event_type), attributes.subject, attributes.content_type];
        let mut bytes = BATCH_BYTES + OWN_HEADERS_BYTES + event_bytes(event) + event.headers.len() * HEADER_BYTES;
        match (self.formats.format(&event.topic), &event.data) {
            (Format::Structured, Some(data)) => bytes += structured::encode(&attributes, data).len() - data.len(),
            _ => bytes += texts.into_iter().flatten().map(str::len).sum::<usize>(),
        }
        bytes
    }
}
