//! The relay when Kafka or Postgres fail it.

use outbox_harness::{eventually, kafka};
use outbox_server::{
    config,
    relay::{Error, Reason, Relay, Status, publisher::Fault},
};
use rdkafka::message::Message as _;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _};
use uuid::Uuid;

use crate::support::{
    faulty::{Faults, Faulty},
    outbox::{Outbox, PATIENCE, Running, kafka_config, publisher},
};

fn faulty(outbox: &Outbox, faults: &Faults) -> Running {
    let publisher = Faulty::new(publisher(), faults);
    Running::start(Relay::with_publisher(Outbox::relay_config(), &outbox.database_config(), publisher))
}

/// Trap 5, and 7: what is behind the failed record does not pass it either.
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_with_one_failed_record_is_not_acknowledged_past_it() {
    let outbox = Outbox::fresh("failed", 1).await;
    let keys = outbox.keys_in_different_lanes(&outbox.topic, 3).await;
    for n in 0..60 {
        outbox.emit_to(&outbox.topic, Some(&keys[n % 3]), "data").await;
    }
    let stored = outbox.stored().await;
    let (failed, key) = stored[30].clone();
    let faults = Faults::default();
    faults.change(|plan| {
        plan.fail.insert(failed, Fault::Record("rejected for the test".into()));
    });
    let mut relay = faulty(&outbox, &faults);

    let behind: Vec<Uuid> = stored[30..].iter().filter(|(_, k)| *k == key).map(|(id, _)| *id).collect();
    let expected: Vec<_> = behind.iter().map(|id| (*id, if *id == failed { "failed" } else { "behind" })).collect();
    outbox.until_held(&expected).await;
    outbox.all_settled().await;
    let published = outbox.published().await.by_key();
    let before: Vec<Uuid> = stored[..30].iter().filter(|(_, k)| *k == key).map(|(id, _)| *id).collect();
    assert_eq!(published[&key], before, "nothing of the key from the failed event on");
    let published: usize = published.values().map(Vec::len).sum();
    assert_eq!(published, 60 - behind.len(), "the other keys are published");
    relay.until("it says so", |s| s.held == behind.len()).await;
    assert!(relay.status.borrow().is_healthy(), "nothing else waits");
    relay.stop().await;
}

/// A fault of the producer's own holds nothing: everything is sent again, in order.
#[tokio::test(flavor = "multi_thread")]
async fn a_failed_producer_is_made_anew_and_nothing_is_lost() {
    let outbox = Outbox::fresh("producer", 1).await;
    outbox.emit(60, 3).await;
    let failed = outbox.stored().await[30].0;
    let faults = Faults::default();
    faults.change(|plan| {
        plan.fail.insert(failed, Fault::Publisher("fatal for the test".into()));
    });
    let relay = faulty(&outbox, &faults);

    let tried = async || (faults.plan().enqueued.iter().filter(|id| **id == failed).count() > 1).then_some(());
    eventually("it is tried again", PATIENCE, tried).await;
    assert!(outbox.held().await.is_empty(), "it is not the event's fault");
    faults.change(|plan| plan.fail.clear());

    outbox.all_settled().await;
    outbox.assert_all_published_in_order().await;
    relay.stop().await;
}

/// Trap 7, where Kafka does not help: a broker that has nothing of a producer yet takes any sequence number from it, so
/// that a batch right behind a rejected first one would pass.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_behind_a_rejected_first_batch_does_not_pass_it() {
    let outbox = Outbox::fresh("unused", 1).await;
    // Several, for what would pass has to be quicker than the answer to the first.
    let (mut topics, mut large) = (Vec::new(), Vec::new());
    for _ in 0..8 {
        let topic = format!("first-{}", Uuid::now_v7().simple());
        kafka::create_topic(&topic, 1, &[("max.message.bytes", "2000")]).await;
        large.push(outbox.emit_to(&topic, Some("key"), &"x".repeat(3_000)).await);
        for n in 0..20 {
            outbox.emit_to(&topic, Some("key"), &format!("behind it, {n}")).await;
        }
        topics.push(topic);
    }
    // Each record in a batch of its own, several under way at once.
    let mut kafka = kafka_config();
    kafka.properties.insert("batch.num.messages".into(), "1".into());
    kafka.properties.insert("linger.ms".into(), "0".into());
    let relay = Relay::new(Outbox::relay_config(), &kafka, &outbox.database_config()).expect("it can be made");
    let relay = Running::start(relay);

    let held = async || {
        let held = outbox.held().await;
        large.iter().all(|large| held.iter().any(|(id, _)| id == large)).then_some(())
    };
    eventually("the large events are held", PATIENCE, held).await;
    outbox.all_settled().await;
    relay.stop().await;

    let read = move || topics.iter().flat_map(|topic| kafka::read_topic(topic)).collect::<Vec<_>>();
    let records = tokio::task::spawn_blocking(read).await.expect("they can be read");
    let passed: Vec<_> = records.iter().map(|r| String::from_utf8_lossy(r.payload().unwrap_or_default())).collect();
    assert!(passed.is_empty(), "passed the one they follow: {passed:?}");
}

/// Delivery and order rest on these properties: an operator cannot set them, under none of the names that librdkafka knows.
#[test]
fn what_delivery_and_order_rest_on_cannot_be_configured_away() {
    for (name, value) in [
        ("acks", "1"),
        ("request.required.acks", "1"),
        ("topic.acks", "1"),
        ("enable.idempotence", "false"),
        ("enable.gapless.guarantee", "false"),
        ("message.timeout.ms", "1000"),
        ("delivery.timeout.ms", "1000"),
        ("topic.message.timeout.ms", "1000"),
        ("topic.delivery.timeout.ms", "1000"),
        ("message.send.max.retries", "1"),
        ("partitioner", "random"),
        ("topic.partitioner", "random"),
        ("topic.queuing.strategy", "lifo"),
        ("transactional.id", "relay"),
    ] {
        let mut kafka = kafka_config();
        kafka.properties.insert(name.into(), value.into());
        let refused = Relay::new(Outbox::relay_config(), &kafka, &config::Database::default()).err();
        assert!(matches!(&refused, Some(Error::Property { name: told, .. }) if told == name), "{name}: {refused:?}");
    }
}

/// A broker that takes nothing: the window fills, reading stops, commits go on, and all is published once it is back.
#[tokio::test(flavor = "multi_thread")]
async fn while_kafka_takes_nothing_the_window_bounds_what_is_read() {
    let outbox = Outbox::fresh("down", 1).await;
    let faults = Faults::default();
    faults.change(|plan| plan.hold_reports = true);
    let config = config::Relay { in_flight_events_max: 100, ..Outbox::relay_config() };
    let publisher = Faulty::new(publisher(), &faults);
    let relay = Running::start(Relay::with_publisher(config, &outbox.database_config(), publisher));
    for _ in 0..10 {
        outbox.emit(100, 10).await;
    }

    let full = async || (faults.plan().unreported >= 100).then_some(());
    eventually("the window is full", PATIENCE, full).await;
    assert_eq!(outbox.unsettled().await, 1_000);
    faults.change(|plan| plan.hold_reports = false);

    outbox.all_settled().await;
    assert_eq!(outbox.assert_all_published_in_order().await, 0);
    assert_eq!(faults.plan().unreported_most, 100, "never more than the window");
    relay.stop().await;
}

/// Trap 14: the broker is there, and acknowledges nothing: nobody may take this relay for one that gets on.
#[tokio::test(flavor = "multi_thread")]
async fn a_relay_whose_events_are_not_acknowledged_is_told_until_they_are() {
    let outbox = Outbox::fresh("stalled", 1).await;
    let faults = Faults::default();
    faults.change(|plan| plan.hold_reports = true);
    let mut relay = faulty(&outbox, &faults);
    relay.until("it gets on", Status::is_healthy).await;
    outbox.emit(3, 1).await;

    relay.until("it is told", |s| !s.is_healthy()).await;
    let troubles: Vec<_> = relay.status.borrow().troubles().into_iter().map(|trouble| trouble.reason).collect();
    assert_eq!(troubles, [Reason::KafkaStalled]);

    faults.change(|plan| plan.hold_reports = false);
    relay.until("it gets on again", Status::is_healthy).await;
    outbox.all_settled().await;
    assert_eq!(outbox.assert_all_published_in_order().await, 0);
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_cannot_be_reached_is_told_and_holds_nothing() {
    let outbox = Outbox::fresh("unreachable", 1).await;
    outbox.emit(5, 1).await;
    // A port that is taken and never answers.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = silent.local_addr().expect("it has an address").to_string();
    drop(silent);
    let kafka = config::Kafka { bootstrap_servers: address, ..kafka_config() };
    let relay = Relay::new(Outbox::relay_config(), &kafka, &outbox.database_config()).expect("it can be made");
    let mut relay = Running::start(relay);

    relay.until("kafka is said to be unreachable", |s| s.kafka_reachable == Some(false)).await;
    assert!(outbox.held().await.is_empty());
    relay.crash().await;

    let relay = outbox.relay();
    outbox.all_settled().await;
    assert_eq!(outbox.assert_all_published_in_order().await, 0);
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_database_connection_is_made_again_and_nothing_is_lost() {
    let outbox = Outbox::fresh("reconnect", 1).await;
    let relay = outbox.relay();
    let mut connection = outbox.connect().await;
    for round in 0..5 {
        outbox.emit(200, 5).await;
        if round % 2 == 0 {
            let ended = "select count(pg_terminate_backend(pid)) from pg_stat_activity
                         where datname = current_database() and application_name = 'outboxd relay'";
            connection.execute(ended).await.expect("connections can be cut");
        }
    }

    outbox.all_settled().await;
    outbox.assert_all_published_in_order().await;
    relay.stop().await;
}

/// A dump restored into another cluster: its progress is made of transaction ids that mean nothing there.
#[tokio::test(flavor = "multi_thread")]
async fn progress_of_another_cluster_is_not_trusted() {
    let outbox = Outbox::fresh("identity", 1).await;
    outbox.emit(1, 1).await;
    let other = "update outbox.identity set system_identifier = system_identifier + 1";
    outbox.connect().await.execute(other).await.expect("it can be changed");

    let ended = outbox.relay().ended().await;

    assert!(matches!(ended, Error::Identity { .. }), "{ended}");
    assert!(outbox.published().await.0.is_empty());
}

/// The relay needs no more than a plain role with rights on the schema.
#[tokio::test(flavor = "multi_thread")]
async fn a_plain_role_can_relay() {
    let outbox = Outbox::fresh("role", 1).await;
    let role = format!("relay_{}", Uuid::now_v7().simple());
    let mut connection = outbox.connect().await;
    let statements = format!(
        "create role {role} login; grant usage on schema outbox to {role};
         grant select on all tables in schema outbox to {role}; grant select on all sequences in schema outbox to {role};
         grant insert, update, delete on outbox.relays, outbox.holds, outbox.held, outbox.attempts to {role};
         grant update on outbox.progress, outbox.stream to {role}; grant insert on outbox.deliveries to {role}"
    );
    connection.execute(AssertSqlSafe(statements)).await.expect("a role can be made");
    outbox.emit(10, 2).await;
    let url = outbox.url.replacen("postgres@", &format!("{role}@"), 1);
    let database = config::Database { url, ..config::Database::default() };
    let relay = Relay::new(Outbox::relay_config(), &kafka_config(), &database).expect("it can be made");
    let relay = Running::start(relay);

    outbox.all_settled().await;
    relay.stop().await;
    connection.execute(AssertSqlSafe(format!("drop owned by {role}; drop role {role}"))).await.expect("it goes");
    connection.close().await.expect("it closes");
}
