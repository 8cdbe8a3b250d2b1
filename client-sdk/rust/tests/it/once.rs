//! Effects happen once per event and consumer, whatever fails in between.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use outbox_proto::record::Attributes;
use outbox_sdk::{ConsumerError, Event, Handler, HandlerError, Transaction};
use tokio::sync::Semaphore;

use crate::rig::{Effect, FailsFirst, Rig, Running, effect, event, events, publish_junk};

fn on(partition: i32, events: &[Attributes]) -> Vec<(i32, Attributes)> {
    events.iter().map(|event| (partition, event.clone())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn repeats_on_the_topic_are_handled_once() {
    let rig = Rig::new(2).await;
    let (first, second) = (events(50), events(50));
    // Within a partition, right after each other and later, and in another partition.
    for batch in [on(0, &first), on(0, &first), on(1, &second), on(1, &first)] {
        rig.publish(batch).await;
    }

    let running = Running::start(rig.builder("mailer").handler(Effect("mailer")).build().unwrap());
    running.until("200 records to be settled", |stats| stats.handled + stats.duplicates == 200).await;

    assert_eq!((running.stats().handled, running.stats().duplicates), (100, 100));
    assert_eq!(rig.effects("mailer").await, (100, 100));
    running.shut_down().await.unwrap();
    assert_eq!((rig.committed("mailer", 0), rig.committed("mailer", 1)), (100, 100));
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_10_consumers_of_different_names_both_handle_an_event_and_sources_are_kept_apart() {
    let rig = Rig::new(1).await;
    let here = event();
    let elsewhere = Attributes { source: "/billing".into(), ..here.clone() };
    rig.publish(on(0, &[here, elsewhere])).await;

    let mailer = Running::start(rig.builder("mailer").handler(Effect("mailer")).build().unwrap());
    let auditor = Running::start(rig.builder("auditor").handler(Effect("auditor")).build().unwrap());
    rig.until_effects("mailer", 2).await;
    rig.until_effects("auditor", 2).await;

    mailer.shut_down().await.unwrap();
    auditor.shut_down().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_9_a_handler_that_fails_after_the_mark_is_tried_again_and_its_effect_happens_once() {
    let failures: [fn() -> Result<(), HandlerError>; 2] =
        [|| Err(HandlerError::new("the mail server is away")), || panic!("a bug in the handler")];
    for fail in failures {
        let rig = Rig::new(1).await;
        rig.publish(on(0, &events(3))).await;
        let handler = FailsFirst { name: "mailer", failures: 3, seen: AtomicU64::new(0), fail };

        let running = Running::start(rig.builder("mailer").handler(handler).build().unwrap());
        running.until("3 records to be settled", |stats| stats.handled + stats.duplicates == 3).await;

        assert_eq!(rig.effects("mailer").await, (3, 3));
        assert_eq!((running.stats().retries, running.stats().duplicates), (3, 0));
        running.shut_down().await.unwrap();
    }
}

/// Breaks a constraint that Postgres checks at COMMIT, the first time.
struct FailsAtCommit(AtomicU64);

impl Handler for FailsAtCommit {
    async fn handle(&self, event: &Event, tx: &mut Transaction) -> Result<(), HandlerError> {
        effect("mailer", event, tx).await?;
        let user = if self.0.fetch_add(1, SeqCst) == 0 { "nobody" } else { "user-7" };
        sqlx::query("insert into mails values ($1)").bind(user).execute(&mut **tx).await?;
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_5_an_event_whose_commit_fails_is_tried_again_before_its_offset_moves() {
    let rig = Rig::new(1).await;
    let tables = "create table users (id text primary key); insert into users values ('user-7');
                  create table mails (user_id text references users deferrable initially deferred)";
    sqlx::raw_sql(tables).execute(&rig.pool).await.unwrap();
    rig.publish(on(0, &events(2))).await;

    let handler = FailsAtCommit(AtomicU64::new(0));
    let running = Running::start(rig.builder("mailer").handler(handler).build().unwrap());
    running.until("2 records to be settled", |stats| stats.handled + stats.duplicates == 2).await;

    assert_eq!(rig.effects("mailer").await, (2, 2));
    assert_eq!((running.stats().retries, running.stats().duplicates), (1, 0));
    running.shut_down().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_9_two_consumers_with_the_same_event_at_once_have_one_effect() {
    let rig = Rig::new(1).await;
    rig.publish(on(0, &events(20))).await;
    let start = |group: &str| {
        Running::start(
            rig.builder("mailer").group(format!("{group}-{}", rig.topic)).handler(Effect("mailer")).build().unwrap(),
        )
    };

    // One consumer's name, two groups: both read every event, at the same time.
    let (one, other) = (start("one"), start("other"));
    let settled = |running: &Running| running.stats().handled + running.stats().duplicates;
    one.until("20 records to be settled by both", |_| settled(&one) + settled(&other) == 40).await;

    assert_eq!(one.stats().handled + other.stats().handled, 20);
    assert_eq!(rig.effects("mailer").await, (20, 20));
    one.shut_down().await.unwrap();
    other.shut_down().await.unwrap();
}

/// Has its effect and then waits for a permit.
struct Gated {
    permits: Arc<Semaphore>,
}

impl Handler for Gated {
    async fn handle(&self, event: &Event, tx: &mut Transaction) -> Result<(), HandlerError> {
        effect("mailer", event, tx).await?;
        self.permits.acquire().await?.forget();
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_5_no_offset_is_committed_before_its_effect_and_nothing_is_lost_without_a_drain() {
    let rig = Rig::new(1).await;
    rig.publish(on(0, &events(5))).await;
    let permits = Arc::new(Semaphore::new(2));

    let running = Running::start(rig.builder("mailer").handler(Gated { permits }).build().unwrap());
    rig.until_committed("mailer", 0, 2).await;
    running.until("the rest to be queued", |stats| stats.queued == 3).await;
    running.kill().await;
    assert_eq!(rig.committed("mailer", 0), 2, "only what was handled is committed");
    assert_eq!(rig.effects("mailer").await, (2, 2));

    let again = Running::start(rig.builder("mailer").handler(Effect("mailer")).build().unwrap());
    rig.until_effects("mailer", 5).await;
    again.shut_down().await.unwrap();
    assert_eq!(rig.effects("mailer").await, (5, 5));
    assert_eq!(rig.committed("mailer", 0), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_lets_what_is_being_handled_end_and_commits_its_offset() {
    let rig = Rig::new(1).await;
    rig.publish(on(0, &events(5))).await;
    let permits = Arc::new(Semaphore::new(0));
    let consumer = rig.builder("mailer").handler(Gated { permits: permits.clone() }).build().unwrap();
    let running = Running::start(consumer);
    running.until("all to be queued", |stats| stats.queued == 5).await;

    let ending = tokio::spawn(running.shut_down());
    permits.add_permits(1);
    ending.await.unwrap().unwrap();

    assert_eq!(rig.effects("mailer").await, (1, 1), "what had begun has ended, nothing else was begun");
    assert_eq!(rig.committed("mailer", 0), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_ends_within_its_budget_when_a_handler_does_not() {
    let rig = Rig::new(1).await;
    rig.publish(on(0, &events(1))).await;
    let stuck = Gated { permits: Arc::new(Semaphore::new(0)) };
    let budget = Duration::from_millis(200);
    let running = Running::start(rig.builder("mailer").drain_budget(budget).handler(stuck).build().unwrap());
    running.until("it to be queued", |stats| stats.queued == 1).await;

    running.shut_down().await.unwrap();

    assert_eq!(rig.effects("mailer").await, (0, 0));
    assert_eq!(rig.committed("mailer", 0), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_is_no_event_stops_the_consumer_and_is_named() {
    let rig = Rig::new(1).await;
    rig.publish(on(0, &events(2))).await;
    publish_junk(&rig.topic, 0).await;
    rig.publish(on(0, &events(1))).await;

    let running = Running::start(rig.builder("mailer").handler(Effect("mailer")).build().unwrap());
    let error = running.ended().await.expect_err("it must not go on");

    let ConsumerError::Undecodable { place, .. } = &error else { panic!("{error:?}") };
    assert_eq!((place.topic.as_str(), place.partition, place.offset), (rig.topic.as_str(), 0, 2));
    assert_eq!(rig.effects("mailer").await, (2, 2), "what came before is handled, what comes after is not");
    assert_eq!(rig.committed("mailer", 0), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_cannot_be_handled_stops_the_consumer_and_is_named() {
    let rig = Rig::new(1).await;
    let poison = events(1);
    rig.publish(on(0, &poison)).await;
    let fail = || Err(HandlerError::new("no such user"));
    let handler = FailsFirst { name: "mailer", failures: u64::MAX, seen: AtomicU64::new(0), fail };

    let running = Running::start(rig.builder("mailer").max_attempts(3).handler(handler).build().unwrap());
    let error = running.ended().await.expect_err("it must not go on");

    let ConsumerError::Exhausted { place, event_id, attempts, .. } = &error else { panic!("{error:?}") };
    assert_eq!((place.offset, *event_id, *attempts), (0, poison[0].id, 3));
    assert_eq!(rig.effects("mailer").await, (0, 0));
    assert_eq!(rig.committed("mailer", 0), 0);
}

/// Counts what is being handled at the same time.
struct OneAtATime {
    now: AtomicU64,
    most: Arc<AtomicU64>,
}

impl Handler for OneAtATime {
    async fn handle(&self, event: &Event, tx: &mut Transaction) -> Result<(), HandlerError> {
        let now = self.now.fetch_add(1, SeqCst) + 1;
        self.most.fetch_max(now, SeqCst);
        let done = effect("mailer", event, tx).await;
        self.now.fetch_sub(1, SeqCst);
        done
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_is_handled_in_order_one_event_at_a_time() {
    let rig = Rig::new(1).await;
    sqlx::query("alter table effects add place bigserial").execute(&rig.pool).await.unwrap();
    let published = events(100);
    rig.publish(on(0, &published)).await;
    let most = Arc::new(AtomicU64::new(0));
    let handler = OneAtATime { now: AtomicU64::new(0), most: most.clone() };

    let running = Running::start(rig.builder("mailer").handler(handler).build().unwrap());
    rig.until_effects("mailer", 100).await;
    running.shut_down().await.unwrap();

    let handled: Vec<uuid::Uuid> =
        sqlx::query_scalar("select event_id from effects order by place").fetch_all(&rig.pool).await.unwrap();
    assert_eq!(handled, published.iter().map(|event| event.id).collect::<Vec<_>>());
    assert_eq!(most.load(SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_handler_and_a_big_topic_stay_within_the_bound() {
    let rig = Rig::new(2).await;
    let all: Vec<_> = events(4_000).into_iter().enumerate().map(|(n, event)| ((n % 2) as i32, event)).collect();
    rig.publish(all).await;
    let permits = Arc::new(Semaphore::new(0));
    let handler = Gated { permits: permits.clone() };
    let running = Running::start(rig.builder("mailer").partition_bound(20, 1 << 20).handler(handler).build().unwrap());

    // Full, and nothing handled: polling goes on, and must not read further.
    running.until("both partitions to be full", |stats| stats.queued == 40).await;
    let mut most = 0;
    for handled in [50, 300, 1_000, 4_000] {
        permits.add_permits(handled - permits.available_permits().min(handled));
        running
            .until("some to be handled", |stats| {
                assert!(stats.queued <= 40, "{} records are held, the bound is 2 × 20", stats.queued);
                stats.handled >= handled as u64
            })
            .await;
        most = most.max(running.stats().queued);
    }

    assert_eq!(rig.effects("mailer").await, (4_000, 4_000));
    running.shut_down().await.unwrap();
    assert_eq!((rig.committed("mailer", 0), rig.committed("mailer", 1)), (2_000, 2_000));
}
