//! Delayed events: stored with their commit, in the stream when they are due, once, in order.

use std::{collections::HashMap, time::Duration};

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use futures_util::future::join_all;
use outbox_harness::{eventually, kafka};
use outbox_proto::v1::{
    DiscardRequest, Disposition, Event, EventState, EventStep, GetEventRequest, GetEventResponse, GetRelayRequest,
    HoldTarget, ListEventsRequest, NewEvent, ParkRequest, Run, hold_target,
};
use outbox_server::{
    config::Config,
    model::source::Source,
    relay::{Inflow, Wake},
    store::{
        relay::schedule,
        retention::{self, Ages, Expired, Verdict},
    },
};
use sqlx::{Connection as _, Executor as _, PgConnection};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::Code;
use uuid::Uuid;

use crate::support::{
    outbox::{Outbox, PATIENCE},
    request::{add, commit, event},
    server::{Server, fault, fields},
    transaction::{Transaction, begin},
};

fn delayed(topic: &str, key: &str, due_at: DateTime<Utc>) -> NewEvent {
    let nanos = due_at.timestamp_subsec_nanos().cast_signed();
    let deliver_after = Some(prost_types::Timestamp { seconds: due_at.timestamp(), nanos });
    NewEvent { deliver_after, ..event(topic, key) }
}

fn in_an_hour() -> DateTime<Utc> {
    Utc::now() + TimeDelta::hours(1)
}

async fn get(server: &Server, id: &str) -> GetEventResponse {
    let request = GetEventRequest { id: id.into(), ..GetEventRequest::default() };
    server.events().get_event(request).await.expect("it is stored").into_inner()
}

fn states(found: &GetEventResponse) -> Vec<EventState> {
    found.history.iter().map(EventStep::state).collect()
}

/// Stores an event in an outbox without a server.
async fn emit(connection: &mut PgConnection, topic: &str, key: Option<&str>, due_at: DateTime<Utc>) -> Uuid {
    sqlx::query_scalar("select outbox.emit($1, 'test', '1', $2, deliver_after => $3)")
        .bind(topic)
        .bind(key)
        .bind(due_at)
        .fetch_one(connection)
        .await
        .expect("the event is stored")
}

/// Has everything be due that is scheduled, in the order in which it was to be.
async fn make_due(connection: &mut PgConnection) {
    let update = "update outbox.scheduled set due_at = clock_timestamp() - interval '1 hour'
                                                       + (due_at - (select min(due_at) from outbox.scheduled)) / 1000";
    connection.execute(update).await.expect("it can be set");
}

async fn promote(connection: &mut PgConnection) -> i32 {
    schedule::promote(connection, None, 500, 8 << 20).await.expect("it can be promoted").promoted
}

async fn scheduled(connection: &mut PgConnection) -> i64 {
    let count = sqlx::query_scalar("select count(*) from outbox.scheduled");
    count.fetch_one(connection).await.expect("they can be counted")
}

/// What a server's process runs beside its relay.
fn inflow(outbox: &Outbox) -> DropGuard {
    let shutdown = CancellationToken::new();
    tokio::spawn(Inflow::new(&outbox.database_config(), Wake::default()).run(shutdown.clone()));
    shutdown.drop_guard()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delayed_event_is_published_when_it_is_due_however_it_was_stored() {
    let server = Server::start_with(|config| {
        config.relay.enabled = true;
        config.kafka.bootstrap_servers = kafka::bootstrap_servers();
    });
    let (server, topic) = (server.await, kafka::fresh_topic("delayed", 3).await);
    let due_at = Utc::now() + TimeDelta::seconds(3);
    let due = || delayed(&topic, "key", due_at);

    let committed = server.outbox().commit(commit(vec![add("a1", 1)], vec![event(&topic, "key"), due()])).await;
    let committed = committed.expect("it is committed").into_inner().event_ids;
    let mut open = Transaction::open(&server, begin()).await;
    open.run(vec![add("a2", 1)], vec![due()]).await.expect("it is staged");
    let interactive = open.commit(Run { operations: vec![], events: vec![event(&topic, "key")] }).await;
    let interactive = interactive.expect("it commits").event_ids;
    let emitted: Vec<Uuid> = sqlx::query_scalar(
        "select outbox.emit_many(jsonb_build_array(
            jsonb_build_object('topic', $1::text, 'type', 'x', 'data', 1, 'deliver_after', $2::timestamptz),
            jsonb_build_object('topic', $1::text, 'type', 'x', 'data', 2)))",
    )
    .bind(&topic)
    .bind(due_at)
    .fetch_all(&server.pool)
    .await
    .expect("they are stored");

    let later = [committed[1].clone(), interactive[0].clone(), emitted[0].to_string()];
    let at_once = [committed[0].clone(), interactive[1].clone(), emitted[1].to_string()];
    for id in &later {
        let found = get(&server, id).await;
        let event = found.event.clone().expect("an event");
        assert!(Utc::now() < due_at, "the machine is too slow for this test");
        assert_eq!((event.state(), event.settled, event.position), (EventState::Scheduled, false, 0));
        assert_eq!(event.deliver_after.map(|due| due.seconds), Some(due_at.timestamp()));
        assert_eq!(states(&found), [EventState::Scheduled]);
    }
    for id in later.iter().chain(&at_once) {
        let published = async || (get(&server, id).await.event?.state() == EventState::Published).then_some(());
        eventually(&format!("event {id} is published"), PATIENCE, published).await;
        let found = get(&server, id).await;
        assert_eq!(states(&found), [EventState::Pending, EventState::Published]);
        let published_at = found.history[1].time.expect("a time");
        let published_at = DateTime::from_timestamp(published_at.seconds, published_at.nanos.cast_unsigned());
        let delay = published_at.expect("a time of our days") - due_at;
        assert_eq!(later.contains(id), delay >= TimeDelta::zero(), "published {delay} after it was due");
    }
    assert_eq!(server.number("select count(*) from outbox.scheduled").await, 0);
}

#[tokio::test]
async fn what_is_scheduled_is_listed_and_counted_apart_until_it_is_due() {
    let server = Server::start().await;
    let due_at = in_an_hour();
    let answer = server.outbox().commit(commit(vec![], vec![delayed("t", "k", due_at), event("t", "k")])).await;
    let ids = answer.expect("it is committed").into_inner().event_ids;

    let list = async |minutes: u64| {
        let created_before = Some((std::time::SystemTime::now() + Duration::from_secs(minutes * 60)).into());
        let created_from = Some((std::time::SystemTime::now() - Duration::from_secs(60)).into());
        let request = ListEventsRequest { created_from, created_before, ..ListEventsRequest::default() };
        let listed = server.events().list_events(request).await.expect("it is answered").into_inner().events;
        listed.into_iter().map(|event: Event| (event.id.clone(), event.state())).collect::<Vec<_>>()
    };
    let pending = (ids[1].clone(), EventState::Pending);
    assert_eq!(list(1).await, std::slice::from_ref(&pending), "only those of the time that is asked for");
    assert_eq!(list(120).await, [pending, (ids[0].clone(), EventState::Scheduled)]);
    let relay = server.relays().get_relay(GetRelayRequest::default()).await.expect("it is answered").into_inner();
    assert_eq!((relay.scheduled, relay.unsettled), (1, 1), "what is not due is not behind");

    make_due(&mut server.pool.acquire().await.expect("a connection")).await;
    let overdue = async || {
        let relay = server.relays().get_relay(GetRelayRequest::default()).await.expect("it is answered").into_inner();
        ((relay.scheduled, relay.unsettled) == (0, 2)).then_some(())
    };
    eventually("what is due and was not promoted is behind", PATIENCE, overdue).await;
}

#[tokio::test]
async fn a_retry_of_a_delayed_event_gets_the_first_answer_and_schedules_nothing_anew() {
    let server = Server::start().await;
    let due_at = in_an_hour();
    let request = commit(vec![], vec![event("t", "k"), delayed("t", "k", due_at), event("t", "k")]);
    let first = server.outbox().commit(request.clone()).await.expect("it is committed").into_inner();
    let again = server.outbox().commit(request.clone()).await.expect("it is answered").into_inner();

    assert_eq!(again.disposition(), Disposition::Replayed);
    assert_eq!((first.event_ids.len(), &first.event_ids), (3, &again.event_ids));
    assert_eq!(server.number("select count(*) from outbox.scheduled").await, 1);
    assert_eq!(server.number("select count(*) from outbox.events").await, 2);

    let mut other = request;
    other.events[1] = delayed("t", "k", due_at + TimeDelta::seconds(1));
    let refused = server.outbox().commit(other).await.expect_err("it is another request");
    assert_eq!(fault(&refused).1, "REQUEST_ID_REUSED");

    let mut dry = commit(vec![add("nobody", 1)], vec![delayed("t", "k", due_at)]);
    server.outbox().commit(dry.clone()).await.expect_err("it is refused");
    (dry.operations, dry.validate_only) = (vec![add("a1", 1)], true);
    server.outbox().commit(dry).await.expect("it would be applied");
    assert_eq!(server.number("select count(*) from outbox.scheduled").await, 1, "nothing was written");
}

#[tokio::test]
async fn a_delay_has_a_limit_and_an_id_is_of_the_time_when_its_event_is_due() {
    let server = Server::start_with(|config| config.commit.deliver_after_max_hours = 2).await;
    let refused = async |event| {
        let refused = server.outbox().commit(commit(vec![], vec![event])).await.expect_err("it is refused");
        assert_eq!(refused.code(), Code::InvalidArgument);
        fields(&refused)
    };
    let too_far = delayed("t", "k", Utc::now() + TimeDelta::hours(3));
    assert_eq!(refused(too_far).await, ["events[0].deliver_after"]);
    let of_now = NewEvent { id: Uuid::now_v7().to_string(), ..delayed("t", "k", in_an_hour()) };
    assert_eq!(refused(of_now).await, ["events[0].id"]);
    assert_eq!(server.written().await, (0, 0));

    let past = delayed("t", "k", Utc::now() - TimeDelta::hours(1));
    server.outbox().commit(commit(vec![], vec![past])).await.expect("what is past is of now");
    assert_eq!(server.written().await, (1, 1));
}

#[tokio::test]
async fn an_event_that_is_discarded_before_it_is_due_is_never_published() {
    let server = Server::start().await;
    let answer = server.outbox().commit(commit(vec![], vec![delayed("t", "k", in_an_hour())])).await;
    let event_id = answer.expect("it is committed").into_inner().event_ids.remove(0);
    let discard = DiscardRequest {
        namespace: "other".into(),
        event_id: event_id.clone(),
        reason: "withdrawn".into(),
        ..DiscardRequest::default()
    };
    let refused = server.events().discard(discard.clone()).await.expect_err("it is of another tenant");
    assert_eq!(fault(&refused).1, "NOT_HELD");

    let discard = DiscardRequest { namespace: String::new(), ..discard };
    server.events().discard(discard).await.expect("it is discarded");

    let found = get(&server, &event_id).await;
    assert_eq!(states(&found), [EventState::Scheduled, EventState::Discarded]);
    assert_eq!(
        (found.event.expect("an event").state(), &*found.history[1].reason),
        (EventState::Discarded, "withdrawn")
    );
    let mut connection = server.pool.acquire().await.expect("a connection");
    make_due(&mut connection).await;
    assert_eq!(promote(&mut connection).await, 0);
}

/// What follows it of its key cannot be told yet: parking it would hold it alone.
#[tokio::test]
async fn an_event_that_is_not_due_yet_is_not_parked_and_it_is_told_until_when() {
    let server = Server::start().await;
    let due_at = in_an_hour();
    let answer = server.outbox().commit(commit(vec![], vec![delayed("t", "k", due_at)])).await;
    let event_id = answer.expect("it is committed").into_inner().event_ids.remove(0);
    let target =
        Some(HoldTarget { target: Some(hold_target::Target::EventId(event_id.clone())), ..HoldTarget::default() });
    let park = ParkRequest { target, reason: "for the test".into() };

    let refused = server.events().park(park.clone()).await.expect_err("it is not due");
    let (code, reason, metadata) = fault(&refused);
    assert_eq!((code, reason.as_str()), (Code::FailedPrecondition, "EVENT_NOT_DUE"));
    assert_eq!(metadata["event_id"], event_id);
    assert_eq!(metadata["due_at"], due_at.to_rfc3339_opts(SecondsFormat::Millis, true));
    assert!(refused.message().contains("park its key, discard the event"), "{refused:?}");
    let namespace = "other".to_owned();
    let other =
        ParkRequest { target: park.target.clone().map(|target| HoldTarget { namespace, ..target }), ..park.clone() };
    let refused = server.events().park(other).await.expect_err("it is of another tenant");
    assert_eq!(fault(&refused).1, "EVENT_NOT_FOUND");
    assert_eq!(server.number("select count(*) from outbox.holds").await, 0);

    let mut connection = server.pool.acquire().await.expect("a connection");
    make_due(&mut connection).await;
    assert_eq!(promote(&mut connection).await, 1);
    server.events().park(park).await.expect("it is due, and parked");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_takes_its_place_when_it_is_due() {
    let outbox = Outbox::fresh("places", 1).await;
    let mut connection = outbox.connect().await;
    let now = Utc::now();
    let third = emit(&mut connection, &outbox.topic, Some("k"), now + TimeDelta::hours(2)).await;
    let second = emit(&mut connection, &outbox.topic, Some("k"), now + TimeDelta::hours(1)).await;
    let first = outbox.emit_to(&outbox.topic, Some("k"), "at once").await;
    assert_eq!(promote(&mut connection).await, 0, "nothing is due");
    make_due(&mut connection).await;

    assert_eq!(promote(&mut connection).await, 2);

    let last = outbox.emit_to(&outbox.topic, Some("k"), "after that").await;
    let order: Vec<Uuid> = outbox.stored().await.into_iter().map(|(id, _)| id).collect();
    assert_eq!(order, [first, second, third, last]);
}

/// Promoters of several processes, some of which die half-way.
#[tokio::test(flavor = "multi_thread")]
async fn of_many_promoters_that_die_each_event_is_promoted_once_and_in_order() {
    let outbox = Outbox::fresh("promoters", 1).await;
    let mut connection = outbox.connect().await;
    let start = in_an_hour();
    let mut expected: HashMap<String, Vec<Uuid>> = HashMap::new();
    for n in 0..300 {
        let key = format!("key-{}", n % 7);
        let id = emit(&mut connection, &outbox.topic, Some(&key), start + TimeDelta::seconds(n)).await;
        expected.entry(key).or_default().push(id);
    }
    make_due(&mut connection).await;

    let promoter = async |dies: bool| {
        let mut connection = outbox.connect().await;
        while scheduled(&mut connection).await > 0 {
            let mut transaction = connection.begin().await.expect("it begins");
            schedule::promote(&mut transaction, None, 3, 8 << 20).await.expect("it can be promoted");
            if dies {
                drop(transaction);
                connection = outbox.connect().await;
            } else {
                transaction.commit().await.expect("it commits");
            }
        }
    };
    join_all([true, false, false, true, false].map(promoter)).await;

    assert_eq!(scheduled(&mut connection).await, 0);
    let mut found: HashMap<String, Vec<Uuid>> = HashMap::new();
    for (id, key) in outbox.stored().await {
        let key = String::from_utf8(key.expect("it has a key")).expect("text");
        found.entry(key).or_default().push(id);
    }
    assert_eq!(found, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn delayed_events_go_through_both_sources_with_several_relays() {
    let outbox = Outbox::fresh("sources", 3).await;
    let relays = [outbox.relay(), outbox.relay()];
    let _inflows = [inflow(&outbox), inflow(&outbox)];
    let mut connection = outbox.connect().await;
    for source in [Source::Poll, Source::Wal] {
        outbox.switch(source).await;
        let stored = outbox.stored().await.len();
        let start = Utc::now() + TimeDelta::milliseconds(300);
        for n in 0..200 {
            let (key, due_at) = (format!("key-{}", n % 10), start + TimeDelta::milliseconds(n * 5));
            emit(&mut connection, &outbox.topic, Some(&key), due_at).await;
        }
        let promoted = async || (outbox.stored().await.len() == stored + 200).then_some(());
        eventually("everything is promoted", PATIENCE, promoted).await;
        outbox.all_settled().await;
        outbox.assert_all_published_in_order().await;
    }
    for relay in relays {
        relay.stop().await;
    }
}

/// Nobody has promoted for so long that its partition would be gone.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_is_due_for_long_finds_its_partition_and_is_published() {
    let outbox = Outbox::fresh("overdue", 1).await;
    let mut connection = outbox.connect().await;
    let day: DateTime<Utc> = "2025-01-02T12:00:00Z".parse().expect("a time");
    connection
        .execute(
            "select outbox.make_partition('events', '20250102', outbox.uuidv7_floor('2025-01-02 00:00Z')::text,
                                          outbox.uuidv7_floor('2025-01-03 00:00Z')::text)",
        )
        .await
        .expect("an old partition can be made");
    for due_at in [day, day + TimeDelta::days(1)] {
        let schedule = "select outbox.schedule_events('default', array[$1], array[outbox.uuidv7($1)], array[$2], '{k}',
            '{s}', '{t}', '{null}', '{}', '{null}', '{null}', array[$1], '{null}', '{null}')";
        sqlx::query(schedule).bind(due_at).bind(&outbox.topic).execute(&mut connection).await.expect("it is stored");
    }

    let retained = retention::run(&mut outbox.connect().await, Ages::new(&Config::default()), false).await;
    let needed = Expired { name: "events_p20250102".into(), verdict: Verdict::Needed };
    assert_eq!(retained.expect("it runs"), [needed], "it is to come into it");
    assert_eq!(promote(&mut connection).await, 2, "the other one's partition is made");

    let relay = outbox.relay();
    outbox.all_settled().await;
    outbox.assert_all_published_in_order().await;
    relay.stop().await;
}

#[tokio::test]
async fn whoever_keeps_a_key_locked_keeps_back_nothing_else() {
    let outbox = Outbox::fresh("locked", 1).await;
    let (mut connection, mut writer) = (outbox.connect().await, outbox.connect().await);
    let [locked, free] =
        <[String; 2]>::try_from(outbox.keys_in_different_lanes(&outbox.topic, 2).await).expect("two keys");
    let first = emit(&mut connection, &outbox.topic, Some(&locked), in_an_hour()).await;
    let other = emit(&mut connection, &outbox.topic, Some(&free), in_an_hour()).await;
    make_due(&mut connection).await;
    let mut open = writer.begin().await.expect("it begins");
    let before = emit(&mut open, &outbox.topic, Some(&locked), Utc::now()).await;

    assert_eq!(promote(&mut connection).await, 1, "only the key that is free");
    open.commit().await.expect("it commits");
    assert_eq!(promote(&mut connection).await, 1);

    let order: Vec<Uuid> = outbox.stored().await.into_iter().map(|(id, _)| id).collect();
    assert_eq!(order, [before, other, first]);
}

#[tokio::test]
async fn an_id_that_was_used_before_it_was_due_stops_nothing() {
    let outbox = Outbox::fresh("twice", 1).await;
    let mut connection = outbox.connect().await;
    let id = emit(&mut connection, &outbox.topic, Some("k"), in_an_hour()).await;
    let other = emit(&mut connection, &outbox.topic, Some("k"), in_an_hour()).await;
    let again = "select outbox.emit($1, 'test', '2', 'k', id => $2)";
    sqlx::query(again).bind(&outbox.topic).bind(id).execute(&mut connection).await.expect("it is stored at once");
    let scheduling = "select outbox.emit($1, 'test', '2', 'k', id => $2, deliver_after => now() + interval '1 hour')";
    let refused = sqlx::query(scheduling).bind(&outbox.topic).bind(id).execute(&mut connection).await;
    refused.expect_err("an id that is stored cannot be scheduled");
    make_due(&mut connection).await;

    assert_eq!(promote(&mut connection).await, 1);

    let stored: Vec<Uuid> = outbox.stored().await.into_iter().map(|(id, _)| id).collect();
    assert_eq!(stored, [id, other]);
    let (discarded, reason): (Uuid, String) = sqlx::query_as("select id, reason from outbox.discarded")
        .fetch_one(&mut connection)
        .await
        .expect("it is kept with the reason");
    assert_eq!((discarded, &*reason), (id, "an event with this id was stored before it was due"));
}

#[tokio::test]
async fn looking_for_what_is_due_reads_no_more_than_the_index() {
    let outbox = Outbox::fresh("index", 1).await;
    let mut connection = outbox.connect().await;
    connection
        .execute(
            "select count(outbox.emit('t', 'x', '1', 'k' || n, deliver_after => now() + n * interval '1 second'))
             from generate_series(100, 20000) as n",
        )
        .await
        .expect("they are stored");
    connection.execute("analyze outbox.scheduled").await.expect("it can be analysed");
    let mut transaction = connection.begin().await.expect("it begins");
    for _ in 0..20 {
        assert_eq!(promote(&mut transaction).await, 0);
    }
    let (scans, read): (i64, i64) = sqlx::query_as(
        "select seq_scan, coalesce(idx_tup_fetch, 0) from pg_stat_xact_user_tables where relid = 'outbox.scheduled'::regclass",
    )
    .fetch_one(&mut *transaction)
    .await
    .expect("there are statistics");
    assert_eq!(scans, 0, "it is never read through");
    assert!(read <= 2 * 20, "{read} rows were read by 20 looks");
}
