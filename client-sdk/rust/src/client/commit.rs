//! Building a commit: commands and events, then sending it.
//!
//! Invariant: the request id is fixed when the commit is made, so every attempt and every clone is the same request.
//! It deliberately checks nothing that the server checks: its typed error names the field.

use std::{collections::HashMap, time::Duration};

use bytes::Bytes;
use chrono::{DateTime, Utc};
use outbox_proto::v1::{self, new_event::Payload};
use serde::Serialize;
use uuid::Uuid;

use super::{Client, CommitError, Committed, IntoValue, Rpc, call};
use crate::consumer::Event;

/// One atomic request: commands and events that are applied together or not at all. Made by [`Client::commit`].
///
/// A clone is the same request: sending both applies it once.
#[derive(Clone, Debug)]
#[must_use = "a commit does nothing until it is sent"]
pub struct Commit {
    client: Client,
    request: v1::CommitRequest,
    deadline: Duration,
}

impl Commit {
    pub(super) fn new(client: Client) -> Self {
        let request = v1::CommitRequest {
            namespace: client.settings.namespace.clone(),
            request_id: Uuid::now_v7().to_string(),
            ..Default::default()
        };
        Self { deadline: client.settings.deadline, client, request }
    }

    /// The tenant. Unless set, the client's.
    pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
        self.request.namespace = namespace.into();
        self
    }

    /// The caller's own name for this request, up to 128 characters, instead of a UUIDv7 made here. The same id with
    /// the same content applies once within the server's window (7 days unless configured).
    pub fn request_id(mut self, request_id: impl Into<String>) -> Self {
        self.request.request_id = request_id.into();
        self
    }

    /// Adds a command. Commands run in the order in which they are added.
    pub fn command(mut self, command: Command) -> Self {
        let kind = Some(command.into_kind());
        self.request.operations.push(v1::Operation { kind, ..v1::Operation::default() });
        self
    }

    /// Adds an event, published if and only if the commit succeeds.
    pub fn event(mut self, event: NewEvent) -> Self {
        self.request.events.push(event.into_message());
        self
    }

    /// Makes the commit a consumer's answer to an event: the server marks the event as handled by `consumer` in the same
    /// transaction. When it has been before, nothing is applied, and the answer is [`Disposition::Duplicate`]: so a
    /// consumer needs no inbox of its own, and may make its commits anew after a crash. The server remembers for a window
    /// (7 days unless configured), and refuses older events that it does not know (`EVENT_TOO_OLD`).
    ///
    /// [`Disposition::Duplicate`]: crate::Disposition::Duplicate
    pub fn consume(mut self, consumer: impl Into<String>, event: &Event) -> Self {
        self.request.consume = Some(v1::Consume {
            consumer: consumer.into(),
            source: event.source().to_owned(),
            event_id: event.id().to_string(),
            event_time: event.happened_at().map(timestamp),
        });
        self
    }

    /// What sending may take over all attempts. Unless set, the client's.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Sends the commit, again after each failure that another attempt may cure, until the deadline: after
    /// `UNAVAILABLE` and broken connections, and after `ABORTED` and `RESOURCE_EXHAUSTED` when the server says when
    /// to come back. Everything else is returned at once.
    ///
    /// Cancellation: dropping the future leaves the outcome unknown. Sending a clone of the commit, or another with
    /// the same [`request_id`](Self::request_id) and content, settles it.
    ///
    /// # Errors
    /// [`CommitError`]; its variants say whether anything was applied.
    pub async fn send(self) -> Result<Committed, CommitError> {
        let request_id = self.request.request_id.clone();
        let call = call::Call { method: call::COMMIT, request_id: &request_id, deadline: self.deadline };
        let send = |mut rpc: Rpc, request| async move { rpc.commit(request).await };
        self.client.call(&self.client.rpc, call, self.request, send).await.map(Committed::new)
    }
}

/// A call of an operator-declared, named SQL statement.
///
/// ```
/// use outbox_sdk::{Command, Numeric};
///
/// let order = Command::new("place_order")
///     .param("order_id", uuid::Uuid::now_v7())
///     .param("user_id", "user-7")
///     .param("total", Numeric("12.50".into()));
/// # let _ = order;
/// ```
#[derive(Clone, Debug)]
pub struct Command {
    call: v1::CommandCall,
}

impl Command {
    /// A call of the command of this name in the server's catalog.
    pub fn new(name: impl Into<String>) -> Self {
        Self { call: v1::CommandCall { name: name.into(), parameters: HashMap::new() } }
    }

    pub(super) fn into_call(self) -> v1::CommandCall {
        self.call
    }

    pub(super) fn into_kind(self) -> v1::operation::Kind {
        v1::operation::Kind::Command(self.call)
    }

    /// Sets a named parameter, without its colon. Setting it again replaces it.
    #[must_use]
    pub fn param(mut self, name: impl Into<String>, value: impl IntoValue) -> Self {
        self.call.parameters.insert(name.into(), value.into_value());
        self
    }
}

/// An event to publish.
///
/// ```
/// use outbox_sdk::NewEvent;
///
/// # fn event() -> Result<NewEvent, serde_json::Error> {
/// let activated = NewEvent::new("users", "user.activated")
///     .key("user-7")
///     .subject("user/user-7")
///     .header("x-tenant", "shop")
///     .json(&serde_json::json!({"id": "user-7"}))?;
/// # Ok(activated)
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct NewEvent {
    event: v1::NewEvent,
}

impl NewEvent {
    /// An event of this CloudEvents type for this Kafka topic, so far without key and payload. Sent without a
    /// payload it is a tombstone.
    pub fn new(topic: impl Into<String>, event_type: impl Into<String>) -> Self {
        let event = v1::NewEvent { topic: topic.into(), r#type: event_type.into(), ..Default::default() };
        Self { event }
    }

    pub(super) fn into_message(self) -> v1::NewEvent {
        self.event
    }

    /// Its key: events of one namespace, topic and key are published in commit order.
    #[must_use]
    pub fn key(mut self, key: impl Into<Bytes>) -> Self {
        self.event.key = Some(key.into());
        self
    }

    /// Its payload as JSON, with content type `application/json`.
    ///
    /// # Errors
    /// When `payload` cannot be written as JSON.
    pub fn json<T: Serialize + ?Sized>(mut self, payload: &T) -> Result<Self, serde_json::Error> {
        self.event.payload = Some(Payload::Text(serde_json::to_string(payload)?));
        self.event.content_type = "application/json".to_owned();
        Ok(self)
    }

    /// Its payload in bytes, published as they are.
    #[must_use]
    pub fn data(mut self, data: impl Into<Bytes>, content_type: impl Into<String>) -> Self {
        self.event.payload = Some(Payload::Data(data.into()));
        self.event.content_type = content_type.into();
        self
    }

    /// Its id, a UUIDv7 of about now, or of when it is due, that no other event has. Unless set, the server makes one.
    #[must_use]
    pub fn id(mut self, id: Uuid) -> Self {
        self.event.id = id.to_string();
        self
    }

    /// CloudEvents `source`. Unless set, the server's configured default.
    #[must_use]
    pub fn source(mut self, source: impl Into<String>) -> Self {
        self.event.source = source.into();
        self
    }

    /// CloudEvents `subject`.
    #[must_use]
    pub fn subject(mut self, subject: impl Into<String>) -> Self {
        self.event.subject = subject.into();
        self
    }

    /// A further Kafka header. Names starting with `ce_`, `content-type`, `traceparent` and `tracestate` are taken.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.event.headers.insert(name.into(), value.into());
        self
    }

    /// When it happened. Unless set, when the server received it.
    #[must_use]
    pub fn time(mut self, time: DateTime<Utc>) -> Self {
        self.event.time = Some(timestamp(time));
        self
    }

    /// Delays it: it is stored with the commit and published soon after this time, never before, at most 31 days ahead
    /// unless the server is configured otherwise. It takes its place in the order of its key then.
    #[must_use]
    pub fn deliver_after(mut self, time: DateTime<Utc>) -> Self {
        self.event.deliver_after = Some(timestamp(time));
        self
    }
}

pub(crate) fn timestamp(time: DateTime<Utc>) -> prost_types::Timestamp {
    // The nanoseconds of a leap second reach two billion; protobuf's end at one.
    let nanos = time.timestamp_subsec_nanos().min(999_999_999).cast_signed();
    prost_types::Timestamp { seconds: time.timestamp(), nanos }
}
