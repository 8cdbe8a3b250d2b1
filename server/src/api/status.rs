//! Errors as gRPC statuses: the one place that chooses the reason and the retry advice.
//!
//! Each carries `google.rpc.ErrorInfo` (AIP-193). The database's own words go to the log, never to a caller.

use std::{collections::HashMap, error::Error as StdError, time::Duration};

use chrono::{DateTime, SecondsFormat, Utc};
use outbox_proto::v1::ERROR_DOMAIN;
use tonic::Status;
use tonic_types::{ErrorDetails, StatusExt as _};

use super::reason::{self, Reason, Retry};
use crate::{
    commit::{self, Violation},
    store::{self, ConstraintKind, DocumentFault},
};

/// Before the same request is sent again, where the error itself advises nothing else.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// A status with a reason. Further details are added by the callers below.
struct Reply {
    reason: Reason,
    message: String,
    metadata: HashMap<String, String>,
    details: ErrorDetails,
}

fn reply(reason: Reason, message: impl Into<String>) -> Reply {
    Reply { reason, message: message.into(), metadata: HashMap::new(), details: ErrorDetails::new() }
}

impl Reply {
    fn with(mut self, name: &str, value: &dyn ToString) -> Self {
        self.metadata.insert(name.into(), value.to_string());
        self
    }

    fn operation(self, operation: Option<usize>) -> Self {
        match operation {
            Some(operation) => self.with("field", &format!("operations[{operation}]")),
            None => self,
        }
    }

    fn after(mut self, pause: Duration) -> Self {
        self.details.set_retry_info(Some(pause));
        self
    }

    fn status(mut self) -> Status {
        if self.reason.retry == Retry::Same && self.details.retry_info().is_none() {
            self = self.after(RETRY_AFTER);
        }
        self.details.set_error_info(self.reason.name, ERROR_DOMAIN, self.metadata);
        Status::with_error_details(self.reason.code, self.message, self.details)
    }
}

/// A request with these faults.
pub(super) fn invalid(violations: Vec<Violation>) -> Status {
    let message = match violations.as_slice() {
        [one] => format!("{} {}", one.field, one.description),
        [first, rest @ ..] => format!("{} {} (and {} more)", first.field, first.description, rest.len()),
        [] => "the request is not valid".into(),
    };
    let mut reply = reply(reason::INVALID_REQUEST, message);
    // A header block of gRPC is small: of thousands of faults the first ones do.
    for violation in violations.into_iter().take(20) {
        reply.details.add_bad_request_violation(violation.field, violation.description);
    }
    reply.status()
}

/// A message that is not one of ours: not protobuf, or text that is not UTF-8.
pub(super) fn malformed(message: String) -> Status {
    reply(reason::MALFORMED_REQUEST, message).status()
}

/// A message beyond the size limit.
pub(super) fn too_large(message: String) -> Status {
    reply(reason::REQUEST_TOO_LARGE, message).status()
}

/// A call that names no request id, and where it would stand.
pub(super) fn request_id_missing(place: &str) -> Status {
    let message = format!("{place} must carry a request id, the same with every retry; a UUIDv7 is the best choice");
    reply(reason::REQUEST_ID_MISSING, message).status()
}

/// A result that the response's type cannot hold. What was asked for has been done.
pub(super) fn result_unrepresentable(operation: usize, description: &str) -> Status {
    let message = format!("the response cannot hold the result of operation {operation}: {description}");
    reply(reason::RESULT_UNREPRESENTABLE, message).operation(Some(operation)).status()
}

pub(super) fn event_not_found(id: &str) -> Status {
    let message = format!("no event {id} is stored in this namespace; events are kept for a limited time");
    reply(reason::EVENT_NOT_FOUND, message).with("event_id", &id).status()
}

pub(super) fn event_settled(id: &str) -> Status {
    let message = format!("event {id} is settled already: there is nothing to park");
    reply(reason::EVENT_SETTLED, message).with("event_id", &id).status()
}

/// An event that is delayed, so that nothing can be told to wait behind it.
pub(super) fn event_not_due(id: &str, due_at: DateTime<Utc>) -> Status {
    let due_at = due_at.to_rfc3339_opts(SecondsFormat::Millis, true);
    let message = format!(
        "event {id} is delayed until {due_at} and has no place in the order of its key before: park its key, discard the \
         event, or park it then"
    );
    reply(reason::EVENT_NOT_DUE, message).with("event_id", &id).with("due_at", &due_at).status()
}

pub(super) fn event_not_published(id: &str) -> Status {
    let message = format!("event {id} is not published, or no longer to be: there is nothing to publish again");
    reply(reason::EVENT_NOT_PUBLISHED, message).with("event_id", &id).status()
}

pub(super) fn request_id_reused() -> Status {
    store(&store::Error::RequestIdReused)
}

pub(super) fn replay_not_found(request_id: &str) -> Status {
    let message = format!("no replay {request_id:?} was asked for in this namespace");
    reply(reason::REPLAY_NOT_FOUND, message).with("request_id", &request_id).status()
}

pub(super) fn replay_too_large(max: i64) -> Status {
    let message = format!("more than {max} events match; choose a narrower range of time");
    reply(reason::REPLAY_TOO_LARGE, message).with("max", &max).status()
}

/// As many replays run as may.
pub(super) fn too_many_replays(max: i32) -> Status {
    let message = format!("{max} replays run already; wait, or cancel one");
    reply(reason::TOO_MANY_REPLAYS, message).with("max", &max).after(Duration::from_secs(5)).status()
}

pub(super) fn not_held(what: &str) -> Status {
    reply(reason::NOT_HELD, format!("{what} is not held in this namespace")).with("target", &what).status()
}

/// What cannot be given up just now: in words, and as metadata.
pub(super) fn hold_draining(what: &str, (metadata, name): (&str, &str)) -> Status {
    let message = format!("{what} is being published, or was held a moment ago; try again shortly");
    reply(reason::HOLD_DRAINING, message).with(metadata, &name).status()
}

/// Too many calls wait already.
pub(super) fn too_many_waiting(max: usize) -> Status {
    let message = format!("{max} calls wait for events already; try again shortly");
    reply(reason::TOO_MANY_WAITING, message).with("max", &max).after(Duration::from_secs(1)).status()
}

pub(super) fn commit_not_found(request_id: &str) -> Status {
    let message =
        format!("no commit {request_id:?} is remembered in this namespace; it was not applied, or too long ago");
    reply(reason::COMMIT_NOT_FOUND, message).with("request_id", &request_id).status()
}

pub(super) fn document_not_found(collection: &str, id: &str) -> Status {
    let message = format!("there is no document {id:?} in collection {collection:?} of this namespace");
    reply(reason::DOCUMENT_NOT_FOUND, message).with("collection", &collection).with("id", &id).status()
}

pub(super) fn transaction_idle(idle: Duration) -> Status {
    let message = format!("the transaction was rolled back, since no message came for {} ms", idle.as_millis());
    reply(reason::TRANSACTION_IDLE, message).status()
}

fn not_read_only(message: String) -> Status {
    reply(reason::NOT_READ_ONLY, message).status()
}

/// A stored answer that cannot be read back.
pub(super) fn unreadable(error: &(dyn StdError + 'static)) -> Status {
    tracing::error!(error, "a stored answer cannot be read");
    internal()
}

/// Why a commit was not made.
pub(super) fn commit(error: &commit::Error) -> Status {
    match error {
        commit::Error::Invalid(violations) => invalid(violations.clone()),
        commit::Error::UnknownCommand { operation, name, suggestion } => {
            let hint = suggestion.as_ref().map(|name| format!("; did you mean {name:?}?")).unwrap_or_default();
            reply(reason::UNKNOWN_COMMAND, format!("there is no command {name:?}{hint}"))
                .with("command", name)
                .operation(*operation)
                .status()
        }
        commit::Error::NotReadOnly { name } => not_read_only(format!("the command {name:?} is not declared read-only")),
        commit::Error::RequestExpired { window_hours } => reply(
            reason::REQUEST_EXPIRED,
            format!(
                "the request id was made more than {window_hours} h ago: whether it was applied is not known any more"
            ),
        )
        .with("window_hours", window_hours)
        .status(),
        commit::Error::Store(error) => store(error),
    }
}

/// Why the store could not do what was asked.
pub(super) fn store(error: &store::Error) -> Status {
    use store::Error as E;
    let reply = match error {
        E::Unavailable(source) => {
            tracing::warn!(error = %source, "the database cannot be reached");
            reply(
                reason::DATABASE_UNAVAILABLE,
                "the database cannot be reached; send the same request again with the same request id",
            )
        }
        E::QueueFull(waiting) => {
            reply(reason::QUEUE_FULL, format!("{waiting} calls are waiting already; try again shortly"))
        }
        E::DeadlineExceeded => reply(
            reason::DEADLINE_EXCEEDED,
            "the deadline passed; whether a commit was applied is settled by sending it again with the same request id",
        ),
        E::RequestIdReused => reply(
            reason::REQUEST_ID_REUSED,
            "this request id was used with another body; use a new id for a new request",
        ),
        E::RowCount(count) => {
            let expected = expected_rows(count.min, count.max);
            let message = format!("operation {} affected {} rows, expected {expected}", count.operation, count.rows);
            reply(reason::ROW_COUNT_MISMATCH, message)
                .with("rows", &count.rows)
                .with("expected", &expected)
                .operation(Some(count.operation))
        }
        E::TooManyRows { operation, max } => {
            let message = format!("operation {operation} returned more than {max} rows");
            reply(reason::TOO_MANY_ROWS, message).with("max", max).operation(Some(*operation))
        }
        E::EventIdExists => reply(reason::EVENT_ID_EXISTS, "an event with one of these ids is stored already"),
        E::EventIdOutOfRange => {
            reply(reason::EVENT_ID_OUT_OF_RANGE, "an event id's time is too far from the database's")
        }
        E::Document { fault, actual, operation } => document(*fault, *actual).operation(*operation),
        E::Reference { field, description } => {
            reply(reason::REFERENCE_FAILED, format!("{field} {description}")).with("field", field)
        }
        E::NotReadOnly => return not_read_only("what only reads tried to write".into()),
        E::EventTooOld => reply(
            reason::EVENT_TOO_OLD,
            "the event is older than marks are kept: whether this consumer has handled it is not known any more",
        ),
        E::Constraint { kind, name, operation } => constraint(*kind, name).operation(*operation),
        E::BadValue { code, operation } => reply(
            reason::INVALID_VALUE,
            "the database refused a value of the operation: it has no meaning in its type, or is out of range",
        )
        .with("sqlstate", code)
        .operation(*operation),
        E::Rejected { code, operation } => {
            reply(reason::REJECTED, "the operator's own rules in the database refused the operation")
                .with("sqlstate", code)
                .operation(*operation)
        }
        E::Conflict => reply(reason::CONFLICT, "the transaction was given up for a concurrent one; try again"),
        E::Url(_) | E::Internal(_) => {
            tracing::error!(error = error as &dyn StdError, "unexpected error of the database");
            return internal();
        }
    };
    match error.retry_after() {
        Some(pause) => reply.after(pause).status(),
        None => reply.status(),
    }
}

fn internal() -> Status {
    reply(reason::INTERNAL, "unexpected error; the server's log has the cause").status()
}

fn document(fault: DocumentFault, actual: i64) -> Reply {
    match fault {
        DocumentFault::Version => {
            let message = match actual {
                0 => "the document does not exist; read it again and decide anew".into(),
                _ => format!("the document has version {actual} by now; read it again and decide anew"),
            };
            reply(reason::VERSION_CONFLICT, message).with("version", &actual)
        }
        DocumentFault::Missing => reply(reason::DOCUMENT_MISSING, "the document does not exist"),
        DocumentFault::Exists => {
            let message = format!("the document exists already, with version {actual}");
            reply(reason::DOCUMENT_EXISTS, message).with("version", &actual)
        }
        DocumentFault::TooLarge => {
            let message = format!("the document would have {actual} bytes of JSON, which is more than one may");
            reply(reason::DOCUMENT_TOO_LARGE, message).with("bytes", &actual)
        }
    }
}

fn constraint(kind: ConstraintKind, name: &str) -> Reply {
    let (reason, what) = match kind {
        ConstraintKind::Unique => (reason::UNIQUE_VIOLATION, "unique constraint"),
        ConstraintKind::ForeignKey => (reason::FOREIGN_KEY_VIOLATION, "foreign key"),
        ConstraintKind::Check => (reason::CHECK_VIOLATION, "check constraint"),
        ConstraintKind::NotNull => (reason::NOT_NULL_VIOLATION, "not-null constraint of column"),
    };
    reply(reason, format!("the operation violates the {what} {name:?}")).with("constraint", &name)
}

fn expected_rows(min: i64, max: i64) -> String {
    match (min, max) {
        (min, max) if min == max => format!("exactly {min}"),
        (min, i64::MAX) => format!("at least {min}"),
        (0, max) => format!("at most {max}"),
        (min, max) => format!("{min} to {max}"),
    }
}
