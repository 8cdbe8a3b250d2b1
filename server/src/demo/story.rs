//! The story's first part: one event on its way from a Commit to a mail, delivered twice; then the crash; then the end.
//!
//! Invariant: each step prints what it saw where it lies, and checks it there.

use std::time::{Duration, Instant};

use opentelemetry::trace::TraceContextExt as _;
use outbox_sdk::{Command, Commit, Disposition, NewEvent};
use serde_json::{Map, Value, json};
use tracing::Instrument as _;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use uuid::Uuid;

use super::{
    Failure, World, crash, eventually,
    kafka::Record,
    mailer::{Mailer, Mails},
    report::Report,
    spans, typed,
};

const SOON: Duration = Duration::from_secs(20);
/// Where the event's trace begins.
const ROOT_SPAN: &str = "activate user";
const COMMIT_SPAN: &str = "outbox.v1.OutboxService/Commit";

/// The commit that the story follows.
struct Activation {
    user: String,
    commit: Commit,
    event_id: Uuid,
    trace_id: String,
}

/// The event's row.
#[derive(sqlx::FromRow)]
struct Stored {
    lane: i16,
    position: i64,
    settled: bool,
    traceparent: Option<String>,
}

pub(super) async fn tell(world: &mut World, report: &mut Report) -> Result<(), Failure> {
    let activation = activate(world, report).await?;
    let stored = show_rows(world, report, &activation).await?;
    let record = show_record(world, report, &activation).await?;
    let mailer = consume(world, report).await?;
    deliver_again(world, report, &record, &mailer).await?;
    retry(world, report, &activation).await?;
    typed::call(world, report).await?;
    follow_trace(world, report, &activation, &stored, &record);
    crash::survive(world, report, &mailer).await?;
    report.step("stop", "SIGTERM: consumer and server drain and end");
    let start = Instant::now();
    mailer.stop().await?;
    report.saw("consumer_ended_after_ms", start.elapsed().as_millis() as u64);
    let ended = world.server.stop().await?;
    report.check("the server ended by itself, with status 0", ended.success());
    Ok(())
}

async fn activate(world: &mut World, report: &mut Report) -> Result<Activation, Failure> {
    let user = format!("user-{}", world.run);
    let new_user =
        |id: &str| Command::new("create_user").param("user_id", id).param("email", format!("{id}@example.com"));
    let users = crash::buyers(&world.run).fold(world.client.commit(), |commit, id| commit.command(new_user(&id)));
    users.command(new_user(&user)).send().await?;

    report.step("commit", format!("One Commit: activate {user}, and store the event user.activated; both or neither"));
    let span = tracing::info_span!("activate", otel.name = ROOT_SPAN);
    let trace_id = span.context().span().span_context().trace_id().to_string();
    world.trace_id = Some(trace_id.clone());
    let event =
        NewEvent::new(world.topic.name(), "user.activated").key(user.clone()).json(&json!({"user_id": user}))?;
    let commit = world.client.commit().command(Command::new("activate_user").param("user_id", &user)).event(event);
    let committed = commit.clone().send().instrument(span).await?;
    let event_id = *committed.event_ids()?.first().ok_or("the answer names no event")?;
    let status: String = committed.result(0)?.row(0)?.get("status")?;
    report.saw("request_id", committed.request_id());
    report.saw("answer", format!("{:?}, status `{status}`", committed.disposition()));
    report.saw("event_id", event_id.to_string());
    report.check("the commit was applied", committed.disposition() == Disposition::Applied && status == "active");
    Ok(Activation { user, commit, event_id, trace_id })
}

async fn show_rows(world: &World, report: &mut Report, activation: &Activation) -> Result<Stored, Failure> {
    report.step("rows", "In Postgres: the user's row and the event's row, of one transaction");
    let user = "select u.status, u.activated_at::text, u.xmin::text = e.xmin::text from users u, outbox.events e \
                where u.id = $1 and e.id = $2";
    let user = sqlx::query_as(user).bind(&activation.user).bind(activation.event_id);
    let (status, activated_at, together): (String, Option<String>, bool) = user.fetch_one(&world.shop).await?;
    let event =
        "select lane, position, outbox.is_settled(e) as settled, traceparent from outbox.events e where id = $1";
    let stored: Stored = sqlx::query_as(event).bind(activation.event_id).fetch_one(&world.shop).await?;
    report.saw("users", json!({"id": activation.user, "status": status, "activated_at": activated_at}));
    let Stored { lane, position, settled, traceparent } = &stored;
    let event = json!({"id": activation.event_id, "lane": lane, "position": position, "settled": settled, "traceparent": traceparent});
    report.saw("outbox.events", event);
    report.check("the user is active", status == "active");
    report.check("one transaction wrote both rows", together);
    Ok(stored)
}

async fn show_record(world: &World, report: &mut Report, activation: &Activation) -> Result<Record, Failure> {
    report.step("kafka", "The relay has published it");
    let record = eventually("the event in Kafka", SOON, async || {
        Ok(world.topic.read().await?.into_iter().find(|record| record.event.id == activation.event_id))
    });
    let record = record.await?;
    let text = |bytes: &[u8]| Value::from(String::from_utf8_lossy(bytes));
    let headers: Map<_, _> = record.headers.iter().map(|(name, value)| (name.clone(), text(value))).collect();
    report.saw("record", format!("{}, partition {}, offset {}", world.topic.name(), record.partition, record.offset));
    report.saw("key", text(&record.key));
    report.saw("value", text(&record.payload));
    report.saw("headers", headers);
    let payload: Value = serde_json::from_slice(&record.payload)?;
    let same = record.key == activation.user.as_bytes() && payload == json!({"user_id": activation.user});
    report.check("key and value are the event's", same);
    report.check("it is a CloudEvent of the same type", record.event.event_type == "user.activated");
    Ok(record)
}

async fn consume(world: &World, report: &mut Report) -> Result<Mailer, Failure> {
    let name = format!("mailer-{}", world.run);
    report.step(
        "consumer",
        format!("The consumer {name} sends a welcome e-mail: a row, committed with the inbox's mark"),
    );
    let mailer = Mailer::start(&name, &world.config.kafka, world.topic.name(), world.mails.clone()).await?;
    eventually("the consumer to handle the event", SOON, async || Ok((mailer.stats().handled > 0).then_some(())))
        .await?;
    let mails = Mails::count(&world.mails).await?;
    report.saw("handled", mailer.stats().handled);
    report.saw("welcome_e-mails", mails.sent);
    report.check("one welcome e-mail was sent", mails == Mails { sent: 1, events: 1 });
    Ok(mailer)
}

async fn deliver_again(world: &World, report: &mut Report, record: &Record, mailer: &Mailer) -> Result<(), Failure> {
    report.step("repeat", "The same record once more in Kafka, as a relay's repeat after a crash");
    let offset = world.topic.repeat(record).await?;
    let seen = || mailer.stats().handled + mailer.stats().duplicates;
    eventually("the consumer to see the event again", SOON, async || Ok((seen() > 1).then_some(()))).await?;
    let (stats, mails) = (mailer.stats(), Mails::count(&world.mails).await?);
    report.saw("offsets", json!([record.offset, offset]));
    report.saw("consumer", json!({"handled": stats.handled, "duplicates": stats.duplicates}));
    report.saw("welcome_e-mails", mails.sent);
    report.check("the consumer saw the event twice", (stats.handled, stats.duplicates) == (1, 1));
    report.check("the welcome e-mail was sent once", mails == Mails { sent: 1, events: 1 });
    Ok(())
}

async fn retry(world: &World, report: &mut Report, activation: &Activation) -> Result<(), Failure> {
    report.step("retry", "The same Commit again, with the same request id, as after a lost answer");
    let committed = activation.commit.clone().send().await?;
    let events = sqlx::query_scalar("select count(*) from outbox.events where topic = $1").bind(world.topic.name());
    let events: i64 = events.fetch_one(&world.shop).await?;
    report.saw("answer", format!("{:?}", committed.disposition()));
    report.saw("events_stored", events);
    report.check("the first answer was replayed", committed.disposition() == Disposition::Replayed);
    report.check("it names the same event", committed.event_ids()? == [activation.event_id]);
    report.check("no second event was stored", events == 1);
    Ok(())
}

/// Holds the spans of this process, the event's row and the record's header together.
fn follow_trace(world: &World, report: &mut Report, activation: &Activation, stored: &Stored, record: &Record) {
    report.step("trace", "One trace: client, server, event row, Kafka header, consumer");
    let trace_id = &activation.trace_id;
    let root = world.spans.of(ROOT_SPAN, trace_id);
    let client = world.spans.of(COMMIT_SPAN, trace_id);
    let handled = world.spans.of(&format!("process {}", world.topic.name()), trace_id);
    let header = record.event.traceparent.as_deref().unwrap_or_default();
    let (header_trace, header_parent) = spans::ids(header).unwrap_or_default();
    report.saw("trace_id", trace_id.as_str());
    report.saw("client_span", client.first().map(|span| span.span_context.span_id().to_string()));
    report.saw("event_row", stored.traceparent.clone());
    report.saw("kafka_header", header);
    report.saw("consumer_parent", handled.first().map(|span| span.parent_span_id.to_string()));
    let child = |span: &opentelemetry_sdk::trace::SpanData| {
        root.iter().any(|r| r.span_context.span_id() == span.parent_span_id)
    };
    report.check("the client's span is a child of the caller's", client.len() == 1 && client.iter().all(child));
    report.check(
        "the event's row carries the trace",
        stored.traceparent.as_deref().and_then(spans::ids).is_some_and(|(trace, _)| trace == trace_id),
    );
    report.check("the Kafka header has the same trace id as the client's span", header_trace == trace_id);
    let under_event =
        !handled.is_empty() && handled.iter().all(|span| span.parent_span_id.to_string() == header_parent);
    report.check("the consumer's spans continue from the Kafka header", under_event);
}
