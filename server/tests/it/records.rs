//! Records as a plain Kafka client reads them: the format of their topic, and no larger than it takes.

use std::time::Duration;

use outbox_harness::{eventually, kafka};
use outbox_proto::v1::{
    CommitRequest, EventState, JsonTemplate, NewEvent, Reference, WaitPublishedRequest, new_event::Payload,
};
use outbox_server::config::{self, Format};
use rdkafka::message::{Headers as _, Message as _, OwnedMessage};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;
use uuid::Uuid;

use crate::support::{
    outbox::{Outbox, PATIENCE},
    request::{add, commit, event},
    server::{Server, fault, fields},
};

fn header_names(record: &OwnedMessage) -> Vec<&str> {
    let mut names: Vec<&str> = record.headers().map(|h| h.iter().map(|h| h.key).collect()).unwrap_or_default();
    names.sort_unstable();
    names
}

async fn read(topic: &str) -> Vec<OwnedMessage> {
    let topic = topic.to_owned();
    tokio::task::spawn_blocking(move || kafka::read_topic(&topic)).await.expect("it can be read")
}

#[tokio::test(flavor = "multi_thread")]
async fn each_topic_has_its_format_and_tombstones_stay_null() {
    let outbox = Outbox::fresh("binary", 1).await;
    let (structured, raw) = (kafka::fresh_topic("structured", 1).await, kafka::fresh_topic("raw", 1).await);
    let format_by_topic = [(structured.clone(), Format::Structured), (raw.clone(), Format::Raw)].into();
    let relay = outbox.relay_with(config::Relay { format_by_topic, ..Outbox::relay_config() });
    let mut ids = Vec::new();
    for topic in [&outbox.topic, &structured, &raw] {
        let emit = "select outbox.emit($1, 'user.activated', data::jsonb, 'k', '/shop', 'user/7',
                                       headers => '{\"x-tenant\": \"7\"}', traceparent => '00-1')
                    from (values (1, '{\"n\": 1.00}'), (2, null)) as v (n, data) order by n";
        let of_topic: Vec<Uuid> =
            sqlx::query_scalar(emit).bind(topic).fetch_all(&mut outbox.connect().await).await.expect("they are stored");
        ids.push(of_topic);
    }
    outbox.all_settled().await;
    relay.stop().await;

    let attributes = ["ce_id", "ce_source", "ce_specversion", "ce_subject", "ce_time", "ce_type"];
    let with = |names: &[&'static str]| [names, &["traceparent", "x-tenant"]].concat();
    let binary = read(&outbox.topic).await;
    assert_eq!(header_names(&binary[0]), with(&[&attributes[..], &["content-type"]].concat()));
    assert_eq!(binary[0].payload(), Some(br#"{"n": 1.00}"#.as_slice()));
    assert_eq!((header_names(&binary[1]), binary[1].payload()), (with(&attributes), None));

    let structured = read(&structured).await;
    assert_eq!(header_names(&structured[0]), with(&["content-type"]));
    let media_type = kafka::header(&structured[0], "content-type");
    assert_eq!(media_type.as_deref(), Some("application/cloudevents+json; charset=UTF-8"));
    let value = String::from_utf8(structured[0].payload().expect("a value").to_vec()).expect("text");
    assert!(value.ends_with(r#""datacontenttype":"application/json","data":{"n": 1.00}}"#), "{value}");
    let value: serde_json::Value = serde_json::from_str(&value).expect("it is JSON");
    assert_eq!(value["id"], ids[1][0].to_string());
    assert_eq!((&value["specversion"], &value["source"]), (&"1.0".into(), &"/shop".into()));
    assert_eq!((&value["type"], &value["subject"]), (&"user.activated".into(), &"user/7".into()));
    assert_eq!((header_names(&structured[1]), structured[1].payload()), (with(&attributes), None), "it stays binary");
    assert_eq!(kafka::header(&structured[1], "ce_id"), Some(ids[1][1].to_string()));

    let raw = read(&raw).await;
    assert_eq!(
        (header_names(&raw[0]), raw[0].payload()),
        (with(&["content-type"]), Some(br#"{"n": 1.00}"#.as_slice()))
    );
    assert_eq!((header_names(&raw[1]), raw[1].payload()), (with(&[]), None));
    for records in [binary, structured, raw] {
        assert!(records.iter().all(|record| record.key() == Some(b"k")), "the key is always the record's");
    }
}

/// Its key is one byte of it. What is held of a key keeps later events of it back, so that each has one of its own.
fn of_size(topic: &str, key: &str, bytes: usize) -> CommitRequest {
    let payload = Some(Payload::Data(vec![b'x'; bytes - 1].into()));
    commit(vec![], vec![NewEvent { payload, ..event(topic, key) }])
}

/// The most bytes of key and payload for which a commit finds room in a topic, once its limit is known.
async fn room(server: &Server, topic: &str) -> usize {
    let refused = async || server.outbox().commit(of_size(topic, "u", 9_000)).await.err();
    let refused: Status = eventually("the limit is learned", PATIENCE, refused).await;
    assert_eq!((refused.code(), fields(&refused)), (Code::InvalidArgument, vec!["events[0].data".to_owned()]));
    let violations = refused.get_details_bad_request().expect("details").field_violations;
    let description = &violations[0].description;
    assert!(description.contains("takes at most 4096"), "{description}");
    let (mut fits, mut is_too_large) = (2_usize, 9_000);
    while is_too_large - fits > 1 {
        let middle = fits.midpoint(is_too_large);
        let dry = CommitRequest { validate_only: true, ..of_size(topic, "k", middle) };
        match server.outbox().commit(dry).await {
            Ok(_) => fits = middle,
            Err(_) => is_too_large = middle,
        }
    }
    fits
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_its_topic_would_not_take_is_refused_once_the_limit_is_learned() {
    let topics: Vec<String> =
        ["binary", "structured"].iter().map(|format| format!("small-{format}-{}", Uuid::now_v7().simple())).collect();
    for topic in &topics {
        kafka::create_topic(topic, 1, &[("max.message.bytes", "4096")]).await;
    }
    let large = kafka::fresh_topic("large", 1).await;
    let server = Server::start_with(|config| {
        config.relay.enabled = true;
        config.relay.format_by_topic.insert(topics[1].clone(), Format::Structured);
        config.kafka.bootstrap_servers = kafka::bootstrap_servers();
        config.kafka.properties.insert("compression.type".into(), "none".into());
    })
    .await;
    server.outbox().commit(of_size(&large, "k", 9_000)).await.expect("there is room");
    for topic in &topics {
        let room = room(&server, topic).await;
        let mut stored = server.outbox().commit(of_size(topic, "k", room)).await.expect("it fits").into_inner();
        let wait = WaitPublishedRequest {
            ids: vec![stored.event_ids.remove(0)],
            timeout: Some(prost_types::Duration { seconds: 20, nanos: 0 }),
            ..WaitPublishedRequest::default()
        };
        let waited = server.events().wait_published(wait).await.expect("it is answered").into_inner();
        assert_eq!(waited.events[0].state(), EventState::Published, "what fits is taken: {waited:?}");
        server.outbox().commit(of_size(topic, "k", room + 1)).await.expect_err("one byte more does not");
    }

    let reference = Reference { operation: 0, column: "balance".into(), row: 0 };
    let template = format!(r#"{{"balance": 0, "text": "{}"}}"#, "x".repeat(5_000));
    let json = JsonTemplate { template, values: [("/balance".to_owned(), reference)].into() };
    let linked = NewEvent { payload: Some(Payload::Json(json)), ..event(&topics[0], "k") };
    let refused = server.outbox().commit(commit(vec![add("a1", 1)], vec![linked])).await.expect_err("it is too large");
    assert_eq!(fault(&refused).1, "REFERENCE_FAILED");
    assert_eq!(server.balance("a1").await, 100, "nothing was written");
    server.outbox().commit(of_size(&large, "k", 9_000)).await.expect("another topic has its own limit");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_known_of_a_topic_refuses_nothing() {
    let server = Server::start_with(|config| {
        config.relay.enabled = true;
        config.kafka.bootstrap_servers = "127.0.0.1:1".into();
    })
    .await;
    let started = std::time::Instant::now();
    for _ in 0..3 {
        server.outbox().commit(of_size("t", "k", 9_000)).await.expect("it is stored");
    }
    assert!(started.elapsed() < Duration::from_secs(20), "nobody waits for Kafka");
}
