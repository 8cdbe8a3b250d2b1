//! The relay on the write-ahead log when its slot, its connection, its process or Kafka fail it.

use std::time::Duration;

use outbox_harness::eventually;
use outbox_proto::v1::{GetRelayRequest, Source as Told};
use outbox_server::{
    config,
    model::{
        log::{LogPosition, Lsn},
        snapshot::Snapshot,
        source::Source,
    },
    relay::{Error, Relay},
    store::relay::{lease, stream},
};
use sqlx::Executor as _;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    relay_wal::sender,
    support::{
        faulty::{Faults, Faulty},
        outbox::{Outbox, PATIENCE, Running, publisher},
        server::Server,
    },
};

pub(crate) async fn slot(outbox: &Outbox) -> String {
    outbox.stream().await.slot.expect("there is one").name
}

/// Ends whoever streams from the slot and drops it, as an operator might by mistake.
pub(crate) async fn drop_slot(outbox: &Outbox, name: &str) {
    let mut connection = outbox.connect().await;
    eventually("the slot can be dropped", PATIENCE, async || {
        let statement =
            "select pg_terminate_backend(active_pid) from pg_replication_slots where slot_name = $1 and active";
        sqlx::query(statement).bind(name).execute(&mut connection).await.expect("it can be ended");
        let dropped = sqlx::query("select pg_drop_replication_slot($1)").bind(name).execute(&mut connection).await;
        dropped.is_ok().then_some(())
    })
    .await;
}

/// Trap 12.
#[tokio::test(flavor = "multi_thread")]
async fn a_slot_dropped_in_mid_run_is_repaired_from_the_table() {
    let outbox = Outbox::fresh("dropped", 1).await;
    let mut relay = outbox.relay();
    outbox.switch(Source::Wal).await;
    outbox.emit_singly(50, 5).await;
    outbox.all_settled().await;
    let lost = slot(&outbox).await;

    drop_slot(&outbox, &lost).await;
    outbox.emit_singly(50, 5).await;
    relay.until("it is said", |s| s.source_note.as_ref().is_some_and(|note| note.contains("is lost"))).await;
    outbox.in_force(Source::Wal).await;
    outbox.emit_singly(50, 5).await;
    outbox.all_settled().await;

    assert_ne!(slot(&outbox).await, lost, "another slot");
    assert_eq!(outbox.stream().await.note, None, "all is as it was asked for");
    outbox.assert_all_published_in_order().await;
    relay.stop().await;
}

/// What was asked for is not in force again until another slot is: whoever looks must find out why.
#[tokio::test(flavor = "multi_thread")]
async fn a_slot_lost_before_it_is_streamed_from_stays_noted_until_another_is() {
    let outbox = Outbox::fresh("early", 1).await;
    let faults = Faults::default();
    faults.change(|plan| plan.hold_reports = true);
    let publisher = Faulty::new(publisher(), &faults);
    let relay = Running::start(Relay::with_publisher(Outbox::relay_config(), &outbox.database_config(), publisher));
    outbox.emit(20, 5).await;
    outbox.desire(Source::Wal).await;
    let made = async |but: &str| outbox.stream().await.slot.map(|slot| slot.name).filter(|name| name != but);
    let lost = eventually("a slot is made", PATIENCE, async || made("").await).await;

    drop_slot(&outbox, &lost).await;
    eventually("another slot is made", PATIENCE, async || made(&lost).await).await;
    outbox.desire(Source::Wal).await;
    let stream = outbox.stream().await;
    assert_eq!(stream.source, Source::Poll, "nothing is settled yet");
    assert!(stream.note.as_ref().is_some_and(|note| note.contains(&lost)), "{:?}", stream.note);

    faults.change(|plan| plan.hold_reports = false);
    outbox.in_force(Source::Wal).await;
    assert_eq!(outbox.stream().await.note, None, "all is as it was asked for");
    outbox.all_settled().await;
    outbox.assert_all_published_in_order().await;
    relay.stop().await;
}

/// Trap 12: a slot of the same name that does not go back to what is settled skips silently.
#[tokio::test(flavor = "multi_thread")]
async fn a_slot_made_anew_by_somebody_else_is_not_trusted() {
    let outbox = Outbox::fresh("anew", 1).await;
    let relay = outbox.relay();
    outbox.switch(Source::Wal).await;
    outbox.emit_singly(20, 5).await;
    outbox.all_settled().await;
    relay.stop().await;
    let name = slot(&outbox).await;
    drop_slot(&outbox, &name).await;
    outbox.emit_singly(20, 5).await;
    let make = sqlx::query("select pg_create_logical_replication_slot($1, 'pgoutput')").bind(&name);
    make.execute(&mut outbox.connect().await).await.expect("a slot of the same name");

    let relay = outbox.relay();
    outbox.all_settled().await;
    outbox.in_force(Source::Wal).await;
    assert_ne!(slot(&outbox).await, name, "another slot");
    outbox.assert_all_published_in_order().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_connection_is_made_again() {
    let outbox = Outbox::fresh("reconnect", 1).await;
    let relay = outbox.relay();
    outbox.switch(Source::Wal).await;
    for _ in 0..3 {
        outbox.emit_singly(20, 5).await;
        outbox.all_settled().await;
        let pid = eventually("it streams", PATIENCE, async || sender(&outbox).await).await;
        sqlx::query("select pg_terminate_backend($1)").bind(pid).execute(&mut outbox.connect().await).await.unwrap();
        outbox.emit_singly(20, 5).await;
        let again = async || sender(&outbox).await.filter(|now| *now != pid);
        eventually("it streams again", PATIENCE, again).await;
    }
    outbox.all_settled().await;

    outbox.assert_all_published_in_order().await;
    relay.stop().await;
}

/// Trap 6: the next relay waits for the lease, then ends whoever still holds the slot.
#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_crashes_is_followed_by_another_that_stood_by() {
    let outbox = Outbox::fresh("follow", 1).await;
    let first = outbox.relay();
    outbox.switch(Source::Wal).await;
    let second = outbox.relay();
    outbox.emit_singly(50, 5).await;
    outbox.all_settled().await;

    first.crash().await;
    outbox.emit_singly(50, 5).await;
    outbox.all_settled().await;

    assert_eq!(outbox.stream().await.source, Source::Wal);
    outbox.assert_all_published_in_order().await;
    second.stop().await;
}

/// Trap 6: the owner of the stream stands still, with the slot in its hands. Another takes over, slot and all; when the
/// first wakes, it publishes nothing more and moves nothing.
#[test]
fn a_paused_owner_of_the_stream_loses_the_slot_and_moves_nothing_when_it_wakes() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime can be made");
    runtime.block_on(async {
        let outbox = Outbox::fresh("slept", 1).await;
        let faults = Faults::default();
        let publisher = Faulty::new(publisher(), &faults);
        let paused = Relay::with_publisher(Outbox::relay_config(), &outbox.database_config(), publisher);
        let mut status = paused.status();
        // A runtime of one thread, which the pause stops whole: no lease is renewed. Its streaming task stops, too.
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                tokio::select! {
                    _ = paused.run(CancellationToken::new(), PATIENCE) => {}
                    _ = stopped => {}
                }
            });
        });
        outbox.switch(Source::Wal).await;
        let first = eventually("it streams", PATIENCE, async || sender(&outbox).await).await;
        let before = Uuid::now_v7();
        faults.change(|plan| plan.pause_before = Some(before));
        outbox.emit_singly(50, 1).await;
        let emit =
            sqlx::query("select outbox.emit($1, 'test', '1', 'key-0', id => $2)").bind(&outbox.topic).bind(before);
        emit.execute(&mut outbox.connect().await).await.expect("an event is stored");
        outbox.emit_singly(50, 1).await;
        eventually("it is paused", PATIENCE, async || faults.plan().paused.then_some(())).await;
        status.borrow_and_update();

        let second = outbox.relay();
        outbox.all_settled().await;
        assert_ne!(sender(&outbox).await, Some(first), "the slot has changed hands");
        let settled = outbox.stream().await;
        faults.change(|plan| plan.pause_before = None);

        status.wait_for(|s| s.last_error.is_some()).await.expect("it finds that its lease has run out");
        let handed_over = faults.plan().enqueued.clone();
        let after = handed_over.iter().skip_while(|id| **id != before).skip(1).count();
        assert_eq!(after, 0, "events were handed over after the pause");
        let now = outbox.stream().await;
        assert_eq!((now.epoch, now.owner), (settled.epoch, settled.owner), "the direction is the other's");
        outbox.assert_all_published_in_order().await;

        second.stop().await;
        let _ = stop.send(());
        thread.join().expect("it does not panic");
    });
}

/// Kafka takes nothing, and the log that is kept for the relay grows past its budget.
#[tokio::test(flavor = "multi_thread")]
async fn past_the_budget_of_retained_log_the_relay_goes_back_to_poll_and_says_so() {
    let outbox = Outbox::fresh("budget", 1).await;
    let faults = Faults::default();
    let config = config::Relay { retained_log_bytes_max: 40 << 20, ..Outbox::relay_config() };
    let relay = Relay::with_publisher(config, &outbox.database_config(), Faulty::new(publisher(), &faults));
    let mut relay = Running::start(relay);
    outbox.switch(Source::Wal).await;
    outbox.emit_singly(20, 5).await;
    outbox.all_settled().await;
    faults.change(|plan| plan.hold_reports = true);
    outbox.emit_singly(20, 5).await;

    let mut connection = outbox.connect().await;
    connection.execute("create table other (data text)").await.expect("a table");
    connection.execute("alter table other alter data set storage external").await.expect("it is not compressed");
    let fill = "insert into other select repeat(md5(n::text), 100) from generate_series(1, 20000) n";
    connection.execute(fill).await.expect("rows");
    relay.until("it is said", |s| s.source_note.as_ref().is_some_and(|n| n.contains("retained_log_bytes_max"))).await;
    assert_eq!((outbox.stream().await.source, outbox.stream().await.desired), (Source::Poll, Source::Poll));
    let slots = "select count(*) from pg_replication_slots where database = current_database()";
    let none = async || {
        let slots: i64 = sqlx::query_scalar(slots).fetch_one(&mut outbox.connect().await).await.expect("a count");
        (slots == 0).then_some(())
    };
    eventually("the log is let go", PATIENCE, none).await;
    // A server without a relay of its own tells it, too.
    let server = Server::at(outbox.url.clone(), None, |_| {}).await;
    let told = server.relays().get_relay(GetRelayRequest {}).await.expect("it is answered").into_inner();
    let told = told.source.expect("it is told");
    assert_eq!((told.in_force(), told.desired(), told.slot.as_str()), (Told::Poll, Told::Poll, ""));
    assert!(told.note.contains("retained_log_bytes_max"), "{told:?}");
    assert_eq!((told.retained_log_bytes, told.retained_log_bytes_max), (None, None));

    faults.change(|plan| plan.hold_reports = false);
    outbox.all_settled().await;
    outbox.assert_all_published_in_order().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_timeline_is_not_trusted_until_it_is_adopted() {
    let outbox = Outbox::fresh("timeline", 1).await;
    let mut connection = outbox.connect().await;
    connection.execute("update outbox.identity set timeline = timeline + 1").await.expect("it is changed");
    outbox.emit(5, 1).await;

    let error = outbox.relay().ended().await;
    assert!(matches!(error, Error::Timeline { .. }), "{error}");
    assert_eq!(outbox.unsettled().await, 5);

    outbox_server::store::relay::identity::adopt_timeline(&mut connection).await.expect("it is adopted");
    let relay = outbox.relay();
    outbox.all_settled().await;
    relay.stop().await;
}

/// Trap 6.
#[tokio::test(flavor = "multi_thread")]
async fn progress_in_the_log_is_written_only_under_the_present_epoch() {
    let outbox = Outbox::fresh("epoch", 1).await;
    let mut connection = outbox.connect().await;
    let instance = Uuid::now_v7();
    lease::register(&mut connection, instance, "test", Duration::from_secs(60)).await.expect("it registers");
    outbox.desire(Source::Wal).await;
    let before = stream::direct(&mut connection, instance).await.expect("it can be asked").expect("it is free");
    let slot = stream::Slot {
        name: "none".into(),
        snapshot: Snapshot::parse("5:5:").expect("it is one"),
        settled: LogPosition::at(Lsn(100)),
    };
    assert!(stream::set_slot(&mut connection, before, &slot).await.expect("it is written"));
    assert!(stream::put_wal_in_force(&mut connection, before).await.expect("it is written"));
    let to = |lsn| LogPosition { lsn: Lsn(lsn), index: 7 };
    assert!(stream::settle(&mut connection, before, to(200), 0, None).await.expect("it is written"));

    let now = stream::direct(&mut connection, instance).await.expect("it can be asked").expect("it is its own");
    assert!(
        !stream::settle(&mut connection, before, to(300), 0, None).await.expect("it is refused"),
        "it woke too late"
    );
    let fallen_back = stream::put_poll_in_force(&mut connection, before, Source::Poll, None).await;
    assert!(!fallen_back.expect("it is refused"), "it changes no source either");
    assert_eq!(outbox.stream().await.slot.expect("there is one").settled, to(200));
    assert!(stream::settle(&mut connection, now, to(400), 0, None).await.expect("it is written"));
}
