//! The loop of attempts behind every call.
//!
//! Invariants: every attempt sends the same message, its `grpc-timeout` is what remains of the deadline, and the call
//! ends by its deadline; its outcome is in doubt only if some attempt's message was sent. It deliberately holds no opinion
//! on single failures: `retry` judges them.

use std::time::Duration;

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
                _ if unsent => before.unwrap_or_else(|| no_connection(call.deadline)),
                _ => Status::deadline_exceeded(format!("no answer within {:?}", call.deadline)),
            };
            let verdict = judge(&status);
            let failure = |status| Failure::new(call.request_id, *attempts, status);
            let (after, reached) = match verdict {
                Verdict::Retry { after, reached } => (after, reached && !unsent),
                Verdict::Refused { settles } if settles || !reached_before => {
                    return Err(CommitError::Refused(failure(status)));
                }
                Verdict::Refused { .. } | Verdict::Unknown => return Err(CommitError::Unknown(failure(status))),
            };
            reached_before |= reached;
            let delay = after.unwrap_or_default() + BACKOFF.delay(*attempts);
            if Instant::now() + delay >= until {
                return Err(match status.code() {
                    _ if reached_before => CommitError::Unknown(failure(status)),
                    Code::Unavailable => CommitError::Unreachable(failure(status)),
                    _ => CommitError::Refused(failure(status)),
                });
            }
            tracing::debug!(attempt = *attempts, delay = ?delay, error = %status.code(), "the call is tried again");
            before = Some(status);
            sleep(delay).await;
        }
    }
}

fn no_connection(deadline: Duration) -> Status {
    Status::unavailable(format!("no connection within {deadline:?}"))
}
