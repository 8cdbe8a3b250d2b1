//! A real OTLP receiver: keeps every span that is exported to it.

use std::sync::{Arc, Mutex};

use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::any_value::Value,
    trace::v1::{Span, span::SpanKind},
};
use tokio::net::TcpListener;
use tonic::{
    Request, Response, Status,
    transport::{Server, server::TcpIncoming},
};

/// The receiver.
pub(crate) struct Receiver {
    /// Where to export to.
    pub(crate) endpoint: String,
    spans: Spans,
}

#[derive(Clone, Default)]
struct Spans(Arc<Mutex<Vec<Span>>>);

impl Receiver {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let endpoint = format!("http://{}", listener.local_addr().expect("the listener has an address"));
        let spans = Spans::default();
        let service = TraceServiceServer::new(spans.clone());
        tokio::spawn(Server::builder().add_service(service).serve_with_incoming(TcpIncoming::from(listener)));
        Self { endpoint, spans }
    }

    /// The one span of this name and kind in a trace, when it is there.
    pub(crate) fn span(&self, trace_id: &[u8], name: &str, kind: SpanKind) -> Option<Span> {
        let spans = self.spans.0.lock().expect("no holder panics");
        let of_trace = spans.iter().filter(|span| span.trace_id == trace_id);
        let mut found = of_trace.filter(|span| span.name == name && span.kind == i32::from(kind));
        let span = found.next().cloned();
        assert!(found.next().is_none(), "two spans are named {name}");
        span
    }

    /// The names of a trace's spans, in order of arrival.
    pub(crate) fn names(&self, trace_id: &[u8]) -> Vec<String> {
        let spans = self.spans.0.lock().expect("no holder panics");
        spans.iter().filter(|span| span.trace_id == trace_id).map(|span| span.name.clone()).collect()
    }
}

#[tonic::async_trait]
impl TraceService for Spans {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let resources = request.into_inner().resource_spans;
        let spans = resources.into_iter().flat_map(|resource| resource.scope_spans).flat_map(|scope| scope.spans);
        self.0.lock().expect("no holder panics").extend(spans);
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

/// An attribute of a span as text.
pub(crate) fn attribute(span: &Span, key: &str) -> Option<String> {
    let value = span.attributes.iter().find(|attribute| attribute.key == key)?.value.clone()?.value?;
    Some(match value {
        Value::StringValue(text) => text,
        Value::IntValue(number) => number.to_string(),
        Value::BoolValue(truth) => truth.to_string(),
        other => format!("{other:?}"),
    })
}
