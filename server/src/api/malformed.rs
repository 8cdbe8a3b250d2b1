//! Answers requests that could not be decoded: the transport calls them INTERNAL or OUT_OF_RANGE and gives no
//! reason, though it is the caller who can mend them.

use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use http::Response;
use tonic::{Code, Status};
use tower::{Layer, Service};

use super::status;

/// What prost's decoding errors begin with; the field's path follows.
const NOT_PROTOBUF: &str = "failed to decode Protobuf message";
/// What tonic says of a message beyond the limit.
const TOO_LARGE: &str = "decoded message length too large";

/// Gives undecodable requests a typed error.
#[derive(Clone, Copy)]
pub(super) struct MalformedLayer;

impl<S> Layer<S> for MalformedLayer {
    type Service = Malformed<S>;

    fn layer(&self, inner: S) -> Malformed<S> {
        Malformed(inner)
    }
}

#[derive(Clone)]
pub(super) struct Malformed<S>(S);

impl<S, Q, R> Service<Q> for Malformed<S>
where
    S: Service<Q, Response = Response<R>>,
    S::Future: Send + 'static,
    R: Default,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response<R>, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Q) -> Self::Future {
        let response = self.0.call(request);
        Box::pin(async move {
            let response = response.await?;
            Ok(match Status::from_header_map(response.headers()).and_then(|status| typed(&status)) {
                Some(status) => status.into_http(),
                None => response,
            })
        })
    }
}

fn typed(given: &Status) -> Option<Status> {
    let message = given.message();
    match given.code() {
        Code::Internal if message.starts_with(NOT_PROTOBUF) => Some(status::malformed(message.to_owned())),
        Code::OutOfRange if message.contains(TOO_LARGE) => Some(status::too_large(message.to_owned())),
        _ => None,
    }
}
