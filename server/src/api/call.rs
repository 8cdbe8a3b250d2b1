//! What every call has: a deadline, a namespace, a trace.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;
use tonic::{Request, Status, metadata::MetadataMap};

use super::status;
use crate::{
    commit::{self, Committer},
    model::{
        commit::{Answer, Request as Commit},
        event::TraceContext,
    },
    store,
};

const DEFAULT_NAMESPACE: &str = "default";

/// Time limits of calls.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// For callers that set no deadline, and the most for those that do.
    pub deadline_max: Duration,
}

impl Limits {
    /// When a call must have been answered.
    ///
    /// Slightly before the caller's own deadline, so that it is this server that says DEADLINE_EXCEEDED and not the
    /// transport, which would say CANCELLED.
    pub(super) fn deadline(self, metadata: &MetadataMap) -> Instant {
        let asked = metadata.get("grpc-timeout").and_then(|value| parse_timeout(value.to_str().ok()?));
        let timeout = match asked {
            Some(timeout) => timeout - (timeout / 20).min(Duration::from_millis(20)),
            None => self.deadline_max,
        };
        Instant::now() + timeout.min(self.deadline_max)
    }
}

/// Does something in the store before a call's deadline.
pub(super) async fn within<T>(
    deadline: Instant,
    work: impl Future<Output = Result<T, store::Error>>,
) -> Result<T, Status> {
    let done = tokio::time::timeout_at(deadline, work).await;
    done.unwrap_or(Err(store::Error::DeadlineExceeded)).map_err(|error| status::store(&error))
}

/// Commits before a call's deadline.
pub(super) async fn commit(
    committer: &Committer,
    request: Commit,
    deadline: Instant,
) -> Result<Answer, Arc<commit::Error>> {
    let answer = tokio::time::timeout_at(deadline, committer.commit(request, deadline)).await;
    answer.unwrap_or_else(|_| Err(Arc::new(store::Error::DeadlineExceeded.into())))
}

/// The namespace a message names.
pub(super) fn namespace(given: String) -> String {
    if given.is_empty() { DEFAULT_NAMESPACE.to_owned() } else { given }
}

/// The trace context that the trace layer has put beside the request.
pub(super) fn trace<T>(request: &Request<T>) -> Option<TraceContext> {
    request.extensions().get::<TraceContext>().cloned()
}

/// gRPC over HTTP/2, "Timeout": at most eight digits and a unit.
fn parse_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 {
        return None;
    }
    let value = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(value * 3_600),
        "M" => Duration::from_secs(value * 60),
        "S" => Duration::from_secs(value),
        "m" => Duration::from_millis(value),
        "u" => Duration::from_micros(value),
        "n" => Duration::from_nanos(value),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_as_the_protocol_writes_them() {
        let cases = [
            ("1S", Some(Duration::from_secs(1))),
            ("250m", Some(Duration::from_millis(250))),
            ("99999999n", Some(Duration::from_nanos(99_999_999))),
            ("2H", Some(Duration::from_secs(7_200))),
            ("100000000n", None),
            ("S", None),
            ("", None),
            ("1s", None),
            ("-1S", None),
        ];
        for (text, expected) in cases {
            assert_eq!(parse_timeout(text), expected, "{text}");
        }
    }
}
