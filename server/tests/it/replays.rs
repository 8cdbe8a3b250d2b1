//! Replays: published events again, under their first ids, at a rate, once per request.

use std::collections::HashMap;

use chrono::{TimeDelta, Utc};
use outbox_harness::{eventually, kafka};
use outbox_proto::v1::{
    CancelReplayRequest, EventFilter, EventIds, EventState, EventStep, GetEventRequest, ListEventsRequest,
    ReplayProgress, ReplayRequest, ReplayResponse, ReplayState, replay_request::Selection,
};
use outbox_server::{
    model::source::Source,
    relay::{Inflow, Wake},
    store::relay::replay,
};
use rdkafka::message::{Message as _, OwnedMessage};
use sqlx::{Connection as _, Executor as _, PgConnection};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::Status;
use uuid::Uuid;

use crate::support::{
    cli::outboxd,
    outbox::{Outbox, PATIENCE},
    request::{commit, event},
    server::{Server, fault, fields},
};

/// A server without a relay, on an outbox whose relay is the test's own.
async fn server(outbox: &Outbox) -> Server {
    Server::at(outbox.url.clone(), None, |_| {}).await
}

fn asked(selection: Selection) -> ReplayRequest {
    ReplayRequest {
        request_id: Uuid::now_v7().to_string(),
        selection: Some(selection),
        reason: "the mailer lost them".into(),
        requested_by: "anna".into(),
        events_per_second: 10_000,
        ..ReplayRequest::default()
    }
}

fn these(ids: &[Uuid]) -> Selection {
    Selection::Ids(EventIds { ids: ids.iter().map(Uuid::to_string).collect() })
}

/// What was created in the last hour, of a topic.
fn recent(topic: &str) -> EventFilter {
    let ago = |hours| {
        let time = Utc::now() - TimeDelta::hours(hours);
        Some(prost_types::Timestamp { seconds: time.timestamp(), nanos: 0 })
    };
    EventFilter { created_from: ago(1), created_before: ago(-1), topic: topic.into(), ..EventFilter::default() }
}

async fn replay(server: &Server, request: &ReplayRequest) -> Result<ReplayResponse, Status> {
    server.events().replay(request.clone()).await.map(tonic::Response::into_inner)
}

async fn progress(server: &Server, request: &ReplayRequest) -> ReplayProgress {
    replay(server, request).await.expect("it is taken").progress.expect("it has progress")
}

async fn until_done(server: &Server, request: &ReplayRequest) -> ReplayProgress {
    let done = async || Some(progress(server, request).await).filter(|found| found.state() == ReplayState::Done);
    eventually("the replay is done", PATIENCE, done).await
}

/// What a server's process runs beside its relay.
fn inflow(outbox: &Outbox) -> DropGuard {
    let shutdown = CancellationToken::new();
    tokio::spawn(Inflow::new(&outbox.database_config(), Wake::default()).run(shutdown.clone()));
    shutdown.drop_guard()
}

/// One turn of the only replay; whether there may be more.
async fn turn(connection: &mut PgConnection) -> bool {
    replay::go_on(connection, 3, 8 << 20).await.expect("it goes on").next_at.is_some()
}

fn id(record: &OwnedMessage) -> Uuid {
    kafka::header(record, "ce_id").expect("the record has an id").parse().expect("it is a UUID")
}

/// Ids of the records that say they are of this replay, by key, in the order of the log.
fn replayed(records: &[OwnedMessage], replay: &str) -> HashMap<Option<Vec<u8>>, Vec<Uuid>> {
    let mut by_key: HashMap<_, Vec<_>> = HashMap::new();
    for record in records.iter().filter(|record| kafka::header(record, "outbox-replay").as_deref() == Some(replay)) {
        assert_eq!(kafka::header(record, "outbox-replay-of"), None, "the record has the first id itself");
        by_key.entry(record.key().map(<[u8]>::to_vec)).or_default().push(id(record));
    }
    by_key
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_publishes_each_event_again_under_its_id_through_both_sources() {
    let outbox = Outbox::fresh("replayed", 3).await;
    let server = server(&outbox).await;
    let (relay, _inflow) = (outbox.relay(), inflow(&outbox));
    outbox.emit(200, 7).await;
    let other = outbox.emit_to("..", None, "held, not published").await;
    outbox.all_settled().await;
    let stored = outbox.stored().await;
    let mut expected: HashMap<Option<Vec<u8>>, Vec<Uuid>> = HashMap::new();
    for (id, key) in &stored {
        expected.entry(key.clone()).or_default().push(*id);
    }

    for source in [Source::Poll, Source::Wal] {
        outbox.switch(source).await;
        let request = asked(Selection::Filter(recent(&outbox.topic)));
        let dry = ReplayRequest { dry_run: true, request_id: String::new(), ..request.clone() };
        assert_eq!(progress(&server, &dry).await, ReplayProgress { matched: 200, ..ReplayProgress::default() });

        let answer = replay(&server, &request).await.expect("it is taken");
        assert!(answer.warnings[0].contains("follow newer events of their keys"), "{:?}", answer.warnings);
        let done = until_done(&server, &request).await;

        assert_eq!((done.matched, done.replayed, &*done.requested_by), (200, 200, "anna"));
        outbox.all_settled().await;
        assert_eq!(replayed(&outbox.published().await.0, &done.id), expected, "in order, and copies are not copied");
    }
    let unpublished = replay(&server, &asked(these(&[stored[0].0, other]))).await.expect_err("it is held");
    assert_eq!(fault(&unpublished).1, "EVENT_NOT_PUBLISHED");
    relay.stop().await;
}

/// Each part of a filter narrows it, here and in the list of events.
#[tokio::test(flavor = "multi_thread")]
async fn a_filter_chooses_by_each_of_its_parts() {
    let outbox = Outbox::fresh("filtered", 1).await;
    let server = server(&outbox).await;
    let relay = outbox.relay();
    let emit = "select outbox.emit($1, t, '1', k, s)
                from (values ('a', 'x', 'shop'), ('a', 'y', 'shop'), ('b', 'x', 'bank'), ('a', 'x', 'bank')) as e (t, k, s)";
    sqlx::query(emit).bind(&outbox.topic).execute(&mut outbox.connect().await).await.expect("they are stored");
    outbox.emit_to("another", Some("x"), "of another topic, and held: the topic is not there").await;
    outbox.all_settled().await;

    let all = recent(&outbox.topic);
    let now = all.created_before.map(|time| prost_types::Timestamp { seconds: time.seconds - 3_600, nanos: 0 });
    let earlier = now.map(|time| prost_types::Timestamp { seconds: time.seconds - 60, ..time });
    let cases = [
        (all.clone(), 4),
        (EventFilter { r#type: "a".into(), ..all.clone() }, 3),
        (EventFilter { key: Some(b"x".as_slice().into()), ..all.clone() }, 3),
        (EventFilter { source: "bank".into(), ..all.clone() }, 2),
        (
            EventFilter { r#type: "a".into(), key: Some(b"x".as_slice().into()), source: "bank".into(), ..all.clone() },
            1,
        ),
        (EventFilter { created_before: earlier, ..all.clone() }, 0),
        (EventFilter { created_from: earlier, ..all.clone() }, 4),
    ];
    for (filter, matched) in cases {
        let dry =
            ReplayRequest { dry_run: true, request_id: String::new(), ..asked(Selection::Filter(filter.clone())) };
        assert_eq!(progress(&server, &dry).await.matched, matched, "{filter:?}");
    }
    let list = async |request: ListEventsRequest| {
        server.events().list_events(request).await.expect("it is answered").into_inner().events.len()
    };
    let of_topic = ListEventsRequest { topic: outbox.topic.clone(), ..ListEventsRequest::default() };
    assert_eq!(list(of_topic.clone()).await, 4);
    assert_eq!(list(ListEventsRequest { r#type: "b".into(), ..of_topic.clone() }).await, 1);
    assert_eq!(list(ListEventsRequest { key: Some(b"x".as_slice().into()), ..of_topic }).await, 3);
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_history_of_an_event_tells_who_had_it_published_again_and_why() {
    let outbox = Outbox::fresh("history", 1).await;
    let server = server(&outbox).await;
    let (relay, _inflow) = (outbox.relay(), inflow(&outbox));
    let id = outbox.emit_to(&outbox.topic, Some("k"), "data").await;
    outbox.all_settled().await;
    let request = asked(these(&[id, id]));
    until_done(&server, &request).await;
    outbox.all_settled().await;

    let get = GetEventRequest { id: id.to_string(), ..GetEventRequest::default() };
    let history = server.events().get_event(get).await.expect("it is stored").into_inner().history;
    let states: Vec<EventState> = history.iter().map(EventStep::state).collect();
    assert_eq!(states, [EventState::Pending, EventState::Published, EventState::Replayed]);
    let step = &history[2];
    assert_eq!((&*step.reason, &*step.requested_by), ("the mailer lost them", "anna"));
    assert_eq!(step.place.as_ref().map(|place| place.offset), Some(1), "where it is again");
    let listed = server.events().list_events(ListEventsRequest::default()).await.expect("it is answered").into_inner();
    assert_eq!(listed.events.len(), 1, "a copy is no other event");
    relay.stop().await;
}

/// The same request, sent again and again, by relays that die half-way.
#[tokio::test(flavor = "multi_thread")]
async fn a_replay_goes_on_after_a_crash_and_copies_each_event_once() {
    let outbox = Outbox::fresh("crashed", 1).await;
    let server = server(&outbox).await;
    outbox.emit(20, 3).await;
    let relay = outbox.relay();
    outbox.all_settled().await;
    let request = asked(Selection::Filter(recent(&outbox.topic)));
    progress(&server, &request).await;

    let mut connection = outbox.connect().await;
    let more = async |connection: &mut PgConnection| {
        let mut dying = outbox.connect().await;
        let pid: i32 = sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut dying).await.expect("it answers");
        let mut transaction = dying.begin().await.expect("it begins");
        turn(&mut transaction).await;
        // Waits until it has ended: what it has locked would be passed over.
        let end = sqlx::query_scalar::<_, bool>("select pg_terminate_backend($1, 10000)").bind(pid);
        assert!(end.fetch_one(&mut *connection).await.expect("it answers"), "it has ended");
        assert_eq!(progress(&server, &request).await.matched, 20, "asked again, it is the same replay");
        turn(connection).await
    };
    let mut turns = 0;
    while more(&mut connection).await {
        turns += 1;
        assert!(turns < 100, "20 events, 3 per turn");
    }

    let done = progress(&server, &request).await;
    assert_eq!((done.state(), done.replayed), (ReplayState::Done, 20));
    outbox.all_settled().await;
    let copies: Vec<Uuid> = replayed(&outbox.published().await.0, &done.id).into_values().flatten().collect();
    let distinct: std::collections::HashSet<_> = copies.iter().collect();
    assert_eq!((copies.len(), distinct.len()), (20, 20));

    let mut other = request;
    other.events_per_second = 7;
    assert_eq!(fault(&replay(&server, &other).await.expect_err("another body")).1, "REQUEST_ID_REUSED");
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_keeps_to_its_rate_and_can_be_ended_early() {
    let outbox = Outbox::fresh("rate", 1).await;
    let server = server(&outbox).await;
    outbox.emit(30, 3).await;
    let relay = outbox.relay();
    outbox.all_settled().await;
    let request = ReplayRequest { events_per_second: 5, ..asked(Selection::Filter(recent(&outbox.topic))) };
    progress(&server, &request).await;

    let mut connection = outbox.connect().await;
    let first = replay::go_on(&mut connection, 500, 8 << 20).await.expect("it goes on");
    assert_eq!(first.replayed, 5, "a second's worth");
    let wait = first.next_at.expect("it runs") - Utc::now();
    assert!(wait > TimeDelta::milliseconds(500) && wait <= TimeDelta::seconds(1), "{wait}");
    assert_eq!(replay::go_on(&mut connection, 500, 8 << 20).await.expect("it goes on").replayed, 0, "not yet");

    let cancel = CancelReplayRequest { request_id: request.request_id.clone(), ..CancelReplayRequest::default() };
    let ended = server.events().cancel_replay(cancel.clone()).await.expect("it is ended").into_inner().progress;
    let ended = ended.expect("it has progress");
    assert_eq!((ended.state(), ended.replayed), (ReplayState::Cancelled, 5));
    assert!(!turn(&mut connection).await, "nothing runs");
    assert_eq!(progress(&server, &request).await.state(), ReplayState::Cancelled, "asked again, it stays ended");
    let none = CancelReplayRequest { request_id: "none".into(), ..cancel };
    assert_eq!(fault(&server.events().cancel_replay(none).await.expect_err("there is none")).1, "REPLAY_NOT_FOUND");
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_replayed_is_refused_and_says_why() {
    let server = Server::start().await;
    let faults = async |request: ReplayRequest| fields(&replay(&server, &request).await.expect_err("it is refused"));
    assert_eq!(faults(ReplayRequest::default()).await, ["request_id", "reason", "requested_by", "selection"]);
    let unbounded = EventFilter { topic: "t".into(), ..EventFilter::default() };
    let expected = ["filter.created_from", "filter.created_before"];
    assert_eq!(faults(asked(Selection::Filter(unbounded))).await, expected);
    let fast = ReplayRequest { events_per_second: 10_001, ..asked(these(&[Uuid::now_v7()])) };
    assert_eq!(faults(fast).await, ["events_per_second"]);
    assert_eq!(faults(asked(these(&[]))).await, ["ids.ids"]);

    let gone = replay(&server, &asked(these(&[Uuid::now_v7()]))).await.expect_err("it is not stored");
    assert_eq!(fault(&gone).1, "EVENT_NOT_FOUND");
    let old = EventFilter { created_from: Some(prost_types::Timestamp::default()), ..recent("t") };
    let answer = replay(&server, &asked(Selection::Filter(old))).await.expect("it is taken");
    assert!(answer.warnings[1].contains("are not kept any more"), "{:?}", answer.warnings);
    for _ in 1..8 {
        replay(&server, &asked(Selection::Filter(recent("t")))).await.expect("it is taken");
    }
    let ninth = replay(&server, &asked(Selection::Filter(recent("t")))).await.expect_err("as many run as may");
    assert_eq!(fault(&ninth).1, "TOO_MANY_REPLAYS");
}

/// More than a replay may be of, published as far as anybody can see.
#[tokio::test(flavor = "multi_thread")]
async fn a_replay_has_a_limit() {
    let server = Server::start().await;
    let fill = "select outbox.append_events('default', array_agg(outbox.uuidv7()), array_agg('t'::text),
                    array_agg(null::bytea), array_agg('s'::text), array_agg('t'::text), array_agg(null::text),
                    array_agg(null::bytea), array_agg(null::text), array_agg(null::jsonb), array_agg(now()),
                    array_agg(null::text), array_agg(null::text)) from generate_series(1, 100001)";
    server.pool.execute(fill).await.expect("they are stored");
    server.pool.execute("update outbox.progress set snapshot = pg_current_snapshot()").await.expect("it is settled");
    let refused = replay(&server, &asked(Selection::Filter(recent("t")))).await.expect_err("it is too large");
    assert_eq!(fault(&refused).1, "REPLAY_TOO_LARGE");
}

#[tokio::test]
async fn nobody_can_pass_an_event_off_as_a_copy() {
    let server = Server::start().await;
    for name in ["outbox-replay", "outbox-replay-of"] {
        let mut event = event("t", "k");
        event.headers = HashMap::from([(name.to_owned(), Uuid::now_v7().to_string())]);
        let refused = server.outbox().commit(commit(vec![], vec![event])).await.expect_err("the name is taken");
        assert_eq!(fields(&refused), [format!("events[0].headers[{name}]")]);
        for call in [
            "outbox.emit('t', 'x', '1', headers => jsonb_build_object($1::text, 'x'))",
            "outbox.emit_many(jsonb_build_array(jsonb_build_object('topic', 't', 'type', 'x', 'headers',
                                       jsonb_build_object($1::text, 'x'))))",
        ] {
            let emitted = sqlx::query(sqlx::AssertSqlSafe(format!("select {call}"))).bind(name).execute(&server.pool);
            emitted.await.expect_err("the name is taken");
        }
    }
    assert_eq!(server.written().await, (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_asks_for_a_replay_tells_how_far_it_is_and_ends_it() {
    let outbox = Outbox::fresh("cli", 1).await;
    outbox.emit(12, 3).await;
    let relay = outbox.relay();
    outbox.all_settled().await;
    let topic = outbox.topic.clone();
    let run = async |arguments: &[&str]| outboxd(&outbox.url, &[&["replay"], arguments].concat()).await;
    let time = |hours| (Utc::now() + TimeDelta::hours(hours)).to_rfc3339();
    let (from, before) = (time(-1), time(1));
    let range = ["--topic", &topic, "--from", &from, "--before", &before];

    let dry = run(&[&range[..], &["--dry-run"]].concat()).await;
    assert_eq!((dry.succeeded, dry.out.as_str()), (true, "12 events would be published again\n"), "{dry:?}");
    run(&range).await.assert_refused(&["reason"]);
    let named =
        [&range[..], &["--request-id", "ticket", "--reason", "asked for", "--by", "anna", "--rate", "5"]].concat();
    run(&named).await.assert_done(&["is running: 0 of 12 events"]);
    assert!(turn(&mut outbox.connect().await).await);
    run(&named).await.assert_done(&["is running: 3 of 12 events"]);
    let cancelled = run(&["cancel", "ticket"]).await;
    assert_eq!(cancelled.out, "replay ticket is cancelled: 3 of 12 events\n", "{cancelled:?}");
    run(&["--id", &Uuid::now_v7().to_string(), "--dry-run"]).await.assert_refused(&["is stored in this namespace"]);
    relay.stop().await;
}
