//! Settings of a consumer.
//!
//! Invariant: what cannot work is refused by `build`, before anything connects. The types keep a consumer without
//! inbox or handler from being built at all. It deliberately knows no limits: `settings` does.

use std::{sync::Arc, time::Duration};

use opentelemetry::metrics::Meter;
use rdkafka::ClientConfig;

use super::{
    BatchEffect, BatchHandler, BatchLeased, Batched, BuildError, Consumer, Counters, Effect, Handler, Irregularity,
    Leased, Mailbox, Mode, Transactional,
    dead_letter::DeadLetters,
    lane,
    lanes::{Bound, StartLane},
    metrics::Metrics,
    mode::Scope,
    retention::{Beyond, Expire, MARGIN, Window},
    sequence::Watch,
    settings::Settings,
    worker::Work,
};
use crate::{backoff::Backoff, claim::Claims, inbox::Inbox};

/// With a dead-letter topic, unless set otherwise.
const ATTEMPTS_MAX: u32 = 10;

/// Settings of a [`Consumer`], made by [`Consumer::builder`]. `M` says what is still missing: first where handled events
/// are remembered, then what handles them.
#[must_use = "a builder does nothing until it is built"]
pub struct ConsumerBuilder<M> {
    settings: Settings,
    mode: M,
}

/// Claims without what has the effects.
pub struct Claiming<C> {
    claims: C,
    lease: Duration,
}

impl ConsumerBuilder<()> {
    pub(super) fn new(name: String) -> Self {
        Self { settings: Settings::new(name), mode: () }
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

    /// What has the effects of up to `events_max` events of a partition together. All of them wait for the slowest, so
    /// choose a lease for which one that takes over may wait as well.
    pub fn batch_effect<E: BatchEffect>(self, events_max: usize, effect: E) -> ConsumerBuilder<BatchLeased<C, E>> {
        self.with(|Claiming { claims, lease }| BatchLeased { claims, lease, effect, events_max })
    }
}

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
    /// have other defaults here: `auto.offset.reset` is `earliest`, `queued.max.messages.kbytes` 4,096 (for each
    /// partition, see [`partition_bound`](Self::partition_bound)), `fetch.queue.backoff.ms` 20,
    /// `fetch.wait.max.ms` 50 (a fetch that waits at partitions without news holds up those that were left out of it
    /// because their queues were full; an idle consumer fetches 20 times a second from each broker), and
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
    /// `beyond` says what to do at start when a topic keeps records for longer; until Kafka has told that, nothing is
    /// consumed. Topics given as a pattern are not compared.
    pub fn window(mut self, length: Duration, beyond: Beyond) -> Self {
        self.settings.window = Some(Window { length, beyond });
        self
    }

    /// Compares each event with the last of its key, in topics that number them (`outboxd sequence start`), and reports
    /// gaps, repeats and new epochs: to `report`, to the log, in [`Stats`](super::Stats) and in metrics. That is all: no
    /// event is handled otherwise for it. At most about `keys_max` keys per partition are remembered (some 50 bytes each).
    /// `report` is called before the event is handled, and holds its partition up for as long as it takes.
    pub fn sequences(mut self, keys_max: usize, report: impl Fn(&Irregularity) + Send + Sync + 'static) -> Self {
        self.settings.watch = Some(Watch::new(keys_max, report));
        self
    }

    /// Where its OpenTelemetry metrics go. Unless set, to the global meter provider, as it is when the consumer is built.
    pub fn meter(mut self, meter: Meter) -> Self {
        self.settings.meter = Some(meter);
        self
    }

    /// Joins its group as this static member: a restart within `session.timeout.ms` moves no partition. Each instance
    /// needs an id of its own.
    pub fn static_member(self, instance_id: impl Into<String>) -> Self {
        self.property("group.instance.id", instance_id)
    }

    /// How much of one partition waits to be handled or is being handled: at most this many records, 500 unless set, and
    /// about this many bytes, 16 MiB unless set (one record more). A partition at its bound is read no further until an
    /// eighth of it is handled, or a worker has nothing to do. Besides that Kafka's client fetches ahead, as much as
    /// `queued.max.messages.kbytes` says. Small records that are read together share a piece of memory of 16 KiB: one of
    /// them that is retried for long keeps all of it, which is not counted; nor are up to 256 such pieces, most often some
    /// 6 MiB, that a consumer keeps to fill them again.
    pub fn partition_bound(mut self, records_max: usize, bytes_max: usize) -> Self {
        self.settings.bound = Bound { records: records_max, bytes: bytes_max };
        self
    }

    /// How long to wait before a failed event is tried again: a random time up to `base` (100 ms unless set), doubled
    /// with every failure up to `ceiling` (30 s unless set). The events behind it with the same key wait, and with a
    /// concurrency of 1 all of its partition.
    pub fn retry_backoff(mut self, base: Duration, ceiling: Duration) -> Self {
        self.settings.backoff = Backoff { base, ceiling };
        self
    }

    /// How often an event is tried before it goes to the dead-letter topic, or, where there is none, before the consumer
    /// stops with [`ConsumerError::Exhausted`]. Unless set there is no limit without a dead-letter topic: a failing
    /// event holds its key up, loudly. A database that is away does not count, and neither do attempts of another process.
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
        let group = settings.group.unwrap_or_else(|| settings.name.clone());
        let metrics = Metrics::new(settings.meter, &settings.name, &group, &counters);
        let work = Arc::new(Work {
            group,
            scope: Scope { consumer: settings.name, window: settings.window.map(|window| window.length) },
            mode,
            concurrency: settings.concurrency,
            backoff: settings.backoff,
            attempts_max: settings.attempts_max.or(dead_letters.as_ref().map(|_| ATTEMPTS_MAX)),
            dead_letters,
            counters: Arc::clone(&counters),
            metrics,
            watch: settings.watch,
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
            workers: settings.concurrency,
            commit_interval: settings.commit_interval,
            drain_budget: settings.drain_budget,
        })
    }
}
