//! Commits as the log gives them: spilled to disk, with keepalives among their events, and settled in part when the
//! slot is lost.

use outbox_harness::eventually;
use outbox_server::{config, model::source::Source, relay::Relay};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, tcp::OwnedReadHalf, tcp::OwnedWriteHalf},
    sync::watch,
};

use crate::{
    relay_wal_faults::{drop_slot, slot},
    support::{
        faulty::{Faults, faulty},
        outbox::{Outbox, PATIENCE, Running, kafka_config},
    },
};

/// Trap 4: large transactions whose records interleave and whose changes are put aside on disk until they commit.
#[tokio::test(flavor = "multi_thread")]
async fn transactions_that_spill_to_disk_are_streamed_as_they_commit() {
    let outbox = Outbox::fresh("spilled", 1).await;
    let spill = "do $$ begin
                     execute format('alter database %I set logical_decoding_work_mem = ''64kB''', current_database());
                 end $$";
    outbox.connect().await.execute(spill).await.expect("it can be set");
    let relay = outbox.relay();
    outbox.switch(Source::Wal).await;
    let emit = |key: &str, count: usize| {
        AssertSqlSafe(format!(
            "select count(outbox.emit('{}', 'test', to_jsonb(repeat('x', 200) || n), '{key}'))
             from generate_series(1, {count}) n",
            outbox.topic
        ))
    };
    let (mut first, mut second, mut third) = (outbox.connect().await, outbox.connect().await, outbox.connect().await);
    let (mut first, mut second, mut third) =
        (first.begin().await.unwrap(), second.begin().await.unwrap(), third.begin().await.unwrap());
    for n in 0..20 {
        first.execute(emit("first", 50)).await.expect("stored");
        second.execute(emit("second", 50)).await.expect("stored");
        third.execute(emit("third", 50)).await.expect("stored");
        first.execute("savepoint s").await.expect("a savepoint");
        first.execute(emit("first", 50)).await.expect("stored");
        let end = if n % 2 == 0 { "rollback to savepoint s" } else { "release savepoint s" };
        first.execute(end).await.expect("it ends");
    }

    third.rollback().await.expect("rolled back");
    second.commit().await.expect("committed");
    first.commit().await.expect("committed");
    outbox.emit_singly(20, 5).await;
    outbox.all_settled().await;

    let spilled = async || {
        let spilled = "select spill_txns from pg_stat_replication_slots where slot_name = $1";
        let spilled: i64 = sqlx::query_scalar(spilled)
            .bind(slot(&outbox).await)
            .fetch_one(&mut outbox.connect().await)
            .await
            .expect("it is counted");
        (spilled >= 2).then_some(())
    };
    eventually("the transactions were spilled", PATIENCE, spilled).await;
    assert_eq!(outbox.stored().await.len(), 1_000 + 1_500 + 20);
    assert_eq!(outbox.assert_all_published_in_order().await, 0);
    relay.stop().await;
}

/// Trap 4: a keepalive tells the end of the log, which may lie beyond events of the commit that is coming. Postgres
/// sends them when it likes; here each commit has one, behind its first event.
#[tokio::test(flavor = "multi_thread")]
async fn a_keepalive_in_the_middle_of_a_commit_settles_nothing_of_it() {
    let outbox = Outbox::fresh("keepalive", 1).await;
    let (url, mut added) = with_keepalives(&outbox.url).await;
    let database = config::Database { url, ..config::Database::default() };
    let relay = Relay::new(Outbox::relay_config(), &kafka_config(), &database).expect("it can be made");
    let relay = Running::start(relay);
    outbox.switch(Source::Wal).await;

    for _ in 0..10 {
        outbox.emit(30, 5).await;
    }
    tokio::time::timeout(PATIENCE, added.wait_for(|added| *added >= 10)).await.expect("in time").expect("it runs");
    outbox.all_settled().await;

    assert_eq!(outbox.assert_all_published_in_order().await, 0);
    relay.stop().await;
}

/// A URL by which the database is reached through a proxy that adds keepalives, and how many it has added.
async fn with_keepalives(url: &str) -> (String, watch::Receiver<usize>) {
    let (user, rest) = url.split_once('@').expect("a URL with a user");
    let (server, database) = rest.split_once('/').expect("a URL with a database");
    let (server, listener) = (server.to_owned(), TcpListener::bind("127.0.0.1:0").await.expect("a port is free"));
    let url = format!("{user}@{}/{database}?sslmode=disable", listener.local_addr().expect("it has an address"));
    let (told, added) = watch::channel(0);
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let database = TcpStream::connect(&server).await.expect("the database can be reached");
            for socket in [&client, &database] {
                socket.set_nodelay(true).expect("it can be set");
            }
            let ((mut from_client, to_client), (from_database, mut to_database)) =
                (client.into_split(), database.into_split());
            tokio::spawn(async move { tokio::io::copy(&mut from_client, &mut to_database).await });
            tokio::spawn(add_keepalives(from_database, to_client, told.clone()));
        }
    });
    (url, added)
}

/// Forwards the server's messages (PostgreSQL documentation, "Message Formats" and "Streaming Replication Protocol").
async fn add_keepalives(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    added: watch::Sender<usize>,
) -> std::io::Result<()> {
    // Start, end and time come before a change.
    const POSITIONS: usize = 24;
    const BEYOND: u64 = 1 << 20;
    let mut commit = None;
    loop {
        let (kind, length) = (from.read_u8().await?, from.read_u32().await?);
        let mut message = vec![kind];
        message.extend(length.to_be_bytes());
        message.resize(length as usize + 1, 0);
        from.read_exact(&mut message[5..]).await?;
        to.write_all(&message).await?;
        let [b'd', _, _, _, _, b'w', rest @ ..] = message.as_slice() else { continue };
        let (_, change) = rest.split_at(POSITIONS);
        match change[0] {
            b'B' => commit = change[1..].first_chunk().copied().map(u64::from_be_bytes),
            b'I' => {
                let Some(commit) = commit.take() else { continue };
                let mut keepalive = vec![b'd', 0, 0, 0, 22, b'k'];
                keepalive.extend((commit + BEYOND).to_be_bytes());
                // No time, and no answer is asked for.
                keepalive.extend([0; 9]);
                to.write_all(&keepalive).await?;
                added.send_modify(|added| *added += 1);
            }
            _ => {}
        }
    }
}

/// Trap 4: what polling goes on from after the slot was lost passes nothing that was not settled.
#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_passes_only_what_is_settled() {
    let outbox = Outbox::fresh("checkpoint", 1).await;
    // A checkpoint falls due with every half of the window.
    let config = config::Relay { in_flight_events_max: 40, ..Outbox::relay_config() };
    let relay = outbox.relay_with(config.clone());
    outbox.switch(Source::Wal).await;
    relay.stop().await;
    for _ in 0..40 {
        outbox.emit(50, 5).await;
    }
    let faults = Faults::default();
    let relay = faulty(&outbox, &faults, config.clone());
    let under_way = async || (faults.plan().enqueued.len() >= 400).then_some(());
    eventually("it is under way", PATIENCE, under_way).await;
    faults.change(|plan| plan.hold_reports = true);
    relay.crash().await;
    let settled = outbox.stream().await.settled_beyond;
    assert!((1..2_000).contains(&settled), "the crash landed in the middle: {settled} are settled");

    let lost = slot(&outbox).await;
    drop_slot(&outbox, &lost).await;
    let relay = outbox.relay_with(config);
    outbox.all_settled().await;
    outbox.assert_all_published_in_order().await;
    relay.stop().await;
}
