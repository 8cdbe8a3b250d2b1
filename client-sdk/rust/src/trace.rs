//! Trace context across processes, and the SDK's two spans.
//!
//! Names and attributes follow OpenTelemetry's semantic conventions: "RPC spans" with "gRPC", where one CLIENT span
//! covers a logical call with all its retries, and "Messaging spans" with "Kafka", where a CONSUMER span named
//! `process {topic}` is a child of the event's creation context. They go through `tracing`, so a
//! `tracing-opentelemetry` layer is all an application needs.
//!
//! Invariant: context is carried even when no global propagator is set; then W3C Trace Context is used.
//! It deliberately records neither payloads nor keys.

use opentelemetry::{
    Context, global,
    propagation::{Extractor, Injector},
    trace::TraceContextExt as _,
};
use outbox_proto::{
    record::{TRACEPARENT, TRACESTATE},
    trace,
};
use tonic::metadata::{MetadataKey, MetadataMap, MetadataValue};
use tracing::{Level, Span, field::Empty, level_filters::LevelFilter};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use crate::consumer::Event;

/// The CLIENT span of one logical call. `method` is the full name, `package.Service/Method`.
pub(crate) fn client_span(method: &'static str, address: &str, port: u16, request_id: &str) -> Span {
    tracing::info_span!(
        "rpc",
        otel.name = method,
        otel.kind = "client",
        otel.status_code = Empty,
        rpc.system.name = "grpc",
        rpc.method = method,
        rpc.response.status_code = Empty,
        error.type = Empty,
        server.address = address,
        server.port = port,
        outbox.request_id = request_id,
        outbox.attempts = Empty,
    )
}

/// Writes a call's outcome to its span. `code` is the gRPC code's name, such as `OK`.
pub(crate) fn record_outcome(span: &Span, code: &'static str, attempts: u32) {
    span.record("rpc.response.status_code", code);
    span.record("outbox.attempts", attempts);
    if code != "OK" {
        span.record("error.type", code);
        span.record("otel.status_code", "error");
    }
}

/// The CONSUMER span of handling events once. Of one event it is a child of its creation; of a batch it has a link to
/// the creation of each.
pub(crate) fn process_span(events: &[&Event], consumer: &str, group: &str) -> Span {
    // Else what it would say is put together before it is found that nobody listens.
    if LevelFilter::current() < Level::INFO {
        return Span::none();
    }
    match events {
        [event] => single_span(event, consumer, group),
        _ => batch_span(events, consumer, group),
    }
}

fn batch_span(events: &[&Event], consumer: &str, group: &str) -> Span {
    let first = events.first();
    let topic = first.map_or("", |event| event.topic());
    let span = tracing::info_span!(
        "process",
        otel.name = %format_args!("process {topic}"),
        otel.kind = "consumer",
        otel.status_code = Empty,
        error.type = Empty,
        messaging.system = "kafka",
        messaging.operation.type = "process",
        messaging.operation.name = "process",
        messaging.destination.name = topic,
        messaging.destination.partition.id = first.map(|event| tracing::field::display(event.partition())),
        messaging.batch.message_count = events.len(),
        messaging.consumer.group.name = group,
        outbox.consumer = consumer,
        outbox.duplicate = Empty,
    );
    if !span.is_disabled() {
        for context in events.iter().filter_map(|event| creation_context(event)) {
            span.add_link(context.span().span_context().clone());
        }
    }
    span
}

fn single_span(event: &Event, consumer: &str, group: &str) -> Span {
    let span = tracing::info_span!(
        "process",
        otel.name = %format_args!("process {}", event.topic()),
        otel.kind = "consumer",
        otel.status_code = Empty,
        error.type = Empty,
        messaging.system = "kafka",
        messaging.operation.type = "process",
        messaging.operation.name = "process",
        messaging.destination.name = event.topic(),
        messaging.destination.partition.id = %event.partition(),
        messaging.kafka.offset = event.offset(),
        messaging.kafka.message.tombstone = event.payload().is_none().then_some(true),
        messaging.consumer.group.name = group,
        messaging.message.id = %event.id(),
        outbox.consumer = consumer,
        outbox.event.type = event.event_type(),
        outbox.duplicate = Empty,
    );
    if !span.is_disabled()
        && let Some(parent) = creation_context(event)
    {
        // The only error is that no OpenTelemetry layer is there: then there is no trace to join.
        let _ = span.set_parent(parent);
    }
    span
}

/// Puts the span's context into a request's metadata.
pub(crate) fn inject(span: &Span, metadata: &mut MetadataMap) {
    let mut context = span.context();
    if !context.span().span_context().is_valid() {
        // No tracing layer: an application that uses the OpenTelemetry API directly has its context here.
        context = Context::current();
    }
    global::get_text_map_propagator(|propagator| propagator.inject_context(&context, &mut Metadata(metadata)));
    if !metadata.contains_key(TRACEPARENT) {
        inject_w3c(&context, &mut Metadata(metadata));
    }
}

fn inject_w3c(context: &Context, into: &mut impl Injector) {
    let Some((parent, state)) = trace::write(context.span().span_context()) else { return };
    into.set(TRACEPARENT, parent);
    if let Some(state) = state {
        into.set(TRACESTATE, state);
    }
}

/// The context in which the event was created, as its record carries it.
fn creation_context(event: &Event) -> Option<Context> {
    let headers = Headers { traceparent: event.traceparent(), tracestate: event.tracestate() };
    let context = global::get_text_map_propagator(|propagator| propagator.extract(&headers));
    if context.span().span_context().is_valid() {
        return Some(context);
    }
    let span = trace::read(headers.traceparent?, headers.tracestate)?;
    Some(Context::new().with_remote_span_context(span))
}

struct Metadata<'a>(&'a mut MetadataMap);

impl Injector for Metadata<'_> {
    /// A name or value that gRPC metadata cannot carry is left out: a trace is never worth a failed call.
    fn set(&mut self, key: &str, value: String) {
        if let (Ok(key), Ok(value)) = (MetadataKey::from_bytes(key.as_bytes()), MetadataValue::try_from(value)) {
            self.0.insert(key, value);
        }
    }
}

struct Headers<'a> {
    traceparent: Option<&'a str>,
    tracestate: Option<&'a str>,
}

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        match key {
            TRACEPARENT => self.traceparent,
            TRACESTATE => self.tracestate,
            _ => None,
        }
    }

    fn keys(&self) -> Vec<&str> {
        vec![TRACEPARENT, TRACESTATE]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_context_survives_the_way_without_a_global_propagator() {
        let span = trace::read(PARENT, Some("a=b,c=d")).expect("a valid header");
        let context = Context::new().with_remote_span_context(span);
        let mut metadata = MetadataMap::new();
        inject_w3c(&context, &mut Metadata(&mut metadata));
        let text = |name: &str| metadata.get(name).and_then(|v| v.to_str().ok());
        assert_eq!((text(TRACEPARENT), text(TRACESTATE)), (Some(PARENT), Some("a=b,c=d")));
    }
}
