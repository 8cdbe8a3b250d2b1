//! A commit: what a caller asks for, and what it is answered.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use uuid::{Uuid, Variant};

use super::{document::DocumentCall, event::TraceContext, link::Links, value::Value};

/// One atomic request as its caller wrote it: checked for form, not yet against the catalog and the limits.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Request {
    /// Tenant.
    pub namespace: String,
    /// The caller's name for this request.
    pub request_id: String,
    /// Business-state changes, in order.
    pub operations: Vec<Operation>,
    /// Events, in order.
    pub events: Vec<EventDraft>,
    /// What in it follows from the results of its operations.
    pub links: Links,
    /// The event that it is a consumer's answer to.
    pub consume: Option<Consume>,
    /// Whether nothing is to be written, and only said what would be.
    pub validate_only: bool,
    /// Trace context of the call, given to every event. Not part of what makes two requests the same.
    pub trace: Option<TraceContext>,
}

/// One business-state change.
#[derive(Clone, Debug, PartialEq)]
pub enum Operation {
    /// Runs a command of the catalog.
    Command(CommandCall),
    /// Changes or checks a document.
    Document(DocumentCall),
}

/// A call of a named command.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CommandCall {
    /// The command's name.
    pub name: String,
    /// Parameters by name.
    pub parameters: BTreeMap<String, Value>,
}

/// An event as one consumer handles it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Consume {
    /// The handler's own name.
    pub consumer: String,
    /// The event's CloudEvents `source`.
    pub source: String,
    /// The event's id.
    pub event_id: Uuid,
    /// The event's own time.
    pub event_time: DateTime<Utc>,
}

impl Consume {
    /// Stands for (namespace, consumer, source, event id) in 16 bytes of a SHA-256 hash.
    pub fn key(&self, namespace: &str) -> Uuid {
        let mut hash = Sha256::new();
        for part in [namespace, &self.consumer, &self.source] {
            hash = hash.chain_update(part).chain_update([0]);
        }
        let hash = hash.chain_update(self.event_id).finalize();
        let mut key = [0; 16];
        key.copy_from_slice(&hash[..16]);
        Uuid::from_bytes(key)
    }
}

/// An event as its caller wrote it; what is absent the server fills in.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EventDraft {
    /// UUIDv7 of the caller's making.
    pub id: Option<Uuid>,
    /// Kafka topic.
    pub topic: String,
    /// Kafka key.
    pub key: Option<Vec<u8>>,
    /// CloudEvents `source`.
    pub source: Option<String>,
    /// CloudEvents `type`.
    pub event_type: String,
    /// CloudEvents `subject`.
    pub subject: Option<String>,
    /// Payload; absent is a tombstone.
    pub data: Option<Vec<u8>>,
    /// Media type of the payload.
    pub content_type: Option<String>,
    /// Free headers.
    pub headers: BTreeMap<String, String>,
    /// When it happened.
    pub time: Option<DateTime<Utc>>,
    /// Not to be published before.
    pub deliver_after: Option<DateTime<Utc>>,
}

/// What a commit is remembered under.
///
/// `key` stands for (namespace, request id) in 16 bytes: a SHA-256 hash, whose first six bytes are the id's own
/// time when the id is a UUIDv7, so that fresh requests land side by side in the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestKey {
    /// The key.
    pub key: Uuid,
    /// When the caller made the id, if the id tells.
    pub made_at: Option<DateTime<Utc>>,
}

impl RequestKey {
    /// The key of a request id in a namespace.
    pub fn new(namespace: &str, request_id: &str) -> Self {
        let hash = Sha256::new().chain_update(namespace).chain_update([0]).chain_update(request_id).finalize();
        let mut key = [0; 16];
        key.copy_from_slice(&hash[..16]);
        let made_at = Uuid::try_parse(request_id).ok().and_then(|id| {
            let time = uuid_time(&id)?;
            key[..6].copy_from_slice(&id.as_bytes()[..6]);
            Some(time)
        });
        Self { key: Uuid::from_bytes(key), made_at }
    }
}

/// When a UUIDv7 was made, to the millisecond; `None` for any other UUID.
pub fn uuid_time(id: &Uuid) -> Option<DateTime<Utc>> {
    if id.get_version_num() != 7 || id.get_variant() != Variant::RFC4122 {
        return None;
    }
    let millis = id.as_bytes()[..6].iter().fold(0i64, |millis, byte| millis << 8 | i64::from(*byte));
    DateTime::from_timestamp_millis(millis)
}

/// The smallest UUIDv7 of a moment.
pub fn uuid_floor(moment: DateTime<Utc>) -> Uuid {
    let millis = u64::try_from(moment.timestamp_millis()).unwrap_or_default().min((1 << 48) - 1);
    uuid::Builder::from_unix_timestamp_millis(millis, &[0; 10]).into_uuid()
}

/// How a commit was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// This call applied it.
    Applied,
    /// An earlier call with the same request id had; this is its stored answer.
    Replayed,
    /// The consumer has handled the event in another request; this is the answer stored with its mark.
    Duplicate,
    /// Nothing was applied, as asked; this is what would have been.
    Validated,
}

/// The answer of a commit.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// How it came about.
    pub disposition: Disposition,
    /// One result per operation.
    pub results: Vec<OperationResult>,
    /// One id per event; nil for one whose condition did not hold.
    pub event_ids: Vec<Uuid>,
    /// The database's time of the commit, to the microsecond.
    pub committed_at: DateTime<Utc>,
}

impl Answer {
    /// The answer of what wrote nothing and is not remembered.
    pub fn nothing(results: Vec<OperationResult>) -> Self {
        Self { disposition: Disposition::Applied, results, event_ids: Vec::new(), committed_at: Utc::now() }
    }
}

/// What one operation did, in the form in which it is stored: column types by name and values as Postgres writes
/// them, so that an answer reads the same however the catalog has changed since.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OperationResult {
    /// Rows returned or changed.
    pub rows_affected: i64,
    /// Name and SQL type of each column.
    pub columns: Vec<(String, String)>,
    /// Rows of values in Postgres's text form; `None` is NULL.
    pub rows: Vec<Vec<Option<String>>>,
    /// Whether its condition did not hold, so that it has not run.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub skipped: bool,
}

impl OperationResult {
    /// The result of an operation that has not run.
    pub fn of_skipped() -> Self {
        Self { rows_affected: 0, columns: Vec::new(), rows: Vec::new(), skipped: true }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_tells_namespaces_and_ids_apart() {
        let key = |namespace, id| RequestKey::new(namespace, id).key;
        assert_eq!(key("a", "b"), key("a", "b"));
        assert_ne!(key("a", "b"), key("b", "a"));
        assert_ne!(key("a", "bc"), key("ab", "c"));
    }

    #[test]
    fn the_key_of_a_uuidv7_starts_with_its_time() {
        let id = Uuid::now_v7();
        let key = RequestKey::new("default", &id.to_string());
        assert_eq!(key.key.as_bytes()[..6], id.as_bytes()[..6]);
        assert_eq!(
            key.made_at.map(|t| t.timestamp_millis()),
            id.get_timestamp().map(|t| {
                let (seconds, nanos) = t.to_unix();
                i64::try_from(seconds).expect("a time of our days") * 1_000 + i64::from(nanos) / 1_000_000
            })
        );
        assert_ne!(key.key, RequestKey::new("other", &id.to_string()).key);
        assert_eq!(RequestKey::new("default", "7f2c1f5e-3c1d-4e5a-9b77-0123456789ab").made_at, None);
    }
}
