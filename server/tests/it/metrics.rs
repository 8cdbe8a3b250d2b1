//! Numbers for operators: `GetRelay`, the Prometheus endpoint and `outboxd relay status`.

use chrono::Utc;
use outbox_harness::{eventually, kafka};
use outbox_proto::v1::{GetRelayRequest, Source};
use outbox_server::{config, model, ops::names, store::relay::stream};
use sqlx::Executor as _;
use uuid::Uuid;

use crate::support::{
    cli::outboxd,
    faulty::{Faults, faulty},
    outbox::{Outbox, PATIENCE},
    page,
    request::{commit, event},
    server::Server,
};

async fn get(address: &str) -> Option<String> {
    page::get(address, "/metrics").await
}

fn value(page: &str, name: &str) -> Option<f64> {
    page.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}

/// A claim that is held, two that are not any more, and a completed one.
const CLAIMS: &str = "
    select outbox.claim_event('default', 'mailer', '/shop', gen_random_uuid(), null, null, gen_random_uuid(),
                              lease, interval '1 day')
    from unnest(array[interval '1 day', interval '0', interval '0']) as lease;
    insert into outbox.claims (consumer, event_id, event_time, token, attempts, leased_until, completed_at, result)
    select 1, gen_random_uuid(), now(), gen_random_uuid(), 1, now(), now(), '';
    analyze outbox.claims";

/// A server that relays, and the address of its metrics.
async fn relaying() -> (Server, String) {
    let address = page::free_address().await;
    let server = Server::start_with(|config| {
        config.relay.enabled = true;
        config.relay.lease_ttl_ms = 1_500;
        config.kafka.bootstrap_servers = kafka::bootstrap_servers();
        config.metrics.listen.clone_from(&address);
    })
    .await;
    (server, address)
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_tell_of_the_backlog_and_of_what_is_held() {
    let (server, address) = relaying().await;
    let topic = kafka::fresh_topic("metrics", 1).await;
    server.outbox().commit(commit(vec![], vec![event(&topic, "a")])).await.expect("it is committed");
    // A name that Commit would refuse, and Kafka does.
    let refused = "select outbox.emit('..', 'test', '1', 'a'), outbox.emit('..', 'test', '1', 'b')";
    server.pool.execute(refused).await.expect("the events are stored");

    server.pool.execute(CLAIMS).await.expect("there are claims");

    let held = format!("{}{{state=\"failed\"}}", names::HELD_EVENTS);
    let told = async || {
        let page = get(&address).await?;
        let done = value(&page, &held) == Some(2.0) && value(&page, names::UNSETTLED_EVENTS) == Some(0.0);
        done.then_some(page)
    };
    let page = eventually("two events are held and none is unsettled", PATIENCE, told).await;

    assert!(page.starts_with("HTTP/1.1 200"), "{page}");
    assert_eq!(value(&page, names::LAG_SECONDS), Some(0.0));
    assert_eq!(value(&page, names::LANES_OWNED), Some(64.0));
    assert_eq!(value(&page, names::PAUSED), Some(0.0));
    let owner = page.lines().find(|line| line.starts_with(&format!("{}{{instance=", names::INSTANCE_LANES)));
    assert!(owner.is_some_and(|line| line.contains("host=") && line.ends_with(" 64.0")), "{page}");
    assert!(value(&page, names::SOURCE_EPOCH).is_some(), "{page}");
    for (state, claims) in [("leased", 1.0), ("run_out", 2.0)] {
        assert_eq!(value(&page, &format!("{}{{state=\"{state}\"}}", names::OPEN_CLAIMS)), Some(claims), "{page}");
    }
    assert_eq!(value(&page, names::CLAIMS), Some(4.0), "{page}");
    assert_eq!(value(&page, names::MARKS), Some(0.0));
    assert_eq!(value(&page, names::RETAINED_LOG_BYTES), None, "there is no slot");
    let settled: f64 = page
        .lines()
        .filter(|line| line.starts_with(&format!("{}_total{{", names::LANE_SETTLED_EVENTS)))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum();
    assert_eq!(settled, 3.0);
    // Trap 14: labels have few values.
    assert!(!page.contains("event_id") && !page.contains("key="), "{page}");
    assert!(page.lines().count() < 400, "{} lines", page.lines().count());
}

/// With `wal` the lanes' progress is written with checkpoints only; what is settled in between waits for nothing.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_settled_between_two_checkpoints_is_not_counted() {
    let outbox = Outbox::fresh("beyond", 1).await;
    // A checkpoint every twelve seconds: longer than it takes to ask the command line.
    let relay = outbox.relay_with(config::Relay { lease_ttl_ms: 36_000, ..Outbox::relay_config() });
    outbox.switch(model::source::Source::Wal).await;

    let mut emitted = 0;
    let between = async || {
        outbox.emit_singly(7, 7).await;
        emitted += 7;
        let published = async || (outbox.published().await.0.len() == emitted).then_some(());
        eventually("they are published", PATIENCE, published).await;
        // What Kafka has acknowledged is settled a moment later.
        let counted = async || Some(status(&outbox.url).await["unsettled"].clone()).filter(|told| told["events"] == 0);
        let told = eventually("none counts as unsettled", PATIENCE, counted).await;
        // Otherwise a checkpoint came just now, and there was nothing to tell apart.
        (outbox.unsettled().await > 0).then_some(told)
    };
    let told = eventually("events are settled beyond the last checkpoint", PATIENCE, between).await;

    assert_eq!((&told["lag_ms"], &told["is_exact"]), (&serde_json::Value::Null, &true.into()));
    let unsettled = async || status(&outbox.url).await["unsettled"]["events"].clone();

    // The next session knows what the one before had settled.
    relay.crash().await;
    assert_eq!(unsettled().await, 0);
    let mut relay = outbox.relay_with(config::Relay { lease_ttl_ms: 36_000, ..Outbox::relay_config() });
    outbox.emit_singly(7, 7).await;
    eventually("none counts as unsettled", PATIENCE, async || (unsettled().await == 0).then_some(())).await;

    // What is beyond the last checkpoint is nobody's once the slot is lost.
    relay.crash().await;
    let drop = "select pg_terminate_backend(active_pid) from pg_replication_slots where active and database = current_database();
                select pg_drop_replication_slot(slot_name) from pg_replication_slots where database = current_database()";
    let dropped = async || outbox.connect().await.execute(drop).await.is_ok().then_some(());
    eventually("the slot is dropped", PATIENCE, dropped).await;
    relay = outbox.relay();
    outbox.all_settled().await;
    relay.stop().await;
    outbox.emit_singly(7, 7).await;
    assert_eq!(unsettled().await, 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_source_in_force_its_slot_and_the_log_kept_for_it_are_told_everywhere() {
    let (server, address) = relaying().await;
    let relay = async || server.relays().get_relay(GetRelayRequest {}).await.expect("it is answered").into_inner();
    let source = relay().await.source.expect("it is told");
    assert_eq!((source.in_force(), source.desired(), source.slot.as_str()), (Source::Poll, Source::Poll, ""));
    assert_eq!(source.retained_log_bytes, None, "there is no slot");

    let mut connection = server.pool.acquire().await.expect("the database can be reached");
    stream::desire(&mut connection, model::source::Source::Wal).await.expect("it can be asked for");
    let switched = async || {
        let relay = relay().await;
        let source = relay.source.expect("it is told");
        (source.in_force() == Source::Wal).then_some((relay.instances, source))
    };
    let (instances, source) = eventually("`wal` is in force", PATIENCE, switched).await;

    let stored = stream::read(&mut connection).await.expect("it can be read");
    assert_eq!(source.desired(), Source::Wal);
    assert_eq!(source.slot, stored.slot.expect("there is one").name);
    assert_eq!(source.owner, instances[0].id, "the one relay directs");
    assert!(source.epoch > 0, "{source:?}");
    assert_eq!(source.note, "");
    assert!(source.retained_log_bytes.is_some_and(|bytes| bytes > 0), "{source:?}");
    let budget = config::Relay::default().retained_log_bytes_max;
    assert_eq!(source.retained_log_bytes_max, budget.try_into().ok());

    let json = &status(&server.url).await["source"];
    assert_eq!((&json["in_force"], &json["desired"]), (&"wal".into(), &"wal".into()));
    assert_eq!(json["slot"], source.slot);
    assert!(json["retained_log_bytes"].as_i64().is_some_and(|bytes| bytes > 0), "{json}");
    let text = run_status(&server.url, &[]).await;
    let directed = format!("source     wal; directed by {}, epoch ", source.owner);
    assert!(text.contains(&directed) && text.contains(&format!("slot       {}, ", source.slot)), "{text}");

    let page = get(&address).await.expect("metrics are served");
    for name in [names::SOURCE_IN_FORCE, names::SOURCE_DESIRED] {
        assert_eq!(value(&page, &format!("{name}{{source=\"wal\"}}")), Some(1.0));
        assert_eq!(value(&page, &format!("{name}{{source=\"poll\"}}")), Some(0.0));
    }
    assert_eq!(value(&page, names::SOURCE_HAS_NOTE), Some(0.0));
    assert!(value(&page, names::RETAINED_LOG_BYTES).is_some_and(|bytes| bytes > 0.0), "{page}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_backlog_is_exact_to_ten_thousand_and_an_estimate_beyond() {
    let outbox = Outbox::fresh("backlog", 1).await;
    outbox.emit(10_000, 100).await;
    let numbers = status(&outbox.url).await;
    assert_eq!((&numbers["unsettled"]["events"], &numbers["unsettled"]["is_exact"]), (&10_000.into(), &true.into()));
    let lag = numbers["unsettled"]["lag_ms"].as_i64().expect("there is a backlog");
    assert!((0..120_000).contains(&lag), "{lag}");
    assert_eq!(numbers["lanes"].as_array().map(Vec::len), Some(64));

    outbox.emit(5_000, 100).await;
    let numbers = status(&outbox.url).await;
    assert_eq!(numbers["unsettled"]["is_exact"], false);
    let estimate = numbers["unsettled"]["events"].as_i64().expect("a number");
    assert!((14_000..16_000).contains(&estimate), "{estimate}");
}

/// Held against what a look at every event says.
#[tokio::test(flavor = "multi_thread")]
async fn the_lag_is_the_age_of_the_oldest_event_that_is_not_settled() {
    let outbox = Outbox::fresh("age", 1).await;
    outbox.emit(300, 10).await;
    // By its id a minute older than what was stored around it.
    let minute_ago = u64::try_from(Utc::now().timestamp()).expect("it is after 1970") - 60;
    let stuck = Uuid::new_v7(uuid::Timestamp::from_unix(uuid::NoContext, minute_ago, 0));
    let emit = "select outbox.emit($1, 'test', '1', 'key-0', id => $2)";
    let emit = sqlx::query(emit).bind(&outbox.topic).bind(stuck).execute(&mut outbox.connect().await).await;
    emit.expect("it is stored");
    outbox.emit(300, 10).await;
    let faults = Faults::default();
    faults.change(|plan| plan.swallow.extend([stuck]));
    let config = config::Relay { in_flight_events_max: 400, ..Outbox::relay_config() };
    let relay = faulty(&outbox, &faults, config);
    // Pages of 100.
    let left = async || (outbox.unsettled().await == 301).then_some(());
    eventually("what is before the stuck one is settled", PATIENCE, left).await;

    let oldest = async || -> i64 {
        let oldest = "select min(('x' || substr(replace(id::text, '-', ''), 1, 12))::bit(48)::bigint)
                      from outbox.events e where not outbox.is_settled(e)";
        sqlx::query_scalar(oldest).fetch_one(&mut outbox.connect().await).await.expect("there is one")
    };
    let (known, before) = (oldest().await, Utc::now().timestamp_millis());
    let numbers = status(&outbox.url).await;
    let after = Utc::now().timestamp_millis();
    assert_eq!(oldest().await, known, "nothing has moved");
    let lag = numbers["unsettled"]["lag_ms"].as_i64().expect("there is a backlog");
    assert!((before - known..=after - known).contains(&lag), "{lag}, of {known} between {before} and {after}");
    relay.crash().await;

    let relay = outbox.relay();
    outbox.all_settled().await;
    assert_eq!(status(&outbox.url).await["unsettled"]["lag_ms"], serde_json::Value::Null);
    relay.stop().await;
}

/// What `outboxd relay status --output json` prints.
async fn status(url: &str) -> serde_json::Value {
    serde_json::from_str(&run_status(url, &["--output", "json"]).await).expect("it prints JSON")
}

async fn run_status(url: &str, more: &[&str]) -> String {
    let said = outboxd(url, &[&["relay", "status"], more].concat()).await;
    said.assert_done(&[]);
    said.out
}

/// A transaction that commits late lies below every bound on positions.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_commits_late_counts_as_unsettled() {
    let outbox = Outbox::fresh("late", 1).await;
    let relay = outbox.relay();
    let mut late = outbox.connect().await;
    let mut transaction = sqlx::Connection::begin(&mut late).await.expect("it begins");
    sqlx::query("select outbox.emit($1, 'test', '1', 'late')")
        .bind(&outbox.topic)
        .execute(&mut *transaction)
        .await
        .expect("the event is stored");
    for _ in 0..3 {
        outbox.emit(50, 5).await;
        outbox.all_settled().await;
    }
    relay.stop().await;
    transaction.commit().await.expect("it commits");

    assert_eq!(status(&outbox.url).await["unsettled"]["events"], 1);
    let relay = outbox.relay();
    outbox.all_settled().await;
    assert_eq!(status(&outbox.url).await["unsettled"]["events"], 0);
    relay.stop().await;
}
