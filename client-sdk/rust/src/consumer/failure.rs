//! What a failed attempt means.
//!
//! Invariant: only failures that the event or its handler may have caused count against `max_attempts`; a database
//! that is away, out of room or busy does not make an event poisonous. It deliberately does not wait or retry: the
//! worker does what the verdict says.

use std::{error::Error, time::Duration};

use super::HandlerError;
use crate::{claim::work::Unfinished, inbox::InboxError};

/// Why handling an event failed once. Its transaction is rolled back, or, where `Commit` lost the answer, settled by
/// the next attempt.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AttemptError {
    #[error("the inbox failed")]
    Inbox(#[source] InboxError),
    #[error("the handler failed: {0}")]
    Handler(HandlerError),
    #[error("the handler panicked: {0}")]
    Panic(String),
    #[error("the transaction was not committed")]
    Commit(#[source] sqlx::Error),
    #[error("another event was handled under the same source and id: its producer gave the id out twice")]
    Conflict,
    #[error("the event is older than the window: it is not known any more whether it was handled")]
    TooOld,
    #[error("another instance is handling the event, for another {0:?} at most")]
    Held(Duration),
    #[error("the lease on the event was lost while it was handled: it may be handled twice")]
    Late,
}

/// What is to be done with the event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It will pass without the event or the handler being changed: try again, and do not count.
    Wait(Option<Duration>),
    /// Try again, as often as is allowed.
    Retry(Option<Duration>),
    /// No attempt will help.
    DeadLetter,
    /// Nothing can be handled.
    Fatal,
}

impl Verdict {
    /// How long to wait before the next attempt, if that is known.
    pub(crate) fn wait(self) -> Option<Duration> {
        match self {
            Self::Wait(after) | Self::Retry(after) => after,
            Self::DeadLetter | Self::Fatal => None,
        }
    }
}

impl AttemptError {
    /// Why effects under a lease came to nothing.
    pub(super) fn of_work(unfinished: Unfinished<HandlerError>) -> Self {
        match unfinished {
            Unfinished::Failed(error) => Self::Handler(error),
            Unfinished::Late => Self::Late,
            Unfinished::Store(error) => Self::Inbox(error),
        }
    }

    pub(crate) fn verdict(&self) -> Verdict {
        let pass = || causes(self).any(|e| e.downcast_ref().is_some_and(passes));
        match self {
            Self::Inbox(error) if error.stays() => Verdict::Fatal,
            Self::Inbox(_) => Verdict::Wait(None),
            Self::Held(left) => Verdict::Wait(Some(*left)),
            Self::Late | Self::Panic(_) => Verdict::Retry(None),
            Self::Conflict | Self::TooOld | Self::Handler(HandlerError::DeadLetter { .. }) => Verdict::DeadLetter,
            Self::Handler(HandlerError::Fatal { .. }) => Verdict::Fatal,
            Self::Handler(HandlerError::Retry { after, source }) => {
                let passes = chain(&**source).any(|e| e.downcast_ref().is_some_and(passes));
                if passes { Verdict::Wait(*after) } else { Verdict::Retry(*after) }
            }
            Self::Commit(_) => {
                if pass() {
                    Verdict::Wait(None)
                } else {
                    Verdict::Retry(None)
                }
            }
        }
    }

    /// Its class, for a span's `error.type`.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Inbox(_) => "inbox",
            Self::Handler(_) => "handler",
            Self::Panic(_) => "panic",
            Self::Commit(_) => "commit",
            Self::Conflict => "conflict",
            Self::TooOld => "too_old",
            Self::Held(_) => "held",
            Self::Late => "late",
        }
    }

    /// It and its causes, in one line.
    pub(crate) fn chain(&self) -> String {
        let said: Vec<String> = causes(self).map(ToString::to_string).collect();
        said.join(": ")
    }
}

fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    chain(error)
}

fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |e: &&'a (dyn Error + 'static)| (*e).source())
}

/// Source of the codes: PostgreSQL documentation, appendix A; SQLite, "Result and Error Codes" (5 BUSY, 6 LOCKED).
fn passes(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::BeginFailed
        | sqlx::Error::WorkerCrashed => true,
        // Connection lost, out of resources, shutting down, serialisation failure, deadlock, read-only (failover).
        sqlx::Error::Database(error) => error.code().is_some_and(|code| {
            ["08", "53", "57P"].iter().any(|class| code.starts_with(class))
                || ["40001", "40P01", "25006", "5", "6", "261", "517"].contains(&&*code)
        }),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_that_is_away_passes_and_a_broken_handler_does_not() {
        let io = || sqlx::Error::Io(std::io::ErrorKind::ConnectionReset.into());
        let handler = |error: HandlerError| AttemptError::Handler(error).verdict();
        assert_eq!(handler(io().into()), Verdict::Wait(None));
        assert_eq!(AttemptError::Commit(io()).verdict(), Verdict::Wait(None));
        assert_eq!(AttemptError::Inbox(InboxError::Database(io())).verdict(), Verdict::Wait(None));
        assert_eq!(handler(HandlerError::new("no such user")), Verdict::Retry(None));
        assert_eq!(handler(sqlx::Error::RowNotFound.into()), Verdict::Retry(None));
        assert_eq!(AttemptError::Panic("index out of bounds".into()).verdict(), Verdict::Retry(None));
    }

    #[test]
    fn what_a_handler_asks_for_is_done() {
        let second = Duration::from_secs(1);
        let handler = |error: HandlerError| AttemptError::Handler(error).verdict();
        assert_eq!(handler(HandlerError::retry_after(second, "busy")), Verdict::Retry(Some(second)));
        assert_eq!(handler(HandlerError::dead_letter("no such user")), Verdict::DeadLetter);
        assert_eq!(handler(HandlerError::fatal("no such table")), Verdict::Fatal);
    }
}
