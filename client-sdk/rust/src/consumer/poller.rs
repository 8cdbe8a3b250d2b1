//! The one thread that polls Kafka.
//!
//! It only moves records into lanes and settled offsets into commits, so it is always back at Kafka in time
//! (`max.poll.interval.ms`), however long handlers take. Invariant: an offset is committed only after its lane has
//! reported it settled.
//!
//! It is a thread, not a task, because rebalance callbacks block while lanes drain. It deliberately never runs a
//! handler, and touches no database.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use rdkafka::{
    Message as _,
    consumer::{BaseConsumer, CommitMode, Consumer as _},
    error::{KafkaError, RDKafkaErrorCode},
};

use super::{
    ConsumerError,
    lanes::Epoch,
    mailbox::{Mailbox, Stop},
    rebalance::Context,
    record::{Copies, Pieces, Record},
};

/// How long to wait for news when there is nothing to poll.
const IDLE: Duration = Duration::from_millis(100);
/// How often Kafka's client is polled for what is of no partition before anything else is done.
const POLLS_PER_TURN: usize = 100;

pub(super) struct Poller {
    pub(super) consumer: Arc<BaseConsumer<Context>>,
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) commit_interval: Duration,
    pub(super) drain_budget: Duration,
}

impl Poller {
    /// Polls until told to stop, or until something failed for good. Leaves the group at the end.
    pub(super) fn run(mut self) -> Result<(), ConsumerError> {
        let mut commit_at = Instant::now() + self.commit_interval;
        let mut outcome = Ok(());
        let (mut idle, mut ended) = (true, Vec::new());
        while self.mailbox.stopping().is_none() {
            ended = self.context().take_news(&self.consumer, if idle { IDLE } else { Duration::ZERO });
            if ended.iter().any(|epoch| self.context().lanes().has(*epoch)) && self.mailbox.stopping().is_none() {
                self.mailbox.fail(ConsumerError::Thread("a lane's task ended without being told to".to_owned()));
            }
            if Instant::now() >= commit_at {
                self.context().commit(&self.consumer, CommitMode::Async);
                commit_at = Instant::now() + self.commit_interval;
            }
            match self.poll() {
                Ok(has_more) => idle = !has_more,
                Err(error) => {
                    outcome = Err(ConsumerError::Kafka(error));
                    self.mailbox.stop(Stop::Abort);
                }
            }
        }
        self.finish(&ended);
        outcome.and(self.mailbox.take_failure().map_or(Ok(()), Err))
    }

    /// Moves records into lanes for a turn, as far as there is room. True when there may be more at once.
    fn poll(&self) -> Result<bool, KafkaError> {
        // Rebalances and errors; records come by their partitions' queues.
        let mut has_more = true;
        for _ in 0..POLLS_PER_TURN {
            match self.consumer.poll(Duration::ZERO) {
                None => {
                    has_more = false;
                    break;
                }
                Some(Ok(record)) => {
                    let (topic, mut pieces) = (record.topic().into(), Pieces::default());
                    let mut copies = Copies::new(&topic, &mut pieces);
                    copies.add(&record);
                    self.take(copies.finish());
                }
                Some(Err(error)) => tolerate(error)?,
            }
        }
        let room = |topic: &str, partition| self.context().lanes().room(topic, partition);
        Ok(self.context().feeds().read(room, |records| self.take(records), tolerate)? || has_more)
    }

    fn take(&self, records: Vec<Record>) {
        self.context().lanes().push(records);
    }

    /// Drains and commits, unless told to abort; of `ended` it was told together with the stop. Dropping the consumer then
    /// leaves the group.
    fn finish(&mut self, ended: &[Epoch]) {
        let until = Instant::now() + self.drain_budget;
        let all = self.context().lanes().all();
        self.context().lanes().stop(&all);
        let mut left = all;
        left.retain(|epoch| !ended.contains(epoch));
        while !left.is_empty() && self.may_wait(until) {
            let ended = self.context().take_news(&self.consumer, IDLE);
            left.retain(|epoch| !ended.contains(epoch) && self.context().lanes().has(*epoch));
            self.serve_callbacks();
        }
        let all = self.context().lanes().all();
        self.context().lanes().close(&all);
        if self.mailbox.stopping() != Some(Stop::Abort) {
            self.context().commit(&self.consumer, CommitMode::Sync);
        }
    }

    fn may_wait(&self, until: Instant) -> bool {
        Instant::now() < until && self.mailbox.stopping() != Some(Stop::Abort)
    }

    /// Polls for rebalances; the partitions' queues are left as they are, to be read again by whoever comes next.
    fn serve_callbacks(&self) {
        for _ in 0..POLLS_PER_TURN {
            if self.consumer.poll(Duration::ZERO).is_none() {
                return;
            }
        }
    }

    fn context(&self) -> &Context {
        self.consumer.context()
    }
}

impl Drop for Poller {
    /// The queues keep the consumer alive, which would never leave its group.
    fn drop(&mut self) {
        self.context().feeds().close_all();
    }
}

/// Most errors are news of what librdkafka retries by itself.
fn tolerate(error: KafkaError) -> Result<(), KafkaError> {
    match error {
        KafkaError::MessageConsumptionFatal(_) => Err(error),
        KafkaError::PartitionEOF(_) | KafkaError::MessageConsumption(RDKafkaErrorCode::PartitionEOF) => Ok(()),
        error => {
            tracing::warn!(%error, "reading from Kafka fails; it is tried again");
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

    use outbox_harness::kafka;
    use rdkafka::{
        Offset, TopicPartitionList,
        config::ClientConfig,
        producer::{BaseRecord, DefaultProducerContext, Producer as _, ThreadedProducer},
    };

    use super::*;
    use crate::consumer::{
        lanes::{Bound, Lanes, StartLane},
        mailbox::Settled,
        subscribe,
    };

    const PATIENCE: Duration = Duration::from_secs(60);
    /// Records of a lane.
    const BOUND: usize = 100;

    fn member(group: &str) -> ClientConfig {
        let mut kafka = kafka::client();
        for (name, value) in [
            ("group.id", group),
            ("auto.offset.reset", "earliest"),
            ("enable.auto.commit", "false"),
            ("enable.auto.offset.store", "false"),
            ("session.timeout.ms", "6000"),
            ("max.poll.interval.ms", "6000"),
        ] {
            kafka.set(name, value);
        }
        kafka
    }

    /// A poller whose lanes settle everything at once, but for those of one partition; what is settled is counted.
    fn poller(group: &str, topic: &str, stuck: Option<i32>) -> (Poller, Arc<AtomicU64>) {
        let (mailbox, settled) = (Arc::<Mailbox>::default(), Arc::<AtomicU64>::default());
        let (mail, count) = (Arc::clone(&mailbox), Arc::clone(&settled));
        let start: StartLane = Box::new(move |runtime, mut end| {
            let (mail, count) = (Arc::clone(&mail), Arc::clone(&count));
            let lane = async move {
                while let Some(mut records) = end.records.recv().await {
                    records.retain(|record| stuck != Some(record.partition()));
                    let settled = records.iter().map(|record| Settled::of(end.epoch, record));
                    mail.settled(&mut settled.collect());
                    count.fetch_add(records.len() as u64, Relaxed);
                }
            };
            runtime.spawn(lane).abort_handle()
        });
        let lanes = Lanes::new(start, Bound { records: BOUND, bytes: 1 << 20 }, 1, Arc::default());
        let (commit_interval, drain_budget) = (Duration::from_secs(1), Duration::from_secs(1));
        let context = Context::new(lanes, Arc::clone(&mailbox), drain_budget);
        let consumer = subscribe(&member(group), context, &[topic.to_owned()], &mailbox).expect("it can subscribe");
        (Poller { consumer, mailbox, commit_interval, drain_budget }, settled)
    }

    fn until(what: &str, mut is_so: impl FnMut() -> bool) {
        let began = Instant::now();
        while !is_so() {
            assert!(began.elapsed() < PATIENCE, "waited in vain for: {what}");
        }
    }

    /// Others may have moved on. Here librdkafka itself keeps to it, which no consumer's promise rests on without a test.
    #[tokio::test(flavor = "multi_thread")]
    async fn trap_6_nothing_is_committed_between_a_lost_assignment_and_its_callback() {
        let topic = kafka::fresh_topic("lost", 1).await;
        let group = topic.clone();
        let producer: ThreadedProducer<DefaultProducerContext> = kafka::client().create().expect("a producer");
        for _ in 0..10 {
            producer.send(BaseRecord::<(), [u8]>::to(&topic).payload(b"{}")).map_err(|(e, _)| e).expect("it is sent");
        }
        producer.flush(PATIENCE).expect("Kafka takes the records");
        let (poller, settled) = poller(&group, &topic, None);
        until("everything is settled", || {
            poller.poll().expect("it can be polled");
            settled.load(Relaxed) == 10
        });
        poller.context().take_news(&poller.consumer, Duration::ZERO);

        // It is not polled any more, so that its partition goes to another, which commits and leaves.
        until("its assignment is lost", || {
            std::thread::sleep(Duration::from_millis(20));
            poller.consumer.assignment_lost()
        });
        let other: BaseConsumer = member(&group).create().expect("a consumer");
        other.subscribe(&[&topic]).expect("it can subscribe");
        until("another reads", || other.poll(Duration::from_millis(100)).is_some_and(|record| record.is_ok()));
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&topic, 0, Offset::Offset(99)).expect("an offset");
        other.commit(&list, CommitMode::Sync).expect("it commits");
        drop(other);
        let committed = || kafka::committed(&group, &topic, 1);
        assert_eq!(committed(), [99]);

        poller.context().commit(&poller.consumer, CommitMode::Sync);
        assert!(poller.consumer.commit_consumer_state(CommitMode::Sync).is_err(), "nor does librdkafka commit it");
        assert_eq!(committed(), [99]);
    }

    /// A partition whose lane is full is left unread, and no other waits for it. Whoever stops leaves its group at once.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_full_lane_holds_up_its_own_partition_only() {
        const EACH: usize = 300;
        let topic = kafka::fresh_topic("full", 2).await;
        let producer: ThreadedProducer<DefaultProducerContext> = kafka::client().create().expect("a producer");
        for n in 0..2 * EACH {
            let record = BaseRecord::<(), [u8]>::to(&topic).payload(b"{}").partition(i32::from(n % 2 == 1));
            producer.send(record).map_err(|(e, _)| e).expect("it is sent");
        }
        producer.flush(PATIENCE).expect("Kafka takes the records");
        let (poller, settled) = poller(&topic, &topic, Some(0));
        let left = || poller.context().lanes().room(&topic, 0).records;
        until("the other partition is settled, and one lane is full", || {
            poller.poll().expect("it can be polled");
            poller.context().take_news(&poller.consumer, Duration::from_millis(1));
            settled.load(Relaxed) == EACH as u64 && left() == 0
        });
        assert_eq!(poller.context().lanes().room(&topic, 1).records, BOUND, "all of it is settled");

        drop(poller);
        let next: BaseConsumer = member(&topic).create().expect("a consumer");
        next.subscribe(&[&topic]).expect("it can subscribe");
        let began = Instant::now();
        until("another reads", || next.poll(Duration::from_millis(100)).is_some_and(|record| record.is_ok()));
        assert!(began.elapsed() < Duration::from_secs(5), "it waited for a session to time out");
    }
}
