//! Continues the caller's trace: a server span per call, and the context that its events carry on.
//!
//! Names and attributes follow OpenTelemetry's semantic conventions for RPC. When no tracer is set up the caller's
//! own context is passed on to the events as it came, so that this hop is missing but the trace is whole.

use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use http::{HeaderMap, Request, Response};
use opentelemetry::{propagation::TextMapPropagator as _, trace::TraceContextExt as _};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use outbox_proto::{
    record::{TRACEPARENT, TRACESTATE},
    trace,
};
use tower::{Layer, Service};
use tracing::{Instrument as _, Span, field::Empty};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use crate::model::event::TraceContext;

/// Puts every call into a span.
#[derive(Clone, Copy)]
pub(super) struct TraceLayer;

impl<S> Layer<S> for TraceLayer {
    type Service = Trace<S>;

    fn layer(&self, inner: S) -> Trace<S> {
        Trace(inner)
    }
}

#[derive(Clone)]
pub(super) struct Trace<S>(S);

impl<S, B, R> Service<Request<B>> for Trace<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Future: Send + 'static,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response<R>, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let span = span(request.uri().path(), request.headers());
        if let Some(context) = creation_context(&span, request.headers()) {
            request.extensions_mut().insert(context);
        }
        let response = self.0.call(request);
        let record = span.clone();
        Box::pin(
            async move {
                let response = response.await?;
                // Absent: the status stands in the trailers, and only success gets that far.
                let status = response.headers().get("grpc-status").and_then(|status| status.to_str().ok());
                let status = tonic::Code::from_bytes(status.unwrap_or("0").as_bytes());
                record.record("rpc.response.status_code", trace::status_code(status));
                if is_fault(status) {
                    record.record("error.type", trace::status_code(status));
                    record.record("otel.status_code", "ERROR");
                }
                Ok(response)
            }
            .instrument(span),
        )
    }
}

/// Whether a status is the server's fault, by the RPC conventions for server spans.
fn is_fault(code: tonic::Code) -> bool {
    use tonic::Code;
    matches!(
        code,
        Code::Unknown
            | Code::DeadlineExceeded
            | Code::Unimplemented
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss
    )
}

fn span(path: &str, headers: &HeaderMap) -> Span {
    let method = path.trim_start_matches('/');
    let span = tracing::info_span!(
        "rpc",
        otel.name = method,
        otel.kind = "server",
        otel.status_code = Empty,
        rpc.system.name = "grpc",
        rpc.method = method,
        rpc.response.status_code = Empty,
        error.type = Empty,
    );
    let parent = TraceContextPropagator::new().extract(&Headers(headers));
    if parent.span().span_context().is_valid() {
        // Without a tracer there is nothing to set it on, which is no fault.
        let _ = span.set_parent(parent);
    }
    span
}

/// The context for the events of a call: that of the server's span, or else the caller's own.
fn creation_context(span: &Span, headers: &HeaderMap) -> Option<TraceContext> {
    if let Some((parent, state)) = trace::write(span.context().span().span_context()) {
        return Some(TraceContext { parent, state });
    }
    let given = TraceContextPropagator::new().extract(&Headers(headers));
    if !given.span().span_context().is_valid() {
        return None;
    }
    let header = |name| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    Some(TraceContext { parent: header(TRACEPARENT)?, state: header(TRACESTATE) })
}

struct Headers<'a>(&'a HeaderMap);

impl opentelemetry::propagation::Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}
