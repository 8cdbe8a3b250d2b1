//! The relay on a standby: it says so and waits, and what a promotion makes of it is for an operator to accept.

use outbox_harness::{cluster::Cluster, eventually, kafka};
use outbox_server::{
    config,
    relay::{Error, Relay},
};
use sqlx::{Connection as _, PgConnection};

use crate::{
    relay_cli::Serve,
    support::{
        cli::outboxd,
        outbox::{Outbox, PATIENCE, Running, kafka_config},
    },
};

/// Trap 16: what a standby has may be gone when another is promoted, and progress cannot be written there.
#[tokio::test(flavor = "multi_thread")]
async fn a_relay_on_a_standby_says_so_and_publishes_nothing_until_it_is_promoted_and_adopted() {
    let primary = Cluster::start(&[]);
    let standby = primary.standby();
    let topic = kafka::fresh_topic("standby", 1).await;
    let outbox = Outbox::at(primary.url.clone(), topic.clone()).await;
    outbox.emit(20, 5).await;
    let stored = outbox.stored().await;
    let mut beside = PgConnection::connect(&standby.url).await.expect("the standby can be asked");
    let replayed = async || {
        // The schema may not be there yet.
        let count = sqlx::query_scalar("select count(*) from outbox.events").fetch_one(&mut beside).await;
        count.ok().filter(|count: &i64| usize::try_from(*count) == Ok(stored.len())).map(drop)
    };
    eventually("the standby has every event", PATIENCE, replayed).await;

    outboxd(&standby.url, &["migrate"]).await.assert_refused(&["the database is a standby or in recovery", "primary"]);

    let database = config::Database { url: standby.url.clone(), ..config::Database::default() };
    let relay = Relay::new(Outbox::relay_config(), &kafka_config(), &database).expect("it can be made");
    let mut relay = Running::start(relay);
    let serve = Serve::on(&standby.url);
    let server = serve.process.clone().set("database.migrate_at_start", "false").start();
    serve.process.serving().await;
    for _ in 0..3 {
        tokio::time::timeout(PATIENCE, relay.status.changed()).await.expect("it tries again").expect("it runs");
        let status = relay.status.borrow_and_update().clone();
        let reason = status.last_error.clone().unwrap_or_default();
        assert!(reason.contains("the database is a standby or in recovery"), "{reason}");
        assert!(!status.stopped && !status.is_healthy(), "it waits: {status:?}");
    }
    let told = async || serve.log().contains("the database is a standby or in recovery").then_some(());
    eventually("the server's log says so", PATIENCE, told).await;
    assert!(outbox.published().await.0.is_empty());

    primary.crash();
    let promoted = sqlx::query_scalar("select pg_promote(true, 60)").fetch_one(&mut beside).await;
    assert!(promoted.unwrap_or(false), "it is promoted");
    let ended = relay.ended().await;
    assert!(matches!(ended, Error::Timeline { .. }), "{ended}");
    assert!(outbox.published().await.0.is_empty());
    drop(server);

    outboxd(&standby.url, &["relay", "adopt"]).await.assert_done(&["relay progress is trusted on timeline 2"]);
    let outbox = Outbox::at(standby.url.clone(), topic).await;
    assert_eq!(outbox.stored().await, stored);
    let relay = outbox.relay();
    outbox.emit(20, 5).await;
    outbox.all_settled().await;
    assert_eq!(outbox.assert_all_published_in_order().await, 0);
    relay.stop().await;
}
