//! What a failed attempt means.
//!
//! Invariant: only failures that the event or its handler may have caused count against `max_attempts`; a database
//! that is away, out of room or busy does not make an event poisonous. It deliberately does not decide on retries.

use std::error::Error;

use crate::inbox::InboxError;

/// Why handling an event failed once. Its transaction is rolled back, or, where `Commit` lost the answer, settled by
/// the next attempt.
#[derive(Debug, thiserror::Error)]
pub(super) enum AttemptError {
    #[error("the inbox failed")]
    Inbox(#[source] InboxError),
    #[error("the handler failed")]
    Handler(#[source] Box<dyn Error + Send + Sync>),
    #[error("the handler panicked: {0}")]
    Panic(String),
    #[error("the transaction was not committed")]
    Commit(#[source] sqlx::Error),
}

impl AttemptError {
    /// Whether it will pass without the event or the handler being changed.
    pub(super) fn will_pass(&self) -> bool {
        match self {
            Self::Inbox(_) => true,
            Self::Panic(_) => false,
            Self::Handler(_) | Self::Commit(_) => causes(self).any(|e| e.downcast_ref().is_some_and(passes)),
        }
    }

    /// Its class, for a span's `error.type`.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Inbox(_) => "inbox",
            Self::Handler(_) => "handler",
            Self::Panic(_) => "panic",
            Self::Commit(_) => "commit",
        }
    }

    /// It and its causes, in one line.
    pub(super) fn chain(&self) -> String {
        let said: Vec<String> = causes(self).map(ToString::to_string).collect();
        said.join(": ")
    }
}

fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |e: &&'a (dyn Error + 'static)| (*e).source())
}

/// Source of the codes: PostgreSQL documentation, appendix A.
fn passes(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => true,
        // Connection lost, out of resources, shutting down, serialisation failure, deadlock, read-only (failover).
        sqlx::Error::Database(error) => error.code().is_some_and(|code| {
            ["08", "53", "57P"].iter().any(|class| code.starts_with(class))
                || ["40001", "40P01", "25006"].contains(&&*code)
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
        assert!(AttemptError::Handler(Box::new(io())).will_pass());
        assert!(AttemptError::Commit(io()).will_pass());
        assert!(AttemptError::Inbox(InboxError::Database(io())).will_pass());
        assert!(!AttemptError::Handler("no such user".into()).will_pass());
        assert!(!AttemptError::Handler(Box::new(sqlx::Error::RowNotFound)).will_pass());
        assert!(!AttemptError::Panic("index out of bounds".into()).will_pass());
    }
}
