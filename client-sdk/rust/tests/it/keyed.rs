//! Several events of a partition at once, those of one key in order.

use std::{collections::HashMap, sync::Arc};

use outbox_sdk::{Event, Handler, HandlerError, Transaction};
use tokio::sync::Semaphore;

use crate::rig::{Effect, Rig, Running, effect, event, events};

/// Handles events of the key `slow` only when there is a permit.
struct SlowKey(Arc<Semaphore>);

impl Handler for SlowKey {
    async fn handle(&self, event: &Event, tx: &mut Transaction) -> Result<(), HandlerError> {
        if event.key() == Some(b"slow") {
            self.0.acquire().await?.forget();
        }
        effect("mailer", event, tx).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_7_events_of_a_key_keep_their_order_while_others_pass() {
    let rig = Rig::new(1).await;
    sqlx::query("alter table effects add place bigserial").execute(&rig.pool).await.unwrap();
    let mut published: HashMap<String, Vec<uuid::Uuid>> = HashMap::new();
    let mut records = Vec::new();
    let keys: Vec<String> = (0..7).map(|n| format!("user-{n}")).collect();
    for n in 0..350 {
        let (key, event) = (&keys[n * n % 7], event());
        published.entry(key.clone()).or_default().push(event.id);
        records.push((0, Some(key.as_str()), event, "{}"));
    }
    rig.publish_keyed("slow", &events(1)).await;
    rig.publish_records(records).await;
    let permits = Arc::new(Semaphore::new(0));

    let running =
        Running::start(rig.builder("mailer").concurrency(4).handler(SlowKey(permits.clone())).build().unwrap());
    rig.until_effects("mailer", 350).await;
    permits.add_permits(1);
    rig.until_effects("mailer", 351).await;
    running.shut_down().await.unwrap();

    let handled: Vec<uuid::Uuid> =
        sqlx::query_scalar("select event_id from effects order by place").fetch_all(&rig.pool).await.unwrap();
    for (key, ids) in published {
        let of_key: Vec<_> = handled.iter().filter(|id| ids.contains(id)).copied().collect();
        assert_eq!(of_key, ids, "{key}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_5_an_offset_waits_for_every_event_before_it() {
    let rig = Rig::new(1).await;
    rig.publish_keyed("slow", &events(1)).await;
    rig.publish_keyed("quick", &events(20)).await;
    let never = Arc::new(Semaphore::new(0));

    let running = Running::start(rig.builder("mailer").concurrency(2).handler(SlowKey(never)).build().unwrap());
    rig.until_effects("mailer", 20).await;
    running.until("only the slow one to be left", |stats| stats.queued == 1).await;
    running.kill().await;
    assert_eq!(rig.committed("mailer", 0), 0, "the first event is not handled");

    let again = Running::start(rig.builder("mailer").concurrency(2).handler(Effect("mailer")).build().unwrap());
    rig.until_effects("mailer", 21).await;
    rig.until_committed("mailer", 0, 21).await;
    again.shut_down().await.unwrap();
    assert_eq!(rig.effects("mailer").await, (21, 21));
}

#[tokio::test(flavor = "multi_thread")]
async fn more_workers_than_connections_take_turns() {
    let rig = Rig::new(3).await;
    let small = sqlx::postgres::PgPoolOptions::new().max_connections(2).connect(&rig.database.url).await.unwrap();
    let keys: Vec<String> = (0..10).map(|n| n.to_string()).collect();
    let records = (0..300).map(|n| (n % 3, Some(keys[n as usize % 10].as_str()), event(), "{}"));
    rig.publish_records(records).await;

    let consumer = crate::rig::builder("mailer", &rig.topic, &small).concurrency(8).handler(Effect("mailer"));
    let running = Running::start(consumer.build().unwrap());
    rig.until_effects("mailer", 300).await;
    assert_eq!(running.stats().retries, 0, "nobody waited in vain");
    running.shut_down().await.unwrap();
    assert_eq!(rig.effects("mailer").await, (300, 300));
}
