//! Several relays on one database: who owns which lane, and what a former owner may still do.

use std::time::{Duration, Instant};

use outbox_harness::eventually;
use outbox_server::{config, relay::Relay, store::relay as store};
use sqlx::Executor as _;
use uuid::Uuid;

use crate::support::{
    faulty::{Faults, Faulty},
    outbox::{Outbox, PATIENCE, Running, publisher},
};

/// Trap 3: lanes, not rows, are shared out, and one relay at a time has a lane.
#[tokio::test(flavor = "multi_thread")]
async fn lanes_do_not_change_hands_while_every_relay_has_its_share() {
    let outbox = Outbox::fresh("hands", 3).await;
    let mut relays: Vec<Running> = (0..3).map(|_| outbox.relay()).collect();
    for relay in &mut relays {
        relay.until("it has its share", |s| (20..=22).contains(&s.lanes_owned)).await;
    }

    let (epochs, from) = (epochs(&outbox).await, Instant::now());
    while from.elapsed() < Duration::from_secs(2) {
        outbox.emit(100, 50).await;
    }
    outbox.all_settled().await;

    assert_eq!(outbox.assert_all_published_in_order().await, 0, "each event is published once");
    assert_eq!(self::epochs(&outbox).await, epochs, "no lane has changed hands");
    for relay in relays {
        relay.stop().await;
    }
}

/// Trap 3: a key is in one lane, so that its events come from one relay, in order, whoever comes and goes.
#[tokio::test(flavor = "multi_thread")]
async fn relays_that_share_the_lanes_keep_the_order_of_each_key() {
    let outbox = Outbox::fresh("share", 3).await;
    let mut relays: Vec<Running> = (0..3).map(|_| outbox.relay()).collect();
    for relay in &mut relays {
        relay.until("it has its share", |s| (20..=22).contains(&s.lanes_owned)).await;
    }
    let mut most = 0;

    for round in 0..30 {
        outbox.emit(100, 50).await;
        if round == 10 {
            relays.pop().expect("three of them").stop().await;
        }
        if round == 20 {
            relays.pop().expect("two of them").crash().await;
        }
        most = most.max(relays.iter().map(|r| r.status.borrow().lanes_owned).max().unwrap_or(0));
    }
    outbox.all_settled().await;
    most = most.max(relays[0].status.borrow().lanes_owned);

    outbox.assert_all_published_in_order().await;
    assert!(most >= 32, "the lanes of those that left were taken over");
    relays.pop().expect("one of them").stop().await;
}

/// One that dies again and again soon after its start would get nothing done in them.
#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_has_just_begun_takes_no_lanes_from_one_that_lasts() {
    let outbox = Outbox::fresh("newcomer", 1).await;
    let config = config::Relay { lease_ttl_ms: 1_000, ..Outbox::relay_config() };
    let lives_for = async |what: &str, share: f64| {
        let lives = "select count(*) from outbox.relays
                     where started_at < clock_timestamp() - $1 * interval '5 s' and lease_until > clock_timestamp()";
        let relays: i64 = if share < 1.0 { 2 } else { 1 };
        eventually(what, PATIENCE, async || {
            let count = sqlx::query_scalar::<_, i64>(lives).bind(share);
            (count.fetch_one(&mut outbox.connect().await).await.expect("they can be counted") == relays).then_some(())
        })
        .await;
    };
    let mut first = outbox.relay_with(config.clone());
    first.until("it owns its lanes", |s| s.lanes_owned == 64).await;
    lives_for("it has lasted", 1.0).await;
    let before = epochs(&outbox).await;
    for _ in 0..3 {
        let mut newcomer = outbox.relay_with(config.clone());
        newcomer.until("it has begun", |s| s.connected).await;
        lives_for("it has looked around", 0.2).await;
        assert_eq!(newcomer.status.borrow().lanes_owned, 0);
        newcomer.crash().await;
        eventually("it is gone", PATIENCE, async || {
            let relays = sqlx::query_scalar::<_, i64>("select count(*) from outbox.relays");
            (relays.fetch_one(&mut outbox.connect().await).await.expect("they can be counted") == 1).then_some(())
        })
        .await;
    }
    assert_eq!(epochs(&outbox).await, before, "no lane has changed hands");

    let mut second = outbox.relay_with(config);
    second.until("it lasts, and has its share", |s| s.lanes_owned == 32).await;
    first.stop().await;
    second.until("it has all", |s| s.lanes_owned == 64).await;
    second.stop().await;
}

async fn epochs(outbox: &Outbox) -> Vec<i64> {
    sqlx::query_scalar("select epoch from outbox.progress order by lane")
        .fetch_all(&mut outbox.connect().await)
        .await
        .expect("epochs can be read")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_leaves_is_followed_at_once() {
    let outbox = Outbox::fresh("leave", 1).await;
    let config = config::Relay { lease_ttl_ms: 30_000, ..Outbox::relay_config() };
    let mut first = outbox.relay_with(config.clone());
    first.until("it owns its lanes", |s| s.lanes_owned == 64).await;
    first.stop().await;

    let started = Instant::now();
    let mut second = outbox.relay_with(config);
    second.until("it owns its lanes", |s| s.lanes_owned == 64).await;

    assert!(started.elapsed() < Duration::from_secs(20), "well before the first one's lease would have ended");
    second.stop().await;
}

/// Trap 6: a relay that stood still wakes after its lease. It is stopped in front of an event, with everything around
/// it stopped too, as by a long pause of the machine; meanwhile another takes over and goes on.
#[test]
fn a_paused_owner_that_wakes_after_its_lease_publishes_nothing_and_moves_no_progress() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime can be made");
    runtime.block_on(async {
        let outbox = Outbox::fresh("paused", 1).await;
        outbox.emit(100, 1).await;
        let stored = outbox.stored().await;
        let faults = Faults::default();
        faults.change(|plan| plan.pause_before = Some(stored[50].0));
        let publisher = Faulty::new(publisher(), &faults);
        let paused = Relay::with_publisher(Outbox::relay_config(), &outbox.database_config(), publisher);
        let mut status = paused.status();
        // A runtime of one thread, which the pause stops whole: no lease is renewed.
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                tokio::select! {
                    _ = paused.run(tokio_util::sync::CancellationToken::new(), PATIENCE) => {}
                    _ = stopped => {}
                }
            });
        });
        eventually("it is paused", PATIENCE, async || faults.plan().paused.then_some(())).await;
        status.borrow_and_update();

        let second = outbox.relay();
        outbox.all_settled().await;
        let progress = progress(&outbox).await;
        faults.change(|plan| plan.pause_before = None);

        status.wait_for(|s| s.last_error.is_some()).await.expect("it finds that its lease has run out");
        let handed_over = faults.plan().enqueued.clone();
        let after: Vec<&Uuid> = handed_over.iter().skip_while(|id| **id != stored[50].0).skip(1).collect();
        assert!(after.is_empty(), "{} events were handed over after the pause", after.len());
        assert_eq!(self::progress(&outbox).await, progress, "progress is the other's");
        outbox.assert_all_published_in_order().await;

        second.stop().await;
        let _ = stop.send(());
        thread.join().expect("it does not panic");
    });
}

async fn progress(outbox: &Outbox) -> Vec<(i16, i64, Option<i64>)> {
    sqlx::query_as("select lane, epoch, position from outbox.progress order by lane")
        .fetch_all(&mut outbox.connect().await)
        .await
        .expect("progress can be read")
}

/// Trap 6: a write that was under way when the lane changed hands.
#[tokio::test]
async fn progress_is_written_only_under_the_lanes_present_epoch() {
    let outbox = Outbox::fresh("epoch", 1).await;
    let mut connection = outbox.connect().await;
    let (first, second, ttl) = (Uuid::now_v7(), Uuid::now_v7(), Duration::from_secs(60));
    store::lease::register(&mut connection, first, "first", ttl).await.expect("it registers");
    let before = store::lease::share(&mut connection, first, None).await.expect("it claims").claimed;
    assert_eq!(before.len(), 64);

    // Lost to another, and taken back: the instance is the same, the epoch is not.
    store::lease::leave(&mut connection, first).await.expect("it leaves");
    store::lease::register(&mut connection, second, "second", ttl).await.expect("it registers");
    let others = store::lease::share(&mut connection, second, None).await.expect("it claims").claimed;
    let write = store::progress::write(&mut connection, first, &before, None).await.expect("it is answered");
    assert!(write.is_empty(), "a lane of another's is not written");
    store::lease::leave(&mut connection, second).await.expect("it leaves");
    store::lease::register(&mut connection, first, "first", ttl).await.expect("it registers");
    let again = store::lease::share(&mut connection, first, None).await.expect("it claims").claimed;

    assert!(others.iter().zip(&before).all(|(other, before)| other.epoch == before.epoch + 1));
    let write = store::progress::write(&mut connection, first, &before, None).await.expect("it is answered");
    assert!(write.is_empty(), "an earlier epoch does not write");
    let write = store::progress::write(&mut connection, first, &again, None).await.expect("it is answered");
    assert_eq!(write.len(), 64, "the present epoch does");
}

/// An expired lease cannot be renewed back into life.
#[tokio::test]
async fn a_lease_that_has_run_out_is_not_renewed() {
    let outbox = Outbox::fresh("expired", 1).await;
    let mut connection = outbox.connect().await;
    let (instance, ttl) = (Uuid::now_v7(), Duration::from_secs(60));
    store::lease::register(&mut connection, instance, "host", ttl).await.expect("it registers");
    assert!(store::lease::renew(&mut connection, instance, ttl).await.expect("it is answered").is_some());
    connection
        .execute("update outbox.relays set lease_until = clock_timestamp() - interval '1 second'")
        .await
        .expect("time passes");

    assert!(store::lease::renew(&mut connection, instance, ttl).await.expect("it is answered").is_none());
}
