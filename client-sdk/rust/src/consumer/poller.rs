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
    Message as _, TopicPartitionList,
    consumer::{BaseConsumer, CommitMode, Consumer as _},
    error::{KafkaError, RDKafkaErrorCode},
};

use super::{
    ConsumerError,
    mailbox::{Mailbox, Stop},
    rebalance::Context,
};

/// How long to wait for news when there is nothing to poll.
const IDLE: Duration = Duration::from_millis(100);
/// How many records are polled before news is taken in.
const POLLS_PER_TURN: usize = 100;

pub(super) struct Poller {
    pub(super) consumer: BaseConsumer<Context>,
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) commit_interval: Duration,
    pub(super) drain_budget: Duration,
}

impl Poller {
    /// Polls until told to stop, or until something failed for good. Leaves the group at the end.
    pub(super) fn run(mut self) -> Result<(), ConsumerError> {
        let mut commit_at = Instant::now() + self.commit_interval;
        let mut outcome = Ok(());
        let mut idle = true;
        while self.mailbox.stopping().is_none() {
            let ended = self.context().take_news(&self.consumer, if idle { IDLE } else { Duration::ZERO });
            if ended.iter().any(|epoch| self.context().lanes().has(*epoch)) && self.mailbox.stopping().is_none() {
                self.mailbox.fail(ConsumerError::Thread("a lane's task ended without being told to".to_owned()));
            }
            if Instant::now() >= commit_at {
                self.context().commit(&self.consumer, CommitMode::Async);
                commit_at = Instant::now() + self.commit_interval;
            }
            match self.poll() {
                Ok(polled) => idle = polled < POLLS_PER_TURN,
                Err(error) => {
                    outcome = Err(ConsumerError::Kafka(error));
                    self.mailbox.stop(Stop::Abort);
                }
            }
        }
        self.finish();
        outcome.and(self.mailbox.take_failure().map_or(Ok(()), Err))
    }

    /// Moves records into lanes until there is none or the turn is over; says how many there were.
    fn poll(&self) -> Result<usize, KafkaError> {
        for polled in 0..POLLS_PER_TURN {
            match self.consumer.poll(Duration::ZERO) {
                None => return Ok(polled),
                Some(Ok(record)) => {
                    let full = self.context().lanes().push(record.detach());
                    if full {
                        self.pause(record.topic(), record.partition());
                    }
                }
                Some(Err(error)) => tolerate(error)?,
            }
        }
        Ok(POLLS_PER_TURN)
    }

    fn pause(&self, topic: &str, partition: i32) {
        let mut list = TopicPartitionList::new();
        list.add_partition(topic, partition);
        if let Err(error) = self.consumer.pause(&list) {
            tracing::error!(%error, topic, partition, "a partition cannot be paused");
        }
    }

    /// Drains and commits, unless told to abort. Dropping the consumer then leaves the group.
    fn finish(&mut self) {
        let until = Instant::now() + self.drain_budget;
        let all = self.context().lanes().all();
        self.context().lanes().stop(&all);
        let mut left = all;
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

    /// Polls for rebalances; records are dropped, to be read again by whoever comes next.
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
