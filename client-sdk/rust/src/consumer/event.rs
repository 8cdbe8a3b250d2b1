//! A received event.
//!
//! Invariant: what is here is what the record held, byte for byte. It deliberately does not interpret payloads beyond
//! reading JSON when asked to.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use outbox_proto::record::{AttributesRef, CONTENT_TYPE, DecodeError, origin};
use serde::de::DeserializeOwned;
use uuid::Uuid;

use super::{
    record::{Record, Span},
    structured,
};
use crate::inbox::EventKey;

/// An event as a handler gets it: the attributes of the CloudEvent, and the Kafka record that carried it. Cheap to
/// clone.
#[derive(Clone, Debug)]
pub struct Event(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    record: Record,
    /// What the value of a record in structured mode holds: the event as it would be in binary mode.
    unpacked: Option<Box<Record>>,
    attributes: Attributes,
}

/// An event's attributes, by where they lie in its record.
#[derive(Debug)]
struct Attributes {
    id: Uuid,
    time: Option<DateTime<Utc>>,
    source: Span,
    event_type: Span,
    subject: Option<Span>,
    content_type: Option<Span>,
    traceparent: Option<Span>,
    tracestate: Option<Span>,
    /// Names and values.
    headers: Vec<(Span, Option<Span>)>,
}

/// Why a payload cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PayloadError {
    /// The event is a tombstone.
    #[error("event {id} of type `{event_type}` has no payload")]
    Missing {
        /// The event's id.
        id: Uuid,
        /// The event's type.
        event_type: String,
    },
    /// The payload is not the JSON that the type asked for needs.
    #[error("the payload of event {id} of type `{event_type}` cannot be read as the JSON of {expected}")]
    Json {
        /// The event's id.
        id: Uuid,
        /// The event's type.
        event_type: String,
        /// The Rust type asked for.
        expected: &'static str,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// The payload is not the Protobuf message that was asked for.
    #[error("the payload of event {id} of type `{event_type}` cannot be read as the Protobuf message {expected}")]
    Protobuf {
        /// The event's id.
        id: Uuid,
        /// The event's type.
        event_type: String,
        /// The Rust type asked for.
        expected: &'static str,
        /// What is wrong with it.
        #[source]
        source: prost::DecodeError,
    },
}

impl Event {
    /// Reads a record; one that is no event comes back as it was.
    pub(crate) fn decode(record: Record) -> Result<Self, (Box<Record>, DecodeError)> {
        let read = || {
            let unpacked = unpack(&record)?.map(Box::new);
            Ok((attributes(unpacked.as_deref().unwrap_or(&record))?, unpacked))
        };
        match read() {
            Ok((attributes, unpacked)) => Ok(Self(Arc::new(Inner { record, unpacked, attributes }))),
            Err(error) => Err((Box::new(record), error)),
        }
    }

    /// What it is deduplicated by. Its content is type, key and payload: a repeat may differ in the rest.
    pub fn dedup_key(&self) -> EventKey<'_> {
        let payload = self.payload();
        let present: &[u8] = if payload.is_some() { &[1] } else { &[0] };
        let event_type = self.content().part(self.0.attributes.event_type);
        let parts = [event_type, self.key().unwrap_or_default(), present, payload.unwrap_or_default()];
        let key = EventKey::new(self.source(), self.id()).holding_parts(parts);
        self.happened_at().map_or(key, |time| key.at(time))
    }

    /// Whether this consumer is to handle it: any event, but for one that was sent again to another.
    pub(super) fn is_for(&self, consumer: &str) -> bool {
        self.header(origin::CONSUMER).is_none_or(|only| only == consumer.as_bytes())
    }

    pub(super) fn record(&self) -> &Record {
        &self.0.record
    }

    /// Where its attributes lie.
    fn content(&self) -> &Record {
        self.0.unpacked.as_deref().unwrap_or(&self.0.record)
    }

    fn text(&self, span: Option<Span>) -> Option<&str> {
        span.map(|span| self.content().text(span))
    }

    /// What it is deduplicated by, within its source.
    pub fn id(&self) -> Uuid {
        self.0.attributes.id
    }

    /// CloudEvents `source`: who made it.
    pub fn source(&self) -> &str {
        self.content().text(self.0.attributes.source)
    }

    /// CloudEvents `type`: what happened.
    pub fn event_type(&self) -> &str {
        self.content().text(self.0.attributes.event_type)
    }

    /// CloudEvents `subject`: what it happened to.
    pub fn subject(&self) -> Option<&str> {
        self.text(self.0.attributes.subject)
    }

    /// CloudEvents `time`: when it happened. outboxd always sets it.
    pub fn time(&self) -> Option<DateTime<Utc>> {
        self.0.attributes.time
    }

    /// When the record was written, by its producer's or its broker's clock.
    pub fn recorded_at(&self) -> Option<DateTime<Utc>> {
        DateTime::from_timestamp_millis(self.0.record.timestamp()?)
    }

    /// Its own time; one without is as old as its record.
    pub(crate) fn happened_at(&self) -> Option<DateTime<Utc>> {
        self.time().or_else(|| self.recorded_at())
    }

    /// The key, in whose order the events of a topic arrive.
    pub fn key(&self) -> Option<&[u8]> {
        self.0.record.key()
    }

    /// The payload; `None` for a tombstone.
    pub fn payload(&self) -> Option<&[u8]> {
        self.content().payload()
    }

    /// Media type of the payload.
    pub fn content_type(&self) -> Option<&str> {
        self.text(self.0.attributes.content_type)
    }

    /// Reads the payload as JSON, whatever its content type.
    ///
    /// # Errors
    /// [`PayloadError`] when there is none, or it does not have the shape of `T`.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, PayloadError> {
        let (id, event_type) = (self.id(), self.event_type().to_owned());
        match self.payload() {
            None => Err(PayloadError::Missing { id, event_type }),
            Some(payload) => serde_json::from_slice(payload).map_err(|source| PayloadError::Json {
                id,
                event_type,
                expected: std::any::type_name::<T>(),
                source,
            }),
        }
    }

    /// Reads the payload as a Protobuf message, whatever its content type.
    ///
    /// # Errors
    /// [`PayloadError`] when there is none, or it cannot be read as `T`.
    pub fn protobuf<T: prost::Message + Default>(&self) -> Result<T, PayloadError> {
        let (id, event_type) = (self.id(), self.event_type().to_owned());
        let Some(payload) = self.payload() else { return Err(PayloadError::Missing { id, event_type }) };
        let expected = std::any::type_name::<T>();
        T::decode(payload).map_err(|source| PayloadError::Protobuf { id, event_type, expected, source })
    }

    /// The free headers, in the order of the record.
    pub fn headers(&self) -> impl ExactSizeIterator<Item = (&str, &[u8])> + DoubleEndedIterator {
        let part = |span| self.content().part(span);
        let headers = self.0.attributes.headers.iter();
        headers.map(move |(name, value)| (self.content().name(*name), value.map(part).unwrap_or_default()))
    }

    /// The value of the last free header of this name.
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        self.headers().rev().find(|(found, _)| *found == name).map(|(_, value)| value)
    }

    /// Where it was read from.
    pub fn topic(&self) -> &str {
        self.0.record.topic()
    }

    /// Where it was read from.
    pub fn partition(&self) -> i32 {
        self.0.record.partition()
    }

    /// Where it was read from. A repeat has another offset and the same id.
    pub fn offset(&self) -> i64 {
        self.0.record.offset()
    }

    pub(crate) fn traceparent(&self) -> Option<&str> {
        self.text(self.0.attributes.traceparent)
    }

    pub(crate) fn tracestate(&self) -> Option<&str> {
        self.text(self.0.attributes.tracestate)
    }
}

/// The event in a record of structured mode as binary mode would have it; `None` when the record is in that mode itself.
fn unpack(record: &Record) -> Result<Option<Record>, DecodeError> {
    let is_content_type = |name: &str| name.eq_ignore_ascii_case(CONTENT_TYPE);
    let content_type = record.headers().find(|(name, _)| is_content_type(name)).and_then(|(_, value)| value);
    if !content_type.is_some_and(structured::is_structured) {
        return Ok(None);
    }
    let event = structured::read(record.payload().unwrap_or_default())?;
    // The record's own headers are free headers; where both name an attribute, the value's counts.
    let own = record.headers().filter(|(name, _)| !is_content_type(name));
    let of_value = event.headers.iter().map(|(name, value)| (name.as_ref(), Some(value.as_ref())));
    let (payload, headers) = (event.payload.as_deref(), own.chain(of_value));
    Ok(Some(Record::new(record.place(), record.timestamp(), record.key(), payload, headers)))
}

fn attributes(record: &Record) -> Result<Attributes, DecodeError> {
    let mut headers = Vec::new();
    let read = AttributesRef::decode(record.headers(), |name, value| {
        headers.push((record.name_span(name), value.map(|value| record.span(value))));
    })?;
    let span = |text: &str| record.span(text.as_bytes());
    Ok(Attributes {
        id: read.id,
        time: read.time,
        source: span(read.source),
        event_type: span(read.event_type),
        subject: read.subject.map(span),
        content_type: read.content_type.map(span),
        traceparent: read.traceparent.map(span),
        tracestate: read.tracestate.map(span),
        headers,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::consumer::record::Place;

    fn record(value: &str) -> Record {
        let place = Place { topic: "users".into(), partition: 0, offset: 0 };
        let headers: [(&str, Option<&[u8]>); 2] =
            [("content-type", Some(b"application/cloudevents+json")), ("x-tenant", Some(b"7"))];
        Record::new(place, None, None, Some(value.as_bytes()), headers)
    }

    #[test]
    fn an_event_in_structured_mode_reads_like_one_in_binary_mode() {
        let id = Uuid::now_v7();
        let value = format!(
            r#"{{"specversion":"1.0","id":"{id}","source":"/shop","type":"user.activated","subject":"7",
                "time":"2026-01-02T03:04:05Z","data":{{"n":7}}}}"#
        );
        let event = Event::decode(record(&value)).expect("it is an event");
        assert_eq!((event.id(), event.source(), event.event_type()), (id, "/shop", "user.activated"));
        assert_eq!((event.subject(), event.time().map(|time| time.timestamp())), (Some("7"), Some(1_767_323_045)));
        assert_eq!(
            (event.payload(), event.header("x-tenant")),
            (Some(br#"{"n":7}"#.as_slice()), Some(b"7".as_slice()))
        );
        assert!(matches!(Event::decode(record("junk")), Err((_, DecodeError::Structured(_)))));
        assert!(matches!(Event::decode(record("{}")), Err((_, DecodeError::Missing("ce_specversion")))));
    }

    #[test]
    fn a_payload_can_be_a_protobuf_message() {
        let id = Uuid::now_v7();
        // Field 1 of google.protobuf.Timestamp, the number 7.
        let value = format!(
            r#"{{"specversion":"1.0","id":"{id}","source":"/shop","type":"t","datacontenttype":"application/protobuf",
                "data_base64":"CAc="}}"#
        );
        let event = Event::decode(record(&value)).expect("it is an event");
        assert_eq!(event.protobuf::<prost_types::Timestamp>().expect("it is one").seconds, 7);
    }
}
