//! One producer span per sampled event, from when it is enqueued until Kafka acknowledges it.
//!
//! Its parent is the event's creation context; the record's `traceparent` stays that context, as it was stored. Made
//! with the OpenTelemetry API itself: an event that is not sampled costs a look at one byte. Names and attributes:
//! OpenTelemetry semantic conventions, "Messaging spans" and "Kafka". Keys are left out: they may name persons.

use std::collections::HashMap;

use opentelemetry::{
    Context, KeyValue,
    global::{self, BoxedSpan, BoxedTracer},
    trace::{Span as _, SpanKind, Status, TraceContextExt as _, Tracer as _},
};
use outbox_proto::trace;

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
        let Some(parent) = event.traceparent.filter(|p| trace::is_sampled(p)) else { return };
        if self.open.contains_key(&token) {
            return;
        }
        let Some(parent) = trace::read(parent, event.tracestate) else { return };
        let attributes = vec![
            KeyValue::new("messaging.system", "kafka"),
            KeyValue::new("messaging.operation.type", "send"),
            KeyValue::new("messaging.operation.name", "send"),
            KeyValue::new("messaging.destination.name", event.topic.to_owned()),
            KeyValue::new("messaging.message.id", event.id.to_string()),
        ];
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
