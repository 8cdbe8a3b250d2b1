//! One effect for many events, each under a lease.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use outbox_harness::kafka::{fresh_topic, header, read_topic};
use outbox_proto::record::Attributes;
use outbox_sdk::{
    BatchEffect, Event, EventKey, HandlerError,
    claim::{Claim, Claimed, Claims, Hold, MemoryClaims, PostgresClaims},
};
use tokio::sync::Semaphore;
use uuid::Uuid;

use crate::rig::{Rig, Running, SOON, event, events, eventually, unstored};

const LEASE: Duration = Duration::from_secs(60);

/// The ids of the events of a call, and how often each had been claimed.
type Call = Vec<(Uuid, u32)>;

/// Notes what it is given, and fails for events of the type `poison`.
#[derive(Clone, Default)]
struct Index {
    calls: Arc<Mutex<Vec<Call>>>,
}

impl Index {
    fn calls(&self) -> Vec<Call> {
        self.calls.lock().unwrap().clone()
    }

    /// The ids of all calls that did not fail.
    fn ids(&self) -> Vec<Uuid> {
        self.calls().into_iter().flatten().map(|(id, _)| id).collect()
    }
}

impl BatchEffect for Index {
    async fn perform(&self, events: &[&Event], claims: &[Claim]) -> Result<(), HandlerError> {
        assert!(events.iter().map(|event| event.id()).eq(claims.iter().map(Claim::event_id)), "each has its lease");
        if events.iter().any(|event| event.event_type() == "poison") {
            return Err(HandlerError::dead_letter("no such user"));
        }
        let call = claims.iter().map(|claim| (claim.event_id(), claim.attempt())).collect();
        self.calls.lock().unwrap().push(call);
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_performed_once_in_order_however_often_its_events_come() {
    let rig = Rig::new(1).await;
    let published = events(300);
    let repeated = published.chunks(100).flat_map(|some| [some, some, &some[..50]].concat());
    rig.publish(repeated.map(|event| (0, event))).await;
    let (claims, index) = (PostgresClaims::new(rig.pool.clone()), Index::default());

    let consumer = unstored("mailer", &rig.topic).claims(claims, LEASE).batch_effect(200, index.clone());
    let running = Running::start(consumer.build().unwrap());
    rig.until_committed("mailer", 0, 750).await;
    let stats = running.stats();
    running.shut_down().await.unwrap();

    assert_eq!((stats.handled, stats.duplicates, stats.retries), (300, 450, 0));
    assert!(index.ids().into_iter().eq(published.iter().map(|event| event.id)), "each once, in order");
    assert!(index.calls().len() < 30, "{} calls for 300 events", index.calls().len());
    let sql = "select count(*), min(attempts), max(attempts) from outbox_inbox.claims where completed_at is not null";
    let completed: (i64, i32, i32) = sqlx::query_as(sql).fetch_one(&rig.pool).await.unwrap();
    assert_eq!(completed, (300, 1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_5_one_event_that_cannot_be_performed_is_dead_lettered_and_the_others_are() {
    let (rig, letters) = (Rig::new(1).await, fresh_topic("letters", 1).await);
    let bad = Attributes { event_type: "poison".into(), ..event() };
    let all = [&events(60)[..], std::slice::from_ref(&bad), &events(60)].concat();
    rig.publish(all.iter().map(|event| (0, event.clone()))).await;
    let index = Index::default();

    let consumer = unstored("mailer", &rig.topic).dead_letters(&letters).claims(MemoryClaims::new(1_000), LEASE);
    let running = Running::start(consumer.batch_effect(500, index.clone()).build().unwrap());
    rig.until_committed("mailer", 0, 121).await;
    running.shut_down().await.unwrap();

    let others = all.iter().map(|event| event.id).filter(|id| *id != bad.id);
    assert!(index.ids().into_iter().eq(others), "each once, in order");
    let singly = index.calls().into_iter().filter(|call| call.len() == 1).flatten();
    assert!(singly.map(|(_, attempt)| attempt).all(|attempt| attempt == 2), "the first attempt may have had effects");
    let put = &read_topic(&letters)[..];
    let [put] = put else { panic!("one record: {put:?}") };
    assert_eq!(header(put, "ce_id"), Some(bad.id.to_string()));
}

/// The events before it are performed, and it and those behind it once the other instance has done with it.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_another_is_at_work_on_is_waited_for() {
    let rig = Rig::new(1).await;
    let published = events(20);
    let (claims, index) = (PostgresClaims::new(rig.pool.clone()), Index::default());
    let held = EventKey::new("/shop", published[10].id);
    let Ok(Claimed::Yours(theirs)) = claims.claim("mailer", &held, LEASE).await else { panic!("nobody has it") };
    rig.publish(published.iter().map(|event| (0, event.clone()))).await;

    let consumer = unstored("mailer", &rig.topic).claims(claims.clone(), LEASE).batch_effect(50, index.clone());
    let running = Running::start(consumer.build().unwrap());
    running.until("those before it to be performed", |stats| stats.handled == 10 && stats.retries > 0).await;
    assert!(index.ids().into_iter().eq(published[..10].iter().map(|event| event.id)));
    // What was claimed with it has been given back.
    let behind = EventKey::new("/shop", published[15].id);
    let Ok(Claimed::Yours(free)) = claims.claim("mailer", &behind, Duration::ZERO).await else { panic!("it is free") };
    assert_eq!(free.attempt(), 2);
    running.kill().await;

    assert_eq!(claims.complete(&theirs, b"sent").await.unwrap(), Hold::Kept);
    let consumer = unstored("mailer", &rig.topic).claims(claims, LEASE).batch_effect(50, index.clone());
    let running = Running::start(consumer.build().unwrap());
    rig.until_committed("mailer", 0, 20).await;
    running.shut_down().await.unwrap();
    let others = published.iter().map(|event| event.id).filter(|id| *id != held.id());
    assert!(index.ids().into_iter().eq(others), "each once, in order");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_event_under_the_id_of_one_in_the_same_batch_is_dead_lettered() {
    let (rig, letters) = (Rig::new(1).await, fresh_topic("letters", 1).await);
    let published = events(20);
    let other = Attributes { event_type: "user.deleted".into(), ..published[3].clone() };
    rig.publish([&published[..], &[other]].concat().into_iter().map(|event| (0, event))).await;
    let (claims, index) = (PostgresClaims::new(rig.pool.clone()), Index::default());

    let consumer = unstored("mailer", &rig.topic).dead_letters(&letters).claims(claims, LEASE);
    let running = Running::start(consumer.batch_effect(50, index.clone()).build().unwrap());
    rig.until_committed("mailer", 0, 21).await;
    let stats = running.stats();
    running.shut_down().await.unwrap();

    assert!(index.ids().into_iter().eq(published.iter().map(|event| event.id)), "each once, in order");
    // Found with the batch, and by itself.
    assert_eq!((stats.dead_lettered, stats.conflicts), (1, 2));
    let put = &read_topic(&letters)[..];
    let [put] = put else { panic!("one record: {put:?}") };
    assert_eq!(header(put, "ce_type").as_deref(), Some("user.deleted"));
}

/// Waits for a permit before the end of each call, and counts those that get there.
#[derive(Clone)]
struct Slow {
    index: Index,
    permits: Arc<Semaphore>,
}

impl BatchEffect for Slow {
    async fn perform(&self, events: &[&Event], claims: &[Claim]) -> Result<(), HandlerError> {
        self.permits.acquire().await?.forget();
        self.index.perform(events, claims).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_6_all_leases_are_extended_and_a_batch_that_loses_one_does_not_count() {
    let rig = Rig::new(1).await;
    let published = events(20);
    rig.publish(published.iter().map(|event| (0, event.clone()))).await;
    let (claims, index) = (PostgresClaims::new(rig.pool.clone()), Index::default());
    let slow = Slow { index: index.clone(), permits: Arc::new(Semaphore::new(0)) };
    let lease = Duration::from_millis(900);
    let consumer = unstored("mailer", &rig.topic).claims(claims.clone(), lease).batch_effect(50, slow.clone());
    let running = Running::start(consumer.build().unwrap());
    let count = async |sql: &'static str| -> i64 { sqlx::query_scalar(sql).fetch_one(&rig.pool).await.unwrap() };
    let claimed = "select count(*) from outbox_inbox.claims where attempts = 1";
    eventually("them to be claimed", SOON, async || (count(claimed).await == 20).then_some(())).await;
    // Several leases long: each is found held, because all are extended.
    let keys: Vec<_> = published.iter().map(|event| EventKey::new("/shop", event.id)).collect();
    tokio::time::sleep(3 * lease).await;
    let found = claims.claim_all("mailer", &keys, lease).await.unwrap();
    assert!(found.iter().all(|claimed| matches!(claimed, Claimed::Held { .. })), "{found:?}");

    // One is taken away, as when this process had been stopped for long.
    let take = "update outbox_inbox.claims set leased_until = now() - interval '1 s' where event_id = $1";
    sqlx::query(take).bind(published[7].id).execute(&rig.pool).await.unwrap();
    let Claimed::Yours(taken) = claims.claim("mailer", &keys[7], 5 * lease).await.unwrap() else {
        panic!("it ran out")
    };
    let given_up = "select count(*) from outbox_inbox.claims where attempts = 2";
    // The one that was taken, and the first one, which is tried by itself.
    eventually("the batch to be given up", SOON, async || (count(given_up).await == 2).then_some(())).await;
    slow.permits.add_permits(1_000);
    running.until("those before it to be handled", |stats| stats.handled == 7).await;
    assert!(index.ids().into_iter().eq(published[..7].iter().map(|event| event.id)), "{:?}", index.calls());
    assert_eq!(claims.complete(&taken, b"theirs").await.unwrap(), Hold::Kept);
    rig.until_committed("mailer", 0, 20).await;
    running.shut_down().await.unwrap();
    let others = published.iter().map(|event| event.id).filter(|id| *id != published[7].id);
    assert!(index.ids().into_iter().eq(others), "{:?}", index.calls());
}
