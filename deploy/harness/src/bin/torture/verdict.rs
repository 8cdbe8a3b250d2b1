//! The verdict: database, acknowledgements, what services emitted directly, and the Kafka log held against each other.

use std::collections::{HashMap, HashSet};

use outbox_harness::kafka;
use rdkafka::Message as _;
use sqlx::PgPool;
use uuid::Uuid;

use crate::{Place, Run, direct::Direct, faults::Landed};

/// What does not hold, at most 20 findings; empty when everything does.
pub(crate) async fn check(run: &Run, pool: &PgPool, landed: Landed, direct: &[Direct]) -> Vec<String> {
    let one = async |sql: &'static str| -> i64 { sqlx::query_scalar(sql).fetch_one(pool).await.expect("a number") };
    let counted = one("select sum(n)::bigint from counters").await;
    let stored = "select id from outbox.events order by position";
    let stored: Vec<Uuid> = sqlx::query_scalar(stored).fetch_all(pool).await.expect("the table can be read");
    let held = "select count(*), min(reason) from outbox.held_events";
    let (held, reason): (i64, Option<String>) = sqlx::query_as(held).fetch_one(pool).await.expect("a row");
    let topic = run.topic.clone();
    let log = tokio::task::spawn_blocking(move || kafka::read_topic(&topic)).await.expect("the log can be read");
    let acknowledged = run.acknowledged.lock().expect("no holder panics");

    let undone: HashSet<Uuid> = direct.iter().flat_map(|service| &service.undone).copied().collect();
    let unflushed: HashMap<Uuid, usize> = direct
        .iter()
        .enumerate()
        .flat_map(|(service, Direct { unflushed, .. })| unflushed.iter().map(move |id| (*id, service)))
        .collect();
    let (mut seen, mut next, mut findings) = (HashSet::new(), HashMap::<usize, (i64, usize)>::new(), Vec::new());
    let mut emitted = vec![Vec::new(); direct.len()];
    for record in &log {
        let place = format!("{}[{}]@{}", record.topic(), record.partition(), record.offset());
        let id: Uuid = kafka::header(record, "ce_id").and_then(|id| id.parse().ok()).expect("every record has an id");
        if !seen.insert(id) {
            continue;
        }
        let Some(Place { key, commit, index, last }) = acknowledged.get(&id).copied() else {
            match unflushed.get(&id) {
                Some(service) => emitted[*service].push(id),
                None if undone.contains(&id) => findings.push(format!("{place}: {id} was rolled back")),
                None => findings.push(format!("{place}: phantom event {id}")),
            }
            continue;
        };
        let expected = next.entry(key).or_insert((1, 0));
        if (commit, index) != *expected {
            findings.push(format!("{place}: key {key} has {:?} where {expected:?} is due", (commit, index)));
        }
        *expected = if last { (commit + 1, 0) } else { (commit, index + 1) };
    }
    let repeats = log.len() - seen.len();
    let (commits, faults, window) = (run.options.commits, landed.hit, run.options.window);
    println!(
        "state counts {counted} commits; events: table {}, acknowledged {}, Kafka {} distinct; emitted directly {} without \
         a flush, {} of them kept, and {} rolled back",
        stored.len(),
        acknowledged.len(),
        seen.len(),
        unflushed.len(),
        emitted.iter().map(Vec::len).sum::<usize>(),
        undone.len()
    );
    println!("repeats {repeats}, bound {} = {faults} faults × {window} in flight", faults * window);
    if counted != commits as i64 {
        findings.push(format!("state counts {counted} of {commits} commits"));
    }
    let table: HashSet<Uuid> = stored.iter().copied().collect();
    let expected: HashSet<Uuid> = acknowledged.keys().copied().collect();
    findings.extend(missing(&expected, &table, "acknowledged and not in the table"));
    findings.extend(missing(&table, &seen, "in the table and not in Kafka"));
    findings.extend(missing(&seen, &table, "in Kafka and not in the table"));
    let is_nobodys = |id: &&Uuid| !expected.contains(*id) && !unflushed.contains_key(*id);
    if let Some(id) = stored.iter().find(is_nobodys) {
        findings.push(format!("event {id} is in the table, and nobody committed it"));
    }
    for (service, emitted) in emitted.iter().enumerate() {
        let (undone, kept) = direct[service].answered;
        if undone == 0 || kept == 0 || run.options.postgres_crashes == 0 && emitted.len() < kept {
            let arrived = emitted.len();
            findings
                .push(format!("service {service} rolled back {undone} times and committed {kept}; {arrived} arrived"));
        }
        let stored: Vec<Uuid> = stored.iter().copied().filter(|id| unflushed.get(id) == Some(&service)).collect();
        if stored != *emitted {
            findings.push(format!("service {service}'s events are not in Kafka as they are in the table"));
        }
    }
    if let Some(reason) = reason {
        findings.push(format!("{held} events are held: {reason}"));
    }
    // Repeats alone convict nobody: honest relays have them, too.
    if repeats > faults * window && !run.options.naive {
        findings.push(format!("{repeats} repeats"));
    }
    if landed.faults > 0 && landed.mid_publish == 0 {
        findings.push("no fault hit while events were on their way: the run proves nothing".into());
    }
    findings.truncate(20);
    findings
}

/// What is in one set and not in another.
fn missing(these: &HashSet<Uuid>, those: &HashSet<Uuid>, how: &str) -> Option<String> {
    let mut missing = these.difference(those);
    missing.next().map(|id| format!("{} events are {how}, such as {id}", 1 + missing.count()))
}
