//! Commits as callers make them: the command `count`, requests that run it and store an event, and callers in a closed
//! loop.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use outbox_proto::v1::{
    CommandCall, CommitRequest, NewEvent, Operation, Value, new_event::Payload, operation,
    outbox_service_client::OutboxServiceClient, value::Kind,
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use sqlx::{AssertSqlSafe, Executor as _, PgPool};
use tonic::transport::Channel;
use uuid::Uuid;

use super::outboxd::{Outboxd, Running};

/// A catalog with the command `count`, which counts a key's row up and returns the number.
pub const CATALOG: &str =
    "-- name: count\n-- expect: one\nupdate counters set n = n + 1 where key = :key returning n\n";

/// Makes the table that `count` changes, with the keys from 0 on.
///
/// # Panics
/// When it cannot be made.
pub async fn make_counters(pool: &PgPool, keys: i64) {
    let table = "create table counters (key bigint primary key, n bigint not null) with (fillfactor = 50)";
    pool.execute(table).await.expect("a table can be made");
    let rows = format!("insert into counters select n, 0 from generate_series(0, {keys} - 1) as n");
    pool.execute(AssertSqlSafe(rows)).await.expect("rows can be written");
}

/// A call of `count`.
pub fn count(key: i64) -> Operation {
    let key = Value { kind: Some(Kind::Int(key)) };
    let call = CommandCall { name: "count".into(), parameters: [("key".to_owned(), key)].into() };
    Operation { kind: Some(operation::Kind::Command(call)), ..Operation::default() }
}

/// A request under an id of its own that stores one event.
pub fn emit(topic: &str, key: i64, payload: &str) -> CommitRequest {
    let event = NewEvent {
        topic: topic.to_owned(),
        key: Some(key.to_string().into_bytes().into()),
        r#type: "counted".into(),
        payload: Some(Payload::Text(payload.to_owned())),
        ..NewEvent::default()
    };
    CommitRequest { request_id: Uuid::now_v7().to_string(), events: vec![event], ..CommitRequest::default() }
}

/// The same, which counts the key up first.
pub fn count_and_emit(topic: &str, key: i64, payload: &str) -> CommitRequest {
    CommitRequest { operations: vec![count(key)], ..emit(topic, key, payload) }
}

/// What a closed loop came to.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Commits per second.
    pub per_second: f64,
    /// CPU time of the server for each, in microseconds.
    pub cpu_us: f64,
}

/// Callers that each commit what `request` makes of a key, drawn evenly, as soon as the last one is answered.
///
/// # Panics
/// When a commit is refused.
pub async fn closed_loop(
    server: &Outboxd,
    running: &Running,
    callers: usize,
    span: Duration,
    request: impl Fn(&mut StdRng) -> CommitRequest + Send + Sync + 'static,
) -> Pace {
    let request = Arc::new(request);
    let (start, cpu) = (Instant::now(), running.cpu());
    let end = start + span;
    // HTTP/2 handles one connection's frames in one task: spread the callers, as several services would be.
    let channels: Vec<_> = (0..4).map(|_| server.channel()).collect();
    let callers = (0..callers)
        .map(|n| tokio::spawn(call(channels[n % channels.len()].clone(), n as u64, end, Arc::clone(&request))));
    let mut commits = 0;
    for caller in callers.collect::<Vec<_>>() {
        commits += caller.await.expect("a caller ends well");
    }
    let used = running.cpu() - cpu;
    Pace {
        per_second: f64::from(commits) / start.elapsed().as_secs_f64(),
        cpu_us: used.as_secs_f64() * 1e6 / f64::from(commits),
    }
}

async fn call(channel: Channel, seed: u64, end: Instant, request: Arc<impl Fn(&mut StdRng) -> CommitRequest>) -> u32 {
    let mut client = OutboxServiceClient::new(channel);
    let mut random = StdRng::seed_from_u64(seed);
    let mut done = 0;
    while Instant::now() < end {
        client.commit(request(&mut random)).await.expect("the commit is applied");
        done += 1;
    }
    done
}

/// A key from 0 on.
pub fn any_key(random: &mut StdRng, keys: i64) -> i64 {
    random.random_range(0..keys)
}
