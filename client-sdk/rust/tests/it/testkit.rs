//! The kit delivers what Kafka and crashes would, and convicts a handler whose effects are not in its transaction.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use outbox_sdk::{
    BatchEffect, BatchHandler, Effect, Event, Handler, HandlerError, PostgresInbox, Transaction,
    claim::{Claim, MemoryClaims},
    testkit::{Delivered, TestEvent, TestKit},
};
use sqlx::PgPool;
use uuid::Uuid;

use crate::rig::{self, Rig};

fn events() -> Vec<Event> {
    (0..60).map(|n| TestEvent::new("user.activated").key(format!("user-{}", n % 7)).build()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_works_in_its_transaction_passes_whatever_is_done_to_it() {
    let rig = Rig::new(1).await;
    sqlx::query("alter table effects add place bigserial").execute(&rig.pool).await.unwrap();
    let (events, inbox) = (events(), PostgresInbox::new(rig.pool.clone()));
    let kit = TestKit::transactional("mailer", inbox, rig::Effect("mailer")).seed(7);

    let report = kit.torment(&events).await.unwrap();

    assert!(report.repeats > 20 && report.crashes > 20, "{report:?}");
    assert_eq!(rig.effects("mailer").await, (60, 60));
    assert_eq!(kit.deliver(&events[0]).await.unwrap(), Delivered::Duplicate);
    let handled: Vec<Uuid> =
        sqlx::query_scalar("select event_id from effects order by place").fetch_all(&rig.pool).await.unwrap();
    for key in 0..7 {
        let published: Vec<_> = events.iter().skip(key).step_by(7).map(Event::id).collect();
        let of_key: Vec<_> = handled.iter().filter(|id| published.contains(id)).copied().collect();
        assert_eq!(of_key, published, "user-{key}");
    }
}

/// Does not take one of the events together with others.
struct Solitary(Uuid);

impl BatchHandler for Solitary {
    async fn handle(&self, events: &[&Event], tx: &mut Transaction) -> Result<(), HandlerError> {
        for event in events {
            rig::effect("mailer", event, tx).await?;
        }
        let is_alone = events.len() == 1 || events.iter().all(|event| event.id() != self.0);
        if is_alone { Ok(()) } else { Err(HandlerError::new("not with others")) }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_are_delivered_with_repeats_among_them_and_singly_when_they_fail() {
    let rig = Rig::new(1).await;
    let (events, inbox) = (events(), PostgresInbox::new(rig.pool.clone()));
    let kit = TestKit::batched("mailer", inbox, Solitary(events[30].id())).seed(7);

    let report = kit.torment(&events).await.unwrap();

    assert!(report.repeats > 20 && report.crashes > 5 && report.failures > 0, "{report:?}");
    assert_eq!(rig.effects("mailer").await, (60, 60));
    assert_eq!(kit.deliver(&events[0]).await.unwrap(), Delivered::Duplicate);
}

/// Has its effects past the transaction.
struct Careless(PgPool);

impl Handler for Careless {
    async fn handle(&self, event: &Event, _: &mut Transaction) -> Result<(), HandlerError> {
        let insert = sqlx::query("insert into effects (consumer, source, event_id) values ('mailer', '/test', $1)");
        insert.bind(event.id()).execute(&self.0).await?;
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_works_past_its_transaction_is_convicted() {
    let rig = Rig::new(1).await;
    let kit = TestKit::transactional("mailer", PostgresInbox::new(rig.pool.clone()), Careless(rig.pool.clone()));
    kit.seed(7).torment(&events()).await.unwrap();
    let (different, effects) = rig.effects("mailer").await;
    assert!(effects > different, "{effects} effects for {different} events");
}

struct Mail;

impl Effect for Mail {
    async fn perform(&self, _: &Event, _: &Claim) -> Result<Vec<u8>, HandlerError> {
        tokio::task::yield_now().await;
        Ok(Vec::new())
    }
}

#[tokio::test]
async fn an_effect_under_a_lease_is_delivered_until_it_is_completed() {
    let events = events();
    let kit = TestKit::leased("mailer", MemoryClaims::new(1_000), Duration::from_millis(20), Mail).seed(7);
    kit.torment(&events).await.unwrap();
    for event in &events {
        assert_eq!(kit.deliver(event).await.unwrap(), Delivered::Duplicate);
    }
}

/// Has its effects in a ledger outside any transaction: which events, by the call.
#[derive(Clone, Default)]
struct Index(Arc<Mutex<Vec<Vec<Uuid>>>>);

impl BatchEffect for Index {
    async fn perform(&self, events: &[&Event], _: &[Claim]) -> Result<(), HandlerError> {
        for at in 0..8 {
            if at == 4 {
                self.0.lock().unwrap().push(events.iter().map(|event| event.id()).collect());
            }
            tokio::task::yield_now().await;
        }
        Ok(())
    }
}

#[tokio::test]
async fn one_effect_for_many_events_is_delivered_until_all_are_completed() {
    let (events, index) = (events(), Index::default());
    let claims = MemoryClaims::new(1_000);
    let kit = TestKit::batch_leased("mailer", claims, Duration::from_millis(20), index.clone()).seed(7);
    let report = kit.torment(&events).await.unwrap();
    assert!(report.repeats > 20 && report.crashes > 5, "{report:?}");
    for event in &events {
        assert_eq!(kit.deliver(event).await.unwrap(), Delivered::Duplicate);
    }
    let calls = index.0.lock().unwrap();
    assert!(calls.iter().all(|call| call.iter().collect::<HashSet<_>>().len() == call.len()), "none twice in a call");
    assert!(calls.iter().any(|call| call.len() > 1), "{calls:?}");
}
