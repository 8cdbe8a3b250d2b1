//! The Kafka record of an event: CloudEvents 1.0, binary mode, with W3C trace context.
//!
//! Source: CloudEvents "Kafka Protocol Binding" 1.0.2 sections 3.1 and 3.2 (attributes as `ce_` headers in UTF-8,
//! `datacontenttype` as `content-type`, the payload as the record's value, unchanged) and W3C "Trace Context" 1
//! (`traceparent` and `tracestate`, unprefixed). The record's key is the event's key.
//!
//! It deliberately does not parse payloads, nor read the structured mode.

use chrono::{DateTime, SecondsFormat, Utc};
use uuid::Uuid;

use crate::sequence::SEQUENCE;

/// Prefix of every header that carries a CloudEvents attribute. No free header may start with it.
pub const ATTRIBUTE_PREFIX: &str = "ce_";
/// Header of the payload's media type.
pub const CONTENT_TYPE: &str = "content-type";
/// Header of the W3C trace context.
pub const TRACEPARENT: &str = "traceparent";
/// Header of the W3C trace state.
pub const TRACESTATE: &str = "tracestate";

/// Prefix of the headers that tell where a record in a dead-letter topic comes from. No free header may start with it.
pub const ORIGIN_PREFIX: &str = "outbox-origin-";
/// The headers of a record in a dead-letter topic.
pub mod origin {
    /// The topic it was read from.
    pub const TOPIC: &str = "outbox-origin-topic";
    /// The partition it was read from.
    pub const PARTITION: &str = "outbox-origin-partition";
    /// Its offset there.
    pub const OFFSET: &str = "outbox-origin-offset";
    /// The consumer that could not handle it. On a record that was sent again: the only one that is to handle it.
    pub const CONSUMER: &str = "outbox-origin-consumer";
    /// Why it could not be handled.
    pub const REASON: &str = "outbox-origin-reason";
    /// How often that was tried.
    pub const ATTEMPTS: &str = "outbox-origin-attempts";
}

/// Prefix of the headers of a replay. No free header may start with it.
pub const REPLAY_PREFIX: &str = "outbox-replay";
/// On a record that is published again on purpose: the replay's id. Its event id is that of the first time.
pub const REPLAY: &str = "outbox-replay";
/// On a copy within the outbox: the id of the event that it is a copy of. Never on a record, whose event id it is.
pub const REPLAY_OF: &str = "outbox-replay-of";

pub(crate) const SPEC_VERSION: &str = "1.0";
const CE_SPEC_VERSION: &str = "ce_specversion";
const CE_ID: &str = "ce_id";
const CE_SOURCE: &str = "ce_source";
const CE_TYPE: &str = "ce_type";
const CE_TIME: &str = "ce_time";
const CE_SUBJECT: &str = "ce_subject";

/// Everything a record says of its event besides key and payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// The event's id: what consumers deduplicate by, within `source`.
    pub id: Uuid,
    /// CloudEvents `source`, never empty.
    pub source: String,
    /// CloudEvents `type`, never empty.
    pub event_type: String,
    /// CloudEvents `subject`.
    pub subject: Option<String>,
    /// CloudEvents `time`, to the microsecond. The server always sends it; other producers need not.
    pub time: Option<DateTime<Utc>>,
    /// Media type of the payload.
    pub content_type: Option<String>,
    /// W3C `traceparent` of the event's creation.
    pub traceparent: Option<String>,
    /// W3C `tracestate`, meaningful with `traceparent` only.
    pub tracestate: Option<String>,
    /// Free headers in the order of the record.
    pub headers: Vec<(String, Vec<u8>)>,
}

/// Why a record's headers are not those of an event.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum DecodeError {
    /// A required header is absent, null or empty.
    #[error("header `{0}` is missing or empty: the record is not a CloudEvent in binary mode")]
    Missing(&'static str),
    /// A header's value is not UTF-8.
    #[error("header `{0}` is not valid UTF-8")]
    NotUtf8(&'static str),
    /// `ce_specversion` is not 1.0.
    #[error("`ce_specversion` is `{0}`, expected `1.0`")]
    SpecVersion(String),
    /// `ce_id` is not a UUID.
    #[error("`ce_id` is `{0}`, expected a UUID")]
    Id(String),
    /// The record's value is not an event in structured mode, although its content type says so.
    #[error("the value is not a CloudEvent in structured mode: {0}")]
    Structured(String),
    /// `ce_time` is not an RFC 3339 timestamp.
    #[error("`ce_time` is `{0}`, expected an RFC 3339 timestamp")]
    Time(String),
}

/// Whether a caller may use this name for a free header.
pub fn is_free_header(name: &str) -> bool {
    let reserved = [ATTRIBUTE_PREFIX, ORIGIN_PREFIX, REPLAY_PREFIX].iter().any(|prefix| name.starts_with(prefix));
    !name.is_empty() && !reserved && ![CONTENT_TYPE, TRACEPARENT, TRACESTATE, SEQUENCE].contains(&name)
}

/// The attributes of an event that is stored elsewhere, to be encoded or read without copying them.
#[derive(Clone, Copy, Debug)]
pub struct AttributesRef<'a> {
    /// The event's id.
    pub id: Uuid,
    /// CloudEvents `source`.
    pub source: &'a str,
    /// CloudEvents `type`.
    pub event_type: &'a str,
    /// CloudEvents `subject`.
    pub subject: Option<&'a str>,
    /// CloudEvents `time`.
    pub time: Option<DateTime<Utc>>,
    /// Media type of the payload.
    pub content_type: Option<&'a str>,
    /// W3C `traceparent` of the event's creation.
    pub traceparent: Option<&'a str>,
    /// W3C `tracestate`.
    pub tracestate: Option<&'a str>,
}

impl<'a> AttributesRef<'a> {
    /// Reads the headers of a record, and calls `free` with each that is no attribute. Of a repeated attribute the last one
    /// counts; CloudEvents extension attributes are free headers under their header's name.
    ///
    /// # Errors
    /// [`DecodeError`] names the header that is missing or cannot be read.
    pub fn decode(
        headers: impl IntoIterator<Item = (&'a str, Option<&'a [u8]>)>,
        mut free: impl FnMut(&'a str, Option<&'a [u8]>),
    ) -> Result<Self, DecodeError> {
        let (mut version, mut id, mut source, mut event_type) = (None, None, None, None);
        let (mut subject, mut time, mut content_type) = (None, None, None);
        let (mut traceparent, mut tracestate) = (None, None);
        for (name, value) in headers {
            match name {
                CE_SPEC_VERSION => version = present(value),
                CE_ID => id = present(value),
                CE_SOURCE => source = text(CE_SOURCE, value)?,
                CE_TYPE => event_type = text(CE_TYPE, value)?,
                CE_SUBJECT => subject = text(CE_SUBJECT, value)?,
                CE_TIME => time = text(CE_TIME, value)?,
                CONTENT_TYPE => content_type = text(CONTENT_TYPE, value)?,
                TRACEPARENT => traceparent = text(TRACEPARENT, value)?,
                TRACESTATE => tracestate = text(TRACESTATE, value)?,
                _ => free(name, value),
            }
        }
        let version = version.ok_or(DecodeError::Missing(CE_SPEC_VERSION))?;
        if version != SPEC_VERSION.as_bytes() {
            return Err(DecodeError::SpecVersion(utf8(CE_SPEC_VERSION, version)?.to_owned()));
        }
        let id = id.ok_or(DecodeError::Missing(CE_ID))?;
        let Ok(id) = Uuid::try_parse_ascii(id) else { return Err(DecodeError::Id(utf8(CE_ID, id)?.to_owned())) };
        let parse_time = |t: &str| match DateTime::parse_from_rfc3339(t) {
            Ok(time) => Ok(time.with_timezone(&Utc)),
            Err(_) => Err(DecodeError::Time(t.to_owned())),
        };
        Ok(Self {
            id,
            source: source.ok_or(DecodeError::Missing(CE_SOURCE))?,
            event_type: event_type.ok_or(DecodeError::Missing(CE_TYPE))?,
            subject,
            time: time.map(parse_time).transpose()?,
            content_type,
            traceparent,
            tracestate,
        })
    }

    /// Calls `put` with each attribute's header name and value. Free headers, which come last, are the caller's.
    pub fn encode(&self, mut put: impl FnMut(&str, &[u8])) {
        let mut id = Uuid::encode_buffer();
        put(CE_SPEC_VERSION, SPEC_VERSION.as_bytes());
        put(CE_ID, self.id.as_hyphenated().encode_lower(&mut id).as_bytes());
        put(CE_SOURCE, self.source.as_bytes());
        put(CE_TYPE, self.event_type.as_bytes());
        if let Some(time) = &self.time {
            put(CE_TIME, time.to_rfc3339_opts(SecondsFormat::Micros, true).as_bytes());
        }
        if let Some(subject) = self.subject {
            put(CE_SUBJECT, subject.as_bytes());
        }
        self.encode_content(self.content_type, put);
    }

    /// Calls `put` with the headers that are there in every mode: this content type and the trace context.
    pub fn encode_content(&self, content_type: Option<&str>, mut put: impl FnMut(&str, &[u8])) {
        let optional = [(CONTENT_TYPE, content_type), (TRACEPARENT, self.traceparent), (TRACESTATE, self.tracestate)];
        for (name, value) in optional {
            if let Some(value) = value {
                put(name, value.as_bytes());
            }
        }
    }
}

impl Attributes {
    /// Calls `put` with each header's name and value, CloudEvents attributes first and free headers last.
    pub fn encode(&self, mut put: impl FnMut(&str, &[u8])) {
        let attributes = AttributesRef {
            id: self.id,
            source: &self.source,
            event_type: &self.event_type,
            subject: self.subject.as_deref(),
            time: self.time,
            content_type: self.content_type.as_deref(),
            traceparent: self.traceparent.as_deref(),
            tracestate: self.tracestate.as_deref(),
        };
        attributes.encode(&mut put);
        for (name, value) in &self.headers {
            put(name, value);
        }
    }

    /// Reads the headers of a record, as [`AttributesRef::decode`] does; a null free header reads as empty.
    ///
    /// # Errors
    /// [`DecodeError`] names the header that is missing or cannot be read.
    pub fn decode<'a>(headers: impl IntoIterator<Item = (&'a str, Option<&'a [u8]>)>) -> Result<Self, DecodeError> {
        let mut free = Vec::new();
        let read = AttributesRef::decode(headers, |name, value| {
            free.push((name.to_owned(), value.unwrap_or_default().to_vec()));
        })?;
        Ok(Self {
            id: read.id,
            source: read.source.to_owned(),
            event_type: read.event_type.to_owned(),
            subject: read.subject.map(str::to_owned),
            time: read.time,
            content_type: read.content_type.map(str::to_owned),
            traceparent: read.traceparent.map(str::to_owned),
            tracestate: read.tracestate.map(str::to_owned),
            headers: free,
        })
    }
}

/// An attribute's value; absent when null or empty.
fn present(value: Option<&[u8]>) -> Option<&[u8]> {
    value.filter(|value| !value.is_empty())
}

/// The same, as text.
fn text<'a>(name: &'static str, value: Option<&'a [u8]>) -> Result<Option<&'a str>, DecodeError> {
    present(value).map(|value| utf8(name, value)).transpose()
}

fn utf8<'a>(name: &'static str, value: &'a [u8]) -> Result<&'a str, DecodeError> {
    std::str::from_utf8(value).map_err(|_| DecodeError::NotUtf8(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> Attributes {
        Attributes {
            id: Uuid::now_v7(),
            source: "/shop".into(),
            event_type: "user.activated".into(),
            subject: Some("user/7".into()),
            time: DateTime::from_timestamp_micros(1_700_000_000_123_456),
            content_type: Some("application/json".into()),
            traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into()),
            tracestate: Some("a=b".into()),
            headers: vec![("x-tenant".into(), b"\xff\x00".to_vec())],
        }
    }

    fn headers(attributes: &Attributes) -> Vec<(String, Vec<u8>)> {
        let mut headers = Vec::new();
        attributes.encode(|name, value| headers.push((name.to_owned(), value.to_vec())));
        headers
    }

    fn decode(headers: &[(String, Vec<u8>)]) -> Result<Attributes, DecodeError> {
        Attributes::decode(headers.iter().map(|(n, v)| (n.as_str(), Some(v.as_slice()))))
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        let full = full();
        let bare = Attributes {
            subject: None,
            time: None,
            content_type: None,
            traceparent: None,
            tracestate: None,
            headers: vec![],
            ..full.clone()
        };
        for attributes in [full, bare] {
            assert_eq!(decode(&headers(&attributes)), Ok(attributes));
        }
    }

    #[test]
    fn a_header_that_is_missing_or_wrong_is_named() {
        let good = headers(&full());
        let with = |name: &str, value: &[u8]| {
            let mut changed = good.clone();
            changed.iter_mut().find(|(n, _)| n == name).expect("the header is there").1 = value.to_vec();
            decode(&changed)
        };
        assert_eq!(with("ce_id", b"7"), Err(DecodeError::Id("7".into())));
        assert_eq!(with("ce_id", b""), Err(DecodeError::Missing("ce_id")));
        assert_eq!(with("ce_specversion", b"0.3"), Err(DecodeError::SpecVersion("0.3".into())));
        assert_eq!(with("ce_time", b"noon"), Err(DecodeError::Time("noon".into())));
        for name in ["ce_id", "ce_source", "ce_specversion"] {
            assert_eq!(with(name, b"\xff"), Err(DecodeError::NotUtf8(name)));
        }
        assert_eq!(decode(&[]), Err(DecodeError::Missing("ce_specversion")));
    }

    #[test]
    fn names_the_codec_uses_are_not_free() {
        let ours =
            ["", "ce_id", "ce_anything", "outbox-origin-topic", "outbox-replay", "outbox-replay-of", "outbox-sequence"];
        for name in ours.into_iter().chain(["content-type", "traceparent", "tracestate"]) {
            assert!(!is_free_header(name), "{name}");
        }
        assert!(is_free_header("x-tenant"));
    }
}
