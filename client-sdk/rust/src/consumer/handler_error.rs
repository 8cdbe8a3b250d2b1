//! What a handler says when it cannot handle an event.

use std::{error::Error, fmt, time::Duration};

use super::PayloadError;

/// Why an event could not be handled this time, and what is to be done about it. Every error converts into it with
/// `?`: the event is then tried again, but for a [`PayloadError`], which no further attempt can mend.
///
/// ```
/// use std::time::Duration;
/// use outbox_sdk::HandlerError;
///
/// let busy = HandlerError::retry_after(Duration::from_secs(30), "the mail server asks to wait");
/// let wrong = HandlerError::dead_letter("no such user");
/// let broken = HandlerError::fatal("the table `mails` is missing");
/// # let _ = (busy, wrong, broken);
/// ```
#[non_exhaustive]
pub enum HandlerError {
    /// Try again: after the consumer's backoff, and this time besides. What comes behind it with the same key waits.
    Retry {
        /// The time to wait, if the handler knows it.
        after: Option<Duration>,
        /// What failed.
        source: Box<dyn Error + Send + Sync>,
    },
    /// Do not try again: put the event into the dead-letter topic. Without one the consumer stops.
    DeadLetter {
        /// Why; it travels with the record.
        reason: Box<dyn Error + Send + Sync>,
    },
    /// Stop the consumer: nothing that it consumes can be handled. The event stays where it is.
    Fatal {
        /// What failed.
        source: Box<dyn Error + Send + Sync>,
    },
}

impl HandlerError {
    /// A failure that may pass, with a message; tried again after the consumer's backoff.
    pub fn new(message: impl Into<String>) -> Self {
        Self::Retry { after: None, source: message.into().into() }
    }

    /// A failure that may pass by then: tried again no sooner. A batch is tried again as one, once, before its events are
    /// handled singly.
    pub fn retry_after(after: Duration, message: impl Into<String>) -> Self {
        Self::Retry { after: Some(after), source: message.into().into() }
    }

    /// The event cannot be handled, now or later.
    pub fn dead_letter(reason: impl Into<String>) -> Self {
        Self::DeadLetter { reason: reason.into().into() }
    }

    /// Nothing can be handled.
    pub fn fatal(message: impl Into<String>) -> Self {
        Self::Fatal { source: message.into().into() }
    }

    /// As an error like any other, for a tower service: [`service`](super::service) finds it again behind layers that pass
    /// errors on as they are. One that a layer wraps in an error of its own is tried again.
    pub fn boxed(self) -> Box<dyn Error + Send + Sync> {
        Box::new(Passing(self))
    }

    /// What a service's error says of an event.
    pub(super) fn of_service(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        match error.into().downcast::<Passing>() {
            Ok(passing) => passing.0,
            Err(source) => Self::failed(source),
        }
    }

    /// What an error says that comes without a verdict.
    fn failed(source: Box<dyn Error + Send + Sync>) -> Self {
        if source.is::<PayloadError>() {
            Self::DeadLetter { reason: source }
        } else {
            Self::Retry { after: None, source }
        }
    }

    fn said(&self) -> &(dyn Error + Send + Sync) {
        match self {
            Self::Retry { source, .. } | Self::Fatal { source } => &**source,
            Self::DeadLetter { reason } => &**reason,
        }
    }
}

// `HandlerError` deliberately is no `Error` itself: this conversion would then overlap with that of a type to itself.
impl<E: Error + Send + Sync + 'static> From<E> for HandlerError {
    fn from(error: E) -> Self {
        Self::failed(Box::new(error))
    }
}

impl fmt::Debug for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self {
            Self::Retry { .. } => "Retry",
            Self::DeadLetter { .. } => "DeadLetter",
            Self::Fatal { .. } => "Fatal",
        };
        write!(f, "{kind}({:?})", self.said())
    }
}

impl fmt::Display for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self.said(), f)
    }
}

/// One on its way through what takes errors only.
#[derive(Debug)]
struct Passing(HandlerError);

impl fmt::Display for Passing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Error for Passing {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.said().source()
    }
}
