//! What happens when Kafka gives partitions and takes them away.
//!
//! Invariants: a partition is given back only after its lane has ended or been cut off, and its settled offsets were
//! committed; after a *lost* assignment nothing is committed, for another member may have moved on. librdkafka's own
//! auto-commit breaks that rule (librdkafka#5604), so it is off and every commit is made here.
//!
//! Offsets are stored in librdkafka and committed from there: it knows which of them Kafka has confirmed and leaves
//! those out, so a commit that failed is made good by the next. rust-rdkafka 0.39 reports no result of an
//! asynchronous commit.
//!
//! It deliberately runs on the polling thread only, inside librdkafka's callbacks: so no result can be taken in
//! between. Blocking there holds up the group, hence the drain budget.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use rdkafka::{
    ClientContext, Offset, TopicPartitionList,
    config::RDKafkaLogLevel,
    consumer::{BaseConsumer, CommitMode, Consumer as _, ConsumerContext, Rebalance},
    error::{KafkaError, RDKafkaErrorCode},
};

use super::{
    ConsumerError,
    feed::Feeds,
    lanes::{Epoch, Lanes, Offsets},
    mailbox::{Mailbox, Stop},
};

/// How long to wait for news at a time while draining.
const TICK: Duration = Duration::from_millis(50);

/// The consumer's side of librdkafka's callbacks.
pub(super) struct Context {
    lanes: Mutex<Lanes>,
    feeds: Feeds<Self>,
    mailbox: Arc<Mailbox>,
    drain_budget: Duration,
}

impl Context {
    pub(super) fn new(lanes: Lanes, mailbox: Arc<Mailbox>, drain_budget: Duration) -> Self {
        Self { lanes: Mutex::new(lanes), feeds: Feeds::default(), mailbox, drain_budget }
    }

    /// Never held while Kafka's client is polled: the callbacks below lock it too.
    pub(super) fn lanes(&self) -> MutexGuard<'_, Lanes> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn feeds(&self) -> &Feeds<Self> {
        &self.feeds
    }

    /// Commits what is stored. `Sync` waits for Kafka's answer, at most as long as librdkafka waits for a broker.
    pub(super) fn commit(&self, consumer: &BaseConsumer<Self>, mode: CommitMode) {
        // librdkafka knows of a lost assignment before it is polled for the callback that tells of it, and refuses to commit
        // from then on: that is no failure to warn of.
        if consumer.assignment_lost() {
            return;
        }
        match consumer.commit_consumer_state(mode) {
            Ok(()) | Err(KafkaError::ConsumerCommit(RDKafkaErrorCode::NoOffset)) => {}
            Err(error) => tracing::warn!(%error, "offsets were not committed: unless a later commit does it, events \
                                                  handled already will be repeated"),
        }
    }

    /// Takes in news of the lanes, waiting up to `timeout` when there is none. Returns the lanes that have ended.
    pub(super) fn take_news(&self, consumer: &BaseConsumer<Self>, timeout: Duration) -> Vec<Epoch> {
        let news = self.mailbox.wait(timeout);
        let offsets = self.lanes().apply(&news);
        store(consumer, &offsets);
        news.ended
    }

    /// Lets lanes end what they are handling, for as long as the budget and a `Stop::Abort` allow. Whether they are
    /// cut off or not, what they have settled is taken in.
    fn drain(&self, consumer: &BaseConsumer<Self>, epochs: &[Epoch]) {
        let until = Instant::now() + self.drain_budget;
        let mut left = epochs.to_vec();
        self.lanes().stop(epochs);
        while !left.is_empty() && self.mailbox.stopping() != Some(Stop::Abort) {
            let remaining = until.saturating_duration_since(Instant::now());
            if remaining.is_zero() {
                tracing::warn!(lanes = left.len(), budget = ?self.drain_budget, "the drain budget is spent");
                break;
            }
            let ended = self.take_news(consumer, remaining.min(TICK));
            left.retain(|epoch| !ended.contains(epoch));
        }
    }

    /// Makes the queues of partitions that are assigned next.
    fn split(&self, partitions: &[(String, i32)]) {
        let mailbox = Arc::clone(&self.mailbox);
        if !self.feeds.open(partitions, move || mailbox.kafka()) {
            self.mailbox.fail(ConsumerError::Thread("Kafka's client gives a partition no queue".to_owned()));
        }
    }

    /// Ends lanes before their partitions are given back.
    fn give_back(&self, consumer: &BaseConsumer<Self>, partitions: &TopicPartitionList) {
        let partitions = names(partitions);
        self.feeds.close(&partitions);
        let epochs = self.lanes().epochs_of(&partitions);
        if consumer.assignment_lost() {
            tracing::warn!(partitions = epochs.len(), "the assignment is lost: what is in flight is dropped");
            return self.lanes().close(&epochs);
        }
        self.drain(consumer, &epochs);
        self.lanes().close(&epochs);
        self.commit(consumer, CommitMode::Sync);
    }
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        match level {
            RDKafkaLogLevel::Emerg
            | RDKafkaLogLevel::Alert
            | RDKafkaLogLevel::Critical
            | RDKafkaLogLevel::Error
            | RDKafkaLogLevel::Warning => tracing::warn!(facility, message, "librdkafka"),
            RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info => tracing::info!(facility, message, "librdkafka"),
            RDKafkaLogLevel::Debug => tracing::debug!(facility, message, "librdkafka"),
        }
        self.mailbox.kafka();
    }

    fn stats_raw(&self, _: &[u8]) {
        self.mailbox.kafka();
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::warn!(%error, reason, "the Kafka client reports an error");
    }
}

impl ConsumerContext for Context {
    fn pre_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        match rebalance {
            Rebalance::Revoke(partitions) => self.give_back(consumer, partitions),
            Rebalance::Assign(partitions) => self.split(&names(partitions)),
            Rebalance::Error(error) => {
                tracing::error!(%error, "a rebalance failed: everything in flight is dropped");
                self.feeds.close_all();
                let all = self.lanes().all();
                self.lanes().close(&all);
            }
        }
    }

    fn post_rebalance(&self, _: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        if let Rebalance::Assign(partitions) = rebalance {
            let partitions = names(partitions);
            tracing::info!(?partitions, "partitions are assigned");
            // While stopping nothing new is begun: what arrives for a partition without a lane is dropped.
            if self.mailbox.stopping().is_none() {
                self.lanes().open(&partitions);
            }
        }
        // `poll` returns nothing after a callback, also when there is another, and the partitions' queues are to be read: see
        // that both are at once. The same goes for logs and statistics.
        self.mailbox.kafka();
    }
}

fn names(partitions: &TopicPartitionList) -> Vec<(String, i32)> {
    partitions.elements().iter().map(|p| (p.topic().to_owned(), p.partition())).collect()
}

fn store(consumer: &BaseConsumer<Context>, offsets: &Offsets) {
    if offsets.is_empty() {
        return;
    }
    let mut list = TopicPartitionList::with_capacity(offsets.len());
    let added = offsets.iter().try_for_each(|(topic, partition, offset)| {
        list.add_partition_offset(topic, *partition, Offset::Offset(*offset))
    });
    if let Err(error) = added.and_then(|()| consumer.store_offsets(&list)) {
        tracing::error!(%error, "offsets cannot be stored: their events will be repeated");
    }
}
