//! What a request may be: every limit and rule that needs no catalog and no database.

use chrono::{DateTime, TimeDelta, Utc};
use outbox_proto::record;

use super::{draft, records::Records};
use crate::{
    config,
    model::{
        commit::{Consume, EventDraft, Operation, Request, uuid_time},
        document::{DocumentCall, Verb},
        transact::Begin,
        value::{self, SqlType, Value},
    },
};

/// Bytes of a namespace.
pub const NAMESPACE_BYTES_MAX: usize = 64;
const REQUEST_ID_CHARS_MAX: usize = 128;
/// Kafka's own limit on topic names.
const TOPIC_CHARS_MAX: usize = 249;
/// Bytes of an event's `source`, and of its other attributes.
pub const ATTRIBUTE_BYTES_MAX: usize = 1_024;
const HEADERS_MAX: usize = 64;
/// Bytes of a consumer's name.
pub const CONSUMER_BYTES_MAX: usize = 128;
const COLLECTION_BYTES_MAX: usize = 128;
const DOCUMENT_ID_BYTES_MAX: usize = 512;
/// A patch is applied by recursion, on the database's stack.
pub(super) const PATCH_DEPTH_MAX: usize = 100;

/// A fault of one field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Path of the field in the request.
    pub field: String,
    /// What is wrong, and what would be right.
    pub description: String,
}

/// The faults of a request.
#[derive(Debug, Default)]
pub(super) struct Faults {
    pub(super) found: Vec<Violation>,
    /// Whether one of them is a fault at any time: such a request can never have been applied. The others depend on
    /// the clock or the configuration, and an earlier attempt may have come before they arose.
    pub(super) lasting: bool,
    /// Prefix of the fields being checked.
    field: String,
}

/// Every fault of a request; none means that it may go on.
pub(super) fn check(request: &Request, config: &config::Commit, records: &Records, now: DateTime<Utc>) -> Faults {
    let mut faults = identity(&request.namespace, Some(&request.request_id));
    faults.content(request, config, records, now);
    faults
}

/// The faults of a step of an interactive transaction: as of a request, without its identity.
pub(super) fn step(request: &Request, config: &config::Commit, records: &Records, now: DateTime<Utc>) -> Faults {
    let mut faults = Faults::default();
    faults.content(request, config, records, now);
    faults
}

/// The faults of what a request is known by.
fn identity(namespace: &str, request_id: Option<&str>) -> Faults {
    let mut faults = Faults::default();
    faults.text("namespace", namespace, NAMESPACE_BYTES_MAX);
    if let Some(request_id) = request_id {
        faults.check("request_id", !request_id.is_empty(), || "is required: a UUIDv7 is the best choice".into());
        let chars = request_id.chars().count();
        faults.check("request_id", chars <= REQUEST_ID_CHARS_MAX, || {
            format!("has {chars} characters; at most {REQUEST_ID_CHARS_MAX} are allowed")
        });
        faults.no_nul("request_id", request_id);
    }
    faults
}

/// The faults of how an interactive transaction begins.
pub(super) fn begin(begin: &Begin, config: &config::Commit, now: DateTime<Utc>) -> Faults {
    let mut faults = identity(&begin.namespace, begin.request_id.as_deref());
    if let Some(consume) = &begin.consume {
        faults.consume(consume, config, now);
    }
    faults
}

/// Bytes of an event's key, payload and headers.
pub(super) fn event_bytes(event: &EventDraft) -> usize {
    let headers: usize = event.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
    headers + event.key.as_ref().map_or(0, Vec::len) + event.data.as_ref().map_or(0, Vec::len)
}

impl Faults {
    fn content(&mut self, request: &Request, config: &config::Commit, records: &Records, now: DateTime<Utc>) {
        let (operations, events) = (request.operations.len(), request.events.len());
        let empty = operations + events == 0 && request.consume.is_none();
        self.check("operations", !empty, || "the request has neither operations nor events".into());
        if let Some(consume) = &request.consume {
            self.consume(consume, config, now);
        }
        self.count("operations", operations, config.operations_max);
        self.count("events", events, config.events_max);
        for (index, operation) in request.operations.iter().enumerate().take(config.operations_max) {
            if let Operation::Document(call) = operation {
                self.field = format!("operations[{index}].{}.", document_field(&call.verb));
                self.document(call, config.document_bytes_max);
                self.field.clear();
            }
        }
        if events <= config.events_max {
            for (index, event) in request.events.iter().enumerate() {
                self.field = format!("events[{index}].");
                self.event(event, config, now);
                // How large a payload will be that is made of results, only they can tell.
                if request.links.events.get(&index).is_none_or(|links| links.data.is_none()) {
                    self.record(event, records);
                }
            }
        }
    }

    fn check(&mut self, field: &str, holds: bool, description: impl FnOnce() -> String) {
        self.lasting |= !holds;
        self.check_now(field, holds, description);
    }

    /// For what holds or not by the clock or the configuration.
    fn check_now(&mut self, field: &str, holds: bool, description: impl FnOnce() -> String) {
        if !holds {
            let field = format!("{}{field}", self.field);
            self.found.push(Violation { field, description: description() });
        }
    }

    fn count(&mut self, field: &str, count: usize, max: usize) {
        self.check_now(field, count <= max, || {
            format!("has {count} elements; at most {max} are allowed in one commit")
        });
    }

    fn no_nul(&mut self, field: &str, text: &str) {
        self.check(field, !text.contains('\0'), || "contains a NUL character, which Postgres cannot store".into());
    }

    fn text(&mut self, field: &str, text: &str, bytes_max: usize) {
        self.no_nul(field, text);
        self.check(field, text.len() <= bytes_max, || {
            format!("has {} bytes; at most {bytes_max} are allowed", text.len())
        });
    }

    fn document(&mut self, call: &DocumentCall, bytes_max: usize) {
        for (field, text, max) in
            [("collection", &call.collection, COLLECTION_BYTES_MAX), ("id", &call.id, DOCUMENT_ID_BYTES_MAX)]
        {
            self.check(field, !text.is_empty(), || "is required".into());
            self.text(field, text, max);
        }
        let checks = !matches!(call.verb, Verb::Check) || call.precondition.is_some();
        self.check("precondition", checks, || "is required: it is what is checked".into());
        let field = if matches!(call.verb, Verb::Merge(_)) { "patch" } else { "json" };
        if let Some(json) = call.verb.json() {
            let valid = Value::Json(json.to_owned()).to_sql_text(&SqlType::Jsonb);
            self.check(field, valid.is_ok(), || valid.err().map(|error| error.to_string()).unwrap_or_default());
            let flat = !matches!(call.verb, Verb::Merge(_)) || value::json_depth_fits(json, PATCH_DEPTH_MAX);
            self.check(field, flat, || format!("is nested too deep; a patch may be nested {PATCH_DEPTH_MAX} deep"));
            self.check_now(field, json.len() <= bytes_max, || {
                format!("has {} bytes; at most {bytes_max} are allowed", json.len())
            });
        }
    }

    fn consume(&mut self, consume: &Consume, config: &config::Commit, now: DateTime<Utc>) {
        self.field = "consume.".into();
        self.check("consumer", !consume.consumer.is_empty(), || "is required: the handler's own name".into());
        self.text("consumer", &consume.consumer, CONSUMER_BYTES_MAX);
        self.check("source", !consume.source.is_empty(), || "is required: the event's `source`".into());
        self.text("source", &consume.source, ATTRIBUTE_BYTES_MAX);
        let window = clock_window(config);
        self.check_now("event_time", consume.event_time - now <= window, || {
            format!("is more than {} s ahead of the server's time {now}", window.num_seconds())
        });
        self.field.clear();
    }

    fn event(&mut self, event: &EventDraft, config: &config::Commit, now: DateTime<Utc>) {
        self.topic(&event.topic);
        self.check("type", !event.event_type.is_empty(), || "is required, such as `user.activated`".into());
        self.text("type", &event.event_type, ATTRIBUTE_BYTES_MAX);
        self.text("source", event.source.as_deref().unwrap_or_default(), ATTRIBUTE_BYTES_MAX);
        self.text("subject", event.subject.as_deref().unwrap_or_default(), ATTRIBUTE_BYTES_MAX);
        self.text("content_type", event.content_type.as_deref().unwrap_or_default(), ATTRIBUTE_BYTES_MAX);
        self.headers(event);
        self.size(event, config.event_bytes_max);
        let due_at = draft::due_at(event, now);
        if let Some(due_at) = due_at {
            let hours = config.deliver_after_max_hours;
            self.check_now("deliver_after", due_at - now <= TimeDelta::hours(hours.into()), || {
                format!("is more than {hours} h ahead of the server's time {now}")
            });
        }
        if let Some(id) = &event.id {
            let (window, time) = (clock_window(config), uuid_time(id));
            let (expected, of) = match due_at {
                Some(due_at) => (due_at, "`deliver_after`"),
                None => (now, "the server's time"),
            };
            self.check("id", time.is_some(), || format!("`{id}` is not a UUIDv7"));
            self.check_now("id", time.is_none_or(|time| (time - expected).abs() <= window), || {
                format!("was made for more than {} s from {of} {expected}", window.num_seconds())
            });
        }
    }

    fn topic(&mut self, topic: &str) {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        self.check("topic", !topic.is_empty(), || "is required".into());
        self.check("topic", topic.len() <= TOPIC_CHARS_MAX && topic.chars().all(allowed), || {
            format!("is not a Kafka topic name: at most {TOPIC_CHARS_MAX} letters, digits, `.`, `_` and `-`")
        });
        self.check("topic", topic != "." && topic != "..", || "must not be `.` or `..`".into());
    }

    fn headers(&mut self, event: &EventDraft) {
        self.count("headers", event.headers.len(), HEADERS_MAX);
        for (name, value) in &event.headers {
            let field = format!("headers[{name}]");
            self.check(&field, record::is_free_header(name), || "this name is taken by the event's own headers".into());
            self.text(&field, name, ATTRIBUTE_BYTES_MAX);
            self.no_nul(&field, value);
        }
    }

    fn record(&mut self, event: &EventDraft, records: &Records) {
        if let Some(fault) = records.fault(event) {
            self.check_now("data", false, || fault);
        }
    }

    fn size(&mut self, event: &EventDraft, max: usize) {
        let size = event_bytes(event);
        self.check_now("data", size <= max, || {
            format!("the event has {size} bytes of key, payload and headers; at most {max} are allowed")
        });
    }
}

/// What the wire contract calls an operation on documents.
pub(super) fn document_field(verb: &Verb) -> &'static str {
    match verb {
        Verb::Put(_) => "put_document",
        Verb::Merge(_) => "merge_document",
        Verb::Delete => "delete_document",
        Verb::Check => "check_document",
    }
}

fn clock_window(config: &config::Commit) -> TimeDelta {
    TimeDelta::milliseconds(i64::try_from(config.event_id_clock_window_ms).unwrap_or(i64::MAX))
}
