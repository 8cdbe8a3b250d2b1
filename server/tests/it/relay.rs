//! The relay when all goes well, and across crashes of its own.

use outbox_harness::{eventually, kafka};
use outbox_server::config;
use rdkafka::message::{Headers as _, Message as _};

use crate::support::{
    faulty::{Faults, Faulty},
    outbox::{Outbox, PATIENCE, Running, publisher},
};
use outbox_server::relay::Relay;

#[tokio::test(flavor = "multi_thread")]
async fn a_committed_event_reaches_kafka_as_a_cloudevent() {
    let outbox = Outbox::fresh("cloudevent", 1).await;
    let relay = outbox.relay();

    sqlx::query(
        "select outbox.emit($1, 'user.activated', '{\"id\": 7}', 'user-7', '/users', 'user/7', '{\"x-tenant\": \"a\"}',
                            traceparent => '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01', tracestate => 'k=v')",
    )
    .bind(&outbox.topic)
    .execute(&mut outbox.connect().await)
    .await
    .expect("the event is stored");
    outbox.all_settled().await;

    let published = outbox.published().await.0;
    let record = &published[0];
    assert_eq!((published.len(), record.key()), (1, Some(&b"user-7"[..])));
    assert_eq!(record.payload(), Some(&b"{\"id\": 7}"[..]));
    let headers: Vec<_> = record.headers().expect("headers").iter().map(|h| h.key.to_owned()).collect();
    let expected =
        "ce_specversion ce_id ce_source ce_type ce_time ce_subject content-type traceparent tracestate x-tenant";
    assert_eq!(headers.join(" "), expected);
    let header = |name| kafka::header(record, name).expect("it is there");
    assert_eq!((header("ce_type"), header("ce_source")), ("user.activated".into(), "/users".into()));
    assert_eq!((header("ce_subject"), header("content-type")), ("user/7".into(), "application/json".into()));
    assert_eq!(header("traceparent"), "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
    assert_eq!((header("tracestate"), header("x-tenant")), ("k=v".into(), "a".into()));
    assert_eq!(header("ce_id"), outbox.stored().await[0].0.to_string());
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tombstone_and_an_event_without_a_key_are_published() {
    let outbox = Outbox::fresh("tombstone", 1).await;
    sqlx::query("select outbox.emit_bytes($1, 'user.gone', null, 'user-7'), outbox.emit_bytes($1, 'tick', 'data')")
        .bind(&outbox.topic)
        .execute(&mut outbox.connect().await)
        .await
        .expect("the events are stored");
    let relay = outbox.relay();

    outbox.all_settled().await;

    let mut published: Vec<_> = outbox
        .published()
        .await
        .0
        .iter()
        .map(|r| (r.key().map(<[u8]>::to_vec), r.payload().map(<[u8]>::to_vec)))
        .collect();
    published.sort();
    assert_eq!(published, [(None, Some(b"data".to_vec())), (Some(b"user-7".to_vec()), None)]);
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_of_many_pages_is_published_in_order() {
    let outbox = Outbox::fresh("pages", 3).await;
    outbox.emit(5_000, 40).await;
    // A page is a quarter of the window: 50 pages.
    let relay = outbox.relay_with(config::Relay { in_flight_events_max: 400, ..Outbox::relay_config() });

    outbox.all_settled().await;

    assert_eq!(outbox.assert_all_published_in_order().await, 0, "nothing is repeated");
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_flight_is_bounded_by_bytes() {
    let outbox = Outbox::fresh("bytes", 1).await;
    let statement = "select count(outbox.emit_bytes($1, 'big', convert_to(repeat('x', 200000), 'UTF8'), 'k')) from generate_series(1, 40)";
    sqlx::query(statement).bind(&outbox.topic).execute(&mut outbox.connect().await).await.expect("events are stored");
    let faults = Faults::default();
    faults.change(|plan| plan.hold_reports = true);
    let config = config::Relay { in_flight_bytes_max: 1_000_000, ..Outbox::relay_config() };
    let relay = Relay::with_publisher(config, &outbox.database_config(), Faulty::new(publisher(), &faults));
    let relay = Running::start(relay);

    let full = async || (faults.plan().enqueued.len() >= 4).then_some(());
    eventually("the window is full", PATIENCE, full).await;
    faults.change(|plan| plan.hold_reports = false);
    outbox.all_settled().await;

    assert_eq!(outbox.assert_all_published_in_order().await, 0);
    // Five payloads are a million bytes; one more may go over.
    assert!(faults.plan().unreported_most <= 6, "{} payloads in flight", faults.plan().unreported_most);
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_in_the_middle_of_a_backlog_repeats_no_more_than_the_window() {
    let outbox = Outbox::fresh("crash", 3).await;
    outbox.emit(20_000, 40).await;
    let config = config::Relay { in_flight_events_max: 200, ..Outbox::relay_config() };
    let (mut crashes, faults) = (0, Faults::default());

    // Each crash after some progress, and with a full window whose reports have not been taken.
    for settled_at_least in [500, 5_000, 10_000] {
        faults.change(|plan| plan.hold_reports = false);
        let publisher = Faulty::new(publisher(), &faults);
        let relay = Running::start(Relay::with_publisher(config.clone(), &outbox.database_config(), publisher));
        let progressed = async || (20_000 - outbox.unsettled().await >= settled_at_least).then_some(());
        eventually("progress in the backlog", PATIENCE, progressed).await;
        faults.change(|plan| plan.hold_reports = true);
        relay.crash().await;
        crashes += 1;
        assert!(outbox.unsettled().await > 0, "the crash landed in the middle");
    }
    let relay = outbox.relay_with(config);
    outbox.all_settled().await;

    let repeats = outbox.assert_all_published_in_order().await;
    assert!(repeats <= crashes * 200, "{repeats} repeats after {crashes} crashes");
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_between_publishing_and_progress_repeats_and_loses_nothing() {
    let outbox = Outbox::fresh("between", 1).await;
    let faults = Faults::default();
    faults.change(|plan| plan.hold_reports = true);
    let publisher = Faulty::new(publisher(), &faults);
    let relay = Running::start(Relay::with_publisher(Outbox::relay_config(), &outbox.database_config(), publisher));
    outbox.emit(20, 3).await;
    // In Kafka, but the relay does not know.
    let arrived = async || (outbox.published().await.0.len() == 20).then_some(());
    eventually("the events are in kafka", PATIENCE, arrived).await;
    relay.crash().await;
    assert_eq!(outbox.unsettled().await, 20);

    let relay = outbox.relay();
    outbox.all_settled().await;

    assert_eq!(outbox.assert_all_published_in_order().await, 20, "each once more");
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn draining_on_shutdown_leaves_nothing_to_repeat() {
    let outbox = Outbox::fresh("drain", 3).await;
    outbox.emit(4_000, 40).await;
    let config = config::Relay { in_flight_events_max: 1_000, ..Outbox::relay_config() };
    let mut relay = outbox.relay_with(config.clone());
    relay.until("events in flight", |s| s.in_flight > 0).await;

    relay.stop().await;
    let (left, published) = (outbox.unsettled().await, outbox.published().await.0.len());
    assert_eq!(i64::try_from(published).expect("few"), 4_000 - left, "what is published is settled");
    let owners: i64 = sqlx::query_scalar("select count(*) from outbox.progress where owner is not null")
        .fetch_one(&mut outbox.connect().await)
        .await
        .expect("owners can be counted");
    assert_eq!(owners, 0, "the lanes are given back");

    let relay = outbox.relay_with(config);
    outbox.all_settled().await;
    assert_eq!(outbox.assert_all_published_in_order().await, 0);
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_relay_writes_no_progress_per_poll() {
    let outbox = Outbox::fresh("idle", 1).await;
    let mut relay = outbox.relay();
    relay.until("it owns its lanes", |s| s.lanes_owned == 64).await;
    outbox.emit(1, 1).await;
    outbox.all_settled().await;
    let mut connection = outbox.connect().await;
    let mut writes = std::collections::BTreeSet::new();
    let from = std::time::Instant::now();

    // Some hundred polls at the shortest pause, if each found something.
    eventually("three seconds pass", PATIENCE, async || {
        let statement = "select updated_at::text from outbox.progress where lane = 0";
        let written: String = sqlx::query_scalar(statement).fetch_one(&mut connection).await.expect("it is there");
        writes.insert(written);
        (from.elapsed().as_millis() > 3_000).then_some(())
    })
    .await;

    assert!(writes.len() <= 10, "a lane's progress was written {} times in three idle seconds", writes.len());
    relay.stop().await;
}
