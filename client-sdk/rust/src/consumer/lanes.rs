//! The lanes of the partitions that are assigned now, and what their reports mean for Kafka.
//!
//! A lane is one assignment of one partition: a bounded queue and a task that works it off in order. Every assignment
//! makes lanes with a new [`Epoch`], so a late result of an earlier assignment finds no lane and is discarded.
//! Invariant: an offset is stored for commit only when every record before it is settled, and its lane still lives.
//!
//! It deliberately neither calls Kafka nor blocks: `poller` and `rebalance` do.

use std::{collections::HashMap, sync::Arc};

use tokio::{runtime::Handle, sync::mpsc, task::AbortHandle};
use tokio_util::sync::CancellationToken;

use super::{
    mailbox::News,
    record::Record,
    stats::{Counters, add, take},
    window::Window,
};

/// A lane whose room is less than this part of its bound is not read on, as long as that leaves all its workers busy.
const FEW: usize = 8;
/// How many times a lane's bound of records may be settled behind one that is not, before reading stops.
const HELD_UP_MAX: usize = 20;

/// Names one assignment of one partition, never used again.
pub(super) type Epoch = u64;

/// Limits of one lane, or what is left of them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bound {
    pub(super) records: usize,
    pub(super) bytes: usize,
}

/// What a lane's task needs of its lane.
pub(super) struct LaneEnd {
    pub(super) epoch: Epoch,
    pub(super) topic: Arc<str>,
    /// What was read, in order.
    pub(super) records: mpsc::UnboundedReceiver<Vec<Record>>,
    pub(super) stop: CancellationToken,
}

/// Starts the task of a lane.
pub(super) type StartLane = Box<dyn Fn(&Handle, LaneEnd) -> AbortHandle + Send + Sync>;

struct Lane {
    topic: Arc<str>,
    partition: i32,
    /// Bounded by whoever reads: no more than there is [room](Lanes::room) for.
    records: mpsc::UnboundedSender<Vec<Record>>,
    stop: CancellationToken,
    task: AbortHandle,
    window: Window,
    in_flight: usize,
    bytes: usize,
}

/// Offsets up to which everything is settled, to be committed, each with its topic and partition. One per partition.
pub(super) type Offsets = Vec<(Arc<str>, i32, i64)>;

pub(super) struct Lanes {
    start: StartLane,
    runtime: Handle,
    bound: Bound,
    /// Less room than this counts as none.
    few: usize,
    counters: Arc<Counters>,
    last_epoch: Epoch,
    lanes: HashMap<Epoch, Lane>,
    epochs: HashMap<String, HashMap<i32, Epoch>>,
}

impl Lanes {
    /// `workers` is how many a lane has at most.
    ///
    /// # Panics
    /// Outside a Tokio runtime.
    pub(super) fn new(start: StartLane, bound: Bound, workers: usize, counters: Arc<Counters>) -> Self {
        Self {
            start,
            runtime: Handle::current(),
            bound,
            few: (bound.records / FEW).min(bound.records.saturating_sub(workers)),
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
            let (records, receiver) = mpsc::unbounded_channel();
            let (topic, stop) = (Arc::<str>::from(topic.as_str()), CancellationToken::new());
            let end = LaneEnd { epoch, topic: Arc::clone(&topic), records: receiver, stop: stop.clone() };
            let task = (self.start)(&self.runtime, end);
            let partition = *partition;
            self.epochs.entry(topic.to_string()).or_default().insert(partition, epoch);
            let window = Window::default();
            let lane = Lane { topic, partition, records, stop, task, window, in_flight: 0, bytes: 0 };
            self.lanes.insert(epoch, lane);
        }
    }

    /// How much more of a partition may be read. Nothing without a lane.
    pub(super) fn room(&self, topic: &str, partition: i32) -> Bound {
        let lane = self.epoch(topic, partition).and_then(|epoch| self.lanes.get(&epoch));
        let Some(lane) = lane else { return Bound { records: 0, bytes: 0 } };
        let held_up = (self.bound.records * HELD_UP_MAX).saturating_sub(lane.window.len());
        let left = self.bound.records.saturating_sub(lane.in_flight);
        Bound {
            // To read a few at a time whenever a few are settled would cost more than they do.
            records: if left < self.few { 0 } else { left.min(held_up) },
            bytes: self.bound.bytes.saturating_sub(lane.bytes),
        }
    }

    /// Queues records of one partition in its lane, in order. Those without a lane are dropped: they have not been settled,
    /// so they will be read again.
    pub(super) fn push(&mut self, records: Vec<Record>) {
        let Some(first) = records.first() else { return };
        let epoch = self.epoch(first.topic(), first.partition());
        let Some(lane) = epoch.and_then(|epoch| self.lanes.get_mut(&epoch)) else {
            let (topic, partition) = (first.topic(), first.partition());
            tracing::debug!(topic, partition, records = records.len(), "records of no lane are dropped");
            return;
        };
        for record in &records {
            lane.window.read(record.offset());
            lane.bytes += record.size();
        }
        let count = records.len();
        lane.in_flight += count;
        add(&self.counters.queued, count as u64);
        // It fails only when the lane's task has ended: then nothing more is read, and nothing of it is settled.
        let _ = lane.records.send(records);
    }

    /// Takes in what lanes report. A report of a lane that is closed is discarded.
    pub(super) fn apply(&mut self, news: &News) -> Offsets {
        let mut moved: Vec<(Epoch, i64)> = Vec::new();
        for reports in news.settled.chunk_by(|one, next| one.epoch == next.epoch) {
            let epoch = reports[0].epoch;
            let Some(lane) = self.lanes.get_mut(&epoch) else {
                add(&self.counters.discarded, reports.len() as u64);
                continue;
            };
            take(&self.counters.queued, reports.len() as u64);
            lane.in_flight -= reports.len();
            lane.bytes -= reports.iter().map(|settled| settled.bytes).sum::<usize>();
            let Some(next) = reports.iter().filter_map(|settled| lane.window.settle(settled.offset)).last() else {
                continue;
            };
            match moved.iter_mut().find(|(known, _)| *known == epoch) {
                Some((_, offset)) => *offset = next,
                None => moved.push((epoch, next)),
            }
        }
        let named = |(epoch, next): (Epoch, i64)| {
            self.lanes.get(&epoch).map(|lane| (Arc::clone(&lane.topic), lane.partition, next))
        };
        moved.into_iter().filter_map(named).collect()
    }

    fn epoch(&self, topic: &str, partition: i32) -> Option<Epoch> {
        self.epochs.get(topic)?.get(&partition).copied()
    }

    /// The lanes of these partitions.
    pub(super) fn epochs_of(&self, partitions: &[(String, i32)]) -> Vec<Epoch> {
        partitions.iter().filter_map(|(topic, partition)| self.epoch(topic, *partition)).collect()
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

    /// Ends lanes at once, dropping what they are handling. Their later results are discarded.
    pub(super) fn close(&mut self, epochs: &[Epoch]) {
        for epoch in epochs {
            let Some(lane) = self.lanes.remove(epoch) else { continue };
            lane.task.abort();
            take(&self.counters.queued, lane.in_flight as u64);
            if let Some(partitions) = self.epochs.get_mut(&*lane.topic) {
                partitions.remove(&lane.partition);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::consumer::{mailbox::Settled, record::Place};

    fn lanes(records: usize) -> Lanes {
        lanes_with(records, 1)
    }

    fn lanes_with(records: usize, workers: usize) -> Lanes {
        let start: StartLane = Box::new(|runtime, mut end| {
            runtime.spawn(async move { while end.records.recv().await.is_some() {} }).abort_handle()
        });
        Lanes::new(start, Bound { records, bytes: 1 << 20 }, workers, Arc::default())
    }

    fn record(offset: i64) -> Vec<Record> {
        let place = Place { topic: "users".into(), partition: 0, offset };
        vec![Record::new(place, None, None, Some(&[0; 100]), [])]
    }

    fn settled(epoch: Epoch, offset: i64) -> News {
        News { settled: vec![Settled { epoch, offset, bytes: 356 }], ..News::default() }
    }

    fn users() -> Vec<(String, i32)> {
        vec![("users".to_owned(), 0)]
    }

    #[tokio::test]
    async fn a_lane_has_room_for_its_bound_and_a_partition_without_one_has_none() {
        let mut lanes = lanes(2);
        let room = |lanes: &Lanes| lanes.room("users", 0).records;
        assert_eq!(room(&lanes), 0);
        lanes.open(&users());
        assert_eq!(room(&lanes), 2);
        lanes.push(record(0));
        assert_eq!((room(&lanes), lanes.room("users", 0).bytes), (1, (1 << 20) - 356));
        lanes.push(record(1));
        assert_eq!(room(&lanes), 0);
        lanes.apply(&settled(1, 1));
        assert_eq!((room(&lanes), lanes.room("users", 1).records), (1, 0));
    }

    #[tokio::test]
    async fn a_lane_that_is_nearly_full_is_not_read_on_unless_its_workers_would_have_nothing_to_do() {
        for (workers, room_of_one) in [(1, 0), (2 * FEW - 1, 1)] {
            let mut lanes = lanes_with(2 * FEW, workers);
            lanes.open(&users());
            let last = 2 * FEW as i64 - 2;
            (0..last).for_each(|offset| lanes.push(record(offset)));
            assert_eq!(lanes.room("users", 0).records, 2);
            lanes.push(record(last));
            assert_eq!(lanes.room("users", 0).records, room_of_one, "{workers} workers");
            lanes.apply(&settled(1, 0));
            assert_eq!(lanes.room("users", 0).records, 2);
        }
    }

    /// What is settled behind a record that is not has to be remembered, and is bounded as well.
    #[tokio::test]
    async fn a_record_that_holds_many_up_stops_reading() {
        let mut lanes = lanes(2);
        lanes.open(&users());
        lanes.push(record(0));
        for offset in 1..(2 * HELD_UP_MAX as i64) {
            assert_eq!(lanes.room("users", 0).records, 1, "before {offset}");
            lanes.push(record(offset));
            lanes.apply(&settled(1, offset));
        }
        assert_eq!(lanes.room("users", 0).records, 0);
        lanes.apply(&settled(1, 0));
        assert_eq!(lanes.room("users", 0).records, 2);
    }

    #[tokio::test]
    async fn the_offset_after_a_settled_record_is_stored() {
        let mut lanes = lanes(4);
        lanes.open(&users());
        lanes.push(record(7));
        lanes.push(record(8));
        assert_eq!(lanes.apply(&News::default()), []);
        assert_eq!(lanes.apply(&settled(1, 8)), [], "7 is not settled");
        assert_eq!(lanes.apply(&settled(1, 7)), [("users".into(), 0, 9)]);
    }

    #[tokio::test]
    async fn a_late_result_of_an_earlier_assignment_is_discarded() {
        let mut lanes = lanes(4);
        lanes.open(&users());
        lanes.push(record(7));
        lanes.close(&[1]);
        lanes.open(&users());
        assert_eq!(lanes.apply(&settled(1, 7)), []);
        let stats = lanes.counters.reader().read();
        assert_eq!((stats.discarded, stats.queued), (1, 0));
    }
}
