//! Keeps the spans of this process, to be held against the trace context that other processes passed on.

use std::{
    fs::File,
    sync::{Arc, Mutex, PoisonError},
};

use opentelemetry::trace::TracerProvider as _;
use opentelemetry_sdk::{
    error::OTelSdkResult,
    trace::{SdkTracerProvider, SpanData, SpanExporter},
};
use tracing_subscriber::{Layer as _, filter::LevelFilter, layer::SubscriberExt as _};

use super::Failure;

/// Every span that has ended.
#[derive(Clone, Debug, Default)]
pub(super) struct Spans(Arc<Mutex<Vec<SpanData>>>);

impl SpanExporter for Spans {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend(batch);
        Ok(())
    }
}

impl Spans {
    /// Collects this process's spans from now on, and writes its log to `log`. Once per process.
    pub(super) fn collect(log: File) -> Result<Self, Failure> {
        let spans = Self::default();
        let provider = SdkTracerProvider::builder().with_simple_exporter(spans.clone()).build();
        let traces = tracing_opentelemetry::layer().with_tracer(provider.tracer("outboxd demo"));
        let log = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(log);
        let subscriber = tracing_subscriber::registry().with(traces.with_filter(LevelFilter::INFO));
        tracing::subscriber::set_global_default(subscriber.with(log.with_filter(LevelFilter::INFO)))?;
        Ok(spans)
    }

    /// The spans of this name within a trace.
    pub(super) fn of(&self, name: &str, trace_id: &str) -> Vec<SpanData> {
        let spans = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = |span: &&SpanData| span.name == name && span.span_context.trace_id().to_string() == trace_id;
        spans.iter().filter(wanted).cloned().collect()
    }
}

/// Trace id and parent id of a W3C `traceparent`.
pub(super) fn ids(traceparent: &str) -> Option<(&str, &str)> {
    let mut fields = traceparent.split('-').skip(1);
    Some((fields.next()?, fields.next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_traceparent_names_trace_and_parent() {
        let traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert_eq!(ids(traceparent), Some(("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331")));
        assert_eq!(ids("00"), None);
    }
}
