//! Tests a handler against what Kafka and crashes do to it, without Kafka.
//!
//! What is delivered goes through the consumer's own code and a real inbox; only Kafka is missing. Invariant: the same
//! seed delivers the same events in the same order and crashes at the same points, as far as the handler's own waits
//! allow.
//!
//! It deliberately checks nothing itself: what a handler's effects should be, its test knows.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use chrono::{DateTime, Utc};
use outbox_proto::record::Attributes;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use uuid::Uuid;

use crate::{
    BatchEffect, BatchHandler, Effect, Event, Handler, Inbox,
    claim::Claims,
    consumer::{
        mode::{BatchLeased, Batched, Done, Leased, Mode, Scope, Transactional},
        record::{Place, Record},
    },
};

/// How often a delivery is tried before the kit gives the handler up.
const ATTEMPTS_MAX: u32 = 100;
/// Events of a batch.
const BATCH_MAX: usize = 16;
/// After how many wake-ups at most an attempt crashes, if it is to.
const POLLS_MAX: u32 = 8;

/// Delivers events to a handler.
///
/// ```no_run
/// use outbox_sdk::{Event, HandlerError, PostgresInbox, Transaction, testkit::{TestEvent, TestKit}};
///
/// async fn welcome(event: &Event, tx: &mut Transaction) -> Result<(), HandlerError> {
///     sqlx::query("insert into mails (event_id) values ($1)").bind(event.id()).execute(&mut **tx).await?;
///     Ok(())
/// }
///
/// # async fn test(pool: sqlx::PgPool) -> Result<(), Box<dyn std::error::Error>> {
/// let inbox = PostgresInbox::new(pool.clone());
/// inbox.ensure_schema().await?;
/// let events: Vec<Event> = (0..20).map(|n| TestEvent::new("user.activated").key(format!("user-{n}")).build()).collect();
/// let report = TestKit::transactional("mailer", inbox, welcome).seed(7).torment(&events).await?;
/// assert!(report.crashes > 0 && report.repeats > 0);
/// let mails: i64 = sqlx::query_scalar("select count(*) from mails").fetch_one(&pool).await?;
/// assert_eq!(mails, 20, "one for each event");
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct TestKit<M> {
    mode: M,
    scope: Scope,
    seed: u64,
}

/// What a delivery came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivered {
    /// The handler had its effects.
    Fresh,
    /// The event had been handled before.
    Duplicate,
}

/// What was done to a handler.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// Deliveries of events that had been delivered before.
    pub repeats: u64,
    /// Attempts that were broken off, as a crash of the process would.
    pub crashes: u64,
    /// Attempts that failed, and were followed by another.
    pub failures: u64,
}

/// The handler failed.
#[derive(Debug, thiserror::Error)]
#[error("the event {event_id} could not be handled: {reason}")]
pub struct Failed {
    /// The event's id.
    pub event_id: Uuid,
    /// What the last attempt said.
    pub reason: String,
}

impl<I: Inbox, H: Handler<I::Database>> TestKit<Transactional<I, H>> {
    /// A consumer as `.inbox(…).handler(…)` makes it.
    pub fn transactional(consumer: impl Into<String>, inbox: I, handler: H) -> Self {
        Self::new(consumer.into(), Transactional { inbox, handler })
    }
}

impl<I: Inbox, H: BatchHandler<I::Database>> TestKit<Batched<I, H>> {
    /// A consumer as `.inbox(…).batch_handler(…)` makes it, with batches of up to 16 events.
    pub fn batched(consumer: impl Into<String>, inbox: I, handler: H) -> Self {
        Self::new(consumer.into(), Batched { inbox, handler, events_max: BATCH_MAX })
    }
}

impl<C: Claims, E: Effect> TestKit<Leased<C, E>> {
    /// A consumer as `.claims(…).effect(…)` makes it. After a crash the kit waits until the lease has run out.
    pub fn leased(consumer: impl Into<String>, claims: C, lease: Duration, effect: E) -> Self {
        Self::new(consumer.into(), Leased { claims, lease, effect })
    }
}

impl<C: Claims, E: BatchEffect> TestKit<BatchLeased<C, E>> {
    /// A consumer as `.claims(…).batch_effect(…)` makes it, with batches of up to 16 events. After a crash the kit waits
    /// until the leases have run out.
    pub fn batch_leased(consumer: impl Into<String>, claims: C, lease: Duration, effect: E) -> Self {
        Self::new(consumer.into(), BatchLeased { claims, lease, effect, events_max: BATCH_MAX })
    }
}

impl<M: Mode> TestKit<M> {
    fn new(consumer: String, mode: M) -> Self {
        Self { mode, scope: Scope { consumer, window: None }, seed: 0 }
    }

    /// The seed of repeats, order and crashes; 0 unless set.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Delivers an event once, without a crash.
    ///
    /// # Errors
    /// [`Failed`] when the handler fails; its effects are rolled back.
    pub async fn deliver(&self, event: &Event) -> Result<Delivered, Failed> {
        match self.mode.attempt(&self.scope, &[event], &mut M::Session::default()).await {
            Ok(Done { handled: 0, .. }) => Ok(Delivered::Duplicate),
            Ok(_) => Ok(Delivered::Fresh),
            Err(error) => Err(Failed { event_id: event.id(), reason: error.chain() }),
        }
    }

    /// Delivers each event once to three times, in an order that keeps only that of each key, and breaks up to half
    /// of the attempts off somewhere in between. Each delivery is tried until it succeeds. Where the handler takes batches,
    /// some that follow each other are delivered together, repeats among them; when that fails, each by itself.
    ///
    /// # Errors
    /// [`Failed`] when an event fails 100 times in a row.
    pub async fn torment(&self, events: &[Event]) -> Result<Report, Failed> {
        let mut random = StdRng::seed_from_u64(self.seed);
        let mut report = Report::default();
        let order = order(events, &mut random);
        let mut delivered = vec![false; events.len()];
        for at in &order {
            report.repeats += u64::from(std::mem::replace(&mut delivered[*at], true));
        }
        let deliveries: Vec<&Event> = order.iter().map(|at| &events[*at]).collect();
        let mut rest = deliveries.as_slice();
        while !rest.is_empty() {
            let together = match self.mode.batch_max().min(rest.len()) {
                1 => 1,
                most => random.random_range(1..=most),
            };
            let (batch, behind) = rest.split_at(together);
            rest = behind;
            if batch.len() > 1 && self.until_settled(batch, 1, &mut random, &mut report).await.is_ok() {
                continue;
            }
            for event in batch {
                self.until_settled(&[*event], ATTEMPTS_MAX, &mut random, &mut report).await?;
            }
        }
        Ok(report)
    }

    /// Delivers events together until that succeeds, or has failed so often. A crash is no failure.
    async fn until_settled(
        &self,
        events: &[&Event],
        failures_max: u32,
        random: &mut StdRng,
        report: &mut Report,
    ) -> Result<(), Failed> {
        let mut failures = 0;
        loop {
            let polls = random.random::<bool>().then(|| random.random_range(1..=POLLS_MAX));
            let mut session = M::Session::default();
            let attempt = self.mode.attempt(&self.scope, events, &mut session);
            match (Crash { attempt: Box::pin(attempt), polls }).await {
                Some(Ok(_)) => return Ok(()),
                None => report.crashes += 1,
                Some(Err(error)) => {
                    report.failures += 1;
                    failures += 1;
                    if failures == failures_max {
                        let event_id = events.first().map_or_else(Uuid::nil, |event| event.id());
                        return Err(Failed { event_id, reason: error.chain() });
                    }
                    let wait = error.verdict().wait().unwrap_or(Duration::from_millis(1));
                    tokio::time::sleep(wait).await;
                }
            }
        }
    }
}

/// Places in `events`: each at least once; the first of each key's in order.
fn order(events: &[Event], random: &mut StdRng) -> Vec<usize> {
    let mut order: Vec<usize> = Vec::new();
    for (at, event) in events.iter().enumerate() {
        // Not before the last delivery of an earlier event of its key.
        let after = order.iter().rposition(|&other| events[other].key() == event.key() && event.key().is_some());
        let from = after.map_or(0, |after| after + 1);
        order.insert(random.random_range(from..=order.len()), at);
    }
    for at in 0..events.len() {
        for _ in 0..random.random_range(0..3) {
            let first = order.iter().position(|&other| other == at).unwrap_or_default();
            order.insert(random.random_range(first + 1..=order.len()), at);
        }
    }
    order
}

/// An attempt that is dropped after so many polls.
struct Crash<F> {
    attempt: Pin<Box<F>>,
    polls: Option<u32>,
}

impl<F: Future> Future for Crash<F> {
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.polls {
            Some(0) => return Poll::Ready(None),
            Some(polls) => *polls -= 1,
            None => {}
        }
        self.attempt.as_mut().poll(context).map(Some)
    }
}

/// An event as a consumer would get it.
#[derive(Clone, Debug)]
pub struct TestEvent {
    attributes: Attributes,
    key: Option<Vec<u8>>,
    payload: Option<Vec<u8>>,
}

impl TestEvent {
    /// An event of this type, with an id of its own, of source `/test`, made now, with the payload `{}`.
    pub fn new(event_type: impl Into<String>) -> Self {
        let attributes = Attributes {
            id: Uuid::now_v7(),
            source: "/test".to_owned(),
            event_type: event_type.into(),
            subject: None,
            time: Some(Utc::now()),
            content_type: Some("application/json".to_owned()),
            traceparent: None,
            tracestate: None,
            headers: Vec::new(),
        };
        Self { attributes, key: None, payload: Some(b"{}".to_vec()) }
    }

    /// Sets the id.
    #[must_use]
    pub fn id(mut self, id: Uuid) -> Self {
        self.attributes.id = id;
        self
    }

    /// Sets the source.
    #[must_use]
    pub fn source(mut self, source: impl Into<String>) -> Self {
        self.attributes.source = source.into();
        self
    }

    /// Sets the subject.
    #[must_use]
    pub fn subject(mut self, subject: impl Into<String>) -> Self {
        self.attributes.subject = Some(subject.into());
        self
    }

    /// Sets the time.
    #[must_use]
    pub fn time(mut self, time: DateTime<Utc>) -> Self {
        self.attributes.time = Some(time);
        self
    }

    /// Sets the key.
    #[must_use]
    pub fn key(mut self, key: impl Into<Vec<u8>>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// Sets the payload; `None` makes a tombstone.
    #[must_use]
    pub fn payload(mut self, payload: Option<Vec<u8>>) -> Self {
        self.payload = payload;
        self
    }

    /// The event.
    ///
    /// # Panics
    /// When the source or the type is empty: no such event can be.
    pub fn build(self) -> Event {
        let place = Place { topic: "test".into(), partition: 0, offset: 0 };
        let now = Some(Utc::now().timestamp_millis());
        let mut headers = Vec::new();
        self.attributes.encode(|name, value| headers.push((name.to_owned(), value.to_owned())));
        let headers = headers.iter().map(|(name, value)| (name.as_str(), Some(value.as_slice())));
        match Event::decode(Record::new(place, now, self.key.as_deref(), self.payload.as_deref(), headers)) {
            Ok(event) => event,
            Err((_, error)) => panic!("the event is none: {error}"),
        }
    }
}
