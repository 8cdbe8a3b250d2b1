//! `EventService` about what is held of a whole topic: unparking it, and giving it up.

use outbox_harness::{eventually, kafka};
use outbox_proto::v1::{
    DiscardRequest, EventState, HoldTarget, ParkRequest, ResumeRequest, UnparkRequest, hold_target::Target,
};
use outbox_server::{
    relay::{Relay, publisher::Fault},
    store::held::Changed,
};
use rdkafka::message::Message as _;
use tonic::Code;
use uuid::Uuid;

use crate::{
    held_api::{emit, of_key, pause, relaying, until},
    support::{
        faulty::{Faults, Faulty},
        outbox::{Outbox, PATIENCE, Running, publisher},
        server::{Server, fault, fields},
    },
};

fn of_topic(topic: &str) -> Option<HoldTarget> {
    Some(HoldTarget { target: Some(Target::Topic(topic.to_owned())), ..HoldTarget::default() })
}

fn discard(topic: &str) -> DiscardRequest {
    DiscardRequest { topic: topic.to_owned(), reason: "a wrong batch".into(), ..DiscardRequest::default() }
}

/// Parks keys before the relay reads anything of them, and stores `count` events of each.
async fn park_keys(server: &Server, topic: &str, keys: &[&str], count: usize) -> Vec<(String, Vec<String>)> {
    pause(server, "for the test").await;
    let mut parked = Vec::new();
    for key in keys {
        let park = ParkRequest { target: of_key(topic, key), reason: "its consumer is ill".into() };
        server.events().park(park).await.expect("it is parked");
        let mut ids = Vec::new();
        for _ in 0..count {
            ids.push(emit(server, topic, key).await);
        }
        parked.push(((*key).to_owned(), ids));
    }
    server.relays().resume(ResumeRequest {}).await.expect("it is answered");
    for id in parked.iter().flat_map(|(_, ids)| ids) {
        until(server, id, EventState::Held).await;
    }
    parked
}

/// The ids of a key's records in the order of the log.
async fn published(topic: &str, key: &str) -> Vec<String> {
    let name = topic.to_owned();
    let records = tokio::task::spawn_blocking(move || kafka::read_topic(&name)).await.expect("it can be read");
    let of_key = records.iter().filter(|record| record.key() == Some(key.as_bytes()));
    of_key.filter_map(|record| kafka::header(record, "ce_id")).collect()
}

/// Trap 7: events go on coming while every key of the topic is drained.
#[tokio::test(flavor = "multi_thread")]
async fn unparking_a_topic_publishes_each_of_its_keys_in_order_and_no_other_topics() {
    let (server, topic) = relaying("topics").await;
    let other = kafka::fresh_topic("other", 1).await;
    let mut parked = park_keys(&server, &topic, &["a", "b", "c"], 4).await;
    let elsewhere = park_keys(&server, &other, &["a"], 1).await.remove(0).1;

    let unpark = UnparkRequest { target: of_topic(&topic), reason: "they are well".into() };
    let answer = server.events().unpark(unpark.clone()).await.expect("it is held").into_inner();
    assert!(!answer.more && answer.events <= 12, "{answer:?}");
    for _ in 0..5 {
        for (key, ids) in &mut parked {
            ids.push(emit(&server, &topic, key).await);
        }
    }
    for (key, ids) in &parked {
        for id in ids {
            until(&server, id, EventState::Published).await;
        }
        assert_eq!(published(&topic, key).await, *ids, "key {key}");
    }

    until(&server, &elsewhere[0], EventState::Held).await;
    let gone = async || (server.number("select count(*) from outbox.holds").await == 1).then_some(());
    eventually("the topic's holds are gone", PATIENCE, gone).await;
    let status = server.events().unpark(unpark).await.expect_err("it is not held any more");
    assert_eq!((status.code(), fault(&status).1.as_str()), (Code::NotFound, "NOT_HELD"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_discarded_topic_is_never_published_its_parked_keys_stay_parked_and_others_go_on() {
    let (server, topic) = relaying("given-up").await;
    let other = kafka::fresh_topic("kept", 1).await;
    let parked = park_keys(&server, &topic, &["a", "b"], 3).await;
    let kept = park_keys(&server, &other, &["a"], 1).await.remove(0).1;
    let mut given_up = 0;
    let all = async || match server.events().discard(discard(&topic)).await {
        Ok(answer) => {
            let answer = answer.into_inner();
            given_up += answer.events;
            (!answer.more).then_some(())
        }
        // Until progress has passed them.
        Err(status) => {
            let (code, reason, metadata) = fault(&status);
            assert_eq!((code, reason.as_str(), &metadata["topic"]), (Code::Aborted, "HOLD_DRAINING", &topic));
            None
        }
    };
    eventually("they are given up", PATIENCE, all).await;
    assert_eq!(given_up, 6);

    let of_reason = "select count(*) from outbox.discarded where reason = 'a wrong batch' and data is not null
                     and held_reason = 'its consumer is ill'";
    assert_eq!(server.number(of_reason).await, 6);
    let later = emit(&server, &topic, "a").await;
    until(&server, &later, EventState::Held).await;
    let status = server.events().discard(discard("nothing-of-it")).await.expect_err("nothing is held");
    assert_eq!((status.code(), fault(&status).1.as_str()), (Code::NotFound, "NOT_HELD"));

    server
        .events()
        .unpark(UnparkRequest { target: of_topic(&topic), ..UnparkRequest::default() })
        .await
        .expect("its keys are parked");
    until(&server, &later, EventState::Published).await;
    for (_, ids) in &parked {
        until(&server, &ids[0], EventState::Discarded).await;
    }
    assert_eq!((published(&topic, "a").await, published(&topic, "b").await), (vec![later], Vec::new()));
    until(&server, &kept[0], EventState::Held).await;
}

/// Between two calls nothing of what is to be given up may pass: the event that failed goes last.
#[tokio::test(flavor = "multi_thread")]
async fn a_topic_is_discarded_from_the_end_so_that_nothing_is_published_in_between() {
    let outbox = Outbox::fresh("batches", 1).await;
    let failed = outbox.emit_to(&outbox.topic, Some("key-0"), "first").await;
    outbox.emit(6, 1).await;
    let faults = Faults::default();
    faults.change(|plan| {
        plan.fail.insert(failed, Fault::Record("rejected for the test".into()));
    });
    let publisher = Faulty::new(publisher(), &faults);
    let relay = Running::start(Relay::with_publisher(Outbox::relay_config(), &outbox.database_config(), publisher));
    let held = async |count: usize| (outbox.held().await.len() == count).then_some(());
    eventually("the key is held", PATIENCE, async || held(7).await).await;
    outbox.all_settled().await;
    let discard = async |most| {
        outbox.operator().discard_topic("default", &outbox.topic, "a wrong batch", most).await.expect("it is answered")
    };

    for left in [4, 1] {
        assert_eq!(discard(3).await, Some(Changed { events: 3, more: true }));
        assert_eq!(outbox.held().await.len(), left);
        assert_eq!(outbox.held().await[0], (failed, "failed".to_owned()), "the first stays till the end");
    }
    let ids = outbox.stored().await;
    assert_eq!(outbox.published().await.0.len(), 0, "nothing has passed");
    assert_eq!(discard(3).await, Some(Changed { events: 1, more: false }));
    assert_eq!(discard(3).await, None);

    // The key goes on, with what comes now.
    let later = outbox.emit_to(&outbox.topic, Some("key-0"), "later").await;
    let arrived = async || outbox.published().await.counts().contains_key(&later).then_some(());
    eventually("what came later is published", PATIENCE, arrived).await;
    assert_eq!((ids.len(), outbox.published().await.0.len()), (7, 1));
    relay.stop().await;
}

/// More holds than one statement changes, in every lane.
#[tokio::test(flavor = "multi_thread")]
async fn one_call_unparks_no_more_holds_than_it_may() {
    let outbox = Outbox::fresh("holds", 1).await;
    let park =
        "select count(outbox.park('key', 'default', $1, k, (outbox.slot_of('default', $1, k) % 64)::smallint, null,
                                         0, 'for the test'))
                from (select convert_to('key-' || n, 'UTF8') as k from generate_series(1, 500) n) as keys";
    sqlx::query(park).bind(&outbox.topic).execute(&mut outbox.connect().await).await.expect("keys are parked");
    let parked = async || -> i64 {
        let count = "select count(*) from outbox.holds where parked";
        sqlx::query_scalar(count).fetch_one(&mut outbox.connect().await).await.expect("they can be counted")
    };
    for (most, left) in [(200, 300), (200, 100), (101, 0)] {
        let unparked = outbox.operator().unpark_topic("default", &outbox.topic, None, most).await;
        let unparked = unparked.expect("it is answered");
        assert_eq!(unparked, Some(Changed { events: 0, more: left > 0 }));
        assert_eq!(parked().await, left);
    }
    let missing = outbox.operator().unpark_topic("other", &outbox.topic, None, 200).await.expect("it is answered");
    assert_eq!(missing, None, "another tenant's keys");
}

#[tokio::test]
async fn requests_about_topics_are_checked() {
    let server = Server::start().await;
    let park = ParkRequest { target: of_topic("t"), reason: "for the test".into() };
    let status = server.events().park(park).await.expect_err("a topic cannot be parked");
    assert_eq!(fields(&status), ["target.topic"]);
    let unpark = UnparkRequest { target: of_topic(""), reason: "x".repeat(1_001) };
    let status = server.events().unpark(unpark).await.expect_err("it has no name");
    assert_eq!(fields(&status), ["reason", "target.topic"]);
    let both = DiscardRequest { event_id: Uuid::now_v7().to_string(), ..discard("t") };
    let status = server.events().discard(both).await.expect_err("it names two things");
    assert_eq!(fields(&status), ["topic"]);
    let unsaid = DiscardRequest { reason: String::new(), ..discard("t\0") };
    let status = server.events().discard(unsaid).await.expect_err("it says no reason");
    assert_eq!(fields(&status), ["reason", "topic"]);
    let nothing = DiscardRequest { reason: "for the test".into(), ..DiscardRequest::default() };
    let status = server.events().discard(nothing).await.expect_err("it names nothing");
    assert_eq!(fields(&status), ["event_id"]);
    assert_eq!(server.number("select count(*) from outbox.holds").await, 0);
}
