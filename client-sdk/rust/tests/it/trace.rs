//! Trace context goes out with commits and comes in with events, and the spans follow the conventions.

use std::sync::{Arc, Mutex};

use opentelemetry::trace::{SpanKind, Status, TraceContextExt as _, TracerProvider as _};
use opentelemetry_sdk::{
    error::OTelSdkResult,
    trace::{SdkTracerProvider, SpanData, SpanExporter},
};
use outbox_proto::record::Attributes;
use outbox_sdk::{BatchHandler, Event, Handler, HandlerError, Transaction};
use tracing::{Instrument as _, Span, level_filters::LevelFilter};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, Registry, layer::SubscriberExt as _};

use crate::{
    client::{Answer, Server, applied},
    rig::{Rig, Running, effect, event},
};

const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

#[derive(Clone, Debug, Default)]
pub(crate) struct Spans(Arc<Mutex<Vec<SpanData>>>);

impl SpanExporter for Spans {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.0.lock().unwrap().extend(batch);
        Ok(())
    }
}

impl Spans {
    /// Spans of everything this process does from now on. There is one subscriber for all tests: each test picks its
    /// own spans out by their trace.
    pub(crate) fn collect() -> Self {
        static SPANS: std::sync::OnceLock<Spans> = std::sync::OnceLock::new();
        SPANS
            .get_or_init(|| {
                let spans = Self::default();
                let provider = SdkTracerProvider::builder().with_simple_exporter(spans.clone()).build();
                let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
                // `RUST_LOG=outbox_sdk=debug` shows what a failing test did.
                let log = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
                let quiet = EnvFilter::builder().with_default_directive(LevelFilter::OFF.into()).from_env_lossy();
                let subscriber = Registry::default().with(layer).with(log.with_filter(quiet));
                tracing::subscriber::set_global_default(subscriber).expect("there is no other");
                spans
            })
            .clone()
    }

    fn named(&self, name: &str) -> Vec<SpanData> {
        self.0.lock().unwrap().iter().filter(|span| span.name == name).cloned().collect()
    }

    fn of(&self, name: &str, trace: &str) -> Vec<SpanData> {
        let mut spans = self.named(name);
        spans.retain(|span| span.span_context.trace_id().to_string() == trace);
        spans
    }
}

fn attribute(span: &SpanData, key: &str) -> Option<String> {
    span.attributes.iter().find(|a| a.key.as_str() == key).map(|a| a.value.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_carries_its_spans_context_without_a_global_propagator() {
    let spans = Spans::collect();
    let (server, client) = Server::start(|attempt, request| {
        let unavailable = || Err(tonic::Status::unavailable("draining"));
        Answer::Now(if attempt == 0 { unavailable() } else { Ok(applied(&request.request_id)) })
    })
    .await;

    let caller = tracing::info_span!("caller");
    let trace = caller.context().span().span_context().trace_id().to_string();
    client.commit().request_id("r-9").send().instrument(caller.clone()).await.unwrap();

    let call = &spans.of("outbox.v1.OutboxService/Commit", &trace)[..];
    let [call] = call else { panic!("one span for the call with all its attempts: {call:#?}") };
    assert_eq!(call.span_kind, SpanKind::Client);
    assert_eq!(call.parent_span_id, caller.context().span().span_context().span_id());
    let expected = [
        ("rpc.system.name", "grpc"),
        ("rpc.method", "outbox.v1.OutboxService/Commit"),
        ("rpc.response.status_code", "OK"),
        ("server.address", "127.0.0.1"),
        ("outbox.request_id", "r-9"),
        ("outbox.attempts", "2"),
    ];
    for (key, value) in expected {
        assert_eq!(attribute(call, key).as_deref(), Some(value), "{key}");
    }
    let sent = format!("00-{trace}-{}-01", call.span_context.span_id());
    for (metadata, _) in &*server.received.lock().unwrap() {
        assert_eq!(metadata.get("traceparent").expect("the context is sent").to_str().unwrap(), sent);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_commit_is_an_error_in_its_span() {
    let spans = Spans::collect();
    let (_, client) = Server::start(|_, _| Answer::Now(Err(tonic::Status::not_found("no such command")))).await;
    let caller = tracing::info_span!("caller");
    let trace = caller.context().span().span_context().trace_id().to_string();
    client.commit().send().instrument(caller).await.expect_err("it is refused");

    let call = &spans.of("outbox.v1.OutboxService/Commit", &trace)[0];
    assert_eq!(attribute(call, "rpc.response.status_code").as_deref(), Some("NOT_FOUND"));
    assert_eq!(attribute(call, "error.type").as_deref(), Some("NOT_FOUND"));
    assert!(matches!(call.status, Status::Error { .. }));
}

/// Has its effect within a span of its own.
struct Traced;

impl BatchHandler for Traced {
    async fn handle(&self, events: &[&Event], tx: &mut Transaction) -> Result<(), HandlerError> {
        for event in events {
            effect("mailer", event, tx).await?;
        }
        Ok(())
    }
}

impl Handler for Traced {
    async fn handle(&self, event: &Event, tx: &mut Transaction) -> Result<(), HandlerError> {
        effect("mailer", event, tx).instrument(tracing::info_span!(parent: &Span::current(), "send mail")).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn handling_an_event_continues_the_trace_of_its_creation() {
    let spans = Spans::collect();
    let rig = Rig::new(1).await;
    let traced = Attributes { traceparent: Some(PARENT.into()), tracestate: Some("a=b".into()), ..event() };
    rig.publish([(0, traced.clone()), (0, traced.clone())]).await;

    let running = Running::start(rig.builder("mailer").group(&rig.topic).handler(Traced).build().unwrap());
    running.until("both records to be settled", |stats| stats.handled == 1 && stats.duplicates == 1).await;
    running.shut_down().await.unwrap();

    let name = format!("process {}", rig.topic);
    let processed = spans.of(&name, "0af7651916cd43dd8448eb211c80319c");
    let [first, repeat] = &processed[..] else { panic!("one span per record: {processed:#?}") };
    assert_eq!((first.span_kind.clone(), first.parent_span_is_remote), (SpanKind::Consumer, true));
    assert_eq!(first.parent_span_id.to_string(), "b7ad6b7169203331");
    let id = traced.id.to_string();
    let expected = [
        ("messaging.system", "kafka"),
        ("messaging.operation.type", "process"),
        ("messaging.operation.name", "process"),
        ("messaging.destination.name", rig.topic.as_str()),
        ("messaging.destination.partition.id", "0"),
        ("messaging.kafka.offset", "0"),
        ("messaging.consumer.group.name", rig.topic.as_str()),
        ("messaging.message.id", id.as_str()),
        ("outbox.consumer", "mailer"),
    ];
    for (key, value) in expected {
        assert_eq!(attribute(first, key).as_deref(), Some(value), "{key}");
    }
    assert_eq!(attribute(first, "outbox.duplicate"), None);
    assert_eq!(attribute(repeat, "outbox.duplicate").as_deref(), Some("true"));
    let mail = &spans.of("send mail", "0af7651916cd43dd8448eb211c80319c")[..];
    let [mail] = mail else { panic!("the repeat sends no mail: {mail:#?}") };
    assert_eq!(mail.parent_span_id, first.span_context.span_id(), "the handler's spans nest under it");
}

/// One parent would be as good as another: none of them is.
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_linked_to_the_creation_of_each_of_its_events() {
    let spans = Spans::collect();
    let rig = Rig::new(1).await;
    let trace = |n: usize| format!("0af7651916cd43dd8448eb21{n:08x}");
    let traced = |n| Attributes { traceparent: Some(format!("00-{}-b7ad6b7169203331-01", trace(n))), ..event() };
    rig.publish((1..=30).map(|n| (0, traced(n)))).await;

    let consumer = rig.builder("mailer").group(&rig.topic).batch_handler(10, Traced);
    let running = Running::start(consumer.build().unwrap());
    running.until("all to be settled", |stats| stats.handled == 30).await;
    running.shut_down().await.unwrap();

    let batches = spans.named(&format!("process {}", rig.topic));
    let linked: Vec<String> = batches
        .iter()
        .flat_map(|batch| batch.links.iter().map(|link| link.span_context.trace_id().to_string()))
        .collect();
    let alone = batches.iter().filter(|batch| attribute(batch, "messaging.batch.message_count").is_none());
    let alone: Vec<String> = alone.map(|span| span.span_context.trace_id().to_string()).collect();
    let mut all = [linked.clone(), alone].concat();
    all.sort_unstable();
    assert_eq!(all, (1..=30).map(trace).collect::<Vec<_>>(), "each event is linked, or continued, once");
    assert!(linked.len() >= 20, "most are in batches: {linked:?}");
    for batch in batches.iter().filter(|batch| !batch.links.is_empty()) {
        assert_eq!(attribute(batch, "messaging.batch.message_count"), Some(batch.links.len().to_string()));
        assert_eq!((batch.span_kind.clone(), batch.parent_span_is_remote), (SpanKind::Consumer, false));
    }
}
