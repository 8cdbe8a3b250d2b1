//! What the store can answer instead of a result, and how the database's error codes are read.

use std::{error::Error as StdError, time::Duration};

use serde::Deserialize;
use sqlx::postgres::PgDatabaseError;

/// A source whose text is for the log only: the database's words never reach a caller.
pub(super) type Source = Box<dyn StdError + Send + Sync>;

/// Why the store could not do what was asked. Unless the variant says otherwise, nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The connection URL cannot be read.
    #[error("the database URL cannot be read; expected postgres://user:password@host:port/database")]
    Url(#[source] sqlx::Error),
    /// The database cannot be reached, is shutting down, or refuses connections. Whether a commit in flight was
    /// applied is settled by sending it again with its request id.
    #[error("the database cannot be reached")]
    Unavailable(#[source] Source),
    /// As many calls wait for a connection as may.
    #[error("{0} calls are waiting already")]
    QueueFull(usize),
    /// The deadline passed first.
    #[error("the deadline passed")]
    DeadlineExceeded,
    /// The request id was used with another body.
    #[error("the request id was used with another body")]
    RequestIdReused,
    /// An operation changed or returned an unexpected number of rows.
    #[error("operation {} changed or returned {} rows", .0.operation, .0.rows)]
    RowCount(RowCount),
    /// An operation returned more rows than one may.
    #[error("operation {operation} returned more than {max} rows")]
    TooManyRows {
        /// Its index in the request.
        operation: usize,
        /// The limit.
        max: u64,
    },
    /// An event's id is stored already.
    #[error("an event id is stored already")]
    EventIdExists,
    /// An event's id lies outside the time for which there are partitions.
    #[error("an event id lies outside the time the store has partitions for")]
    EventIdOutOfRange,
    /// An event to be handled is older than marks are kept, and not known to be handled.
    #[error("the event is older than marks are kept")]
    EventTooOld,
    /// A document is not what it must be.
    #[error("document operation found {fault:?}, actual {actual}")]
    Document {
        /// In what way.
        fault: DocumentFault,
        /// Its version, 0 when it does not exist; of one too large its bytes.
        actual: i64,
        /// Index of the operation, when known.
        operation: Option<usize>,
    },
    /// What an operation or event takes from an earlier result is not there, or does not fit.
    #[error("{field} {description}")]
    Reference {
        /// Path of the field in the request.
        field: String,
        /// What is wrong, to follow the field in a sentence.
        description: String,
    },
    /// A read-only command tried to write.
    #[error("a read-only command tried to write")]
    NotReadOnly,
    /// An operation broke a constraint of the operator's tables.
    #[error("operation broke {kind:?} constraint {name:?}")]
    Constraint {
        /// Which kind.
        kind: ConstraintKind,
        /// The constraint's name.
        name: String,
        /// Index of the operation, when known.
        operation: Option<usize>,
    },
    /// An operation's parameter has no meaning in its type, or a computation went out of range.
    #[error("an operation's value was refused")]
    BadValue {
        /// SQLSTATE.
        code: String,
        /// Index of the operation, when known.
        operation: Option<usize>,
    },
    /// The operator's own SQL raised an exception.
    #[error("an operation was refused by the database's own rules")]
    Rejected {
        /// SQLSTATE.
        code: String,
        /// Index of the operation, when known.
        operation: Option<usize>,
    },
    /// A deadlock or a serialization failure: the same request may succeed now.
    #[error("the transaction was given up for another one")]
    Conflict,
    /// Anything else: an operator has to look.
    #[error("the database answered with an unexpected error")]
    Internal(#[source] Source),
}

/// An expectation of rows that was missed.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
pub struct RowCount {
    /// The operation's index in the request.
    pub operation: usize,
    /// Rows changed or returned.
    pub rows: i64,
    /// Fewest expected.
    pub min: i64,
    /// Most expected.
    pub max: i64,
}

/// The kinds of constraints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConstraintKind {
    /// Unique or exclusion.
    Unique,
    /// Foreign key.
    ForeignKey,
    /// Check.
    Check,
    /// Not null.
    NotNull,
}

/// What is wrong with a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DocumentFault {
    /// It has another version than it must have.
    Version,
    /// It must exist.
    Missing,
    /// It must not exist.
    Exists,
    /// It would be larger than one may be.
    TooLarge,
}

/// What to do about an error of the database.
#[derive(Debug)]
pub enum Failure {
    /// The claim found an answer: read it.
    Answered,
    /// The claim found the mark of another request on its event: read that one's answer.
    Handled,
    /// The connection is lost and with it the knowledge of what happened: claim again.
    Lost(Source),
    /// Final, or for the caller to retry.
    Final(Error),
}

impl Failure {
    /// Reads an error of a statement that ran operation `operation`, or of any other when `None`.
    pub fn read(error: sqlx::Error, operation: Option<usize>) -> Self {
        match error {
            sqlx::Error::Database(database) => {
                let database = database.downcast::<PgDatabaseError>();
                from_code(*database, operation)
            }
            sqlx::Error::Io(_) | sqlx::Error::Protocol(_) | sqlx::Error::Tls(_) | sqlx::Error::WorkerCrashed => {
                Self::Lost(error.into())
            }
            other => Self::Final(Error::Internal(other.into())),
        }
    }

    /// The error for one who neither claims again nor reads an answer.
    pub fn into_error(self) -> Error {
        match self {
            Self::Lost(source) => Error::Unavailable(source),
            Self::Final(error) => error,
            Self::Answered | Self::Handled => Error::Internal("a request was found answered outside a claim".into()),
        }
    }
}

/// SQLSTATE classes: Postgres documentation, appendix A. `OB…` codes are those of `migrations/`.
fn from_code(error: PgDatabaseError, operation: Option<usize>) -> Failure {
    let code = error.code().to_owned();
    let constraint =
        |kind| Error::Constraint { kind, name: error.constraint().unwrap_or_default().to_owned(), operation };
    let detail = || error.detail().and_then(|detail| detail.parse().ok()).unwrap_or_default();
    let document = |fault| Error::Document { fault, actual: detail(), operation };
    let ours = error.schema() == Some("outbox");
    Failure::Final(match code.as_str() {
        "OB001" => return Failure::Answered,
        "OB002" => Error::RequestIdReused,
        "OB004" => return Failure::Handled,
        "OB005" => Error::EventTooOld,
        "OB003" => match error.detail().and_then(|detail| serde_json::from_str(detail).ok()) {
            Some(rows) => Error::RowCount(rows),
            None => Error::Internal(error.into()),
        },
        "OB006" => document(DocumentFault::Version),
        "OB007" => document(DocumentFault::Missing),
        "OB008" => document(DocumentFault::Exists),
        "OB009" => document(DocumentFault::TooLarge),
        "25006" => Error::NotReadOnly,
        "23505" if ours => Error::EventIdExists,
        "23514" if ours && error.constraint().is_none() && matches!(error.table(), Some("marks" | "claims")) => {
            Error::EventTooOld
        }
        "23514" if ours && error.constraint().is_none() => Error::EventIdOutOfRange,
        _ if ours => Error::Internal(error.into()),
        "23505" | "23P01" => constraint(ConstraintKind::Unique),
        "23503" | "23001" => constraint(ConstraintKind::ForeignKey),
        "23514" => constraint(ConstraintKind::Check),
        "23502" => Error::Constraint {
            kind: ConstraintKind::NotNull,
            name: error.column().unwrap_or_default().to_owned(),
            operation,
        },
        "57014" => Error::DeadlineExceeded,
        "40001" | "40P01" | "55P03" => Error::Conflict,
        "57P01" | "57P02" | "57P03" | "57P05" | "25P03" => return Failure::Lost(error.into()),
        "P0001" | "P0004" | "44000" => Error::Rejected { code, operation },
        _ if code.starts_with("22") => Error::BadValue { code, operation },
        _ if code.starts_with("08") => return Failure::Lost(error.into()),
        _ if code.starts_with("53") => Error::Unavailable(error.into()),
        _ => Error::Internal(error.into()),
    })
}

impl Error {
    /// Whether the database may say so of a statement before it has run any of it.
    pub(super) fn may_precede_claim(&self) -> bool {
        matches!(self, Self::BadValue { .. } | Self::Rejected { .. } | Self::Constraint { .. } | Self::Internal(_))
    }

    /// The pause to recommend, for errors that a retry may cure.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Conflict => Some(Duration::from_millis(20)),
            Self::QueueFull(_) => Some(Duration::from_millis(200)),
            Self::Unavailable(_) => Some(Duration::from_millis(500)),
            _ => None,
        }
    }
}
