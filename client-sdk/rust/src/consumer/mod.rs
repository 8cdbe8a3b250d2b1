//! The idempotent consumer: reads events from Kafka and has each handled once per consumer's name.
//!
//! ```mermaid
//! flowchart LR
//!   kafka[(Kafka)] -- records --> poller[polling thread] -- bounded queue --> lane[lane of a partition]
//!   lane -- in order per key --> worker[workers]
//!   worker -- mark, handler, commit --> database[(database)]
//!   worker -- settled --> poller -- offsets --> kafka
//!   worker -- hopeless --> letters[(dead-letter topic)]
//! ```
//!
//! Invariants: an offset is committed to Kafka only after everything before it is settled, so nothing is lost; the
//! event's mark is part of its effects' transaction, so nothing is done twice. Memory is bounded per partition.
//!
//! It deliberately never skips a record: one that cannot be handled goes to the dead-letter topic, or stops the consumer
//! loudly.

mod builder;
mod dead_letter;
mod effect;
mod error;
mod event;
mod failure;
mod feed;
mod handler;
mod handler_error;
mod lane;
mod lanes;
mod lap;
mod mailbox;
mod metrics;
pub(crate) mod mode;
mod poller;
mod queue;
mod rebalance;
pub(crate) mod record;
mod redrive;
mod retention;
mod router;
mod sequence;
mod service;
mod settings;
mod stats;
mod structured;
mod window;
mod worker;

use std::{sync::Arc, time::Duration};

use rdkafka::{
    ClientConfig,
    consumer::{BaseConsumer, Consumer as _},
};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

pub use self::{
    builder::{Claiming, ConsumerBuilder},
    effect::{BatchEffect, Effect},
    error::{BuildError, ConsumerError, RecordPlace},
    event::{Event, PayloadError},
    handler::{BatchHandler, Handler, HandlerFn},
    handler_error::HandlerError,
    mode::{BatchLeased, Batched, Leased, Mode, Transactional},
    redrive::{Redrive, RedriveError},
    retention::Beyond,
    router::{PayloadFn, Router, Typed, json, protobuf},
    sequence::{Irregularity, IrregularityKind},
    service::{BatchInTransaction, FromService, InTransaction, service},
    stats::{Stats, StatsReader},
};
use self::{
    lanes::{Bound, Lanes, StartLane},
    mailbox::{Mailbox, Stop},
    poller::Poller,
    rebalance::Context,
    retention::Expire,
    stats::Counters,
};

/// How long committing the last offsets and leaving the group may take after the drain.
const LAST_COMMIT: Duration = Duration::from_secs(5);

/// Consumes topics, each event once per consumer's name.
///
/// ```no_run
/// use outbox_sdk::{Consumer, Event, HandlerError, PostgresInbox, Transaction};
///
/// async fn welcome(event: &Event, tx: &mut Transaction) -> Result<(), HandlerError> {
///     let user: serde_json::Value = event.json()?;
///     sqlx::query("insert into mails (user_id) values ($1)").bind(user["id"].as_str()).execute(&mut **tx).await?;
///     Ok(())
/// }
///
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// let inbox = PostgresInbox::new(sqlx::PgPool::connect("postgres://localhost/mails").await?);
/// inbox.ensure_schema().await?;
/// Consumer::builder("welcome-mailer")
///     .kafka("localhost:9092")
///     .topics(["users"])
///     .inbox(inbox)
///     .handler(welcome)
///     .build()?
///     .run(async { tokio::signal::ctrl_c().await.unwrap_or(()) })
///     .await?;
/// # Ok(())
/// # }
/// ```
pub struct Consumer {
    start: StartLane,
    expire: Option<(retention::Window, Expire)>,
    counters: Arc<Counters>,
    mailbox: Arc<Mailbox>,
    kafka: ClientConfig,
    topics: Vec<String>,
    bound: Bound,
    /// Of a lane, at most.
    workers: usize,
    commit_interval: Duration,
    drain_budget: Duration,
}

impl Consumer {
    /// A consumer of this name: the scope of its deduplication and, unless set otherwise, its Kafka group. All
    /// instances of one consumer carry one name; another name handles every event anew.
    pub fn builder(name: impl Into<String>) -> ConsumerBuilder<()> {
        ConsumerBuilder::new(name.into())
    }

    /// Reads the consumer's counters, also while it runs.
    pub fn stats(&self) -> StatsReader {
        self.counters.reader()
    }

    /// Consumes until `shutdown` is ready, then lets what is being handled end within the drain budget, commits its
    /// offsets and leaves the group. Ends at most 5 s after the budget, also when Kafka does not answer.
    ///
    /// Cancellation: dropping the future stops at once. What is being handled is rolled back, and no offset of it is
    /// committed; another run repeats those events, and their marks keep their effects from happening twice.
    ///
    /// # Errors
    /// [`ConsumerError`]: a record that cannot be handled, or Kafka's client gave up. Failures that pass, such as a
    /// database or a broker that is down, are retried for as long as they last.
    ///
    /// # Panics
    /// Outside a Tokio runtime.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), ConsumerError> {
        let ended = CancellationToken::new();
        let _expiring = ended.clone().drop_guard();
        tokio::pin!(shutdown);
        if let Some((window, expire)) = self.expire {
            tokio::select! {
                checked = retention::check(&self.kafka, &self.topics, window) => checked?,
                () = &mut shutdown => return Ok(()),
            }
            tokio::spawn(retention::keep_short(expire, window.length, ended));
        }
        let mailbox = self.mailbox;
        let (outcome, ended) = oneshot::channel();
        let mail = Arc::clone(&mailbox);
        let lanes = Lanes::new(self.start, self.bound, self.workers, self.counters);
        let context = Context::new(lanes, Arc::clone(&mail), self.drain_budget);
        let (kafka, topics) = (self.kafka, self.topics);
        let (commit_interval, drain_budget) = (self.commit_interval, self.drain_budget);
        let poll = move || {
            let consumer = subscribe(&kafka, context, &topics, &mail)?;
            Poller { consumer, mailbox: mail, commit_interval, drain_budget }.run()
        };
        std::thread::Builder::new()
            .name("outbox-consumer".to_owned())
            .spawn(move || outcome.send(poll()))
            .map_err(|error| ConsumerError::Thread(error.to_string()))?;
        let _abort = AbortOnDrop(&mailbox);
        let died = |_| Err(ConsumerError::Thread("it panicked".to_owned()));
        tokio::pin!(ended);
        tokio::select! {
            outcome = &mut ended => return outcome.unwrap_or_else(died),
            () = &mut shutdown => mailbox.stop(Stop::Drain),
        }
        if let Ok(outcome) = tokio::time::timeout(self.drain_budget + LAST_COMMIT, &mut ended).await {
            return outcome.unwrap_or_else(died);
        }
        tracing::warn!("Kafka did not confirm the last offsets in time: their events may be repeated");
        Ok(())
    }
}

fn subscribe(
    kafka: &ClientConfig,
    context: Context,
    topics: &[String],
    mailbox: &Arc<Mailbox>,
) -> Result<Arc<BaseConsumer<Context>>, ConsumerError> {
    let mut consumer: BaseConsumer<Context> = kafka.create_with_context(context).map_err(ConsumerError::Kafka)?;
    let mailbox = Arc::clone(mailbox);
    consumer.set_nonempty_callback(move || mailbox.kafka());
    let consumer = Arc::new(consumer);
    consumer.context().feeds().belong_to(&consumer);
    let topics: Vec<&str> = topics.iter().map(String::as_str).collect();
    consumer.subscribe(&topics).map_err(ConsumerError::Kafka)?;
    Ok(consumer)
}

/// Stops the polling thread when `run` is dropped before it has ended. Afterwards it changes nothing.
struct AbortOnDrop<'a>(&'a Mailbox);

impl Drop for AbortOnDrop<'_> {
    fn drop(&mut self) {
        self.0.stop(Stop::Abort);
    }
}
