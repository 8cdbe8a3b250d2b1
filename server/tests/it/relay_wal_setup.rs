//! What `outboxd migrate` makes and checks for the source `wal`: settings, role, publication and slot.

use outbox_harness::{cluster::Cluster, eventually, kafka, postgres::Database};
use outbox_server::model::source::Source;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};

use crate::support::{
    cli::outboxd,
    outbox::{Outbox, PATIENCE},
};

/// The outbox's publications and this database's slots.
async fn made(connection: &mut PgConnection) -> (i64, i64) {
    sqlx::query_as(
        "select (select count(*) from pg_publication where pubname = 'outboxd'),
                (select count(*) from pg_replication_slots where database = current_database())",
    )
    .fetch_one(connection)
    .await
    .expect("they can be counted")
}

async fn slot(outbox: &Outbox) -> String {
    outbox.stream().await.slot.expect("there is one").name
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_whose_source_is_poll_gets_neither_publication_nor_slot() {
    let database = Database::fresh().await;
    let said = outboxd(&database.url, &["migrate"]).await;
    said.assert_done(&["the database is up to date", "the relay's source is `poll`, which needs neither"]);
    assert_eq!(made(&mut database.connect().await).await, (0, 0));
    outboxd(&database.url, &["migrate", "--source", "log"]).await.assert_refused(&["invalid value 'log'"]);
}

/// The slot is there before any relay is: what it does not give is polled, what it gives is streamed.
#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_migrate_makes_loses_and_repeats_nothing() {
    let outbox = Outbox::fresh("made", 1).await;
    outbox.emit(50, 5).await;
    let said = outboxd(&outbox.url, &["migrate", "--source", "wal"]).await;
    said.assert_done(&["the relay's source is `wal`", "the publication outboxd is made"]);
    let name = slot(&outbox).await;
    said.assert_done(&[&format!("the slot {name} is made"), "start a server"]);
    assert_eq!(outbox.stream().await.source, Source::Poll, "nobody has settled what came before it");
    outbox.emit_singly(50, 5).await;
    let said = outboxd(&outbox.url, &["migrate"]).await;
    said.assert_done(&[
        "the publication outboxd is as it has to be",
        &format!("the slot {name} is good"),
        "no relay runs",
    ]);

    let relay = outbox.relay();
    outbox.in_force(Source::Wal).await;
    outbox.emit_singly(50, 5).await;
    outbox.all_settled().await;
    assert_eq!(slot(&outbox).await, name, "it is the one that is streamed from");
    assert_eq!(outbox.assert_all_published_in_order().await, 0, "nothing is repeated");
    let said = outboxd(&outbox.url, &["migrate"]).await;
    said.assert_done(&[&format!("the slot {name} is good")]);
    assert!(!said.out.contains("no relay runs"), "{said:?}");
    relay.stop().await;
}

/// Nobody would stream from it, and the database would keep log for it for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_is_not_wanted_any_more_is_dropped_without_a_relay() {
    let outbox = Outbox::fresh("undone", 1).await;
    outboxd(&outbox.url, &["migrate", "--source", "wal"]).await.assert_done(&["is made"]);
    assert_eq!(made(&mut outbox.connect().await).await, (1, 1));

    outboxd(&outbox.url, &["migrate", "--source", "poll"]).await.assert_done(&["nothing needed are dropped: 1"]);
    assert_eq!(made(&mut outbox.connect().await).await, (1, 0));
    assert!(outbox.stream().await.slot.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wal_level_that_does_not_suffice_is_told_with_the_remedy() {
    let cluster = Cluster::start(&["wal_level=replica"]);
    let outbox = Outbox::at(cluster.url.clone(), kafka::fresh_topic("level", 1).await).await;
    let remedy = ["wal_level is `replica`", "alter system set wal_level = 'logical'", "restart Postgres"];
    outboxd(&outbox.url, &["migrate", "--source", "wal"]).await.assert_refused(&remedy);
    assert_eq!(outbox.stream().await.desired, Source::Poll, "it is not even asked for");
    outbox.desire(Source::Wal).await;
    outboxd(&outbox.url, &["migrate"]).await.assert_refused(&remedy);

    // A relay polls, and says the same.
    let relay = outbox.relay();
    let noted = async || outbox.stream().await.note.is_some_and(|note| note.contains(remedy[1])).then_some(());
    eventually("it is noted", PATIENCE, noted).await;
    outbox.emit(20, 5).await;
    outbox.all_settled().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_may_not_replicate_is_told_with_the_remedy() {
    let cluster = Cluster::start(&[]);
    let mut superuser = PgConnection::connect(&cluster.url).await.expect("the cluster can be reached");
    let role = "create role plain login; grant create on database postgres to plain";
    superuser.execute(role).await.expect("a role can be made");
    let url = cluster.url.replacen("postgres@", "plain@", 1);
    outboxd(&url, &["migrate"]).await.assert_done(&["`poll`"]);

    let said = outboxd(&url, &["migrate", "--source", "wal"]).await;
    said.assert_refused(&["the role plain may not replicate", "`alter role plain replication`"]);
    assert_eq!(made(&mut superuser).await, (0, 0));
    superuser.execute("alter role plain replication").await.expect("it is allowed now");
    let said = outboxd(&url, &["migrate", "--source", "wal"]).await;
    said.assert_done(&["the publication outboxd is made", "is made; the database keeps its log"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_that_somebody_changed_is_put_right_or_told() {
    let outbox = Outbox::fresh("published", 1).await;
    let mut connection = outbox.connect().await;
    connection.execute("create table other (id int primary key)").await.expect("a table");
    outboxd(&outbox.url, &["migrate", "--source", "wal"]).await.assert_done(&["the publication outboxd is made"]);
    let changes = [
        "alter publication outboxd set (publish = 'insert, update')",
        "alter publication outboxd set (publish_via_partition_root = false)",
        "alter publication outboxd add table other",
        "alter publication outboxd set table outbox.events where (lane = 1)",
        "alter publication outboxd drop table outbox.events",
    ];
    for change in changes {
        connection.execute(change).await.expect("it is changed");
        outboxd(&outbox.url, &["migrate"]).await.assert_done(&["was changed by somebody, and is put right"]);
        outboxd(&outbox.url, &["migrate"]).await.assert_done(&["the publication outboxd is as it has to be"]);
    }

    let all = "drop publication outboxd; create publication outboxd for all tables";
    connection.execute(all).await.expect("it is changed");
    let said = outboxd(&outbox.url, &["migrate"]).await;
    said.assert_refused(&["the publication outboxd cannot be made or put right", "after dropping another publication"]);
}

/// Trap 12: under the name that is written down there is something else, or nothing, and no relay runs to repair it.
#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_is_gone_or_of_another_kind_is_told_and_replaced() {
    let outbox = Outbox::fresh("replaced", 1).await;
    let relay = outbox.relay();
    outbox.switch(Source::Wal).await;
    outbox.emit_singly(20, 5).await;
    outbox.all_settled().await;
    relay.stop().await;
    let cases = [
        ("select pg_create_logical_replication_slot($1, 'test_decoding')", "its plugin is test_decoding, not pgoutput"),
        ("select pg_create_physical_replication_slot($1)", "it is a physical slot"),
        ("select pg_create_logical_replication_slot($1, 'pgoutput')", "beyond what is settled"),
        ("select $1", "it is not there any more"),
    ];

    for (make, told) in cases {
        let name = slot(&outbox).await;
        let mut connection = outbox.connect().await;
        let gone = sqlx::query("select pg_drop_replication_slot($1)").bind(&name).execute(&mut connection).await;
        gone.expect("nobody streams from it");
        outbox.emit_singly(20, 5).await;
        sqlx::query(AssertSqlSafe(make)).bind(&name).execute(&mut connection).await.expect("it is made");
        let said = outboxd(&outbox.url, &["migrate"]).await;
        let now = slot(&outbox).await;
        assert_ne!(now, name, "another slot: {said:?}");
        said.assert_done(&[&format!("the slot {name} is lost: "), told, &format!("the slot {now} is made")]);
        let stream = outbox.stream().await;
        assert_eq!(stream.source, Source::Poll);
        assert!(stream.note.as_ref().is_some_and(|note| note.contains(told)), "{:?}", stream.note);
        if told.contains("physical") {
            let drop = sqlx::query("select pg_drop_replication_slot($1)").bind(&name).execute(&mut connection).await;
            drop.expect("somebody else's slot is left alone");
        }

        let relay = outbox.relay();
        outbox.in_force(Source::Wal).await;
        outbox.all_settled().await;
        relay.stop().await;
        assert_eq!(slot(&outbox).await, now);
    }
    outbox.assert_all_published_in_order().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_waits_for_a_writer_for_too_long_is_given_up_and_the_writer_named() {
    let outbox = Outbox::fresh("patience", 1).await;
    let mut writer = outbox.connect().await;
    let mut open = writer.begin().await.expect("a transaction");
    let emit = AssertSqlSafe(format!("select outbox.emit('{}', 'open', '1', 'open')", outbox.topic));
    open.execute(emit).await.expect("an event is stored");
    let backend: i32 = sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut *open).await.expect("it has one");

    let said = outboxd(&outbox.url, &["migrate", "--source", "wal", "--wait-s", "1"]).await;
    said.assert_refused(&["no slot was made within 1 s", "end them and try again"]);
    // Others may be writing, too; five are named, the oldest first.
    assert!(said.err.contains("(backends "), "{backend} is one of them: {said:?}");
    let none = async || (made(&mut outbox.connect().await).await.1 == 0).then_some(());
    eventually("no slot is left", PATIENCE, none).await;

    open.commit().await.expect("it commits");
    outboxd(&outbox.url, &["migrate"]).await.assert_done(&["is made"]);
    let relay = outbox.relay();
    outbox.in_force(Source::Wal).await;
    outbox.all_settled().await;
    assert_eq!(outbox.assert_all_published_in_order().await, 0);
    relay.stop().await;
}
