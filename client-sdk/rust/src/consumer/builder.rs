//! Settings of a consumer.
//!
//! Invariant: what cannot work is refused by `build`, before anything connects. The types keep a consumer without
//! inbox or handler from being built at all.
//! It deliberately lets librdkafka's own properties through, but for those its promises rest on.

use std::{sync::Arc, time::Duration};

use rdkafka::ClientConfig;

use super::{BuildError, Consumer, Counters, Handler, Mailbox, lane::Work, lanes::Bound};
use crate::{backoff::Backoff, inbox::PostgresInbox};

const NAME_BYTES_MAX: usize = 200;
/// Set by the consumer itself: offsets are committed only after the effects are, and only by this consumer's rules.
const OWN_PROPERTIES: [&str; 4] = ["enable.auto.commit", "enable.auto.offset.store", "bootstrap.servers", "group.id"];
/// librdkafka's default.
const MAX_POLL_INTERVAL: Duration = Duration::from_secs(300);

/// Settings of a [`Consumer`], made by [`Consumer::builder`].
#[must_use = "a builder does nothing until it is built"]
pub struct ConsumerBuilder<I, H> {
    name: String,
    group: Option<String>,
    kafka: ClientConfig,
    properties: Vec<(String, String)>,
    topics: Vec<String>,
    bound: Bound,
    backoff: Backoff,
    attempts_max: Option<u32>,
    commit_interval: Duration,
    drain_budget: Duration,
    inbox: I,
    handler: H,
}

impl ConsumerBuilder<(), ()> {
    pub(super) fn new(name: String) -> Self {
        Self {
            name,
            group: None,
            kafka: defaults(),
            properties: Vec::new(),
            topics: Vec::new(),
            bound: Bound { records: 500, bytes: 16 << 20 },
            backoff: Backoff { base: Duration::from_millis(100), ceiling: Duration::from_secs(30) },
            attempts_max: None,
            commit_interval: Duration::from_secs(1),
            drain_budget: Duration::from_secs(10),
            inbox: (),
            handler: (),
        }
    }
}

/// librdkafka would begin a new group at the end of its topics, and prefetch up to 64 MiB.
fn defaults() -> ClientConfig {
    let mut kafka = ClientConfig::new();
    kafka
        .set("bootstrap.servers", "localhost:9092")
        .set("auto.offset.reset", "earliest")
        .set("queued.max.messages.kbytes", "16384")
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false");
    kafka
}

impl<I, H> ConsumerBuilder<I, H> {
    /// The Kafka brokers to start from, as `host:port,…`. `localhost:9092` unless set.
    pub fn kafka(mut self, bootstrap_servers: impl Into<String>) -> Self {
        self.kafka.set("bootstrap.servers", bootstrap_servers);
        self
    }

    /// Sets a property of librdkafka, such as `security.protocol`. Besides what is always the consumer's own, these
    /// have other defaults here: `auto.offset.reset` is `earliest`, `queued.max.messages.kbytes` 16,384, and
    /// `partition.assignment.strategy` `cooperative-sticky` (unless `group.protocol` is `consumer`).
    pub fn property(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.properties.push((name.into(), value.into()));
        self
    }

    /// The Kafka group. The consumer's name unless set.
    pub fn group(mut self, group: impl Into<String>) -> Self {
        self.group = Some(group.into());
        self
    }

    /// The topics to consume. One that starts with `^` is a regular expression.
    pub fn topics<T: Into<String>>(mut self, topics: impl IntoIterator<Item = T>) -> Self {
        self.topics.extend(topics.into_iter().map(Into::into));
        self
    }

    /// Where handled events are marked: in the database in which the handler works.
    pub fn inbox(self, inbox: PostgresInbox) -> ConsumerBuilder<PostgresInbox, H> {
        let Self { name, group, kafka, properties, topics, bound, backoff, attempts_max, .. } = self;
        let (commit_interval, drain_budget, handler) = (self.commit_interval, self.drain_budget, self.handler);
        #[rustfmt::skip]
        let builder = ConsumerBuilder {
            name, group, kafka, properties, topics, bound, backoff, attempts_max, commit_interval, drain_budget, inbox,
            handler,
        };
        builder
    }

    /// What handles events.
    pub fn handler<N: Handler>(self, handler: N) -> ConsumerBuilder<I, N> {
        let Self { name, group, kafka, properties, topics, bound, backoff, attempts_max, .. } = self;
        let (commit_interval, drain_budget, inbox) = (self.commit_interval, self.drain_budget, self.inbox);
        #[rustfmt::skip]
        let builder = ConsumerBuilder {
            name, group, kafka, properties, topics, bound, backoff, attempts_max, commit_interval, drain_budget, inbox,
            handler,
        };
        builder
    }

    /// How much of one partition is held in memory: at most this many records, 500 unless set, and about this many
    /// bytes, 16 MiB unless set (one record more). A partition at its bound is paused until half of it is handled.
    pub fn partition_bound(mut self, records_max: usize, bytes_max: usize) -> Self {
        self.bound = Bound { records: records_max, bytes: bytes_max };
        self
    }

    /// How long to wait before a failed event is tried again: a random time up to `base` (100 ms unless set), doubled
    /// with every failure up to `ceiling` (30 s unless set). Its partition waits.
    pub fn retry_backoff(mut self, base: Duration, ceiling: Duration) -> Self {
        self.backoff = Backoff { base, ceiling };
        self
    }

    /// How often an event is tried before the consumer stops with [`ConsumerError::Exhausted`]. Unless set there is
    /// no limit: a failing event holds its partition up, loudly. A database that is away does not count.
    ///
    /// [`ConsumerError::Exhausted`]: super::ConsumerError::Exhausted
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        self.attempts_max = Some(attempts);
        self
    }

    /// How often handled offsets are committed to Kafka; also at every rebalance and at the end. 1 s unless set. After
    /// a crash, events of the last interval are read again and found to be duplicates.
    pub fn commit_interval(mut self, interval: Duration) -> Self {
        self.commit_interval = interval;
        self
    }

    /// How long what is being handled may take to end on shutdown, and before a partition is given back; then it is
    /// dropped and rolled back. 10 s unless set; less than half of `max.poll.interval.ms`, for the group waits.
    pub fn drain_budget(mut self, budget: Duration) -> Self {
        self.drain_budget = budget;
        self
    }

    /// Checks everything that can be checked without connecting.
    fn check(&mut self) -> Result<(), BuildError> {
        if self.name.is_empty() || self.name.len() > NAME_BYTES_MAX {
            return Err(BuildError::Name(self.name.len()));
        }
        if self.topics.is_empty() {
            return Err(BuildError::NoTopics);
        }
        let limit = |name, good: bool, value: String, expected| {
            if good { Ok(()) } else { Err(BuildError::Limit { name, value, expected }) }
        };
        let (bound, backoff) = (self.bound, self.backoff);
        let within = (1..=1_000_000).contains(&bound.records) && bound.bytes > 0;
        limit("partition_bound", within, format!("{bound:?}"), "1 to 1,000,000 records and at least one byte")?;
        limit("max_attempts", self.attempts_max != Some(0), "0".to_owned(), "at least 1")?;
        let ordered = !backoff.base.is_zero() && backoff.base <= backoff.ceiling;
        limit("retry_backoff", ordered, format!("{backoff:?}"), "a base above zero and up to the ceiling")?;
        let often = !self.commit_interval.is_zero() && self.commit_interval <= Duration::from_secs(60);
        limit("commit_interval", often, format!("{:?}", self.commit_interval), "above zero and up to 60 s")?;
        let poll = self.properties.iter().rev().find(|(name, _)| name == "max.poll.interval.ms");
        let poll = poll.and_then(|(_, ms)| ms.parse().ok()).map_or(MAX_POLL_INTERVAL, Duration::from_millis);
        let short = self.drain_budget < poll / 2;
        limit("drain_budget", short, format!("{:?}", self.drain_budget), "less than half of max.poll.interval.ms")
    }

    fn configure_kafka(&mut self) -> Result<(), BuildError> {
        let own = self.properties.iter().find(|(name, _)| OWN_PROPERTIES.contains(&name.as_str()));
        if let Some((name, _)) = own {
            return Err(BuildError::Property(name.clone()));
        }
        let consumer_protocol = ("group.protocol".to_owned(), "consumer".to_owned());
        if !self.properties.contains(&consumer_protocol) {
            self.kafka.set("partition.assignment.strategy", "cooperative-sticky");
        }
        self.kafka.set("group.id", self.group.as_deref().unwrap_or(&self.name));
        for (name, value) in &self.properties {
            self.kafka.set(name, value);
        }
        self.kafka.create_native_config().map(drop).map_err(BuildError::Kafka)
    }
}

impl<H: Handler> ConsumerBuilder<PostgresInbox, H> {
    /// The consumer. It connects when it is run.
    ///
    /// # Errors
    /// [`BuildError`] names the setting that cannot work.
    pub fn build(mut self) -> Result<Consumer<H>, BuildError> {
        self.check()?;
        self.configure_kafka()?;
        let work = Work {
            group: self.group.unwrap_or_else(|| self.name.clone()),
            consumer: self.name,
            inbox: self.inbox,
            handler: self.handler,
            backoff: self.backoff,
            attempts_max: self.attempts_max,
            counters: Arc::<Counters>::default(),
            mailbox: Arc::<Mailbox>::default(),
        };
        Ok(Consumer {
            work,
            kafka: self.kafka,
            topics: self.topics,
            bound: self.bound,
            commit_interval: self.commit_interval,
            drain_budget: self.drain_budget,
        })
    }
}
