//! `EventService` and `RelayService` about what became of events: history, waiting, parking, giving up, pausing.

use outbox_harness::{eventually, kafka};
use outbox_proto::v1::{
    DiscardRequest, EventState, EventStep, GetEventRequest, GetRelayRequest, HeldEvent, HeldState, HoldKind,
    HoldTarget, ListHeldRequest, ParkRequest, PauseRequest, ResumeRequest, TopicKey, UnparkRequest,
    WaitPublishedRequest, WaitPublishedResponse, event_service_client::EventServiceClient, hold_target::Target,
};
use rdkafka::message::Message as _;
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::support::{
    outbox::PATIENCE,
    request::{commit, event},
    server::{Server, fault, fields},
};

/// A server that relays to a fresh topic.
pub(crate) async fn relaying(prefix: &str) -> (Server, String) {
    let server = Server::start_with(|config| {
        config.relay.enabled = true;
        config.relay.lease_ttl_ms = 1_500;
        config.relay.held_retry_ms = 300;
        config.kafka.bootstrap_servers = kafka::bootstrap_servers();
    });
    (server.await, kafka::fresh_topic(prefix, 3).await)
}

pub(crate) async fn emit(server: &Server, topic: &str, key: &str) -> String {
    let answer = server.outbox().commit(commit(vec![], vec![event(topic, key)])).await.expect("it is committed");
    answer.into_inner().event_ids.remove(0)
}

async fn wait(server: &Server, ids: &[&String], timeout_ms: i32) -> WaitPublishedResponse {
    let timeout = prost_types::Duration { seconds: 0, nanos: timeout_ms * 1_000_000 };
    let ids = ids.iter().map(|id| (*id).clone()).collect();
    let request = WaitPublishedRequest { ids, timeout: Some(timeout), ..WaitPublishedRequest::default() };
    server.events().wait_published(request).await.expect("it is answered").into_inner()
}

pub(crate) async fn until(server: &Server, id: &String, state: EventState) {
    let found = async || (wait(server, &[id], 100).await.events[0].state() == state).then_some(());
    eventually(&format!("event {id} is {state:?}"), PATIENCE, found).await;
}

async fn held(server: &Server) -> Vec<HeldEvent> {
    let listed = server.events().list_held(ListHeldRequest::default()).await.expect("it is answered");
    listed.into_inner().events
}

pub(crate) fn of_event(id: &str) -> Option<HoldTarget> {
    Some(HoldTarget { target: Some(Target::EventId(id.to_owned())), ..HoldTarget::default() })
}

pub(crate) fn of_key(topic: &str, key: &str) -> Option<HoldTarget> {
    let key = TopicKey { topic: topic.to_owned(), key: key.as_bytes().to_vec().into() };
    Some(HoldTarget { target: Some(Target::Key(key)), ..HoldTarget::default() })
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_published_is_told_with_its_place() {
    let (server, topic) = relaying("places").await;
    let mut ids = Vec::new();
    for n in 0..20 {
        ids.push(emit(&server, &topic, &format!("key-{n}")).await);
    }
    let waited = wait(&server, &ids.iter().collect::<Vec<_>>(), 900).await;
    let waited = match waited.events.iter().all(|event| event.state() == EventState::Published) {
        true => waited,
        false => {
            for id in &ids {
                until(&server, id, EventState::Published).await;
            }
            wait(&server, &ids.iter().collect::<Vec<_>>(), 900).await
        }
    };

    let name = topic.clone();
    let records = tokio::task::spawn_blocking(move || kafka::read_topic(&name)).await.expect("it can be read");
    for (id, event) in ids.iter().zip(&waited.events) {
        let record = records.iter().find(|r| kafka::header(r, "ce_id").as_ref() == Some(id)).expect("it is in Kafka");
        let place = event.place.as_ref().expect("it has a place");
        assert_eq!((&event.id, place.topic.as_str()), (id, topic.as_str()));
        assert_eq!((place.partition, place.offset), (record.partition(), record.offset()));
    }
    let request = GetEventRequest { id: ids[3].clone(), ..GetEventRequest::default() };
    let answer = server.events().get_event(request).await.expect("it is there").into_inner();
    let event = answer.event.expect("it is there");
    assert_eq!((event.state(), event.settled), (EventState::Published, true));
    let states: Vec<EventState> = answer.history.iter().map(EventStep::state).collect();
    assert_eq!(states, [EventState::Pending, EventState::Published]);
    assert_eq!(answer.history[1].place, waited.events[3].place);
    let batches = server.number("select count(*) from outbox.deliveries").await;
    assert!(batches <= 20, "{batches} rows for 20 events");
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_ends_with_its_time_and_names_what_is_wrong() {
    let server = Server::start().await;
    let id = emit(&server, "nobody-relays", "a").await;
    assert_eq!(wait(&server, &[&id], 200).await.events[0].state(), EventState::Pending);

    let unknown = uuid::Uuid::now_v7().to_string();
    let request = WaitPublishedRequest { ids: vec![unknown], ..WaitPublishedRequest::default() };
    let status = server.events().wait_published(request).await.expect_err("it is not stored");
    assert_eq!(fault(&status).1, "EVENT_NOT_FOUND");
    let request = WaitPublishedRequest { ids: vec![id, "x".into()], ..WaitPublishedRequest::default() };
    let status = server.events().wait_published(request).await.expect_err("one is no UUID");
    assert_eq!(fields(&status), ["ids[1]"]);
    let status = server.events().wait_published(WaitPublishedRequest::default()).await.expect_err("there is none");
    assert_eq!(fields(&status), ["ids"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn more_calls_than_may_wait_are_refused() {
    let server = Server::start().await;
    let id = emit(&server, "nobody-relays", "a").await;
    let timeout = Some(prost_types::Duration { seconds: 3, nanos: 0 });
    let request = WaitPublishedRequest { ids: vec![id], timeout, ..WaitPublishedRequest::default() };
    let connections = [server.connect_anew(), server.connect_anew()].map(EventServiceClient::new);
    let calls = (0..300).map(|n| {
        let (mut client, request) = (connections[n % 2].clone(), request.clone());
        async move { client.wait_published(request).await }
    });
    let answers = futures_util::future::join_all(calls).await;

    let refused: Vec<_> = answers.iter().filter_map(|answer| answer.as_ref().err()).collect();
    assert_eq!(refused.len(), 300 - 256);
    for status in refused {
        assert_eq!((fault(status).0, fault(status).1.as_str()), (Code::ResourceExhausted, "TOO_MANY_WAITING"));
        assert!(status.get_details_retry_info().is_some());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parked_key_is_held_and_unparked_in_order() {
    let (server, topic) = relaying("parked").await;
    let before = emit(&server, &topic, "a").await;
    until(&server, &before, EventState::Published).await;
    let park = ParkRequest { target: of_key(&topic, "a"), reason: "its consumer is ill".into() };
    server.events().park(park).await.expect("it is parked");

    // From when the owner takes notice; the first ones may pass.
    let mut sent = Vec::new();
    let first_held = eventually("an event of the key is held", PATIENCE, async || {
        sent.push(emit(&server, &topic, "a").await);
        until_known(&server, sent.last().expect("one")).await.then_some(sent.len() - 1)
    })
    .await;
    for _ in 0..3 {
        let id = emit(&server, &topic, "a").await;
        until(&server, &id, EventState::Held).await;
        sent.push(id);
    }
    let other = emit(&server, &topic, "b").await;
    until(&server, &other, EventState::Published).await;
    let listed = held(&server).await;
    let ids: Vec<&String> = listed.iter().map(|event| &event.id).collect();
    assert_eq!(ids, sent[first_held..].iter().collect::<Vec<_>>());
    assert!(listed.iter().all(|e| e.state() == HeldState::Parked && e.kind() == HoldKind::Key));
    assert_eq!(listed[0].reason, "its consumer is ill");

    let unpark = UnparkRequest { target: of_key(&topic, "a"), reason: "its consumer is well".into() };
    let answer = server.events().unpark(unpark.clone()).await.expect("it is held").into_inner();
    assert_eq!(answer.events, 4);
    for id in &sent {
        until(&server, id, EventState::Published).await;
    }
    let name = topic.clone();
    let records = tokio::task::spawn_blocking(move || kafka::read_topic(&name)).await.expect("it can be read");
    let of_key: Vec<String> =
        records.iter().filter(|r| r.key() == Some(b"a")).filter_map(|r| kafka::header(r, "ce_id")).collect();
    let expected: Vec<String> = [before].into_iter().chain(sent).collect();
    assert_eq!(of_key, expected);
    let gone = async || (server.number("select count(*) from outbox.holds").await == 0).then_some(());
    eventually("the hold is gone", PATIENCE, gone).await;
    let last = GetEventRequest { id: expected[expected.len() - 1].clone(), ..GetEventRequest::default() };
    let history = server.events().get_event(last).await.expect("it is stored").into_inner().history;
    let states: Vec<EventState> = history.iter().map(EventStep::state).collect();
    assert_eq!(states, [EventState::Pending, EventState::Held, EventState::Published]);
    assert_eq!(history[1].reason, "its consumer is ill; unparked: its consumer is well", "it stays known why");
    let status = server.events().unpark(unpark).await.expect_err("it is not held any more");
    assert_eq!((status.code(), fault(&status).1.as_str()), (Code::NotFound, "NOT_HELD"));
}

/// Whether an event is held, once it is held or published.
pub(crate) async fn until_known(server: &Server, id: &String) -> bool {
    let known = async || {
        let state = wait(server, &[id], 500).await.events[0].state();
        (state != EventState::Pending).then_some(state)
    };
    eventually("the event is settled", PATIENCE, known).await == EventState::Held
}

#[tokio::test(flavor = "multi_thread")]
async fn a_discarded_event_is_never_published_and_what_is_behind_it_goes_on() {
    let (server, topic) = relaying("discard").await;
    // A park that is there before the events are: nothing passes it.
    let park = ParkRequest { target: of_key(&topic, "a"), reason: "for the test".into() };
    server.events().park(park).await.expect("it is parked");
    let noticed = async || {
        let id = emit(&server, &topic, "a").await;
        until_known(&server, &id).await.then_some(id)
    };
    let first = eventually("the park is noticed", PATIENCE, noticed).await;
    let second = emit(&server, &topic, "a").await;
    until(&server, &second, EventState::Held).await;

    let discard =
        DiscardRequest { event_id: first.clone(), reason: "a wrong amount".into(), ..DiscardRequest::default() };
    let discarded = async || match server.events().discard(discard.clone()).await {
        Ok(_) => Some(()),
        // Until progress has passed it.
        Err(status) => {
            assert_eq!((status.code(), fault(&status).1.as_str()), (Code::Aborted, "HOLD_DRAINING"));
            None
        }
    };
    eventually("it is discarded", PATIENCE, discarded).await;
    server
        .events()
        .unpark(UnparkRequest { target: of_event(&second), ..UnparkRequest::default() })
        .await
        .expect("it is held");

    until(&server, &second, EventState::Published).await;
    until(&server, &first, EventState::Discarded).await;
    let name = topic.clone();
    let records = tokio::task::spawn_blocking(move || kafka::read_topic(&name)).await.expect("it can be read");
    assert!(records.iter().all(|record| kafka::header(record, "ce_id").as_ref() != Some(&first)));
    let request = GetEventRequest { id: first.clone(), ..GetEventRequest::default() };
    let history = server.events().get_event(request).await.expect("it is there").into_inner().history;
    let states: Vec<EventState> = history.iter().map(EventStep::state).collect();
    assert_eq!(states, [EventState::Pending, EventState::Held, EventState::Discarded]);
    assert_eq!((history[1].reason.as_str(), history[2].reason.as_str()), ("for the test", "a wrong amount"));
    let kept = "select count(*) from outbox.discarded where data is not null and reason = 'a wrong amount'";
    assert_eq!(server.number(kept).await, 1);
    let status = server.events().discard(discard.clone()).await.expect_err("it is gone");
    assert_eq!(fault(&status).1, "NOT_HELD");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_waits_can_be_parked_and_one_that_is_published_cannot() {
    let (server, topic) = relaying("event").await;
    let published = emit(&server, &topic, "a").await;
    until(&server, &published, EventState::Published).await;
    let park = |id: &str| ParkRequest { target: of_event(id), reason: "for the test".into() };
    let status = server.events().park(park(&published)).await.expect_err("it is in Kafka");
    assert_eq!((status.code(), fault(&status).1.as_str()), (Code::FailedPrecondition, "EVENT_SETTLED"));
    let status = server.events().park(park(&uuid::Uuid::now_v7().to_string())).await.expect_err("there is none");
    assert_eq!(fault(&status).1, "EVENT_NOT_FOUND");
    let empty = ParkRequest { target: None, reason: String::new() };
    let status = server.events().park(empty).await.expect_err("it says nothing");
    assert_eq!(fields(&status), ["reason", "target"]);

    // While relays are paused, it can be parked before anybody sends it.
    pause(&server, "for the test").await;
    let parked = emit(&server, &topic, "a").await;
    let behind = emit(&server, &topic, "a").await;
    let free = emit(&server, &topic, "b").await;
    server.events().park(park(&parked)).await.expect("it is parked");
    server.relays().resume(ResumeRequest {}).await.expect("it is answered");

    until(&server, &free, EventState::Published).await;
    until(&server, &parked, EventState::Held).await;
    until(&server, &behind, EventState::Held).await;
    server
        .events()
        .unpark(UnparkRequest { target: of_event(&parked), ..UnparkRequest::default() })
        .await
        .expect("it is held");
    until(&server, &behind, EventState::Published).await;
    until(&server, &parked, EventState::Published).await;
}

/// Pauses, and waits until the relay has taken notice.
pub(crate) async fn pause(server: &Server, reason: &str) {
    server.relays().pause(PauseRequest { reason: reason.into() }).await.expect("it is answered");
    // It looks more often than it renews its lease, and does one thing at a time: between two renewals it has looked.
    let lease =
        async || server.number("select (extract(epoch from max(lease_until)) * 1000)::bigint from outbox.relays").await;
    for _ in 0..2 {
        let before = lease().await;
        eventually("the lease is renewed", PATIENCE, async || (lease().await != before).then_some(())).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_stops_publishing_and_not_commits_and_is_told() {
    let (server, topic) = relaying("pause").await;
    let before = emit(&server, &topic, "a").await;
    until(&server, &before, EventState::Published).await;
    pause(&server, "maintenance of Kafka").await;

    let mut ids = Vec::new();
    for _ in 0..10 {
        ids.push(emit(&server, &topic, "a").await);
    }
    let waited = wait(&server, &ids.iter().collect::<Vec<_>>(), 700).await;
    assert!(waited.events.iter().all(|event| event.state() == EventState::Pending));
    let told = async || {
        let numbers = server.relays().get_relay(GetRelayRequest {}).await.expect("it is answered").into_inner();
        (numbers.unsettled == 10).then_some(numbers)
    };
    let numbers = eventually("the backlog is told", PATIENCE, told).await;
    assert_eq!(numbers.paused.expect("it is paused").reason, "maintenance of Kafka");
    assert!(numbers.unsettled_is_exact && numbers.lag.is_some());
    assert_eq!((numbers.instances.len(), numbers.instances[0].lanes, numbers.lanes.len()), (1, 64, 64));
    assert!(numbers.lanes.iter().all(|lane| lane.owner == numbers.instances[0].id && lane.epoch == 1));
    assert_eq!(numbers.lanes.iter().map(|lane| lane.settled).sum::<i64>(), 1);

    server.relays().resume(ResumeRequest {}).await.expect("it is answered");
    for id in &ids {
        until(&server, id, EventState::Published).await;
    }
    let told = async || {
        let numbers = server.relays().get_relay(GetRelayRequest {}).await.expect("it is answered").into_inner();
        (numbers.unsettled == 0).then_some(numbers)
    };
    let numbers = eventually("nothing is left", PATIENCE, told).await;
    assert!(numbers.paused.is_none() && numbers.lag.is_none());
    assert_eq!(numbers.lanes.iter().map(|lane| lane.settled).sum::<i64>(), 11);
    assert!(numbers.lanes.iter().all(|lane| lane.events_per_second.is_some()));
}
