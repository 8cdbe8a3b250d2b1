//! Partitions that come and go while the log is streamed.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use outbox_harness::eventually;
use outbox_server::{model::source::Source, store::retention::Verdict};
use sqlx::Executor as _;
use uuid::Uuid;

use crate::{
    retention::{OLD, emit, old, retain, stored},
    support::{
        faulty::{Faults, faulty},
        outbox::{Outbox, PATIENCE},
    },
};

/// What retention says of the old day's events.
async fn verdict(outbox: &Outbox) -> Option<Verdict> {
    let verdicts = retain(outbox, false).await;
    verdicts.into_iter().find(|(name, _)| name == "events_p20250102").map(|(_, verdict)| verdict)
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_that_are_made_and_dropped_in_mid_stream_lose_and_repeat_nothing() {
    let outbox = Arc::new(Outbox::fresh("partitions", 3).await);
    let relay = outbox.relay();
    outbox.switch(Source::Wal).await;
    let stop = Arc::new(AtomicBool::new(false));
    let writer = tokio::spawn({
        let (outbox, stop) = (Arc::clone(&outbox), Arc::clone(&stop));
        async move {
            while !stop.load(Ordering::Relaxed) {
                outbox.emit_singly(10, 5).await;
            }
        }
    });

    let mut connection = outbox.connect().await;
    let mut gone: Vec<Uuid> = Vec::new();
    for _ in 0..3 {
        connection.execute(OLD).await.expect("partitions can be made");
        let first = gone.len();
        for n in 0..20 {
            gone.push(emit(&mut connection, &outbox.topic, &format!("old-{}", n % 3)).await);
        }
        // It goes once all of it is settled, and not before.
        let dropped = async || (verdict(&outbox).await == Some(Verdict::Dropped)).then_some(());
        eventually("the partition is dropped", PATIENCE, dropped).await;
        let counts = outbox.published().await.counts();
        assert!(gone[first..].iter().all(|id| counts.contains_key(id)), "all of it is published");
    }
    stop.store(true, Ordering::Relaxed);
    writer.await.expect("it does not panic");
    outbox.all_settled().await;

    let (stored, published) = (outbox.stored().await, outbox.published().await);
    assert_eq!(published.0.len(), stored.len() + gone.len(), "nothing is lost or repeated");
    let by_key = published.by_key();
    for n in 0..3 {
        let expected: Vec<Uuid> = gone.chunks(20).flat_map(|day| day.iter().skip(n).step_by(3)).copied().collect();
        assert_eq!(by_key[&Some(format!("old-{n}").into_bytes())], expected, "in order");
    }
    assert_eq!(outbox.stream().await.source, Source::Wal);
    relay.stop().await;
}

/// Trap 10: the lanes' progress, which only checkpoints move, decides.
#[tokio::test(flavor = "multi_thread")]
async fn while_the_log_is_streamed_a_partition_is_dropped_only_behind_progress() {
    let (outbox, mut connection) = old("wal-retention").await;
    let faults = Faults::default();
    let relay = faulty(&outbox, &faults, Outbox::relay_config());
    outbox.switch(Source::Wal).await;
    faults.change(|plan| plan.hold_reports = true);
    let id = emit(&mut connection, &outbox.topic, "a").await;
    let under_way = async || faults.plan().enqueued.contains(&id).then_some(());
    eventually("it is under way", PATIENCE, under_way).await;

    assert_eq!(verdict(&outbox).await, Some(Verdict::Unsettled));
    assert!(stored(&mut connection, id).await);

    faults.change(|plan| plan.hold_reports = false);
    outbox.all_settled().await;
    let dropped = async || (verdict(&outbox).await == Some(Verdict::Dropped)).then_some(());
    eventually("the partition is dropped", PATIENCE, dropped).await;
    assert!(!stored(&mut connection, id).await);
    assert_eq!(outbox.published().await.counts(), [(id, 1)].into());
    relay.stop().await;
}
