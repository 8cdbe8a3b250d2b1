//! One decision: what a failed attempt means.
//!
//! Invariant: an attempt counts as not applied only when that is certain. `UNAVAILABLE` and broken connections leave
//! the outcome open, and are tried again, which is safe: the request id makes every attempt the same request.
//! It deliberately neither waits nor counts.

use std::{error::Error, time::Duration};

use tonic::{Code, Status};
use tonic_types::StatusExt as _;

/// What to do after a failed attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Try again, not before `after` when the server named a delay. `reached` is whether it may have been applied.
    Retry { after: Option<Duration>, reached: bool },
    /// The server's answer is final and nothing was applied. `settles` is whether it says so of earlier attempts too.
    Refused { settles: bool },
    /// Final, and it may have been applied.
    Unknown,
}

/// Judges a failed attempt.
pub(super) fn judge(status: &Status) -> Verdict {
    if caused_by::<tonic::ConnectError>(status) {
        return Verdict::Retry { after: None, reached: false };
    }
    if status.source().is_some() {
        // Made here, not sent by the server: the connection broke under the call.
        return Verdict::Retry { after: None, reached: true };
    }
    let after = retry_delay(status);
    match status.code() {
        Code::Unavailable => Verdict::Retry { after, reached: true },
        Code::Aborted | Code::ResourceExhausted if after.is_some() => Verdict::Retry { after, reached: false },
        // Answers of the transaction itself, which first looks the request id up: an earlier attempt that had been
        // applied would have been answered with its result instead.
        Code::FailedPrecondition | Code::AlreadyExists | Code::Aborted => Verdict::Refused { settles: true },
        Code::InvalidArgument
        | Code::NotFound
        | Code::OutOfRange
        | Code::PermissionDenied
        | Code::Unauthenticated
        | Code::Unimplemented
        | Code::ResourceExhausted => Verdict::Refused { settles: false },
        Code::Ok | Code::Cancelled | Code::Unknown | Code::DeadlineExceeded | Code::Internal | Code::DataLoss => {
            Verdict::Unknown
        }
    }
}

/// Whether tonic gave up waiting, which it reports as `CANCELLED`.
pub(super) fn timed_out(status: &Status) -> bool {
    caused_by::<tonic::TimeoutExpired>(status)
}

/// When the server asks to be tried again.
pub(super) fn retry_delay(status: &Status) -> Option<Duration> {
    status.get_details_retry_info()?.retry_delay
}

fn caused_by<E: Error + 'static>(status: &Status) -> bool {
    let mut cause = status.source();
    while let Some(error) = cause {
        if error.is::<E>() {
            return true;
        }
        cause = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use tonic_types::ErrorDetails;

    use super::*;

    #[test]
    fn only_what_another_attempt_may_cure_is_retried() {
        let delay = Duration::from_millis(70);
        let with_delay = |code| Status::with_error_details(code, "busy", ErrorDetails::with_retry_info(Some(delay)));
        let busy = Verdict::Retry { after: Some(delay), reached: false };
        assert_eq!(judge(&Status::unavailable("draining")), Verdict::Retry { after: None, reached: true });
        assert_eq!(judge(&with_delay(Code::Aborted)), busy);
        assert_eq!(judge(&with_delay(Code::ResourceExhausted)), busy);
        assert_eq!(judge(&Status::aborted("version conflict")), Verdict::Refused { settles: true });
        assert_eq!(judge(&Status::resource_exhausted("too large")), Verdict::Refused { settles: false });
        assert_eq!(judge(&with_delay(Code::InvalidArgument)), Verdict::Refused { settles: false });
        assert_eq!(judge(&Status::failed_precondition("no row")), Verdict::Refused { settles: true });
        assert_eq!(judge(&Status::deadline_exceeded("late")), Verdict::Unknown);
        assert_eq!(judge(&Status::internal("bug")), Verdict::Unknown);
    }

    #[test]
    fn a_connection_that_broke_is_told_from_one_that_was_never_made() {
        let refused = tonic::ConnectError("connection refused".into());
        assert_eq!(judge(&Status::from_error(Box::new(refused))), Verdict::Retry { after: None, reached: false });
        let broken = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
        assert_eq!(judge(&Status::from_error(Box::new(broken))), Verdict::Retry { after: None, reached: true });
        assert!(timed_out(&Status::from_error(Box::new(tonic::TimeoutExpired(())))));
    }
}
