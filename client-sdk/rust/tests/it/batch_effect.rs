//! One effect for many events, each under a lease.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use outbox_harness::kafka::{fresh_topic, header, read_topic};
use outbox_proto::record::Attributes;
use outbox_sdk::{
    BatchEffect, Event, EventKey, HandlerError, InboxError,
    claim::{Claim, Claimed, Claims, Hold, MemoryClaims, PostgresClaims},
};
use sqlx::{AssertSqlSafe, PgPool};
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

/// Takes an event over for this long, as another instance would whose clock has passed the lease's end.
async fn take_over(pool: &PgPool, event_id: Uuid, lease: Duration) -> Uuid {
    let take = "update outbox_inbox.claims set token = gen_random_uuid(), attempts = attempts + 1,
                                               leased_until = clock_timestamp() + $2 * interval '1 s'
                where event_id = $1 returning token";
    sqlx::query_scalar(take).bind(event_id).bind(lease.as_secs_f64()).fetch_one(pool).await.unwrap()
}

async fn complete_theirs(pool: &PgPool, token: Uuid) {
    let complete =
        "update outbox_inbox.claims set completed_at = clock_timestamp(), result = 'theirs' where token = $1";
    assert_eq!(sqlx::query(complete).bind(token).execute(pool).await.unwrap().rows_affected(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_6_all_leases_are_extended_and_a_batch_that_loses_one_is_dropped() {
    let rig = Rig::new(1).await;
    let published = events(20);
    rig.publish(published.iter().map(|event| (0, event.clone()))).await;
    let (claims, index) = (PostgresClaims::new(rig.pool.clone()), Index::default());
    let slow = Slow { index: index.clone(), permits: Arc::new(Semaphore::new(0)) };
    let lease = Duration::from_secs(3);
    let consumer = unstored("mailer", &rig.topic).claims(claims, lease).batch_effect(50, slow.clone());
    let running = Running::start(consumer.build().unwrap());
    let count = async |sql: &'static str| -> i64 { sqlx::query_scalar(sql).fetch_one(&rig.pool).await.unwrap() };
    let claimed = "select count(*) from outbox_inbox.claims where attempts = 1";
    eventually("them to be claimed", SOON, async || (count(claimed).await == 20).then_some(())).await;
    let longest = "select (extract(epoch from max(leased_until)) * 1000)::int8 from outbox_inbox.claims";
    let (first, shortest) = (count(longest).await, longest.replace("max", "min"));
    let shortest =
        async || -> i64 { sqlx::query_scalar(AssertSqlSafe(shortest.clone())).fetch_one(&rig.pool).await.unwrap() };
    eventually("all to be extended", SOON, async || (shortest().await >= first + 1_500).then_some(())).await;

    let theirs = take_over(&rig.pool, published[7].id, LEASE / 5).await;
    let given_up = "select count(*) from outbox_inbox.claims where attempts = 2";
    // The one that was taken, and the first one, which is tried by itself.
    eventually("the batch to be dropped", SOON, async || (count(given_up).await == 2).then_some(())).await;
    slow.permits.add_permits(1_000);
    running.until("those before it to be handled", |stats| stats.handled == 7).await;
    assert!(index.ids().into_iter().eq(published[..7].iter().map(|event| event.id)), "{:?}", index.calls());
    complete_theirs(&rig.pool, theirs).await;
    rig.until_committed("mailer", 0, 20).await;
    running.shut_down().await.unwrap();
    let others = published.iter().map(|event| event.id).filter(|id| *id != published[7].id);
    assert!(index.ids().into_iter().eq(others), "{:?}", index.calls());
}

/// Another takes one of the events over while this is about to end.
#[derive(Clone)]
struct Robbed {
    index: Index,
    pool: PgPool,
    event_id: Uuid,
    theirs: Arc<Mutex<Option<Uuid>>>,
}

impl BatchEffect for Robbed {
    async fn perform(&self, events: &[&Event], claims: &[Claim]) -> Result<(), HandlerError> {
        self.index.perform(events, claims).await?;
        if events.len() > 1 {
            let token = take_over(&self.pool, self.event_id, LEASE / 5).await;
            *self.theirs.lock().unwrap() = Some(token);
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_6_an_event_whose_lease_is_lost_at_the_very_end_is_not_completed() {
    let rig = Rig::new(1).await;
    let published = events(20);
    rig.publish(published.iter().map(|event| (0, event.clone()))).await;
    let (claims, index, theirs) = (PostgresClaims::new(rig.pool.clone()), Index::default(), Arc::default());
    let robbed =
        Robbed { index: index.clone(), pool: rig.pool.clone(), event_id: published[7].id, theirs: Arc::clone(&theirs) };
    let consumer = unstored("mailer", &rig.topic).claims(claims, LEASE).batch_effect(50, robbed);
    let running = Running::start(consumer.build().unwrap());
    running.until("it to be found held by another", |stats| stats.retries > 0).await;
    assert_eq!((running.stats().handled, running.stats().duplicates), (0, 7), "the others before it are completed");
    let token = theirs.lock().unwrap().expect("it was taken");
    complete_theirs(&rig.pool, token).await;
    rig.until_committed("mailer", 0, 20).await;
    running.shut_down().await.unwrap();
    assert_eq!(index.calls().len(), 1, "none is performed again: {:?}", index.calls());
}

/// Claims in memory that answer late or not at all.
#[derive(Clone)]
struct Unreliable {
    claims: MemoryClaims,
    /// How long it takes to be told what has been claimed together.
    late: Duration,
    claimed: Arc<AtomicBool>,
    /// How often completing fails, before or after it is done.
    failures: Arc<AtomicUsize>,
}

impl Unreliable {
    fn new(late: Duration, failures: usize) -> Self {
        let failures = Arc::new(AtomicUsize::new(failures));
        Self { claims: MemoryClaims::new(1_000), late, claimed: Arc::default(), failures }
    }
}

impl Claims for Unreliable {
    async fn claim(&self, consumer: &str, key: &EventKey<'_>, lease: Duration) -> Result<Claimed, InboxError> {
        self.claims.claim(consumer, key, lease).await
    }

    async fn extend(&self, claim: &Claim, lease: Duration) -> Result<Hold, InboxError> {
        self.claims.extend(claim, lease).await
    }

    async fn complete(&self, claim: &Claim, result: &[u8]) -> Result<Hold, InboxError> {
        self.claims.complete(claim, result).await
    }

    async fn release(&self, claim: &Claim) -> Result<Hold, InboxError> {
        self.claims.release(claim).await
    }

    async fn claim_all(
        &self,
        consumer: &str,
        keys: &[EventKey<'_>],
        lease: Duration,
    ) -> Result<Vec<Claimed>, InboxError> {
        let claimed = self.claims.claim_all(consumer, keys, lease).await;
        if keys.len() > 1 {
            self.claimed.store(true, SeqCst);
            tokio::time::sleep(self.late).await;
        }
        claimed
    }

    async fn complete_all(&self, claims: &[Claim]) -> Result<Vec<Hold>, InboxError> {
        let left = self.failures.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).unwrap_or(0);
        match left {
            0 => self.claims.complete_all(claims).await,
            // The answer is lost.
            1 => self.claims.complete_all(claims).await.and(Err(sqlx::Error::PoolTimedOut.into())),
            _ => Err(sqlx::Error::PoolTimedOut.into()),
        }
    }

    async fn expire(&self, consumer: &str, older_than: Duration, max: i64) -> Result<u64, InboxError> {
        self.claims.expire(consumer, older_than, max).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_9_what_could_not_be_completed_at_once_is_not_performed_again() {
    let rig = Rig::new(1).await;
    rig.publish(events(20).into_iter().map(|event| (0, event))).await;
    let index = Index::default();
    let consumer = unstored("mailer", &rig.topic).claims(Unreliable::new(Duration::ZERO, 3), LEASE);
    let running = Running::start(consumer.batch_effect(50, index.clone()).build().unwrap());
    rig.until_committed("mailer", 0, 20).await;
    let stats = running.stats();
    running.shut_down().await.unwrap();
    assert_eq!((stats.handled, stats.duplicates, index.calls().len()), (20, 0, 1), "{:?}", index.calls());
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_6_leases_that_were_lost_while_others_were_claimed_are_noticed_before_the_effect() {
    let rig = Rig::new(1).await;
    let published = events(20);
    rig.publish(published.iter().map(|event| (0, event.clone()))).await;
    let (lease, index) = (Duration::from_millis(300), Index::default());
    let (claims, key) = (Unreliable::new(10 * lease, 0), EventKey::new("/shop", published[7].id));
    let consumer = unstored("mailer", &rig.topic).claims(claims.clone(), lease);
    let running = Running::start(consumer.batch_effect(50, index.clone()).build().unwrap());
    eventually("it to be claimed", SOON, async || claims.claimed.load(SeqCst).then_some(())).await;
    let theirs = eventually("it to run out", SOON, async || {
        let claimed = claims.claim("mailer", &key, LEASE / 5).await.unwrap();
        if let Claimed::Yours(claim) = claimed { Some(claim) } else { None }
    })
    .await;
    assert_eq!(theirs.attempt(), 2);
    running.until("those before it to be handled", |stats| stats.handled == 7).await;
    assert_eq!(claims.complete(&theirs, b"theirs").await.unwrap(), Hold::Kept);
    rig.until_committed("mailer", 0, 20).await;
    running.shut_down().await.unwrap();
    let others = published.iter().map(|event| event.id).filter(|id| *id != key.id());
    assert!(index.ids().into_iter().eq(others), "each once, in order: {:?}", index.calls());
}

/// Fails the first times in this way.
#[derive(Clone)]
struct FailsFirst {
    index: Index,
    fail: fn() -> HandlerError,
    /// How often it is to fail.
    failures: usize,
    failed: Arc<Mutex<Vec<Instant>>>,
}

impl BatchEffect for FailsFirst {
    async fn perform(&self, events: &[&Event], claims: &[Claim]) -> Result<(), HandlerError> {
        let failures = self.failed.lock().unwrap().len();
        if failures < self.failures {
            self.failed.lock().unwrap().push(Instant::now());
            return Err((self.fail)());
        }
        self.index.perform(events, claims).await
    }
}

/// What is performed after so many failures, and how long after the first one.
async fn after_failures(failures: usize, fail: fn() -> HandlerError) -> (Vec<Call>, Duration) {
    let rig = Rig::new(1).await;
    rig.publish(events(20).into_iter().map(|event| (0, event))).await;
    let index = Index::default();
    let effect = FailsFirst { index: index.clone(), fail, failures, failed: Arc::default() };
    let consumer = unstored("mailer", &rig.topic).claims(MemoryClaims::new(100), LEASE);
    let running = Running::start(consumer.batch_effect(20, effect.clone()).build().unwrap());
    running.until("one to be handled", |stats| stats.handled > 0).await;
    let waited = effect.failed.lock().unwrap()[0].elapsed();
    rig.until_committed("mailer", 0, 20).await;
    running.shut_down().await.unwrap();
    (index.calls(), waited)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_whose_effect_asks_for_time_is_tried_again_as_a_batch_after_it() {
    let ask = || HandlerError::retry_after(Duration::from_secs(2), "busy");
    let (calls, waited) = after_failures(1, ask).await;
    assert!(calls.len() == 1 && waited >= Duration::from_secs(2), "{waited:?}, {calls:?}");
    let (calls, waited) = after_failures(2, ask).await;
    assert!(calls.len() == 20 && waited >= Duration::from_secs(4), "singly, and no sooner: {waited:?}, {calls:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_whose_effect_panics_is_given_back_and_performed_singly() {
    let (calls, waited) = after_failures(1, || panic!("a bug in the effect")).await;
    assert!(calls.len() == 20 && waited < LEASE / 2, "{waited:?}, {calls:?}");
}
