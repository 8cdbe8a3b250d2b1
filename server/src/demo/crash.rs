//! The story's second part: the server and its relay are killed with SIGKILL in the middle of a burst.
//!
//! Invariant: what is checked afterwards is checked against the answers that the callers got, held in this process.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::Duration,
};

use outbox_sdk::{Client, Command, Disposition, NewEvent, Numeric};
use serde_json::{Value, json};
use tokio::{sync::watch, task::JoinSet};
use uuid::Uuid;

use super::{
    Failure, World, eventually,
    kafka::Record,
    mailer::{Mailer, Mails},
    report::Report,
    server::Server,
};

const BUYERS: usize = 16;
const ORDERS_EACH: usize = 25;
const ORDERS: usize = BUYERS * ORDERS_EACH;
/// Orders acknowledged when the server is killed.
const KILL_AT: usize = ORDERS / 3;
const DEADLINE: Duration = Duration::from_secs(30);
const SETTLED_WITHIN: Duration = Duration::from_secs(30);

/// The users who order at the same time, one order after the other each.
pub(super) fn buyers(run: &str) -> impl Iterator<Item = String> {
    (0..BUYERS).map(move |n| format!("buyer-{n}-{run}"))
}

/// What callers were told.
#[derive(Default)]
struct Acknowledged {
    events: Vec<Uuid>,
    /// Answers that came from the store, because the first one was lost.
    replayed: usize,
}

pub(super) async fn survive(world: &mut World, report: &mut Report, mailer: &Mailer) -> Result<(), Failure> {
    let title =
        format!("{ORDERS} orders of {BUYERS} users at once; server and relay are killed in the middle (SIGKILL)");
    report.step("crash", title);
    let (progress, mut acknowledged) = watch::channel(0_usize);
    let mut tasks = JoinSet::new();
    for buyer in buyers(&world.run) {
        tasks.spawn(order(world.client.clone(), world.topic.name().to_owned(), buyer, progress.clone()));
    }
    acknowledged.wait_for(|count| *count >= KILL_AT).await?;
    let killed = world.server.kill().await?;
    let at_kill = *acknowledged.borrow();
    let stored = stored_events(world).await?.len();
    let published = world.topic.read().await?.len();
    report.saw("at_the_kill", json!({"acknowledged": at_kill, "events_stored": stored, "records_in_kafka": published}));
    world.server = Server::start(&world.config, &world.folder).await?;
    report.saw("new_process", world.server.pid());
    let mut all = Acknowledged::default();
    while let Some(done) = tasks.join_next().await {
        let done = done??;
        all.events.extend(done.events);
        all.replayed += done.replayed;
    }
    report.saw("acknowledged", all.events.len());
    report.saw("replayed_after_a_lost_answer", all.replayed);
    report.check("the kill hit the server in the middle of the burst", killed && at_kill < ORDERS);
    report.check(
        "every order was acknowledged in the end, by retries with the same request id",
        all.events.len() == ORDERS,
    );
    verify(world, report, mailer, &all).await
}

async fn order(
    client: Client,
    topic: String,
    buyer: String,
    progress: watch::Sender<usize>,
) -> Result<Acknowledged, Failure> {
    let mut acknowledged = Acknowledged::default();
    for n in 0..ORDERS_EACH {
        let place = Command::new("place_order").param("order_id", Uuid::now_v7()).param("user_id", &buyer);
        let event =
            NewEvent::new(&topic, "order.placed").key(buyer.clone()).json(&json!({"user_id": buyer, "n": n}))?;
        let place = place.param("total", Numeric(format!("{n}.50")));
        let committed = client.commit().deadline(DEADLINE).command(place).event(event).send().await?;
        acknowledged.replayed += usize::from(committed.disposition() == Disposition::Replayed);
        acknowledged.events.extend(committed.event_ids()?);
        progress.send_modify(|count| *count += 1);
    }
    Ok(acknowledged)
}

async fn verify(world: &World, report: &mut Report, mailer: &Mailer, all: &Acknowledged) -> Result<(), Failure> {
    report.step("verify", "Nothing lost, nothing doubled, every key in order");
    let unsettled = "select count(*) from outbox.events e where topic = $1 and not outbox.is_settled(e)";
    eventually("the relay to settle every event", SETTLED_WITHIN, async || {
        let left: i64 = sqlx::query_scalar(unsettled).bind(world.topic.name()).fetch_one(&world.shop).await?;
        Ok((left == 0).then_some(()))
    })
    .await?;
    let (stored, records) = (stored_events(world).await?, world.topic.read().await?);
    let published: HashSet<Uuid> = records.iter().map(|record| record.event.id).collect();
    let orders = sqlx::query_scalar("select count(*) from orders where user_id = any($1)");
    let orders: i64 = orders.bind(buyers(&world.run).collect::<Vec<_>>()).fetch_one(&world.shop).await?;
    report.saw("orders", orders);
    report.saw("events_stored", stored.len());
    report.saw("records_in_kafka", records.len());
    report.saw("repeats_in_kafka", records.len() - published.len());
    let acknowledged: HashSet<Uuid> = all.events.iter().copied().collect();
    let whole = acknowledged.is_subset(&stored) && orders == all.events.len() as i64;
    report.check("every acknowledged order and its event is in Postgres, once", whole && stored.len() == ORDERS + 1);
    report.check("every event is in Kafka: none lost", stored.is_subset(&published));
    report.check("nothing is in Kafka that was not committed", published.is_subset(&stored));
    let out_of_order = out_of_order(&records);
    report.check("each key's events are in commit order, repeats dropped", out_of_order.is_empty());
    if !out_of_order.is_empty() {
        report.saw("out_of_order", out_of_order);
    }
    verify_mails(world, report, mailer, records.len(), stored.len()).await
}

async fn verify_mails(
    world: &World,
    report: &mut Report,
    mailer: &Mailer,
    records: usize,
    events: usize,
) -> Result<(), Failure> {
    let seen = || mailer.stats().handled + mailer.stats().duplicates;
    eventually("the consumer to see every record", SETTLED_WITHIN, async || {
        Ok((seen() >= records as u64).then_some(()))
    })
    .await?;
    let (stats, mails) = (mailer.stats(), Mails::count(&world.mails).await?);
    report.saw("consumer", json!({"handled": stats.handled, "duplicates": stats.duplicates}));
    report.saw("mails", mails.sent);
    let once = mails == Mails { sent: events as i64, events: events as i64 };
    report.check("exactly one e-mail per event", once);
    Ok(())
}

async fn stored_events(world: &World) -> Result<HashSet<Uuid>, Failure> {
    let ids = sqlx::query_scalar("select id from outbox.events where topic = $1").bind(world.topic.name());
    Ok(ids.fetch_all(&world.shop).await?.into_iter().collect())
}

/// The keys whose orders do not count up from 0 by one in the log, once later repeats of an event are dropped.
/// A key's records must also be in one partition: between partitions there is no order.
fn out_of_order(records: &[Record]) -> Vec<String> {
    let mut seen = HashSet::new();
    let mut numbers: BTreeMap<String, Vec<Option<u64>>> = BTreeMap::new();
    let mut partitions: HashMap<String, HashSet<i32>> = HashMap::new();
    for record in records {
        let key = String::from_utf8_lossy(&record.key).into_owned();
        partitions.entry(key.clone()).or_default().insert(record.partition);
        if record.event.event_type == "order.placed" && seen.insert(record.event.id) {
            let payload: Value = serde_json::from_slice(&record.payload).unwrap_or_default();
            numbers.entry(key).or_default().push(payload["n"].as_u64());
        }
    }
    let counted = |numbers: &[Option<u64>]| numbers.iter().copied().eq((0..numbers.len() as u64).map(Some));
    let wrong = |key: &String, numbers: &[Option<u64>]| !counted(numbers) || partitions[key].len() != 1;
    numbers.into_iter().filter(|(key, numbers)| wrong(key, numbers)).map(|(key, _)| key).collect()
}

#[cfg(test)]
mod tests {
    use outbox_proto::record::Attributes;

    use super::*;

    fn record(key: &str, id: u128, partition: i32) -> Record {
        let event = Attributes {
            id: Uuid::from_u128(id),
            source: "outboxd".into(),
            event_type: "order.placed".into(),
            subject: None,
            time: None,
            content_type: None,
            traceparent: None,
            tracestate: None,
            headers: vec![],
        };
        let payload = json!({"n": id % 10}).to_string().into_bytes();
        Record { event, partition, offset: 0, key: key.into(), payload, headers: vec![] }
    }

    #[test]
    fn a_repeat_is_no_disorder_but_a_late_first_is() {
        let log = [record("a", 10, 0), record("b", 20, 0), record("a", 11, 0), record("a", 10, 0), record("a", 12, 0)];
        assert_eq!(out_of_order(&log), [""; 0]);
        assert_eq!(out_of_order(&[record("a", 11, 0), record("a", 10, 0), record("b", 20, 0)]), ["a"]);
    }

    #[test]
    fn a_gap_and_a_second_partition_are_disorder() {
        assert_eq!(out_of_order(&[record("a", 10, 0), record("a", 12, 0)]), ["a"]);
        assert_eq!(out_of_order(&[record("a", 10, 0), record("a", 11, 1)]), ["a"]);
    }
}
