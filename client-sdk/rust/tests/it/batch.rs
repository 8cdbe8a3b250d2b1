//! Many events in one transaction.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::SeqCst},
};

use outbox_harness::kafka::{fresh_topic, header, read_topic};
use outbox_proto::record::Attributes;
use outbox_sdk::{BatchHandler, Event, HandlerError, Transaction};

use crate::rig::{Rig, Running, event, events};

/// Has its effects in one statement; fails for events of the type `poison`.
#[derive(Clone, Default)]
struct Effects {
    calls: Arc<AtomicU64>,
}

impl BatchHandler for Effects {
    async fn handle(&self, events: &[&Event], tx: &mut Transaction) -> Result<(), HandlerError> {
        self.calls.fetch_add(1, SeqCst);
        let (sources, ids): (Vec<_>, Vec<_>) =
            events.iter().map(|event| (event.source().to_owned(), event.id())).unzip();
        let insert = "insert into effects (consumer, source, event_id)
                      select 'mailer', source, id from unnest($1::text[], $2::uuid[]) as e (source, id)";
        sqlx::query(insert).bind(sources).bind(ids).execute(&mut **tx).await?;
        match events.iter().any(|event| event.event_type() == "poison") {
            true => Err(HandlerError::dead_letter("no such user")),
            false => Ok(()),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_handles_each_event_once_however_often_it_is_in_it() {
    let rig = Rig::new(2).await;
    let (old, new) = (events(100), events(400));
    let elsewhere: Vec<_> =
        new[..50].iter().map(|event| Attributes { source: "/billing".into(), ..event.clone() }).collect();
    rig.publish(old.iter().map(|event| (0, event.clone()))).await;
    rig.publish([&old[..], &new, &new, &elsewhere].concat().into_iter().enumerate().map(|(n, e)| ((n % 2) as i32, e)))
        .await;
    let handler = Effects::default();

    let consumer = rig.builder("mailer").batch_handler(200, handler.clone()).build().unwrap();
    let running = Running::start(consumer);
    running.until("all to be settled", |stats| stats.handled + stats.duplicates == 1_050).await;
    running.shut_down().await.unwrap();

    assert_eq!(rig.effects("mailer").await, (550, 550));
    assert!(handler.calls.load(SeqCst) < 300, "{} transactions for 550 events", handler.calls.load(SeqCst));
    assert_eq!(rig.committed("mailer", 0) + rig.committed("mailer", 1), 1_050);
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_5_one_failing_event_of_a_batch_is_dead_lettered_and_the_others_are_handled() {
    let (rig, letters) = (Rig::new(1).await, fresh_topic("letters", 1).await);
    let bad = Attributes { event_type: "poison".into(), ..event() };
    let all = [&events(60)[..], std::slice::from_ref(&bad), &events(60)].concat();
    rig.publish(all.into_iter().map(|event| (0, event))).await;

    let consumer = rig.builder("mailer").dead_letters(&letters).batch_handler(500, Effects::default());
    let running = Running::start(consumer.build().unwrap());
    rig.until_committed("mailer", 0, 121).await;
    running.shut_down().await.unwrap();

    assert_eq!(rig.effects("mailer").await, (120, 120));
    let put = &read_topic(&letters)[..];
    let [put] = put else { panic!("one record: {put:?}") };
    assert_eq!(header(put, "ce_id"), Some(bad.id.to_string()));
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_9_two_consumers_with_the_same_batches_at_once_have_one_effect_each_event() {
    let rig = Rig::new(1).await;
    let published = events(500);
    rig.publish(published.iter().map(|event| (0, event.clone()))).await;
    rig.publish(published.iter().rev().map(|event| (0, event.clone()))).await;
    let start = |group: &str| {
        let consumer = rig.builder("mailer").group(format!("{group}-{}", rig.topic));
        Running::start(consumer.batch_handler(100, Effects::default()).build().unwrap())
    };

    let (one, other) = (start("one"), start("other"));
    let settled = |running: &Running| running.stats().handled + running.stats().duplicates;
    one.until("both to settle all", |_| settled(&one) + settled(&other) == 2_000).await;

    assert_eq!(rig.effects("mailer").await, (500, 500));
    one.shut_down().await.unwrap();
    other.shut_down().await.unwrap();
}
