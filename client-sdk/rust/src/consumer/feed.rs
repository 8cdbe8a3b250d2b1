//! The queues of the partitions that are assigned now.
//!
//! Each partition has a queue of its own in Kafka's client, which is read only while its lane has room. What there is no
//! room for stays in it, bounded by `queued.max.messages.kbytes`, and no other partition waits for it. To pause the
//! partition instead would have librdkafka drop what it has fetched, and fetch it again.
//!
//! Invariant: a queue is split off before its partition is assigned, so that none of its records comes another way, out
//! of order. It deliberately knows nothing of lanes but their room.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak},
    time::Duration,
};

use rdkafka::{
    consumer::{BaseConsumer, ConsumerContext, base_consumer::PartitionQueue},
    error::KafkaError,
};

use super::{
    lanes::Bound,
    record::{Copies, Pieces, Record},
};

/// How many records of a partition are read before others get a turn.
const PER_TURN: usize = 1_000;

/// The queues with their topics' names, by topic and partition.
type Queues<C> = HashMap<(String, i32), (Arc<str>, PartitionQueue<C>)>;

/// The partitions' queues. They keep the consumer alive: it ends only after [`close_all`](Self::close_all).
pub(super) struct Feeds<C: ConsumerContext + 'static> {
    consumer: OnceLock<Weak<BaseConsumer<C>>>,
    queues: Mutex<Queues<C>>,
    pieces: Mutex<Pieces>,
}

impl<C: ConsumerContext + 'static> Default for Feeds<C> {
    fn default() -> Self {
        Self { consumer: OnceLock::new(), queues: Mutex::default(), pieces: Mutex::default() }
    }
}

impl<C: ConsumerContext + 'static> Feeds<C> {
    /// Says whose queues these are, once and before it subscribes.
    pub(super) fn belong_to(&self, consumer: &Arc<BaseConsumer<C>>) {
        self.consumer.get_or_init(|| Arc::downgrade(consumer));
    }

    /// Splits queues off, of partitions that are to be assigned next. `nonempty` is called, by any thread, when a record
    /// comes to an empty one. False when one cannot be split off.
    pub(super) fn open(
        &self,
        partitions: &[(String, i32)],
        nonempty: impl Fn() + Clone + Send + Sync + 'static,
    ) -> bool {
        let Some(consumer) = self.consumer.get().and_then(Weak::upgrade) else { return false };
        let mut queues = self.queues();
        partitions.iter().all(|(topic, partition)| {
            let name = (topic.clone(), *partition);
            // First, for the end of an earlier one takes the callback away from both.
            queues.remove(&name);
            let Some(mut queue) = consumer.split_partition_queue(topic, *partition) else { return false };
            queue.set_nonempty_callback(nonempty.clone());
            queues.insert(name, (Arc::from(topic.as_str()), queue));
            true
        })
    }

    /// Reads these partitions no more.
    pub(super) fn close(&self, partitions: &[(String, i32)]) {
        let mut queues = self.queues();
        for partition in partitions {
            queues.remove(partition);
        }
    }

    /// Reads nothing more.
    pub(super) fn close_all(&self) {
        self.queues().clear();
    }

    /// Gives `take` what the queues have, partition by partition, as far as there is room. True when there may be more at
    /// once.
    ///
    /// # Errors
    /// Those of `tolerate`, which end reading. What was read by then is taken.
    pub(super) fn read<E>(
        &self,
        room: impl Fn(&str, i32) -> Bound,
        mut take: impl FnMut(Vec<Record>),
        tolerate: impl Fn(KafkaError) -> Result<(), E>,
    ) -> Result<bool, E> {
        let mut has_more = false;
        let mut pieces = self.pieces.lock().unwrap_or_else(PoisonError::into_inner);
        for ((_, partition), (topic, queue)) in self.queues().iter() {
            let Bound { records, mut bytes } = room(topic, *partition);
            let (mut copies, mut polled, mut outcome) = (Copies::new(topic, &mut pieces), 0, Ok(()));
            while polled < records.min(PER_TURN) && bytes > 0 && outcome.is_ok() {
                let Some(record) = queue.poll(Duration::ZERO) else { break };
                polled += 1;
                match record {
                    Ok(record) => bytes = bytes.saturating_sub(copies.add(&record)),
                    Err(error) => outcome = tolerate(error),
                }
            }
            let read = copies.finish();
            if !read.is_empty() {
                take(read);
            }
            outcome?;
            has_more |= polled == PER_TURN;
        }
        Ok(has_more)
    }

    fn queues(&self) -> MutexGuard<'_, Queues<C>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
