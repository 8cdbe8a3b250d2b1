//! How long events wait when the process that relays them is killed, and when it is stopped without a word.
//!
//! Real processes, with the lease that is the default. Measured from the fault until Kafka has everything that was emitted
//! right after it. One round within the limit is enough: the machine may be busy, but a relay that
//! waits for a lease is slow each time.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use outbox_harness::{
    eventually, kafka,
    outboxd::{Outboxd, Running},
};
use outbox_server::{config, model::source::Source};

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use uuid::Uuid;

use crate::support::outbox::{Outbox, PATIENCE};

const AFTER_A_KILL: Duration = Duration::from_secs(2);
const ROUNDS_MAX: usize = 3;
const EVENTS: usize = 200;
const PARTITIONS: i32 = 3;

/// A killed process ends its connections, which the others notice.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_owner_is_followed_within_two_seconds() {
    for source in [Source::Poll, Source::Wal] {
        assert_within(AFTER_A_KILL, source, Running::kill).await;
    }
}

/// A stopped one keeps them, and its lease.
#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_owner_is_followed_two_seconds_after_its_lease_at_most() {
    let lease = Duration::from_millis(config::Relay::default().lease_ttl_ms);
    for source in [Source::Poll, Source::Wal] {
        assert_within(lease + AFTER_A_KILL, source, |owner| owner.pause()).await;
    }
}

async fn assert_within(limit: Duration, source: Source, hit: fn(&mut Running)) {
    let mut took = Vec::new();
    while took.last().is_none_or(|took| *took > limit) {
        assert!(took.len() < ROUNDS_MAX, "with `{source}` it took {took:?}, never {limit:?} or less");
        took.push(takeover(source, hit).await);
    }
    eprintln!("with `{source}`: {took:?}");
}

async fn takeover(source: Source, hit: fn(&mut Running)) -> Duration {
    let outbox = Outbox::fresh("takeover", PARTITIONS).await;
    let folder = std::env::temp_dir().join(format!("outboxd-takeover-{}", Uuid::now_v7()));
    std::fs::create_dir(&folder).expect("a folder can be made");
    let process = |log: &str| Outboxd::new(Path::new(env!("CARGO_BIN_EXE_outboxd")), &outbox.url, folder.join(log));
    let (first, second) = (process("first.log"), process("second.log"));
    let mut owner = first.start();
    first.serving().await;
    outbox.switch(source).await;
    let _successor = second.start();
    second.serving().await;
    // With the log as source one owns every lane, and the other stands by.
    let lanes_of_owners = match source {
        Source::Poll => vec![32, 32],
        Source::Wal => vec![64],
    };
    let mut connection = outbox.connect().await;
    let reader: BaseConsumer = kafka::client().create().expect("a consumer can be made");
    eventually("both have entered, and lanes are shared", PATIENCE, async || {
        let owned: Vec<i64> =
            sqlx::query_scalar("select count(*) from outbox.progress where owner is not null group by owner")
                .fetch_all(&mut connection)
                .await
                .expect("the table can be read");
        let entered: i64 = sqlx::query_scalar("select count(*) from outbox.relays")
            .fetch_one(&mut connection)
            .await
            .expect("the table can be read");
        (owned == lanes_of_owners && entered == 2).then_some(())
    })
    .await;

    let since = Instant::now();
    hit(&mut owner);
    outbox.emit(EVENTS, EVENTS).await;
    let took = eventually("Kafka has every event", PATIENCE, async || {
        let end = |partition| reader.fetch_watermarks(&outbox.topic, partition, PATIENCE).expect("Kafka answers").1;
        ((0..PARTITIONS).map(end).sum::<i64>() >= EVENTS as i64).then(|| since.elapsed())
    })
    .await;
    outbox.assert_all_published_in_order().await;
    std::fs::remove_dir_all(&folder).expect("the folder can be removed");
    took
}
