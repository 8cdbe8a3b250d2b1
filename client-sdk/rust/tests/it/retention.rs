//! How long it is remembered that an event was handled, and what becomes of older events.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use chrono::Utc;
use outbox_harness::{
    eventually,
    kafka::{create_topic, fresh_topic, header, read_topic},
};
use outbox_proto::record::Attributes;
use outbox_sdk::{
    Beyond, Consumer, ConsumerBuilder, ConsumerError, Event, Inbox as _, PostgresInbox,
    claim::{MemoryClaims, PostgresClaims},
    consumer::Claiming,
    service,
};
use tokio::time::timeout;
use tower::service_fn;
use uuid::Uuid;

use crate::rig::{Effect, Rig, Running, SOON, event, events, unstored};

const DAY: Duration = Duration::from_secs(86_400);

async fn age_marks(rig: &Rig, days: i32) {
    let age = sqlx::query("update outbox_inbox.marks set marked_at = now() - $1 * interval '1 day'");
    age.bind(days).execute(&rig.pool).await.unwrap();
}

async fn marks(rig: &Rig) -> i64 {
    sqlx::query_scalar("select count(*) from outbox_inbox.marks").fetch_one(&rig.pool).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_10_an_event_that_is_older_than_the_window_is_not_handled_for_want_of_its_mark() {
    let (rig, letters) = (Rig::new(1).await, fresh_topic("letters", 1).await);
    let old = Attributes { time: Some(Utc::now() - 3 * DAY), ..event() };
    let start = || {
        let consumer = rig.builder("mailer").window(2 * DAY, Beyond::Warn).dead_letters(&letters);
        Running::start(consumer.handler(Effect("mailer")).build().unwrap())
    };
    // Handled in time, and its mark has expired since.
    rig.publish([(0, old.clone()), (0, event())]).await;
    let running = start();
    rig.until_committed("mailer", 0, 2).await;
    running.shut_down().await.unwrap();

    assert_eq!(rig.effects("mailer").await, (1, 1), "the old one has no effect");
    let put = &read_topic(&letters)[..];
    let [put] = put else { panic!("one record: {put:?}") };
    assert_eq!(header(put, "ce_id"), Some(old.id.to_string()));
    assert!(header(put, "outbox-origin-reason").unwrap().contains("older than the window"));
}

type Leased = ConsumerBuilder<Claiming<PostgresClaims>>;
/// The ids of events, in the order in which they were performed.
type Performed = Arc<Mutex<Vec<Uuid>>>;

fn singly(consumer: Leased, performed: Performed) -> Consumer {
    let perform = service_fn(move |event: Event| {
        performed.lock().unwrap().push(event.id());
        async { Ok::<_, std::io::Error>(Vec::new()) }
    });
    consumer.effect(service(perform)).build().unwrap()
}

fn together(consumer: Leased, performed: Performed) -> Consumer {
    let perform = service_fn(move |events: Vec<Event>| {
        performed.lock().unwrap().extend(events.iter().map(Event::id));
        async { Ok::<_, std::io::Error>(()) }
    });
    consumer.batch_effect(10, service(perform)).build().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_10_an_event_that_is_older_than_the_window_is_not_performed_under_a_lease() {
    an_old_event_is_not_performed(singly).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_10_an_event_that_is_older_than_the_window_is_not_performed_with_others() {
    an_old_event_is_not_performed(together).await;
}

/// Nor does its claim stay: whoever has a longer window can have it.
async fn an_old_event_is_not_performed(build: fn(Leased, Performed) -> Consumer) {
    let (rig, letters) = (Rig::new(1).await, fresh_topic("letters", 1).await);
    let (claims, performed) = (PostgresClaims::new(rig.pool.clone()), Performed::default());
    let old = Attributes { time: Some(Utc::now() - 3 * DAY), ..event() };
    let fresh = event();
    let start = |group: &str, window| {
        let consumer = unstored("mailer", &rig.topic).group(format!("{group}-{}", rig.topic));
        let consumer = consumer.window(window, Beyond::Warn).dead_letters(&letters);
        Running::start(build(consumer.claims(claims.clone(), 10 * SOON), Arc::clone(&performed)))
    };
    rig.publish([(0, old.clone()), (0, fresh.clone())]).await;

    let short = start("short", 2 * DAY);
    short.until("both to be settled", |stats| stats.handled == 1 && stats.dead_lettered == 1).await;
    short.shut_down().await.unwrap();
    assert_eq!(*performed.lock().unwrap(), [fresh.id]);
    let put = &read_topic(&letters)[..];
    let [put] = put else { panic!("one record: {put:?}") };
    assert_eq!(header(put, "ce_id"), Some(old.id.to_string()));

    let long = start("long", 4 * DAY);
    long.until("the old one to be performed", |stats| stats.handled == 1 && stats.duplicates == 1).await;
    long.shut_down().await.unwrap();
    assert_eq!(*performed.lock().unwrap(), [fresh.id, old.id]);
}

/// A port on which nothing listens.
#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_away_at_the_start_is_waited_for_until_shutdown() {
    let consumer = Consumer::builder("mailer").kafka("127.0.0.1:1").topics(["users"]).window(2 * DAY, Beyond::Refuse);
    let consumer = consumer
        .claims(MemoryClaims::new(10), SOON)
        .effect(service(service_fn(async |_: Event| Ok::<_, std::io::Error>(Vec::new()))));
    let (shut_down, shutdown) = tokio::sync::oneshot::channel::<()>();
    let mut running = tokio::spawn(consumer.build().unwrap().run(async move { drop(shutdown.await) }));
    timeout(SOON / 30, &mut running).await.expect_err("it waits");
    shut_down.send(()).unwrap();
    timeout(SOON / 4, running).await.expect("it ends at once").unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_event_that_is_remembered_is_a_duplicate_like_any_other() {
    let rig = Rig::new(1).await;
    let old = Attributes { time: Some(Utc::now() - 3 * DAY), ..event() };
    rig.publish([(0, old.clone())]).await;
    let first = Running::start(rig.builder("mailer").handler(Effect("mailer")).build().unwrap());
    rig.until_committed("mailer", 0, 1).await;
    first.shut_down().await.unwrap();
    rig.publish([(0, old)]).await;

    let windowed = rig.builder("mailer").window(2 * DAY, Beyond::Warn).handler(Effect("mailer"));
    let second = Running::start(windowed.build().unwrap());
    second.until("it to be settled", |stats| stats.duplicates == 1).await;
    second.shut_down().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn marks_expire_behind_the_window_and_only_those_of_the_consumer() {
    let rig = Rig::new(1).await;
    rig.publish(events(5).into_iter().map(|event| (0, event))).await;
    for consumer in ["mailer", "auditor"] {
        let name = if consumer == "mailer" { "mailer" } else { "auditor" };
        let running = Running::start(rig.builder(consumer).handler(Effect(name)).build().unwrap());
        rig.until_effects(consumer, 5).await;
        running.shut_down().await.unwrap();
    }
    age_marks(&rig, 2).await;
    // Clocks may differ: this one is kept for a while.
    let margin = "update outbox_inbox.marks set marked_at = now() - interval '50 minutes'
                  where ctid = (select min(m.ctid) from outbox_inbox.marks m join outbox_inbox.scopes s on s.id = m.scope
                                where s.consumer = 'mailer')";
    assert_eq!(sqlx::query(margin).execute(&rig.pool).await.unwrap().rows_affected(), 1);
    rig.publish(events(1).into_iter().map(|event| (0, event))).await;
    let inbox = PostgresInbox::new(rig.pool.clone());
    assert_eq!(inbox.expire("mailer", 3 * DAY, 100).await.unwrap(), 0, "they are not that old");

    // A window of a few seconds is looked at every second; with the margin of an hour, two days are far behind.
    let windowed = rig.builder("mailer").window(Duration::from_secs(5), Beyond::Warn).handler(Effect("mailer"));
    let running = Running::start(windowed.build().unwrap());
    eventually("the mailer's old marks to be gone", SOON, async || (marks(&rig).await == 7).then_some(())).await;
    assert_eq!(rig.effects("mailer").await, (6, 6), "the new one is marked");
    running.shut_down().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_window_shorter_than_the_topics_retention_is_refused_at_start() {
    let mut rig = Rig::new(1).await;
    rig.topic = format!("{}-kept", rig.topic);
    create_topic(&rig.topic, 1, &[("retention.ms", "172800000")]).await;
    let start = |window, beyond| {
        let consumer = rig.builder("mailer").window(window, beyond).handler(Effect("mailer"));
        Running::start(consumer.build().unwrap())
    };

    let refused = start(DAY, Beyond::Refuse).ended().await.expect_err("the topic keeps two days");
    assert!(matches!(&refused, ConsumerError::Window { kept: Some(kept), .. } if *kept == 2 * DAY), "{refused:?}");
    rig.publish(events(2).into_iter().map(|event| (0, event))).await;
    for (window, beyond) in [(2 * DAY, Beyond::Refuse), (DAY, Beyond::Warn)] {
        let running = start(window, beyond);
        rig.until_effects("mailer", 2).await;
        running.shut_down().await.unwrap();
    }
}
