//! Leases on events, on every store, and the consumer that works under them.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use outbox_harness::{
    claims::{forget_what_is_old, keep_the_contract},
    postgres::Database,
};
use outbox_sdk::{
    Effect, Event, HandlerError,
    claim::{Claim, MemoryClaims, PostgresClaims},
};
use tokio::sync::Semaphore;
use uuid::Uuid;

use crate::rig::{Rig, Running, events, unstored};

#[tokio::test]
async fn claims_in_memory_keep_the_contract() {
    keep_the_contract(MemoryClaims::new(1_000)).await;
    // A large store is divided.
    keep_the_contract(MemoryClaims::new(100_000)).await;
}

#[tokio::test]
async fn trap_6_claims_on_postgres_keep_the_contract() {
    let database = Database::fresh().await;
    let claims = PostgresClaims::new(database.pool().await);
    claims.ensure_schema().await.unwrap();
    keep_the_contract(claims).await;
}

#[tokio::test]
async fn claims_on_postgres_are_forgotten_by_age() {
    let database = Database::fresh().await;
    let claims = PostgresClaims::new(database.pool().await);
    claims.ensure_schema().await.unwrap();
    forget_what_is_old(claims).await;
}

/// Counts its effects; waits for a permit before the first attempt's end.
#[derive(Clone)]
struct Mail {
    sent: Arc<Mutex<HashMap<Uuid, u32>>>,
    permits: Arc<Semaphore>,
}

impl Mail {
    fn new(permits: usize) -> Self {
        Self { sent: Arc::default(), permits: Arc::new(Semaphore::new(permits)) }
    }

    fn sent(&self) -> (usize, u32) {
        let sent = self.sent.lock().unwrap();
        (sent.len(), sent.values().sum())
    }
}

impl Effect for Mail {
    async fn perform(&self, event: &Event, claim: &Claim) -> Result<Vec<u8>, HandlerError> {
        if claim.attempt() == 1 {
            self.permits.acquire().await?.forget();
        }
        *self.sent.lock().unwrap().entry(event.id()).or_default() += 1;
        Ok(b"sent".to_vec())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn effects_under_a_lease_happen_once_however_often_the_event_comes() {
    let rig = Rig::new(2).await;
    let published = events(50);
    for partition in [0, 1, 0] {
        rig.publish(published.iter().map(|event| (partition, event.clone()))).await;
    }
    let (claims, mail) = (PostgresClaims::new(rig.pool.clone()), Mail::new(1_000));
    let consumer = unstored("mailer", &rig.topic).claims(claims, Duration::from_secs(10)).effect(mail.clone());
    let running = Running::start(consumer.concurrency(4).build().unwrap());
    rig.until_committed("mailer", 0, 100).await;
    rig.until_committed("mailer", 1, 50).await;
    running.shut_down().await.unwrap();
    assert_eq!(mail.sent(), (50, 50));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_is_extended_while_its_effect_lasts_and_taken_over_when_its_holder_is_gone() {
    let rig = Rig::new(1).await;
    rig.publish(events(1).into_iter().map(|event| (0, event))).await;
    let (claims, mail) = (PostgresClaims::new(rig.pool.clone()), Mail::new(0));
    let lease = Duration::from_millis(600);
    let start = |group: &str| {
        let consumer = unstored("mailer", &rig.topic).group(format!("{group}-{}", rig.topic));
        Running::start(consumer.claims(claims.clone(), lease).effect(mail.clone()).build().unwrap())
    };

    let holder = start("one");
    holder.until("it to be handled", |stats| stats.queued == 1).await;
    let waiting = start("other");
    // Several leases long: the second finds it held again and again, because the first extends its lease.
    waiting.until("the second to find it held", |stats| stats.retries >= 3).await;
    assert_eq!(mail.sent(), (0, 0));
    holder.kill().await;
    waiting.until("the second to take it over", |stats| stats.handled == 1).await;
    assert_eq!(mail.sent(), (1, 1));
    waiting.shut_down().await.unwrap();
}
