//! The slot in others' hands: held by a former owner, invalidated by the database, and made while somebody is writing.

use outbox_harness::{cluster::Cluster, eventually, kafka};
use outbox_proto::v1::{GetRelayRequest, Source as Told};
use outbox_server::{config, model::source::Source, relay::Reason, store::relay::replication::Stream};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};

use crate::{
    relay_wal::sender,
    relay_wal_faults::slot,
    support::{
        faulty::{Faults, faulty},
        outbox::{Outbox, PATIENCE},
        server::Server,
    },
};

/// Writes 64 MiB of log that the outbox has nothing in.
async fn fill(connection: &mut PgConnection) {
    connection.execute("create table other (data text)").await.expect("a table");
    connection.execute("alter table other alter data set storage external").await.expect("it is not compressed");
    let fill = "insert into other select repeat(md5(n::text), 100) from generate_series(1, 20000) n";
    connection.execute(fill).await.expect("rows");
}

/// Trap 6: the connection of a former owner outlives its lease, and goes on answering the server.
#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_its_former_owner_still_streams_from_is_taken_from_it() {
    let outbox = Outbox::fresh("taken", 1).await;
    let relay = outbox.relay();
    outbox.switch(Source::Wal).await;
    outbox.emit_singly(20, 5).await;
    outbox.all_settled().await;
    relay.crash().await;
    let slot = outbox.stream().await.slot.expect("there is one");
    let held = async || Stream::open(&outbox.url, &slot.name, slot.settled).await.ok();
    let _held = eventually("the former owner's connection streams", PATIENCE, held).await;
    let former = sender(&outbox).await.expect("the slot is in use");

    outbox.emit_singly(20, 5).await;
    let relay = outbox.relay();
    outbox.all_settled().await;

    assert_ne!(sender(&outbox).await, Some(former), "it has changed hands");
    let stream = outbox.stream().await;
    assert_eq!((stream.source, stream.slot.map(|slot| slot.name)), (Source::Wal, Some(slot.name)));
    outbox.assert_all_published_in_order().await;
    relay.stop().await;
}

/// Trap 12: the database has given up the log that the slot needs.
#[tokio::test(flavor = "multi_thread")]
async fn an_invalidated_slot_is_told_and_repaired_from_the_table() {
    let cluster = Cluster::start(&["max_slot_wal_keep_size=16MB"]);
    let outbox = Outbox::at(cluster.url.clone(), kafka::fresh_topic("invalidated", 1).await).await;
    let faults = Faults::default();
    let mut relay = faulty(&outbox, &faults, Outbox::relay_config());
    outbox.switch(Source::Wal).await;
    outbox.emit_singly(20, 5).await;
    outbox.all_settled().await;
    let lost = slot(&outbox).await;
    faults.change(|plan| plan.hold_reports = true);
    outbox.emit_singly(20, 5).await;

    let mut connection = outbox.connect().await;
    fill(&mut connection).await;
    connection.execute("checkpoint").await.expect("what is over its bound is given up");
    let status = "select wal_status from pg_replication_slots where slot_name = $1";
    let status: Option<String> =
        sqlx::query_scalar(status).bind(&lost).fetch_optional(&mut connection).await.expect("slots can be read");
    assert!(status.as_deref().is_none_or(|status| status == "lost"), "{status:?}");

    let note = |note: &String| note.contains(&lost) && note.contains("the log that it needs has been removed");
    relay.until("it is said", |s| s.source_note.as_ref().is_some_and(note)).await;
    let troubles = relay.status.borrow().troubles();
    assert!(troubles.iter().any(|trouble| trouble.reason == Reason::SourceNotAsAsked), "{troubles:?}");
    let server = Server::at(outbox.url.clone(), None, |_| {}).await;
    let told = server.relays().get_relay(GetRelayRequest {}).await.expect("it is answered").into_inner();
    let told = told.source.expect("it is told");
    assert_eq!((told.in_force(), told.desired()), (Told::Poll, Told::Wal));
    assert!(note(&told.note), "{told:?}");

    outbox.emit_singly(20, 5).await;
    faults.change(|plan| plan.hold_reports = false);
    outbox.in_force(Source::Wal).await;
    outbox.emit_singly(20, 5).await;
    outbox.all_settled().await;
    assert_ne!(slot(&outbox).await, lost, "another slot");
    assert_eq!(outbox.stream().await.note, None, "all is as it was asked for");
    assert_eq!(outbox.stored().await.len(), 80);
    outbox.assert_all_published_in_order().await;
    relay.stop().await;
}

/// A slot that waits for a writer keeps the log from its beginning on, and can wait for long.
#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_is_being_made_keeps_no_more_log_than_the_budget() {
    let outbox = Outbox::fresh("making", 1).await;
    let config = config::Relay { retained_log_bytes_max: 40 << 20, ..Outbox::relay_config() };
    let mut relay = outbox.relay_with(config);
    let mut writer = outbox.connect().await;
    let mut writing = writer.begin().await.expect("a transaction");
    let emit = AssertSqlSafe(format!("select outbox.emit('{}', 'held', '1', 'held')", outbox.topic));
    writing.execute(emit).await.expect("an event is stored");
    let mut connection = outbox.connect().await;
    let slots = "select count(*) from pg_replication_slots where database = current_database()";
    let mut count = async |expected: i64| {
        let found: i64 = sqlx::query_scalar(slots).fetch_one(&mut connection).await.expect("a count");
        (found == expected).then_some(())
    };

    outbox.desire(Source::Wal).await;
    eventually("a slot is being made", PATIENCE, async || count(1).await).await;
    fill(&mut outbox.connect().await).await;

    relay.until("it is said", |s| s.source_note.as_ref().is_some_and(|n| n.contains("retained_log_bytes_max"))).await;
    let stream = outbox.stream().await;
    assert_eq!((stream.source, stream.desired, stream.slot.map(drop)), (Source::Poll, Source::Poll, None));
    eventually("the log is let go, although the writer goes on", PATIENCE, async || count(0).await).await;
    let event = outbox.emit_to(&outbox.topic, Some("other"), "1").await;
    let published = async || outbox.published().await.counts().contains_key(&event).then_some(());
    eventually("polling goes on", PATIENCE, published).await;

    writing.commit().await.expect("committed");
    outbox.all_settled().await;
    assert_eq!(outbox.assert_all_published_in_order().await, 0);
    assert!(outbox.stream().await.note.is_some_and(|note| note.contains("retained_log_bytes_max")), "it stays noted");
    relay.stop().await;
}
