//! Settling records: attempts, waits between them, and what becomes of a record that cannot be handled.
//!
//! Invariant: a record is settled when its event's effects are durable, were before, or it is in the dead-letter topic
//! and Kafka has said so. A record that cannot be settled stops the consumer; it is never skipped.
//!
//! It deliberately knows nothing of offsets and rebalances.

use std::{
    any::Any,
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::FutureExt as _;
use outbox_proto::record::DecodeError;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::{
    ConsumerError, Event, HandlerError, RecordPlace,
    dead_letter::{DeadLetters, Reason},
    failure::{AttemptError, Verdict},
    lap::Lap,
    mailbox::Mailbox,
    metrics::{Labels, Metrics},
    mode::{Done, Mode, Scope},
    record::Record,
    sequence::Watch,
    stats::{Counters, add},
};
use crate::{backoff::Backoff, trace};

/// What all lanes of a consumer share.
pub(super) struct Work<M> {
    pub(super) scope: Scope,
    pub(super) group: String,
    pub(super) mode: M,
    pub(super) concurrency: usize,
    pub(super) backoff: Backoff,
    pub(super) attempts_max: Option<u32>,
    pub(super) dead_letters: Option<DeadLetters>,
    pub(super) counters: Arc<Counters>,
    pub(super) metrics: Metrics,
    pub(super) watch: Option<Watch>,
    pub(super) mailbox: Arc<Mailbox>,
}

/// What a worker of a lane works with.
pub(super) struct Desk<S> {
    /// What it keeps from one attempt to the next.
    pub(super) session: S,
    /// When the last attempt ended, if nothing has happened since.
    pub(super) lap: Option<Lap>,
    pub(super) labels: Labels,
    /// The lane is to stop.
    pub(super) stop: CancellationToken,
}

impl<S> Desk<S> {
    /// When what was done last had ended.
    fn at(&self) -> Instant {
        self.lap.map_or_else(Instant::now, |lap| lap.at())
    }
}

/// Whether a record was settled, or the lane stopped before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Settled,
    Stopped,
}

/// Why a record goes to the dead-letter topic, and what stops the consumer where there is none.
struct Hopeless {
    reason: String,
    attempts: u32,
    without: Box<dyn FnOnce(RecordPlace) -> ConsumerError + Send>,
}

/// A record as it was found to be.
enum Found {
    Event(Event),
    Junk(Record, DecodeError),
}

impl Found {
    fn of(record: Record) -> Self {
        Event::decode(record).map_or_else(|(record, error)| Self::Junk(*record, error), Self::Event)
    }

    fn record(&self) -> &Record {
        match self {
            Self::Event(event) => event.record(),
            Self::Junk(record, _) => record,
        }
    }
}

impl<M: Mode> Work<M> {
    /// Settles records of one line, in order and as a batch where the mode has batches, and tells `settled` of each and
    /// when it was.
    pub(super) async fn settle_all(
        &self,
        records: Vec<Record>,
        desk: &mut Desk<M::Session>,
        mut settled: impl FnMut(&Record, Instant),
    ) -> Result<Outcome, ConsumerError> {
        desk.lap = None;
        let found = records.into_iter().map(Found::of);
        if found.len() == 1 || self.mode.batch_max() == 1 {
            return self.settle_each(found, desk, settled).await;
        }
        let found: Vec<Found> = found.collect();
        let outcome = self.batch(&found, desk).await;
        if let Some(Outcome::Settled) = outcome {
            let at = desk.at();
            found.iter().for_each(|found| settled(found.record(), at));
        }
        match outcome {
            Some(outcome) => Ok(outcome),
            None => self.settle_each(found, desk, settled).await,
        }
    }

    /// Settles records one after the other.
    async fn settle_each(
        &self,
        found: impl IntoIterator<Item = Found>,
        desk: &mut Desk<M::Session>,
        mut settled: impl FnMut(&Record, Instant),
    ) -> Result<Outcome, ConsumerError> {
        for (at, found) in found.into_iter().enumerate() {
            // Between two records, and never between a mark and its commit.
            if at > 0 && desk.stop.is_cancelled() {
                return Ok(Outcome::Stopped);
            }
            let (record, outcome) = match &found {
                Found::Event(event) => (event.record(), self.settle(event, desk).await?),
                Found::Junk(record, error) => {
                    desk.lap = None;
                    (record, self.junk(record, error, &desk.stop).await?)
                }
            };
            match outcome {
                Outcome::Settled => settled(record, desk.at()),
                Outcome::Stopped => return Ok(Outcome::Stopped),
            }
        }
        Ok(Outcome::Settled)
    }

    /// Handles a batch in one go; `None` when each record is to be settled by itself. A handler that asks for time is called
    /// with the batch once more after it, and with single events only after it.
    async fn batch(&self, found: &[Found], desk: &mut Desk<M::Session>) -> Option<Outcome> {
        let mut events = Vec::with_capacity(found.len());
        for found in found {
            match found {
                Found::Event(event) if event.is_for(&self.scope.consumer) => events.push(event),
                Found::Event(_) | Found::Junk(..) => return None,
            }
        }
        let mut is_second = false;
        loop {
            let Err(error) = self.attempt(&events, desk).await else { return Some(Outcome::Settled) };
            let (events, reason) = (events.len(), error.chain());
            let asks = if let AttemptError::Handler(HandlerError::Retry { after, .. }) = error { after } else { None };
            if let Some(after) = asks {
                let delay = after + self.backoff.delay(1);
                tracing::warn!(events, error = reason, ?delay, "a batch is not handled yet: its handler asks for time");
                // Others may need its connection meanwhile.
                desk.session = M::Session::default();
                if !wait(delay, &desk.stop).await {
                    return Some(Outcome::Stopped);
                }
            }
            if asks.is_none() || is_second {
                tracing::warn!(events, error = reason, "a batch came to nothing: its events are handled singly");
                return None;
            }
            is_second = true;
        }
    }

    /// Handles an event until it is settled.
    async fn settle(&self, event: &Event, desk: &mut Desk<M::Session>) -> Result<Outcome, ConsumerError> {
        let record = event.record();
        if !event.is_for(&self.scope.consumer) {
            desk.lap = None;
            add(&self.counters.passed, 1);
            return Ok(Outcome::Settled);
        }
        let (mut attempts, mut failures) = (0_u32, 0_u32);
        loop {
            let Err(error) = self.attempt(&[event], desk).await else { return Ok(Outcome::Settled) };
            let verdict = error.verdict();
            failures = failures.saturating_add(1);
            attempts = attempts.saturating_add(u32::from(!matches!(verdict, Verdict::Wait(_))));
            let (place, event_id, reason) = (place(record), event.id(), error.chain());
            let after = match verdict {
                Verdict::Fatal => {
                    tracing::error!(%place, %event_id, error = reason, "the consumer stops: its handler says so");
                    return Err(ConsumerError::Fatal { place, event_id, source: error.into() });
                }
                Verdict::DeadLetter => {
                    let without =
                        Box::new(move |place| ConsumerError::NoDeadLetters { place, event_id, source: error.into() });
                    return self.give_up(record, Hopeless { reason, attempts, without }, &desk.stop).await;
                }
                Verdict::Retry(_) if self.attempts_max.is_some_and(|max| attempts >= max) => {
                    let without = Box::new(move |place| ConsumerError::Exhausted {
                        place,
                        event_id,
                        attempts,
                        source: error.into(),
                    });
                    return self.give_up(record, Hopeless { reason, attempts, without }, &desk.stop).await;
                }
                Verdict::Retry(after) | Verdict::Wait(after) => after,
            };
            add(&self.counters.retries, 1);
            let delay = after.unwrap_or_default() + self.backoff.delay(failures);
            tracing::error!(%place, %event_id, failures, ?delay, error = reason, "an event is to be tried again");
            // Others may need its connection meanwhile.
            desk.session = M::Session::default();
            if !wait(delay, &desk.stop).await {
                return Ok(Outcome::Stopped);
            }
        }
    }

    async fn junk(
        &self,
        record: &Record,
        error: &DecodeError,
        stop: &CancellationToken,
    ) -> Result<Outcome, ConsumerError> {
        let (reason, source) = (error.to_string(), error.clone());
        let without = Box::new(|place| ConsumerError::Undecodable { place, source });
        self.give_up(record, Hopeless { reason, attempts: 0, without }, stop).await
    }

    /// Puts a record into the dead-letter topic, for as long as that may succeed, or says why the consumer stops.
    async fn give_up(
        &self,
        record: &Record,
        hopeless: Hopeless,
        stop: &CancellationToken,
    ) -> Result<Outcome, ConsumerError> {
        let (place, Hopeless { reason, attempts, without }) = (place(record), hopeless);
        let Some(letters) = &self.dead_letters else {
            tracing::error!(%place, attempts, reason, "the consumer stops: a record cannot be handled");
            return Err(without(place));
        };
        let mut failures = 0_u32;
        loop {
            let said = Reason { consumer: &self.scope.consumer, text: &reason, attempts };
            let Err(error) = letters.put(record, &said).await else {
                tracing::error!(%place, attempts, reason, "a record is in the dead-letter topic");
                add(&self.counters.dead_lettered, 1);
                return Ok(Outcome::Settled);
            };
            if DeadLetters::is_refused(&error) {
                return Err(ConsumerError::DeadLetterRefused { place, reason, source: error.into() });
            }
            failures = failures.saturating_add(1);
            tracing::error!(%place, %error, failures, "the dead-letter topic takes nothing; it is tried again");
            if !wait(self.backoff.delay(failures), stop).await {
                return Ok(Outcome::Stopped);
            }
        }
    }

    /// Handles events once. A panic is an error.
    async fn attempt(&self, events: &[&Event], desk: &mut Desk<M::Session>) -> Result<(), AttemptError> {
        let span = trace::process_span(events, &self.scope.consumer, &self.group);
        // What follows an attempt that succeeded begins as it ends, reading the next record included: looking at a clock
        // takes as long as that, or as a quick handler.
        let lap = desk.lap.take().unwrap_or_else(Lap::begin);
        let attempt = self.mode.attempt(&self.scope, events, &mut desk.session);
        // Unwind safety: after a panic the session is given up, and nothing else is shared with the next attempt but
        // the handler itself, whose state is the application's own.
        let caught = AssertUnwindSafe(attempt).catch_unwind().instrument(span.clone()).await;
        let outcome = caught.unwrap_or_else(|panic| {
            desk.session = M::Session::default();
            Err(AttemptError::Panic(panic_message(&*panic)))
        });
        match outcome {
            Ok(Done { handled, duplicates }) => {
                let next = lap.next();
                self.metrics.succeeded(&desk.labels, events, handled, &lap, &next);
                desk.lap = Some(next);
                add(&self.counters.handled, handled);
                if duplicates > 0 {
                    add(&self.counters.duplicates, duplicates);
                    span.record("outbox.duplicate", true);
                    tracing::debug!(parent: &span, duplicates, "repeats of what was handled before");
                }
                Ok(())
            }
            Err(error) => {
                if matches!(error, AttemptError::Conflict) {
                    add(&self.counters.conflicts, 1);
                }
                self.metrics.failed(&desk.labels, events, lap.next().since(&lap), error.kind());
                span.record("error.type", error.kind());
                span.record("otel.status_code", "error");
                Err(error)
            }
        }
    }
}

pub(super) fn place(record: &Record) -> RecordPlace {
    RecordPlace { topic: record.topic().to_owned(), partition: record.partition(), offset: record.offset() }
}

/// Waits; false when stopped before.
async fn wait(delay: Duration, stop: &CancellationToken) -> bool {
    tokio::select! {
        () = stop.cancelled() => false,
        () = tokio::time::sleep(delay) => true,
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("a value that is no text").to_owned()
}
