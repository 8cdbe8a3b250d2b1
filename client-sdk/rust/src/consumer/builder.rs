//! Settings of a consumer.
//!
//! Invariant: what cannot work is refused by `build`, before anything connects. The types keep a consumer without
//! inbox or handler from being built at all.
//! It deliberately lets librdkafka's own properties through, but for those its promises rest on.

use std::{sync::Arc, time::Duration};

use rdkafka::ClientConfig;

use super::{
    BatchHandler, Batched, BuildError, Consumer, Counters, Effect, Handler, Leased, Mailbox, Mode, Transactional,
    dead_letter::DeadLetters,
    lane,
    lanes::{Bound, StartLane},
    mode::Scope,
    retention::{Beyond, Expire, MARGIN, Window},
    worker::Work,
};
use crate::{backoff::Backoff, claim::Claims, inbox::Inbox};

const NAME_BYTES_MAX: usize = 200;
/// Set by the consumer itself: offsets are committed only after the effects are, and only by this consumer's rules.
const OWN_PROPERTIES: [&str; 4] = ["enable.auto.commit", "enable.auto.offset.store", "bootstrap.servers", "group.id"];
/// With a dead-letter topic, unless set otherwise.
const ATTEMPTS_MAX: u32 = 10;
/// librdkafka's default.
const MAX_POLL_INTERVAL: Duration = Duration::from_secs(300);

/// Settings of a [`Consumer`], made by [`Consumer::builder`]. `M` says what is still missing: first where handled events
/// are remembered, then what handles them.
#[must_use = "a builder does nothing until it is built"]
pub struct ConsumerBuilder<M> {
    settings: Settings,
    mode: M,
}

struct Settings {
    name: String,
    group: Option<String>,
    bootstrap_servers: String,
    properties: Vec<(String, String)>,
    topics: Vec<String>,
    concurrency: usize,
    bound: Bound,
    backoff: Backoff,
    attempts_max: Option<u32>,
    dead_letter_topic: Option<String>,
    window: Option<Window>,
    commit_interval: Duration,
    drain_budget: Duration,
}

/// Claims without what has the effects.
pub struct Claiming<C> {
    claims: C,
    lease: Duration,
}

impl ConsumerBuilder<()> {
    pub(super) fn new(name: String) -> Self {
        let settings = Settings {
            name,
            group: None,
            bootstrap_servers: "localhost:9092".to_owned(),
            properties: Vec::new(),
            topics: Vec::new(),
            concurrency: 1,
            bound: Bound { records: 500, bytes: 16 << 20 },
            backoff: Backoff { base: Duration::from_millis(100), ceiling: Duration::from_secs(30) },
            attempts_max: None,
            dead_letter_topic: None,
            window: None,
            commit_interval: Duration::from_secs(1),
            drain_budget: Duration::from_secs(10),
        };
        Self { settings, mode: () }
    }

    /// Effects happen exactly once: they and the mark that an event is handled are in one transaction of this inbox's
    /// database.
    pub fn inbox<I: Inbox>(self, inbox: I) -> ConsumerBuilder<I> {
        self.with(|()| inbox)
    }

    /// Effects happen outside a database, each under a lease on its event. `lease` is how long others wait when this
    /// process dies; it is extended for as long as an effect takes.
    pub fn claims<C: Claims>(self, claims: C, lease: Duration) -> ConsumerBuilder<Claiming<C>> {
        self.with(|()| Claiming { claims, lease })
    }
}

impl<I: Inbox> ConsumerBuilder<I> {
    /// What handles events, each in a transaction of its own.
    pub fn handler<H: Handler<I::Database>>(self, handler: H) -> ConsumerBuilder<Transactional<I, H>> {
        self.with(|inbox| Transactional { inbox, handler })
    }

    /// What handles events, up to `events_max` of a partition in one transaction.
    pub fn batch_handler<H: BatchHandler<I::Database>>(
        self,
        events_max: usize,
        handler: H,
    ) -> ConsumerBuilder<Batched<I, H>> {
        self.with(|inbox| Batched { inbox, handler, events_max })
    }
}

impl<C: Claims> ConsumerBuilder<Claiming<C>> {
    /// What has the effects.
    pub fn effect<E: Effect>(self, effect: E) -> ConsumerBuilder<Leased<C, E>> {
        self.with(|Claiming { claims, lease }| Leased { claims, lease, effect })
    }
}

/// librdkafka would begin a new group at the end of its topics, and prefetch up to 64 MiB.
const DEFAULTS: [(&str, &str); 5] = [
    ("auto.offset.reset", "earliest"),
    ("queued.max.messages.kbytes", "16384"),
    ("fetch.queue.backoff.ms", "20"),
    ("enable.auto.commit", "false"),
    ("enable.auto.offset.store", "false"),
];

impl<M> ConsumerBuilder<M> {
    fn with<N>(self, next: impl FnOnce(M) -> N) -> ConsumerBuilder<N> {
        ConsumerBuilder { settings: self.settings, mode: next(self.mode) }
    }

    /// The Kafka brokers to start from, as `host:port,…`. `localhost:9092` unless set.
    pub fn kafka(mut self, bootstrap_servers: impl Into<String>) -> Self {
        self.settings.bootstrap_servers = bootstrap_servers.into();
        self
    }

    /// Sets a property of librdkafka, such as `security.protocol`. Besides what is always the consumer's own, these
    /// have other defaults here: `auto.offset.reset` is `earliest`, `queued.max.messages.kbytes` 16,384, and
    /// `partition.assignment.strategy` `cooperative-sticky` (unless `group.protocol` is `consumer`).
    pub fn property(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.settings.properties.push((name.into(), value.into()));
        self
    }

    /// The Kafka group. The consumer's name unless set.
    pub fn group(mut self, group: impl Into<String>) -> Self {
        self.settings.group = Some(group.into());
        self
    }

    /// The topics to consume. One that starts with `^` is a regular expression.
    pub fn topics<T: Into<String>>(mut self, topics: impl IntoIterator<Item = T>) -> Self {
        self.settings.topics.extend(topics.into_iter().map(Into::into));
        self
    }

    /// How many events of one partition are handled at the same time, those of one key always in order. 1 unless set:
    /// then all events of a partition are in order.
    pub fn concurrency(mut self, workers: usize) -> Self {
        self.settings.concurrency = workers;
        self
    }

    /// Where records go that cannot be handled: those that are no events, those whose handler says so, and those that
    /// have failed as often as `max_attempts` allows (then 10 unless set). Their offset advances once Kafka has
    /// acknowledged them there. The topic must exist. Without one the consumer stops at such a record.
    pub fn dead_letters(mut self, topic: impl Into<String>) -> Self {
        self.settings.dead_letter_topic = Some(topic.into());
        self
    }

    /// How long it is remembered that an event was handled, at least; for ever unless set. An event that is older, by
    /// its own time, and is not remembered as handled, goes to the dead-letter topic: nobody knows any more whether it
    /// was. Make it longer than the topic keeps records, than replays reach back, and than the consumer may stand still.
    /// `beyond` says what to do at start when the topic keeps records for longer.
    pub fn window(mut self, length: Duration, beyond: Beyond) -> Self {
        self.settings.window = Some(Window { length, beyond });
        self
    }

    /// Joins its group as this static member: a restart within `session.timeout.ms` moves no partition. Each instance
    /// needs an id of its own.
    pub fn static_member(self, instance_id: impl Into<String>) -> Self {
        self.property("group.instance.id", instance_id)
    }

    /// How much of one partition is held in memory: at most this many records, 500 unless set, and about this many
    /// bytes, 16 MiB unless set (one record more). A partition at its bound is paused until half of it is handled.
    pub fn partition_bound(mut self, records_max: usize, bytes_max: usize) -> Self {
        self.settings.bound = Bound { records: records_max, bytes: bytes_max };
        self
    }

    /// How long to wait before a failed event is tried again: a random time up to `base` (100 ms unless set), doubled
    /// with every failure up to `ceiling` (30 s unless set). Its partition waits.
    pub fn retry_backoff(mut self, base: Duration, ceiling: Duration) -> Self {
        self.settings.backoff = Backoff { base, ceiling };
        self
    }

    /// How often an event is tried before it goes to the dead-letter topic, or, where there is none, before the consumer
    /// stops with [`ConsumerError::Exhausted`]. Unless set there is no limit without a dead-letter topic: a failing
    /// event holds its key up, loudly. A database that is away does not count.
    ///
    /// [`ConsumerError::Exhausted`]: super::ConsumerError::Exhausted
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        self.settings.attempts_max = Some(attempts);
        self
    }

    /// How often handled offsets are committed to Kafka; also at every rebalance and at the end. 1 s unless set. After
    /// a crash, events of the last interval are read again and found to be duplicates.
    pub fn commit_interval(mut self, interval: Duration) -> Self {
        self.settings.commit_interval = interval;
        self
    }

    /// How long what is being handled may take to end on shutdown, and before a partition is given back; then it is
    /// dropped and rolled back. 10 s unless set; less than half of `max.poll.interval.ms`, for the group waits.
    pub fn drain_budget(mut self, budget: Duration) -> Self {
        self.settings.drain_budget = budget;
        self
    }
}

impl Settings {
    /// Checks everything that can be checked without connecting.
    fn check(&self, batch_max: usize) -> Result<(), BuildError> {
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
        let workers = (1..=1_000).contains(&self.concurrency);
        limit("concurrency", workers, self.concurrency.to_string(), "1 to 1,000")?;
        limit("batch_handler", (1..=10_000).contains(&batch_max), batch_max.to_string(), "1 to 10,000 events")?;
        let window = self.window.map(|window| window.length);
        let some = window.is_none_or(|window| !window.is_zero());
        limit("window", some, format!("{window:?}"), "above zero")?;
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

    /// The properties of the consumer's Kafka client, and of the producer of its dead letters.
    fn kafka(&self) -> Result<Vec<(String, String)>, BuildError> {
        let own = self.properties.iter().find(|(name, _)| OWN_PROPERTIES.contains(&name.as_str()));
        if let Some((name, _)) = own {
            return Err(BuildError::Property(name.clone()));
        }
        let mut kafka: Vec<(String, String)> = DEFAULTS.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let mut set = |name: &str, value: &str| kafka.push((name.to_owned(), value.to_owned()));
        let consumer_protocol = ("group.protocol".to_owned(), "consumer".to_owned());
        if !self.properties.contains(&consumer_protocol) {
            set("partition.assignment.strategy", "cooperative-sticky");
        }
        set("bootstrap.servers", &self.bootstrap_servers);
        set("group.id", self.group.as_deref().unwrap_or(&self.name));
        kafka.extend(self.properties.iter().cloned());
        Ok(kafka)
    }
}

impl<M: Mode> ConsumerBuilder<M> {
    /// The consumer. It connects when it is run.
    ///
    /// # Errors
    /// [`BuildError`] names the setting that cannot work.
    pub fn build(self) -> Result<Consumer, BuildError> {
        let Self { settings, mode } = self;
        settings.check(mode.batch_max())?;
        let properties = settings.kafka()?;
        let mut kafka = ClientConfig::new();
        for (name, value) in &properties {
            kafka.set(name, value);
        }
        kafka.create_native_config().map(drop).map_err(BuildError::Kafka)?;
        let letters = settings.dead_letter_topic.map(|topic| DeadLetters::new(topic, &properties));
        let dead_letters = letters.transpose().map_err(BuildError::Kafka)?;
        let (counters, mailbox) = (Arc::<Counters>::default(), Arc::<Mailbox>::default());
        let work = Arc::new(Work {
            group: settings.group.unwrap_or_else(|| settings.name.clone()),
            scope: Scope { consumer: settings.name, window: settings.window.map(|window| window.length) },
            mode,
            concurrency: settings.concurrency,
            backoff: settings.backoff,
            attempts_max: settings.attempts_max.or(dead_letters.as_ref().map(|_| ATTEMPTS_MAX)),
            dead_letters,
            counters: Arc::clone(&counters),
            mailbox: Arc::clone(&mailbox),
        });
        let expire = settings.window.map(|window| {
            let work = Arc::clone(&work);
            let older_than = window.length + MARGIN;
            let expire: Expire = Box::new(move || {
                let work = Arc::clone(&work);
                Box::pin(async move { work.mode.expire(&work.scope.consumer, older_than).await })
            });
            (window, expire)
        });
        let start: StartLane =
            Box::new(move |runtime, end| runtime.spawn(lane::run(Arc::clone(&work), end)).abort_handle());
        Ok(Consumer {
            start,
            expire,
            counters,
            mailbox,
            kafka,
            topics: settings.topics,
            bound: settings.bound,
            commit_interval: settings.commit_interval,
            drain_budget: settings.drain_budget,
        })
    }
}
