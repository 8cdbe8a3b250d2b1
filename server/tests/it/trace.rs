//! One trace across all hops: a caller in this process, a real server, Kafka, and a consumer in this process.

use std::{path::Path, time::Duration};

use opentelemetry::trace::{TraceContextExt as _, TracerProvider as _};
use opentelemetry_otlp::WithExportConfig as _;
use opentelemetry_proto::tonic::trace::v1::{Span, span::SpanKind};
use opentelemetry_sdk::{Resource, trace::SdkTracerProvider};
use outbox_harness::{eventually, kafka, outboxd::Outboxd, postgres::Database};
use outbox_sdk::{Client, Command, Consumer, Event, HandlerError, NewEvent, PostgresInbox, Transaction};
use sqlx::Executor as _;
use tonic::{Request, transport::Endpoint};
use tracing::{Instrument as _, Level};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::{Layer as _, filter::Targets, layer::SubscriberExt as _};

use crate::support::{
    otlp::{Receiver, attribute},
    typed::Caller,
};

const PATIENCE: Duration = Duration::from_secs(60);

async fn handle(_: &Event, tx: &mut Transaction) -> Result<(), HandlerError> {
    let write = async { tx.execute("insert into mails values (1)").await.map(drop) };
    write.instrument(tracing::info_span!("write mail")).await?;
    Ok(())
}

// One thread, so that the subscriber that is set for it sees every task.
#[tokio::test(flavor = "current_thread")]
async fn one_trace_runs_from_the_caller_to_the_handler() {
    let receiver = Receiver::start().await;
    let provider = provider(&receiver.endpoint);
    let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test")).with_location(false);
    let ours = Targets::new().with_target("outbox_sdk", Level::INFO).with_target(module_path!(), Level::INFO);
    let subscriber = tracing_subscriber::registry().with(layer.with_filter(ours));
    let _subscriber = tracing::subscriber::set_default(subscriber);
    let database = Database::fresh().await;
    let pool = database.pool().await;
    pool.execute(
        "create table mails (n int); create table accounts (id text primary key, balance bigint);
                  insert into accounts values ('a', 1)",
    )
    .await
    .expect("tables can be made");
    let topic = kafka::fresh_topic("trace", 2).await;
    let folder = std::env::temp_dir().join(format!("outboxd-trace-{}", uuid::Uuid::now_v7()));
    std::fs::create_dir(&folder).expect("a folder can be made");
    std::fs::write(folder.join("c.sql"), "-- name: add\nupdate accounts set balance = balance + 1 where id = :id")
        .expect("a file can be written");
    let server = Outboxd::new(Path::new(env!("CARGO_BIN_EXE_outboxd")), &database.url, folder.join("log"))
        .set("catalog.dir", &folder.display().to_string())
        .set("telemetry.otlp_endpoint", &receiver.endpoint);
    let running = server.start();
    server.serving().await;

    let root = tracing::info_span!("checkout");
    let trace_id = root.context().span().span_context().trace_id().to_bytes();
    let client = Client::connect(format!("http://{}", server.listen)).expect("a client can be made");
    let commit = client.commit().command(Command::new("add").param("id", "a"));
    let commit = commit.event(NewEvent::new(&topic, "added").key("a").data("{}", "application/json"));
    let committed = commit.send().instrument(root.clone()).await.expect("it is applied");
    drop(root);
    consume(&topic, &pool).await;
    // The end of a process sends what it still holds; this thread must be free to receive it.
    tokio::task::spawn_blocking(|| running.end()).await.expect("the server ends well");
    tokio::task::spawn_blocking(move || provider.shutdown()).await.expect("no panic").expect("all spans are sent");

    let complete =
        eventually("every span to arrive", PATIENCE, async || (receiver.names(&trace_id).len() >= 6).then_some(()));
    complete.await;
    let span = |name: &str, kind| receiver.span(&trace_id, name, kind).unwrap_or_else(|| panic!("no span {name}"));
    let (root, write) = (span("checkout", SpanKind::Internal), span("write mail", SpanKind::Internal));
    let method = "outbox.v1.OutboxService/Commit";
    let (call, serve) = (span(method, SpanKind::Client), span(method, SpanKind::Server));
    let send = span(&format!("send {topic}"), SpanKind::Producer);
    let process = span(&format!("process {topic}"), SpanKind::Consumer);
    for (child, parent) in [(&call, &root), (&serve, &call), (&send, &serve), (&process, &serve), (&write, &process)] {
        assert_eq!(child.parent_span_id, parent.span_id, "{} is no child of {}", child.name, parent.name);
    }
    assert_eq!(receiver.names(&trace_id).len(), 6, "{:?}", receiver.names(&trace_id));
    let event_ids = committed.event_ids().expect("event ids");
    conventions(&send, &process, &topic, &event_ids[0].to_string());
    std::fs::remove_dir_all(&folder).expect("the folder can be removed");
}

/// An operator's own RPC has its span as any other: under the caller's, and over that of sending its event.
#[tokio::test(flavor = "multi_thread")]
async fn an_rpc_of_the_operators_own_is_part_of_its_callers_trace() {
    let receiver = Receiver::start().await;
    let database = Database::fresh().await;
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/catalog");
    let schema = std::fs::read_to_string(deploy.join("schema.psql")).expect("the sample is there");
    database.pool().await.execute(sqlx::AssertSqlSafe(schema)).await.expect("its tables can be made");
    kafka::ensure_topic("users").await;
    let log = std::env::temp_dir().join(format!("outboxd-trace-{}.log", uuid::Uuid::now_v7()));
    let server = Outboxd::new(Path::new(env!("CARGO_BIN_EXE_outboxd")), &database.url, log.clone())
        .set("catalog.dir", &deploy.display().to_string())
        .set("telemetry.otlp_endpoint", &receiver.endpoint);
    let running = server.start();
    server.serving().await;
    let descriptors = std::fs::read(deploy.join("shop.binpb")).expect("the sample is there");
    let channel = Endpoint::from_shared(format!("http://{}", server.listen)).expect("an address").connect_lazy();
    let caller = Caller::new(&descriptors, channel);

    let (trace_id, span_id) = (*uuid::Uuid::now_v7().as_bytes(), "b7ad6b7169203331");
    let mut request = Request::new(caller.message("shop.v1.Users/Activate", serde_json::json!({"userId": "user-7"})));
    let parent = format!("00-{}-{span_id}-01", hex::encode(trace_id));
    request.metadata_mut().insert("traceparent", parent.parse().expect("a metadata value"));
    request.metadata_mut().insert("x-request-id", "traced".parse().expect("a metadata value"));
    caller.send("shop.v1.Users/Activate", request).await.expect("it is applied");

    let both = async || (receiver.names(&trace_id).len() >= 2).then_some(());
    eventually("both spans to arrive", PATIENCE, both).await;
    let span = |name: &str, kind| receiver.span(&trace_id, name, kind).unwrap_or_else(|| panic!("no span {name}"));
    let (serve, send) = (span("shop.v1.Users/Activate", SpanKind::Server), span("send users", SpanKind::Producer));
    assert_eq!(hex::encode(&serve.parent_span_id), span_id);
    assert_eq!(send.parent_span_id, serve.span_id);
    running.end();
    std::fs::remove_file(log).expect("the log can be removed");
}

fn provider(endpoint: &str) -> SdkTracerProvider {
    let exporter = opentelemetry_otlp::SpanExporter::builder().with_tonic().with_endpoint(endpoint).build();
    SdkTracerProvider::builder()
        .with_batch_exporter(exporter.expect("an exporter can be made"))
        .with_resource(Resource::builder().with_service_name("shop").build())
        .build()
}

/// Consumes until the one event is handled.
async fn consume(topic: &str, pool: &sqlx::PgPool) {
    let inbox = PostgresInbox::new(pool.clone());
    inbox.ensure_schema().await.expect("the inbox can be made");
    let consumer = Consumer::builder("mailer")
        .kafka(kafka::bootstrap_servers())
        .property("auto.offset.reset", "earliest")
        .group(format!("mailer-{topic}"))
        .topics([topic])
        .inbox(inbox)
        .handler(handle)
        .build()
        .expect("a consumer can be built");
    let handled = eventually("the event to be handled", PATIENCE, async || {
        let mails: i64 = sqlx::query_scalar("select count(*) from mails").fetch_one(pool).await.expect("a number");
        (mails == 1).then_some(())
    });
    consumer.run(handled).await.expect("the consumer ends well");
}

/// OpenTelemetry semantic conventions for messaging.
fn conventions(send: &Span, process: &Span, topic: &str, event_id: &str) {
    for (span, kind, operation) in [(send, SpanKind::Producer, "send"), (process, SpanKind::Consumer, "process")] {
        assert_eq!(span.kind, i32::from(kind));
        let expected = [
            ("messaging.system", "kafka"),
            ("messaging.operation.type", operation),
            ("messaging.destination.name", topic),
            ("messaging.message.id", event_id),
        ];
        for (key, value) in expected {
            assert_eq!(attribute(span, key).as_deref(), Some(value), "{key} of {}", span.name);
        }
        assert!(attribute(span, "messaging.destination.partition.id").is_some());
        assert_eq!(attribute(span, "messaging.kafka.offset").as_deref(), Some("0"));
    }
}
