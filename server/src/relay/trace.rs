//! One producer span per sampled event, from when it is enqueued until Kafka acknowledges it.
//!
//! Its parent is the event's creation context; the record's `traceparent` stays that context, as it was stored. Made
//! with the OpenTelemetry API itself: an event that is not sampled costs a look at one byte. Names and attributes:
//! OpenTelemetry semantic conventions, "Messaging spans" and "Kafka".

use std::collections::HashMap;

use opentelemetry::{
    Context, KeyValue,
    global::{self, BoxedSpan, BoxedTracer},
    trace::{
        Span as _, SpanContext, SpanId, SpanKind, Status, TraceContextExt as _, TraceFlags, TraceId, TraceState,
        Tracer as _,
    },
};

use super::publisher::Place;
use crate::store::relay::row::Event;

/// The spans of events under way, by token.
pub(super) struct Spans {
    tracer: BoxedTracer,
    open: HashMap<usize, BoxedSpan>,
}

impl Spans {
    pub(super) fn new() -> Self {
        Self { tracer: global::tracer("outboxd.relay"), open: HashMap::new() }
    }

    /// The event is enqueued. Again after a reset: then its span goes on.
    pub(super) fn enqueued(&mut self, token: usize, event: &Event<'_>) {
        let Some(parent) = event.traceparent.filter(|p| is_sampled(p)) else { return };
        if self.open.contains_key(&token) {
            return;
        }
        let Some(parent) = span_context(parent, event.tracestate) else { return };
        let mut attributes = vec![
            KeyValue::new("messaging.system", "kafka"),
            KeyValue::new("messaging.operation.type", "send"),
            KeyValue::new("messaging.operation.name", "send"),
            KeyValue::new("messaging.destination.name", event.topic.to_owned()),
            KeyValue::new("messaging.message.id", event.id.to_string()),
        ];
        if let Some(key) = event.key.and_then(|k| std::str::from_utf8(k).ok()) {
            attributes.push(KeyValue::new("messaging.kafka.message.key", key.to_owned()));
        }
        let span = self
            .tracer
            .span_builder(format!("send {}", event.topic))
            .with_kind(SpanKind::Producer)
            .with_attributes(attributes)
            .start_with_context(&self.tracer, &Context::new().with_remote_span_context(parent));
        self.open.insert(token, span);
    }

    /// Kafka has it.
    pub(super) fn acknowledged(&mut self, token: usize, place: Place) {
        if self.open.is_empty() {
            return;
        }
        if let Some(mut span) = self.open.remove(&token) {
            span.set_attribute(KeyValue::new("messaging.destination.partition.id", place.partition.to_string()));
            span.set_attribute(KeyValue::new("messaging.kafka.offset", place.offset));
            span.end();
        }
    }

    /// Its lane is stopped before it.
    pub(super) fn failed(&mut self, token: usize, reason: &str) {
        if let Some(mut span) = self.open.remove(&token) {
            span.set_status(Status::error(reason.to_owned()));
            span.end();
        }
    }

    /// Events before this token are settled, or were given up with their lane.
    pub(super) fn forget_before(&mut self, token: usize) {
        if !self.open.is_empty() {
            self.open.retain(|open, _| *open >= token);
        }
    }
}

/// Whether the last byte of a `traceparent` says so.
fn is_sampled(traceparent: &str) -> bool {
    let flags = traceparent.get(53..55).and_then(|f| u8::from_str_radix(f, 16).ok());
    flags.is_some_and(|f| f & 1 == 1)
}

/// W3C "Trace Context" 1, section 3.2.
fn span_context(traceparent: &str, tracestate: Option<&str>) -> Option<SpanContext> {
    let mut parts = traceparent.split('-').skip(1);
    let trace_id = TraceId::from_hex(parts.next()?).ok()?;
    let span_id = SpanId::from_hex(parts.next()?).ok()?;
    let state = tracestate.and_then(|s| s.parse::<TraceState>().ok()).unwrap_or_default();
    let context = SpanContext::new(trace_id, span_id, TraceFlags::SAMPLED, true, state);
    context.is_valid().then_some(context)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sampled_events_are_traced() {
        let id = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331";
        assert!(is_sampled(&format!("{id}-01")) && is_sampled(&format!("{id}-03")));
        for text in [format!("{id}-00"), format!("{id}-zz"), id.to_owned(), String::new()] {
            assert!(!is_sampled(&text), "{text}");
        }
        let context = span_context(&format!("{id}-01"), Some("a=b")).expect("it is one");
        assert_eq!(context.span_id().to_string(), "b7ad6b7169203331");
        assert!(span_context("00-xyz-abc-01", None).is_none());
    }
}
