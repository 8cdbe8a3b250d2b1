//! The loop of attempts behind every call.
//!
//! Invariants: every attempt sends the same message, its `grpc-timeout` is what remains of the deadline, and the call
//! ends by its deadline; its outcome is in doubt only if some attempt's message was sent. It deliberately holds no opinion
//! on single failures: `retry` judges them.

use std::{error::Error as _, time::Duration};

use tokio::time::{Instant, sleep, timeout_at};
use tonic::{Code, Request, Response, Status};
use tracing::{Instrument as _, Span};

use super::{
    BACKOFF, Client, CommitError, Failure,
    retry::{Verdict, judge, timed_out},
    sent::Sent,
};
use crate::trace;

pub(super) const COMMIT: &str = "outbox.v1.OutboxService/Commit";
pub(super) const TRANSACT: &str = "outbox.v1.OutboxService/Transact";
pub(super) const GET_COMMIT: &str = "outbox.v1.OutboxService/GetCommit";

/// What a call is, besides its message.
#[derive(Clone, Copy)]
pub(crate) struct Call<'a> {
    pub(crate) method: &'static str,
    /// What makes all attempts one call.
    pub(crate) request_id: &'a str,
    pub(crate) deadline: Duration,
}

impl Client {
    /// Sends `message` by `rpc` until an attempt succeeds, one fails for good, or the deadline passes.
    pub(crate) async fn call<R, M, A, F>(
        &self,
        rpc: &R,
        call: Call<'_>,
        message: M,
        send: impl Fn(R, Request<M>) -> F,
    ) -> Result<A, CommitError>
    where
        R: Clone,
        M: Clone,
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let span = trace::client_span(call.method, &self.settings.address, self.settings.port, call.request_id);
        let mut attempts = 0;
        let send = |request| send(rpc.clone(), request);
        let outcome = Self::attempts(call, message, send, &span, &mut attempts).instrument(span.clone()).await;
        let code = outcome.as_ref().err().map_or(Code::Ok, CommitError::code);
        trace::record_outcome(&span, outbox_proto::trace::status_code(code), attempts);
        outcome
    }

    async fn attempts<M, A, F>(
        call: Call<'_>,
        message: M,
        send: impl Fn(Request<M>) -> F,
        span: &Span,
        attempts: &mut u32,
    ) -> Result<A, CommitError>
    where
        M: Clone,
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let until = Instant::now() + call.deadline;
        let (mut reached_before, mut before) = (false, None);
        loop {
            let (mut request, sent) = (Request::new(message.clone()), Sent::default());
            request.extensions_mut().insert(sent.clone());
            request.set_timeout(until.saturating_duration_since(Instant::now()));
            trace::inject(span, request.metadata_mut());
            *attempts += 1;
            let answer = timeout_at(until, send(request)).await;
            let unsent = sent.take_back();
            let status = match answer {
                Ok(Ok(answer)) => return Ok(answer.into_inner()),
                Ok(Err(status)) if !timed_out(&status) => status,
                // What earlier attempts failed with says more than that there was no time for another one.
                _ if unsent => before.unwrap_or_else(|| not_sent(call.deadline)),
                _ => Status::deadline_exceeded(format!("no answer within {:?}", call.deadline)),
            };
            let verdict = judge(&status);
            let failure = |status| Failure::new(call.request_id, *attempts, status);
            let (after, reached) = match verdict {
                // Not even the channel took it.
                Verdict::Unknown if unsent && !reached_before => return Err(CommitError::Unreachable(failure(status))),
                Verdict::Retry { after, reached } => (after, reached && !unsent),
                Verdict::Refused { settles } if settles || !reached_before => {
                    return Err(CommitError::Refused(failure(status)));
                }
                Verdict::Refused { .. } | Verdict::Unknown => return Err(CommitError::Unknown(failure(status))),
            };
            reached_before |= reached;
            let delay = after.unwrap_or_default() + BACKOFF.delay(*attempts);
            if Instant::now() + delay >= until {
                return Err(match reached_before {
                    true => CommitError::Unknown(failure(status)),
                    false if is_answer(&status) => CommitError::Refused(failure(status)),
                    false => CommitError::Unreachable(failure(status)),
                });
            }
            tracing::debug!(attempt = *attempts, delay = ?delay, error = %status.code(), "the call is tried again");
            before = Some(status);
            sleep(delay).await;
        }
    }
}

pub(super) fn not_sent(deadline: Duration) -> Status {
    Status::unavailable(format!("the request could not be sent within {deadline:?}"))
}

/// Whether a server said so that nothing was applied, and when to try again. What is made here has a cause, or is `not_sent`.
fn is_answer(status: &Status) -> bool {
    status.source().is_none() && status.code() != Code::Unavailable
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_refuses_and_a_connection_does_not() {
        let broken = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
        assert!(!is_answer(&Status::from_error(Box::new(broken))));
        assert!(!is_answer(&not_sent(Duration::from_secs(1))));
        assert!(is_answer(&Status::resource_exhausted("quota")) && is_answer(&Status::aborted("conflict")));
    }
}
