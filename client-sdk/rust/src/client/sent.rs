//! Whether a message has been given to a connection.
//!
//! Invariant: while [`Sent`] is unset no server can have any of the message, so the call was not made. The converse does
//! not hold: what was given to a connection may have been lost with it.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use http_body_util::BodyExt as _;
use tonic::{body::Body, transport::Channel};
use tower::{ServiceExt as _, util::MapRequest};

/// A channel that sets the [`Sent`] among a request's extensions.
pub(crate) type Connection = MapRequest<Channel, fn(http::Request<Body>) -> http::Request<Body>>;

/// One request's flag; clones are the same flag.
#[derive(Clone, Debug, Default)]
pub(super) struct Sent(Arc<AtomicBool>);

impl Sent {
    /// Whether the message may have left this process.
    pub(super) fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// A channel that tells when a message is given to its connection.
pub(super) fn telling(channel: Channel) -> Connection {
    channel.map_request(|request| {
        let Some(sent) = request.extensions().get::<Sent>().cloned() else { return request };
        // A connection takes the body in frames, and only once it stands.
        request.map(|body| {
            Body::new(body.map_frame(move |frame| {
                sent.0.store(true, Ordering::Release);
                frame
            }))
        })
    })
}
