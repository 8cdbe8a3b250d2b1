//! Counters of a consumer.
//!
//! Invariant: reading never waits. It deliberately labels nothing by event, key or partition (trap 14).

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

/// What a consumer has done since it was built.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Events whose effects were committed.
    pub handled: u64,
    /// Events that had been handled before: their offset advanced, nothing else happened.
    pub duplicates: u64,
    /// Attempts that failed and were followed, or are to be followed, by another.
    pub retries: u64,
    /// Records put into the dead-letter topic.
    pub dead_lettered: u64,
    /// Events that came under the source and id of another. Each is dead-lettered, or stops the consumer.
    pub conflicts: u64,
    /// Events that were sent again to another consumer: their offset advanced, nothing else happened.
    pub passed: u64,
    /// Results that came too late: their partition had been taken away meanwhile.
    pub discarded: u64,
    /// Events missing in the sequences of keys, where these are watched.
    pub sequence_missing: u64,
    /// Events that come again in the sequences of keys, where these are watched.
    pub sequence_repeats: u64,
    /// Sequences that began a new epoch, where these are watched.
    pub sequence_epochs: u64,
    /// Records read from Kafka and not settled yet, those being handled included.
    pub queued: u64,
}

/// Reads a consumer's [`Stats`], also after the consumer has been moved into its task.
#[derive(Clone, Debug)]
pub struct StatsReader(Arc<Counters>);

impl StatsReader {
    /// The counters as they are now.
    pub fn read(&self) -> Stats {
        let counters = &self.0;
        Stats {
            handled: counters.handled.load(Relaxed),
            duplicates: counters.duplicates.load(Relaxed),
            retries: counters.retries.load(Relaxed),
            dead_lettered: counters.dead_lettered.load(Relaxed),
            conflicts: counters.conflicts.load(Relaxed),
            passed: counters.passed.load(Relaxed),
            discarded: counters.discarded.load(Relaxed),
            sequence_missing: counters.missing.load(Relaxed),
            sequence_repeats: counters.repeats.load(Relaxed),
            sequence_epochs: counters.epochs.load(Relaxed),
            queued: counters.queued.load(Relaxed),
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) handled: AtomicU64,
    pub(super) duplicates: AtomicU64,
    pub(super) retries: AtomicU64,
    pub(super) dead_lettered: AtomicU64,
    pub(super) conflicts: AtomicU64,
    pub(super) passed: AtomicU64,
    pub(super) discarded: AtomicU64,
    pub(super) missing: AtomicU64,
    pub(super) repeats: AtomicU64,
    pub(super) epochs: AtomicU64,
    pub(super) queued: AtomicU64,
}

impl Counters {
    pub(super) fn reader(self: &Arc<Self>) -> StatsReader {
        StatsReader(Arc::clone(self))
    }
}

pub(super) fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Relaxed);
}

pub(super) fn take(counter: &AtomicU64, n: u64) {
    counter.fetch_sub(n, Relaxed);
}
