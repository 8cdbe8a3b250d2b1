//! Whether a message has been given to a connection.
//!
//! Invariant: a message that was [taken back](Sent::take_back) is given to no connection any more, so no server can have it
//! and the call was not made. The converse does not hold: what was given to a connection may have been lost with it.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering::SeqCst},
    },
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tonic::{Status, body::Body, transport::Channel};
use tower::{ServiceExt as _, util::MapRequest};

/// A channel that heeds the [`Sent`] among a request's extensions.
pub(crate) type Connection = MapRequest<Channel, fn(http::Request<Body>) -> http::Request<Body>>;

const WAITING: u8 = 0;
const GIVEN: u8 = 1;
const TAKEN_BACK: u8 = 2;

/// Where one request's message is; clones tell of the same one.
#[derive(Clone, Debug, Default)]
pub(super) struct Sent(Arc<AtomicU8>);

impl Sent {
    /// Takes the message back; false when it may have left this process.
    pub(super) fn take_back(&self) -> bool {
        self.becomes(TAKEN_BACK)
    }

    /// Whether it is in this state, or was waiting until now.
    fn becomes(&self, state: u8) -> bool {
        match self.0.compare_exchange(WAITING, state, SeqCst, SeqCst) {
            Ok(_) => true,
            Err(other) => other == state,
        }
    }
}

/// A channel that gives no connection a message that was taken back.
pub(super) fn heeding(channel: Channel) -> Connection {
    channel.map_request(|request| {
        let Some(sent) = request.extensions().get::<Sent>().cloned() else { return request };
        request.map(|message| Body::new(Message { message, sent }))
    })
}

/// A message that a connection takes in frames, and only once it stands.
struct Message {
    message: Body,
    sent: Sent,
}

impl http_body::Body for Message {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let frame = ready!(Pin::new(&mut self.message).poll_frame(context));
        if !self.sent.becomes(GIVEN) {
            return Poll::Ready(Some(Err(Status::cancelled("the call has been given up"))));
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.message.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.message.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    fn message() -> (Message, Sent) {
        let sent = Sent::default();
        (
            Message {
                message: Body::new(http_body_util::Full::new(Bytes::from_static(b"commit"))),
                sent: sent.clone(),
            },
            sent,
        )
    }

    #[tokio::test]
    async fn what_was_taken_back_is_not_given_and_what_was_given_is_not_taken_back() {
        let (mut message, sent) = message();
        let frame = message.frame().await.expect("there is a frame").expect("it may be sent");
        assert_eq!(frame.into_data().expect("it is data"), "commit");
        assert!(!sent.take_back() && !sent.take_back());

        let (mut message, sent) = self::message();
        assert!(sent.take_back() && sent.take_back());
        message.frame().await.expect("there is an answer").expect_err("it is not sent");
    }
}
