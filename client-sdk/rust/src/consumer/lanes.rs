//! The lanes of the partitions that are assigned now, and what their reports mean for Kafka.
//!
//! A lane is one assignment of one partition: a bounded queue and a task that works it off in order. Every assignment
//! makes lanes with a new [`Epoch`], so a late result of an earlier assignment finds no lane and is discarded.
//! Invariant: an offset is stored for commit only when every record before it is settled, and its lane still lives.
//!
//! It deliberately neither calls Kafka nor blocks: `poller` and `rebalance` do.

use std::{collections::HashMap, sync::Arc};

use rdkafka::{Message as _, message::OwnedMessage};
use tokio::{runtime::Handle, sync::mpsc, task::AbortHandle};
use tokio_util::sync::CancellationToken;

use super::{
    mailbox::{News, Settled},
    stats::{Counters, add, take},
    window::Window,
};

/// How many times a lane's bound of records may be settled behind one that is not, before reading stops.
const HELD_UP_MAX: usize = 20;

/// Names one assignment of one partition, never used again.
pub(super) type Epoch = u64;

/// Limits of one lane.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bound {
    pub(super) records: usize,
    pub(super) bytes: usize,
}

/// What a lane's task needs of its lane.
pub(super) struct LaneEnd {
    pub(super) epoch: Epoch,
    pub(super) records: mpsc::Receiver<OwnedMessage>,
    pub(super) stop: CancellationToken,
}

/// Starts the task of a lane.
pub(super) type StartLane = Box<dyn Fn(&Handle, LaneEnd) -> AbortHandle + Send + Sync>;

struct Lane {
    topic: String,
    partition: i32,
    records: mpsc::Sender<OwnedMessage>,
    stop: CancellationToken,
    task: AbortHandle,
    window: Window,
    in_flight: usize,
    bytes: usize,
    paused: bool,
}

/// What Kafka's client is to be told after lanes have reported.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Reported {
    /// The offset up to which everything is settled, to be committed. In order per partition.
    pub(super) offsets: Vec<(String, i32, i64)>,
    /// Paused partitions that have room again.
    pub(super) resumed: Vec<(String, i32)>,
}

pub(super) struct Lanes {
    start: StartLane,
    runtime: Handle,
    bound: Bound,
    counters: Arc<Counters>,
    last_epoch: Epoch,
    lanes: HashMap<Epoch, Lane>,
    epochs: HashMap<String, HashMap<i32, Epoch>>,
}

/// What a record counts as against a lane's bound: payload, key and a flat sum for the rest.
pub(super) fn size(record: &OwnedMessage) -> usize {
    record.payload().map_or(0, <[u8]>::len) + record.key().map_or(0, <[u8]>::len) + 256
}

impl Lanes {
    /// # Panics
    /// Outside a Tokio runtime.
    pub(super) fn new(start: StartLane, bound: Bound, counters: Arc<Counters>) -> Self {
        Self {
            start,
            runtime: Handle::current(),
            bound,
            counters,
            last_epoch: 0,
            lanes: HashMap::new(),
            epochs: HashMap::new(),
        }
    }

    /// Opens a lane for each partition; one that has a lane gets another, and the old one ends.
    pub(super) fn open(&mut self, partitions: &[(String, i32)]) {
        self.close(&self.epochs_of(partitions));
        for (topic, partition) in partitions {
            self.last_epoch += 1;
            let epoch = self.last_epoch;
            let (records, receiver) = mpsc::channel(self.bound.records);
            let stop = CancellationToken::new();
            let task = (self.start)(&self.runtime, LaneEnd { epoch, records: receiver, stop: stop.clone() });
            let (topic, partition) = (topic.clone(), *partition);
            self.epochs.entry(topic.clone()).or_default().insert(partition, epoch);
            let window = Window::default();
            let lane = Lane { topic, partition, records, stop, task, window, in_flight: 0, bytes: 0, paused: false };
            self.lanes.insert(epoch, lane);
        }
    }

    /// Queues a record in its partition's lane. True when the lane is full now: its partition is to be paused.
    /// A record of a partition without a lane is dropped: it has not been settled, so it will be read again.
    pub(super) fn push(&mut self, record: OwnedMessage) -> bool {
        let epoch = self.epochs.get(record.topic()).and_then(|topic| topic.get(&record.partition()));
        let Some(lane) = epoch.and_then(|epoch| self.lanes.get_mut(epoch)) else {
            tracing::debug!(topic = record.topic(), partition = record.partition(), "a record of no lane is dropped");
            return false;
        };
        let (bytes, offset) = (size(&record), record.offset());
        // The queue has room for every record of the bound. It is closed only when the lane's task has ended.
        if lane.records.try_send(record).is_err() {
            return false;
        }
        add(&self.counters.queued, 1);
        lane.window.read(offset);
        lane.in_flight += 1;
        lane.bytes += bytes;
        lane.paused |= lane.in_flight >= self.bound.records
            || lane.bytes >= self.bound.bytes
            || lane.window.len() >= self.bound.records * HELD_UP_MAX;
        lane.paused
    }

    /// Takes in what lanes report. A report of a lane that is closed is discarded.
    pub(super) fn apply(&mut self, news: &News) -> Reported {
        let mut reported = Reported::default();
        for Settled { epoch, offset, bytes } in &news.settled {
            let Some(lane) = self.lanes.get_mut(epoch) else {
                add(&self.counters.discarded, 1);
                continue;
            };
            take(&self.counters.queued, 1);
            lane.in_flight -= 1;
            lane.bytes -= bytes;
            if let Some(next) = lane.window.settle(*offset) {
                reported.offsets.push((lane.topic.clone(), lane.partition, next));
            }
            let half_empty = lane.in_flight <= self.bound.records / 2
                && lane.bytes <= self.bound.bytes / 2
                && lane.window.len() <= self.bound.records * HELD_UP_MAX / 2;
            if lane.paused && half_empty {
                lane.paused = false;
                reported.resumed.push((lane.topic.clone(), lane.partition));
            }
        }
        reported
    }

    /// The lanes of these partitions.
    pub(super) fn epochs_of(&self, partitions: &[(String, i32)]) -> Vec<Epoch> {
        let epoch = |(topic, partition): &(String, i32)| self.epochs.get(topic)?.get(partition).copied();
        partitions.iter().filter_map(epoch).collect()
    }

    pub(super) fn all(&self) -> Vec<Epoch> {
        self.lanes.keys().copied().collect()
    }

    pub(super) fn has(&self, epoch: Epoch) -> bool {
        self.lanes.contains_key(&epoch)
    }

    /// Asks lanes to end after the record they are handling.
    pub(super) fn stop(&self, epochs: &[Epoch]) {
        epochs.iter().filter_map(|epoch| self.lanes.get(epoch)).for_each(|lane| lane.stop.cancel());
    }

    /// Which of these lanes are paused.
    pub(super) fn paused(&self, epochs: &[Epoch]) -> Vec<(String, i32)> {
        let paused = epochs.iter().filter_map(|epoch| self.lanes.get(epoch)).filter(|lane| lane.paused);
        paused.map(|lane| (lane.topic.clone(), lane.partition)).collect()
    }

    /// Ends lanes at once, dropping what they are handling. Their later results are discarded.
    pub(super) fn close(&mut self, epochs: &[Epoch]) {
        for epoch in epochs {
            let Some(lane) = self.lanes.remove(epoch) else { continue };
            lane.task.abort();
            take(&self.counters.queued, lane.in_flight as u64);
            if let Some(partitions) = self.epochs.get_mut(&lane.topic) {
                partitions.remove(&lane.partition);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::Timestamp;

    use super::*;

    fn lanes(records: usize) -> Lanes {
        let start: StartLane = Box::new(|runtime, mut end| {
            runtime.spawn(async move { while end.records.recv().await.is_some() {} }).abort_handle()
        });
        Lanes::new(start, Bound { records, bytes: 1 << 20 }, Arc::default())
    }

    fn record(offset: i64) -> OwnedMessage {
        OwnedMessage::new(Some(vec![0; 100]), None, "users".into(), Timestamp::NotAvailable, 0, offset, None)
    }

    fn settled(epoch: Epoch, offset: i64) -> News {
        News { settled: vec![Settled { epoch, offset, bytes: 356 }], ..News::default() }
    }

    fn users() -> Vec<(String, i32)> {
        vec![("users".to_owned(), 0)]
    }

    #[tokio::test]
    async fn a_full_lane_is_paused_and_resumed_when_half_empty() {
        let mut lanes = lanes(4);
        lanes.open(&users());
        let full: Vec<bool> = (0..4).map(|offset| lanes.push(record(offset))).collect();
        assert_eq!(full, [false, false, false, true]);
        assert_eq!(lanes.apply(&settled(1, 0)).resumed, []);
        assert_eq!(lanes.apply(&settled(1, 1)).resumed, users());
    }

    #[tokio::test]
    async fn the_offset_after_a_settled_record_is_stored() {
        let mut lanes = lanes(4);
        lanes.open(&users());
        lanes.push(record(7));
        lanes.push(record(8));
        assert_eq!(lanes.apply(&News::default()).offsets, []);
        assert_eq!(lanes.apply(&settled(1, 8)).offsets, [], "7 is not settled");
        assert_eq!(lanes.apply(&settled(1, 7)).offsets, [("users".to_owned(), 0, 9)]);
    }

    #[tokio::test]
    async fn a_late_result_of_an_earlier_assignment_is_discarded() {
        let mut lanes = lanes(4);
        lanes.open(&users());
        lanes.push(record(7));
        lanes.close(&[1]);
        lanes.open(&users());
        assert_eq!(lanes.apply(&settled(1, 7)), Reported::default());
        let stats = lanes.counters.reader().read();
        assert_eq!((stats.discarded, stats.queued), (1, 0));
    }
}
