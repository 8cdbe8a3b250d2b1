//! Interactive transactions: a closure that reads, decides and writes, run again as a whole when the transaction is given
//! up for another one.
//!
//! Invariants: every attempt carries the same request id, which the server claims before the closure reads anything, so the
//! closure's effects happen once and a repeated call gets the first answer; and what a closure did is rolled back unless it
//! has returned `Ok`, however it ended. It deliberately retries nothing within an attempt: what was read may have changed.

use std::time::Duration;

use chrono::{DateTime, Utc};
use outbox_proto::v1;
use tokio::time::{Instant, sleep, timeout_at};
use tonic::{Code, Request, Status};
use tracing::{Instrument as _, Span};
use uuid::Uuid;

use super::{
    BACKOFF, Client, CommitError, Committed, Failure, call,
    commit::timestamp,
    open::{Begun, OpenTransaction},
    retry::{Verdict, judge, timed_out},
    sent::Sent,
};
use crate::trace;

/// What a transaction sees of others, as in Postgres.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Isolation {
    /// What was committed before each statement.
    #[default]
    ReadCommitted,
    /// What was committed before its first statement.
    RepeatableRead,
    /// The same, and as if it ran alone.
    Serializable,
}

/// An interactive transaction to be run. Made by [`Client::transact`].
#[derive(Clone, Debug)]
#[must_use = "a transaction does nothing until it is run"]
pub struct Transact {
    client: Client,
    begin: v1::Begin,
    deadline: Duration,
}

/// What a transaction came to.
#[derive(Clone, Debug)]
pub struct Transacted<T> {
    /// What the closure returned; `None` when an earlier call with this request id, or another one of its consumer, had
    /// committed already: then the closure's effects were not made anew, and what is to be known is in the answer.
    pub value: Option<T>,
    /// The answer, with the results of all operations in order.
    pub committed: Committed,
}

/// Why a transaction was not committed.
#[derive(Debug, thiserror::Error)]
pub enum TransactError<E> {
    /// The closure returned an error; the transaction is rolled back.
    #[error("the closure failed, and the transaction is rolled back")]
    Closure(#[source] E),
    /// The server refused it, was not reached, or did not tell the outcome.
    #[error(transparent)]
    Commit(CommitError),
}

/// How an attempt ended.
enum Ended<T, E> {
    Committed(Option<T>, v1::CommitResponse),
    Closure(E),
    Failed { status: Status, error: Option<E> },
}

/// How far an attempt has come.
#[derive(Clone, Copy)]
enum Phase {
    Beginning,
    Open,
    Committing,
}

impl Transact {
    pub(super) fn new(client: Client) -> Self {
        let begin = v1::Begin {
            namespace: client.settings.namespace.clone(),
            request_id: Uuid::now_v7().to_string(),
            ..v1::Begin::default()
        };
        Self { deadline: client.settings.deadline, client, begin }
    }

    /// The tenant. Unless set, the client's.
    pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
        self.begin.namespace = namespace.into();
        self
    }

    /// The caller's own name for this request, as in [`Commit::request_id`](super::Commit::request_id).
    pub fn request_id(mut self, request_id: impl Into<String>) -> Self {
        self.begin.request_id = request_id.into();
        self
    }

    /// What it sees of others. Unless set, what was committed before each statement.
    pub fn isolation(mut self, isolation: Isolation) -> Self {
        let isolation = match isolation {
            Isolation::ReadCommitted => v1::Isolation::ReadCommitted,
            Isolation::RepeatableRead => v1::Isolation::RepeatableRead,
            Isolation::Serializable => v1::Isolation::Serializable,
        };
        self.begin.isolation = isolation.into();
        self
    }

    /// The event that it is a consumer's answer to: it is marked as handled in the same transaction, and handled once.
    /// `time` is the event's own.
    pub fn consume(
        mut self,
        consumer: impl Into<String>,
        source: impl Into<String>,
        event_id: Uuid,
        time: DateTime<Utc>,
    ) -> Self {
        self.begin.consume = Some(v1::Consume {
            consumer: consumer.into(),
            source: source.into(),
            event_id: event_id.to_string(),
            event_time: Some(timestamp(time)),
        });
        self
    }

    /// What it may take over all attempts. Unless set, the client's.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Runs the closure in a transaction and commits what it did, if it returns `Ok`. The whole closure runs again, with the
    /// same request id and in a new transaction, when the server gives the transaction up for another one or a document has
    /// another version than was expected (`ABORTED`), is busy, or is lost: until the deadline. Keep effects that no
    /// rollback undoes out of it.
    ///
    /// The future can be spawned if the closure owns what it uses, as with `async move`; of one that borrows it the compiler
    /// does not see yet that it is `Send`.
    ///
    /// ```no_run
    /// # use outbox_sdk::{Client, Command, CommitError};
    /// # async fn example(client: Client, user: String) {
    /// let activation = tokio::spawn(client.transact().run(async move |tx| {
    ///     tx.run(Command::new("activate_user").param("user_id", &user)).await?;
    ///     Ok::<_, CommitError>(())
    /// }));
    /// # drop(activation);
    /// # }
    /// ```
    ///
    /// Cancellation: dropping the future rolls back, unless the commit was under way; running another with the same
    /// [`request_id`](Self::request_id) settles that.
    ///
    /// # Errors
    /// [`TransactError::Closure`] with the closure's own error, [`TransactError::Commit`] when the transaction could not be
    /// begun or committed.
    pub async fn run<T, E>(
        self,
        closure: impl AsyncFn(&mut OpenTransaction) -> Result<T, E>,
    ) -> Result<Transacted<T>, TransactError<E>> {
        let settings = &self.client.settings;
        let span = trace::client_span(call::TRANSACT, &settings.address, settings.port, &self.begin.request_id);
        let mut attempts = 0;
        let outcome = self.attempts(&closure, &span, &mut attempts).instrument(span.clone()).await;
        let code = match &outcome {
            Ok(_) => Code::Ok,
            Err(TransactError::Closure(_)) => Code::Cancelled,
            Err(TransactError::Commit(error)) => error.code(),
        };
        trace::record_outcome(&span, outbox_proto::trace::status_code(code), attempts);
        outcome
    }

    async fn attempts<T, E>(
        &self,
        closure: &impl AsyncFn(&mut OpenTransaction) -> Result<T, E>,
        span: &Span,
        attempts: &mut u32,
    ) -> Result<Transacted<T>, TransactError<E>> {
        let until = Instant::now() + self.deadline;
        // Whether an attempt may have committed whose answer was lost, and what the last one failed with.
        let (mut in_doubt, mut before) = (false, None);
        loop {
            *attempts += 1;
            let (mut phase, sent) = (Phase::Beginning, Sent::default());
            let attempt = self.attempt(closure, until, span, *attempts, sent.clone(), &mut phase);
            let ended = timeout_at(until, attempt).await;
            let unsent = sent.take_back();
            let (status, error) = match ended {
                Ok(Ended::Committed(value, answer)) => {
                    return Ok(Transacted { value, committed: Committed::new(answer) });
                }
                Ok(Ended::Closure(error)) => return Err(TransactError::Closure(error)),
                Ok(Ended::Failed { status, error }) if !timed_out(&status) => (status, error),
                // What earlier attempts failed with says more than that there was no time for another one.
                _ if unsent => (before.unwrap_or_else(|| call::not_sent(self.deadline)), None),
                _ => (late(self.deadline), None),
            };
            let verdict = judge(&status);
            in_doubt = phase.leaves_in_doubt(in_doubt, verdict);
            let unreachable = status.code() == Code::Unavailable || (unsent && matches!(verdict, Verdict::Unknown));
            let failed =
                |status| failed(Failure::new(&self.begin.request_id, *attempts, status), in_doubt, unreachable);
            let after = match verdict {
                Verdict::Retry { after, .. } => after.unwrap_or_default(),
                // Whatever it was decided on has changed: it is decided anew.
                _ if status.code() == Code::Aborted => Duration::ZERO,
                // The closure's own word on it, if it has one.
                _ => return Err(error.map_or_else(|| failed(status), TransactError::Closure)),
            };
            let delay = after + BACKOFF.delay(*attempts);
            if Instant::now() + delay >= until {
                return Err(error.map_or_else(|| failed(status), TransactError::Closure));
            }
            tracing::debug!(attempt = *attempts, ?delay, error = %status.code(), "the transaction is run again");
            before = Some(status);
            sleep(delay).await;
        }
    }

    async fn attempt<T, E>(
        &self,
        closure: &impl AsyncFn(&mut OpenTransaction) -> Result<T, E>,
        until: Instant,
        span: &Span,
        attempt: u32,
        sent: Sent,
        phase: &mut Phase,
    ) -> Ended<T, E> {
        let mut call = Request::new(());
        call.extensions_mut().insert(sent);
        call.set_timeout(until.saturating_duration_since(Instant::now()));
        trace::inject(span, call.metadata_mut());
        let begun = OpenTransaction::begin(self.client.rpc.clone(), self.begin.clone(), attempt, call);
        let mut transaction = match begun.await {
            Ok(Begun::Open(transaction)) => transaction,
            Ok(Begun::Answered(answer)) => return Ended::Committed(None, answer),
            Err(status) => return Ended::Failed { status, error: None },
        };
        *phase = Phase::Open;
        let done = closure(&mut transaction).await;
        match (transaction.failure(), done) {
            (Some(status), done) => Ended::Failed { status, error: done.err() },
            (None, Err(error)) => {
                transaction.roll_back().await;
                Ended::Closure(error)
            }
            (None, Ok(value)) => {
                *phase = Phase::Committing;
                match transaction.commit().await {
                    Ok(answer) => Ended::Committed(Some(value), answer),
                    Err(status) => Ended::Failed { status, error: None },
                }
            }
        }
    }
}

impl Phase {
    /// Whether some attempt may have committed, after one that came so far. `before` is whether an earlier one may have.
    fn leaves_in_doubt(self, before: bool, verdict: Verdict) -> bool {
        match self {
            // The server looks the request id up before it begins: some refusals tell that it found nothing.
            Self::Beginning => before && !matches!(verdict, Verdict::Refused { settles: true }),
            Self::Open => false,
            Self::Committing => matches!(verdict, Verdict::Unknown | Verdict::Retry { reached: true, .. }),
        }
    }
}

fn late(deadline: Duration) -> Status {
    Status::deadline_exceeded(format!("not committed within {deadline:?}"))
}

fn failed<E>(failure: Failure, in_doubt: bool, unreachable: bool) -> TransactError<E> {
    TransactError::Commit(match (in_doubt, unreachable) {
        (true, _) => CommitError::Unknown(failure),
        (false, true) => CommitError::Unreachable(failure),
        (false, false) => CommitError::Refused(failure),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_answer_leaves_in_doubt_until_the_request_id_was_looked_up() {
        let lost = Verdict::Retry { after: None, reached: true };
        let busy = Verdict::Retry { after: None, reached: false };
        let settled = Verdict::Refused { settles: true };
        let in_doubt = Phase::Committing.leaves_in_doubt(false, lost);
        assert!(in_doubt && Phase::Committing.leaves_in_doubt(false, Verdict::Unknown));
        for verdict in [lost, busy, Verdict::Unknown, Verdict::Refused { settles: false }] {
            assert!(Phase::Beginning.leaves_in_doubt(in_doubt, verdict), "{verdict:?} has settled nothing");
            assert!(!Phase::Beginning.leaves_in_doubt(false, verdict), "nothing was committed yet");
            assert!(!Phase::Open.leaves_in_doubt(in_doubt, verdict), "it is open: it had not been committed");
        }
        assert!(!Phase::Beginning.leaves_in_doubt(in_doubt, settled));
        assert!(!Phase::Committing.leaves_in_doubt(false, busy), "it lost a conflict");
        assert!(!Phase::Committing.leaves_in_doubt(false, settled));
    }
}
