//! The reasons of all errors: one list, which `proto/ERRORS.md` tells users about.

use tonic::Code;

/// A stable reason, as `google.rpc.ErrorInfo` carries it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reason {
    pub(super) name: &'static str,
    pub(super) code: Code,
    pub(super) retry: Retry,
}

/// Whether and how to try again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Retry {
    /// Not before the request is mended.
    Mend,
    /// No more: the answer will not change.
    Stop,
    /// The state is not as expected: read it, and decide on a new request.
    Anew,
    /// The same request with the same id, after the pause that `google.rpc.RetryInfo` gives.
    Same,
    /// The same request with the same id: it may have been applied, and this settles it.
    Settle,
}

macro_rules! reasons {
    ($($name:ident: $code:ident, $retry:ident;)+) => {
        $(pub(super) const $name: Reason =
            Reason { name: stringify!($name), code: Code::$code, retry: Retry::$retry };)+

        /// Every reason, in the order of the page.
        #[cfg(test)]
        const ALL: &[Reason] = &[$($name),+];
    };
}

reasons! {
    INVALID_REQUEST: InvalidArgument, Mend;
    MALFORMED_REQUEST: InvalidArgument, Mend;
    REQUEST_TOO_LARGE: ResourceExhausted, Mend;
    REQUEST_ID_MISSING: InvalidArgument, Mend;
    UNKNOWN_COMMAND: NotFound, Mend;
    NOT_READ_ONLY: FailedPrecondition, Mend;
    INVALID_VALUE: InvalidArgument, Mend;
    EVENT_ID_EXISTS: AlreadyExists, Mend;
    EVENT_ID_OUT_OF_RANGE: InvalidArgument, Mend;
    EVENT_NOT_FOUND: NotFound, Stop;
    EVENT_SETTLED: FailedPrecondition, Stop;
    EVENT_NOT_DUE: FailedPrecondition, Anew;
    EVENT_NOT_PUBLISHED: FailedPrecondition, Anew;
    NOT_HELD: NotFound, Stop;
    HOLD_DRAINING: Aborted, Same;
    REPLAY_NOT_FOUND: NotFound, Stop;
    REPLAY_TOO_LARGE: FailedPrecondition, Mend;
    TOO_MANY_REPLAYS: ResourceExhausted, Same;
    TOO_MANY_WAITING: ResourceExhausted, Same;
    COMMIT_NOT_FOUND: NotFound, Stop;
    DOCUMENT_NOT_FOUND: NotFound, Stop;
    REQUEST_ID_REUSED: FailedPrecondition, Mend;
    REQUEST_EXPIRED: FailedPrecondition, Stop;
    EVENT_TOO_OLD: FailedPrecondition, Stop;
    ROW_COUNT_MISMATCH: FailedPrecondition, Anew;
    TOO_MANY_ROWS: FailedPrecondition, Mend;
    UNIQUE_VIOLATION: AlreadyExists, Anew;
    FOREIGN_KEY_VIOLATION: FailedPrecondition, Anew;
    CHECK_VIOLATION: FailedPrecondition, Anew;
    NOT_NULL_VIOLATION: FailedPrecondition, Anew;
    REJECTED: FailedPrecondition, Anew;
    REFERENCE_FAILED: FailedPrecondition, Anew;
    DOCUMENT_MISSING: FailedPrecondition, Anew;
    DOCUMENT_EXISTS: FailedPrecondition, Anew;
    DOCUMENT_TOO_LARGE: FailedPrecondition, Mend;
    VERSION_CONFLICT: Aborted, Anew;
    TRANSACTION_IDLE: Aborted, Same;
    CONFLICT: Aborted, Same;
    QUEUE_FULL: ResourceExhausted, Same;
    DATABASE_UNAVAILABLE: Unavailable, Settle;
    DEADLINE_EXCEEDED: DeadlineExceeded, Settle;
    RESULT_UNREPRESENTABLE: Internal, Stop;
    INTERNAL: Internal, Settle;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As gRPC writes it.
    fn code_name(code: Code) -> String {
        let mut name = String::new();
        for letter in format!("{code:?}").chars() {
            if letter.is_uppercase() && !name.is_empty() {
                name.push('_');
            }
            name.push(letter.to_ascii_uppercase());
        }
        name
    }

    #[test]
    fn the_page_of_errors_lists_every_reason_with_its_code_and_retry() {
        let page = include_str!("../../../proto/ERRORS.md");
        let rows = page.lines().filter(|line| line.starts_with("| `"));
        let told: Vec<Vec<&str>> = rows.map(|row| row.split('|').skip(1).take(3).map(str::trim).collect()).collect();
        let known: Vec<Vec<String>> = ALL
            .iter()
            .map(|r| vec![format!("`{}`", r.name), code_name(r.code), format!("{:?}", r.retry).to_lowercase()])
            .collect();
        assert_eq!(told, known);
    }
}
