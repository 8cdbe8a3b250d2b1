//! Failover of the database while the log is streamed: a standby that has the relay's slot is promoted.
//!
//! Postgres keeps logical slots on standbys from version 17 on; the tests' usual one may be older. `deploy/test --only newer`
//! runs this one, or `PG_BIN=…/bin cargo test -p outbox-server --all-features --test it -- --ignored failover`.

use outbox_harness::{cluster::Cluster, eventually, kafka};
use outbox_server::{model::source::Source, relay::Error};
use sqlx::{Connection as _, PgConnection};

use crate::support::{
    cli::outboxd,
    outbox::{Outbox, PATIENCE},
};

/// What the promoted standby's slot gives goes on where the lost primary's ended; events that no relay had published
/// yet are among it.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Postgres 17 or newer, whose programs PG_BIN names"]
async fn the_log_is_streamed_on_from_the_slot_of_a_promoted_standby() {
    let primary = Cluster::start(&[]);
    let standby = primary.standby();
    let topic = kafka::fresh_topic("failover", 1).await;
    let outbox = Outbox::at(primary.url.clone(), topic.clone()).await;
    let relay = outbox.relay();
    outbox.switch(Source::Wal).await;
    let slot = outbox.stream().await.slot.expect("there is one").name;
    let mut beside = PgConnection::connect(&standby.url).await.expect("the standby can be asked");
    let synced = async || {
        // It is kept once the log has moved on.
        outbox.emit_singly(1, 1).await;
        let kept = "select synced and not temporary from pg_replication_slots where slot_name = $1";
        let kept: Option<bool> = sqlx::query_scalar(kept).bind(&slot).fetch_optional(&mut beside).await.expect("seen");
        (kept == Some(true)).then_some(())
    };
    eventually("the standby keeps the slot", PATIENCE, synced).await;
    outbox.emit_singly(50, 5).await;
    outbox.all_settled().await;
    relay.crash().await;
    outbox.emit_singly(50, 5).await;
    let stored = outbox.stored().await;
    let replayed = async || {
        let count = sqlx::query_scalar("select count(*) from outbox.events").fetch_one(&mut beside).await;
        let count: i64 = count.expect("they can be counted");
        (usize::try_from(count) == Ok(stored.len())).then_some(())
    };
    eventually("the standby has every event", PATIENCE, replayed).await;

    primary.crash();
    let promoted = sqlx::query_scalar("select pg_promote(true, 60)").fetch_one(&mut beside).await;
    assert!(promoted.unwrap_or(false), "it is promoted");
    let outbox = Outbox::at(standby.url.clone(), topic).await;
    assert_eq!(outbox.stored().await, stored);
    let refused = outbox.relay().ended().await;
    assert!(matches!(refused, Error::Timeline { .. }), "{refused}");
    outboxd(&outbox.url, &["relay", "adopt"]).await.assert_done(&["relay progress is trusted on timeline 2"]);

    let relay = outbox.relay();
    outbox.emit_singly(50, 5).await;
    outbox.all_settled().await;
    let stream = outbox.stream().await;
    assert_eq!((stream.source, stream.slot.map(|slot| slot.name)), (Source::Wal, Some(slot)));
    outbox.assert_all_published_in_order().await;
    relay.stop().await;
}
