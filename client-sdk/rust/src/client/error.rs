//! Why a commit failed, and what is known of its outcome.
//!
//! Invariant: the variant tells whether anything was applied, the failure in it why. It deliberately does not
//! interpret reasons: they are the server's vocabulary.

use std::{collections::HashMap, fmt, time::Duration};

use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use super::retry::retry_delay;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CommitError {
    /// The server refused the request. Nothing was applied, and sending the same again will not help, unless the
    /// failure carries [`retry_after`](Failure::retry_after).
    #[error("the commit was refused, nothing was applied: {0}")]
    Refused(#[source] Failure),
    /// No attempt reached a server before the deadline. Nothing was applied.
    #[error("no server was reached, nothing was applied: {0}")]
    Unreachable(#[source] Failure),
    /// The request may have been applied or not: the answer was lost, or the deadline passed. Sending the same
    /// commit with the same request id, which the failure carries, settles it: it applies at most once, and an
    /// applied one is answered with its result.
    #[error("the outcome is unknown; sending it again with the same request id `{id}` settles it: {0}", id = .0.request_id)]
    Unknown(#[source] Failure),
}

impl CommitError {
    /// What the last attempt failed with.
    pub fn failure(&self) -> &Failure {
        match self {
            Self::Refused(failure) | Self::Unreachable(failure) | Self::Unknown(failure) => failure,
        }
    }

    /// The same, taken out.
    pub(crate) fn into_failure(self) -> Failure {
        match self {
            Self::Refused(failure) | Self::Unreachable(failure) | Self::Unknown(failure) => failure,
        }
    }

    /// The request id that every attempt carried.
    pub fn request_id(&self) -> &str {
        &self.failure().request_id
    }

    /// The server's stable reason, such as `ROW_COUNT_MISMATCH`.
    pub fn reason(&self) -> Option<&str> {
        self.failure().reason()
    }

    /// Whether the request may have been applied.
    pub fn outcome_is_unknown(&self) -> bool {
        matches!(self, Self::Unknown(_))
    }

    pub(super) fn code(&self) -> Code {
        self.failure().code
    }
}

/// How the last attempt failed.
#[derive(Debug)]
pub struct Failure {
    request_id: String,
    attempts: u32,
    code: Code,
    message: String,
    reason: Option<String>,
    metadata: HashMap<String, String>,
    violations: Vec<FieldViolation>,
    retry_after: Option<Duration>,
    status: Box<Status>,
}

/// A field of the request that the server does not accept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldViolation {
    /// Its path in the request, such as `events[2].topic`.
    pub field: String,
    /// What is wrong with it.
    pub description: String,
}

impl Failure {
    pub(super) fn new(request_id: &str, attempts: u32, status: Status) -> Self {
        let info = status.get_details_error_info();
        let violations = status.get_details_bad_request().map(|bad| bad.field_violations).unwrap_or_default();
        let violation = |v: tonic_types::FieldViolation| FieldViolation { field: v.field, description: v.description };
        Self {
            request_id: request_id.to_owned(),
            attempts,
            code: status.code(),
            message: status.message().to_owned(),
            reason: info.as_ref().map(|info| info.reason.clone()),
            metadata: info.map(|info| info.metadata).unwrap_or_default(),
            violations: violations.into_iter().map(violation).collect(),
            retry_after: retry_delay(&status),
            status: Box::new(status),
        }
    }

    /// The gRPC code.
    pub fn code(&self) -> Code {
        self.code
    }

    /// The message for humans.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// `ErrorInfo.reason`: stable, for programs. `None` when the server did not answer itself.
    pub fn reason(&self) -> Option<&str> {
        self.reason.as_deref()
    }

    /// `ErrorInfo.metadata`: what the reason is about.
    pub fn metadata(&self) -> &HashMap<String, String> {
        &self.metadata
    }

    /// `BadRequest.field_violations`: every field that was not accepted.
    pub fn violations(&self) -> &[FieldViolation] {
        &self.violations
    }

    /// `RetryInfo.retry_delay`: when the server asks to be tried again.
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    /// How many attempts were made, the first included.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.code)?;
        if let Some(reason) = &self.reason {
            write!(f, " ({reason})")?;
        }
        write!(f, ": {}", self.message)?;
        for violation in &self.violations {
            write!(f, "; {}: {}", violation.field, violation.description)?;
        }
        if self.attempts > 1 {
            write!(f, "; after {} attempts", self.attempts)?;
        }
        Ok(())
    }
}

impl std::error::Error for Failure {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&*self.status)
    }
}
