//! Readiness: what of a process works, and what troubles its relay, told by gRPC health, over HTTP and as metrics.

use outbox_harness::{eventually, kafka, postgres::Database};
use outbox_server::{model::source::Source, ops::names, store::relay::stream};
use serde_json::Value;
use sqlx::Executor as _;
use tonic_health::pb::health_check_response::ServingStatus::{self, NotServing, Serving};

use crate::{
    outage::until_health,
    support::{
        outbox::PATIENCE,
        page::{free_address, get},
        request::{commit, event},
        server::Server,
    },
};

/// A server that relays to these brokers, on a database of its own, and where it tells operators how it is.
async fn relaying(bootstrap_servers: String, database: Option<Database>) -> (Server, String) {
    let address = free_address().await;
    let database = match database {
        Some(database) => database,
        None => Database::fresh().await,
    };
    let server = Server::at(database.url.clone(), Some(database.into()), |config| {
        config.relay.enabled = true;
        config.relay.lease_ttl_ms = 1_500;
        config.relay.retained_log_bytes_max = 40 << 20;
        config.kafka.bootstrap_servers = bootstrap_servers;
        config.metrics.listen.clone_from(&address);
    });
    (server.await, address)
}

/// Status and body of a page.
async fn read(address: &str, path: &str) -> (u16, Value) {
    let page = eventually("it is served", PATIENCE, async || get(address, path).await).await;
    let status = page.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("there is a status");
    let (_, body) = page.split_once("\r\n\r\n").expect("there is a body");
    (status, serde_json::from_str(body).expect("it is JSON"))
}

/// Waits for a trouble; returns what is said of it.
async fn until_troubled(address: &str, reason: &str) -> String {
    let told = async || {
        let (_, body) = read(address, "/ready").await;
        let troubles = body["relay"]["troubles"].as_array().cloned().unwrap_or_default();
        let trouble = troubles.into_iter().find(|trouble| trouble["reason"] == reason)?;
        Some(trouble["detail"].as_str().expect("it has a detail").to_owned())
    };
    let detail = eventually(&format!("it is told: {reason}"), PATIENCE, told).await;
    let metrics = get(address, "/metrics").await.expect("metrics are served");
    assert!(metrics.contains(&format!("{}{{reason=\"{reason}\"}} 1", names::TROUBLE)), "{metrics}");
    detail
}

async fn until_relay(server: &Server, statuses: [(&str, ServingStatus); 3]) {
    for (name, status) in statuses {
        until_health(server, name, status).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_gets_on_is_ready_and_what_it_holds_is_told_and_keeps_it_ready() {
    let (server, address) = relaying(kafka::bootstrap_servers(), None).await;
    let well = [("outboxd.relay", Serving), ("outboxd.relay.source", Serving), ("outboxd.relay.holds", Serving)];
    until_relay(&server, well).await;
    until_health(&server, "outbox.v1.InboxService", Serving).await;
    let (status, body) = read(&address, "/ready/relay").await;
    assert_eq!((status, body.to_string().as_str()), (200, r#"{"ready":true,"relay":{"gets_on":true,"troubles":[]}}"#));

    // A name that Commit would refuse, and Kafka does.
    server.pool.execute("select outbox.emit('..', 'test', '1', 'a')").await.expect("the event is stored");
    assert!(until_troubled(&address, "held").await.starts_with("1 events are held"));
    until_relay(&server, [("outboxd.relay.holds", NotServing), well[0], well[1]]).await;
    assert_eq!((read(&address, "/ready").await.0, read(&address, "/ready/relay").await.0), (200, 200));
    assert!(get(&address, "/elsewhere").await.expect("it is answered").starts_with("HTTP/1.1 404"));
}

/// Trap 14: Kafka is down, and commits go on. The log that is kept grows past its budget, and polling takes over.
#[tokio::test(flavor = "multi_thread")]
async fn kafka_down_and_a_source_that_fell_back_are_told_and_the_api_stays_ready() {
    let (server, address) = relaying(free_address().await, None).await;
    until_troubled(&address, "kafka_unreachable").await;
    let kafka_down = [("outboxd.relay", NotServing), ("outboxd.relay.source", Serving), ("", Serving)];
    until_relay(&server, kafka_down).await;
    assert_eq!((read(&address, "/ready").await.0, read(&address, "/ready/relay").await.0), (200, 503));

    let mut connection = server.pool.acquire().await.expect("a connection");
    stream::desire(&mut connection, Source::Wal).await.expect("it can be asked for");
    let in_force =
        async || (stream::read(&mut connection).await.expect("it can be read").source == Source::Wal).then_some(());
    eventually("`wal` is in force", PATIENCE, in_force).await;
    server.outbox().commit(commit(vec![], vec![event("unheard", "a")])).await.expect("commits go on");
    server.pool.execute("create table other (data text)").await.expect("a table");
    server.pool.execute("alter table other alter data set storage external").await.expect("it is not compressed");
    let fill = "insert into other select repeat(md5(n::text), 100) from generate_series(1, 20000) n";
    server.pool.execute(fill).await.expect("rows");

    let detail = until_troubled(&address, "source_not_as_asked").await;
    assert!(detail.contains("relay.retained_log_bytes_max = 41943040"), "{detail}");
    until_relay(&server, [("outboxd.relay.source", NotServing), ("outboxd.relay", NotServing), ("", Serving)]).await;
}

/// A relay that has ended for good.
#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_relay_is_told_with_what_to_do_and_the_api_stays_ready() {
    let database = Database::fresh().await;
    let mut connection = database.connect().await;
    outbox_server::store::migrate::run(&mut connection).await.expect("the schema can be made");
    connection.execute("update outbox.identity set timeline = timeline + 1").await.expect("it is changed");
    let (server, address) = relaying(kafka::bootstrap_servers(), Some(database)).await;

    let detail = until_troubled(&address, "stopped").await;
    assert!(detail.contains("run `outboxd relay adopt`"), "{detail}");
    until_relay(&server, [("outboxd.relay", NotServing), ("outboxd.relay.source", Serving), ("", Serving)]).await;
    assert_eq!((read(&address, "/ready").await.0, read(&address, "/ready/relay").await.0), (200, 503));
    server.outbox().commit(commit(vec![], vec![event("t", "a")])).await.expect("commits go on");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_without_a_relay_is_ready_and_says_that_it_has_none() {
    let address = free_address().await;
    let server = Server::start_with(|config| config.metrics.listen.clone_from(&address)).await;
    until_health(&server, "", Serving).await;
    let (status, body) = read(&address, "/ready").await;
    assert_eq!((status, body.to_string().as_str()), (200, r#"{"ready":true,"relay":null}"#));
    assert_eq!(read(&address, "/ready/relay").await.0, 503);
}
