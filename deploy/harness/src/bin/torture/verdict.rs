//! The verdict: database, acknowledgements and the Kafka log held against each other.

use std::collections::{HashMap, HashSet};

use outbox_harness::kafka;
use rdkafka::Message as _;
use sqlx::PgPool;
use uuid::Uuid;

use crate::{Place, Run, faults::Landed};

/// What does not hold, at most 20 findings; empty when everything does.
pub(crate) async fn check(run: &Run, pool: &PgPool, landed: Landed) -> Vec<String> {
    let one = async |sql: &'static str| -> i64 { sqlx::query_scalar(sql).fetch_one(pool).await.expect("a number") };
    let counted = one("select sum(n)::bigint from counters").await;
    let stored = one("select count(*) from outbox.events").await;
    let held = "select count(*), min(reason) from outbox.held_events";
    let (held, reason): (i64, Option<String>) = sqlx::query_as(held).fetch_one(pool).await.expect("a row");
    let topic = run.topic.clone();
    let log = tokio::task::spawn_blocking(move || kafka::read_topic(&topic)).await.expect("the log can be read");
    let acknowledged = run.acknowledged.lock().expect("no holder panics");

    let (mut seen, mut next, mut findings) = (HashSet::new(), HashMap::<usize, (i64, usize)>::new(), Vec::new());
    for record in &log {
        let place = format!("{}[{}]@{}", record.topic(), record.partition(), record.offset());
        let id: Uuid = kafka::header(record, "ce_id").and_then(|id| id.parse().ok()).expect("every record has an id");
        let Some(Place { key, commit, index, last }) = acknowledged.get(&id).copied() else {
            findings.push(format!("{place}: phantom event {id}"));
            continue;
        };
        if !seen.insert(id) {
            continue;
        }
        let expected = next.entry(key).or_insert((1, 0));
        if (commit, index) != *expected {
            findings.push(format!("{place}: key {key} has {:?} where {expected:?} is due", (commit, index)));
        }
        *expected = if last { (commit + 1, 0) } else { (commit, index + 1) };
    }
    let repeats = log.len() - seen.len();
    let (commits, faults, window) = (run.options.commits, landed.hit, run.options.window);
    println!(
        "state counts {counted} commits; events: table {stored}, acknowledged {}, Kafka {} distinct",
        acknowledged.len(),
        seen.len()
    );
    println!("repeats {repeats}, bound {} = {faults} faults × {window} in flight", faults * window);
    if counted != commits as i64 {
        findings.push(format!("state counts {counted} of {commits} commits"));
    }
    if [stored, seen.len() as i64] != [acknowledged.len() as i64; 2] {
        let acknowledged = acknowledged.len();
        findings.push(format!("{acknowledged} events acknowledged, {stored} in the table, {} in Kafka", seen.len()));
    }
    if let Some(reason) = reason {
        findings.push(format!("{held} events are held: {reason}"));
    }
    // Repeats alone convict nobody: honest relays have them, too.
    if repeats > faults * window && !run.options.naive {
        findings.push(format!("{repeats} repeats"));
    }
    if landed.faults > 0 && landed.landed == 0 {
        findings.push("no fault landed in mid-work: the run proves nothing".into());
    }
    findings.truncate(20);
    findings
}
