//! One lane's task: handles the records of one partition, in order, each until it is settled.
//!
//! Invariant: a record is reported as settled only after its transaction has committed, or when it was a duplicate.
//! A record that cannot be settled stops the consumer; it is never skipped.
//! It deliberately knows nothing of offsets committed, pauses and rebalances.

use std::{any::Any, panic::AssertUnwindSafe, sync::Arc};

use futures_util::FutureExt as _;
use rdkafka::{Message as _, message::OwnedMessage};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::{
    ConsumerError, Event, Handler, RecordPlace,
    failure::AttemptError,
    lanes::{Epoch, LaneEnd, size},
    mailbox::{Mailbox, Settled},
    stats::{Counters, add},
};
use crate::{
    backoff::Backoff,
    inbox::{Begun, PostgresInbox},
    trace,
};

/// What all lanes of a consumer share.
pub(super) struct Work<H> {
    pub(super) consumer: String,
    pub(super) group: String,
    pub(super) inbox: PostgresInbox,
    pub(super) handler: H,
    pub(super) backoff: Backoff,
    pub(super) attempts_max: Option<u32>,
    pub(super) counters: Arc<Counters>,
    pub(super) mailbox: Arc<Mailbox>,
}

/// What handling an event once came to.
enum Handled {
    Fresh,
    Duplicate,
}

/// Works a lane off until it is stopped, its queue is closed, or a record cannot be settled.
pub(super) async fn run<H: Handler>(work: Arc<Work<H>>, mut lane: LaneEnd) {
    let _end = End { epoch: lane.epoch, mailbox: &work.mailbox };
    loop {
        let record = tokio::select! {
            biased;
            () = lane.stop.cancelled() => return,
            record = lane.records.recv() => record,
        };
        let Some(record) = record else { return };
        let (offset, bytes) = (record.offset(), size(&record));
        match work.settle(record, &lane.stop).await {
            Ok(true) => work.mailbox.settled(Settled { epoch: lane.epoch, offset, bytes }),
            Ok(false) => return,
            Err(error) => return work.mailbox.fail(error),
        }
    }
}

impl<H: Handler> Work<H> {
    /// Handles a record until it is settled; false when stopped before that.
    async fn settle(&self, record: OwnedMessage, stop: &CancellationToken) -> Result<bool, ConsumerError> {
        let (topic, partition, offset) = (record.topic().to_owned(), record.partition(), record.offset());
        let place = RecordPlace { topic, partition, offset };
        let event = match Event::decode(record) {
            Ok(event) => event,
            Err(source) => {
                tracing::error!(%place, error = %source, "the consumer stops: a record is not an event");
                return Err(ConsumerError::Undecodable { place, source });
            }
        };
        let (mut attempts, mut failures) = (0_u32, 0_u32);
        loop {
            let Err(error) = self.attempt(&event).await else { return Ok(true) };
            failures = failures.saturating_add(1);
            attempts = attempts.saturating_add(u32::from(!error.will_pass()));
            if self.attempts_max.is_some_and(|max| attempts >= max) {
                let (event_id, source) = (event.id(), error.into());
                tracing::error!(%place, %event_id, attempts, "the consumer stops: an event cannot be handled");
                return Err(ConsumerError::Exhausted { place, event_id, attempts, source });
            }
            add(&self.counters.retries, 1);
            let delay = self.backoff.delay(failures);
            let (event_id, reason) = (event.id(), error.chain());
            tracing::error!(%place, %event_id, failures, ?delay, error = reason, "an event is to be tried again");
            tokio::select! {
                () = stop.cancelled() => return Ok(false),
                () = tokio::time::sleep(delay) => {}
            }
        }
    }

    /// Handles an event once, in one transaction. A panic is an error.
    async fn attempt(&self, event: &Event) -> Result<(), AttemptError> {
        let span = trace::process_span(event, &self.consumer, &self.group);
        // Unwind safety: after a panic the transaction is rolled back and nothing else is shared with the next attempt
        // but the handler itself, whose state is the application's own.
        let caught = AssertUnwindSafe(self.transact(event)).catch_unwind().instrument(span.clone()).await;
        match caught.unwrap_or_else(|panic| Err(AttemptError::Panic(panic_message(&*panic)))) {
            Ok(Handled::Fresh) => add(&self.counters.handled, 1),
            Ok(Handled::Duplicate) => {
                span.record("outbox.duplicate", true);
                add(&self.counters.duplicates, 1);
                tracing::debug!(parent: &span, event_id = %event.id(), "a repeat of an event handled before");
            }
            Err(error) => {
                span.record("error.type", error.kind());
                span.record("otel.status_code", "error");
                return Err(error);
            }
        }
        Ok(())
    }

    async fn transact(&self, event: &Event) -> Result<Handled, AttemptError> {
        let begun = self.inbox.begin(&self.consumer, event.source(), event.id()).await.map_err(AttemptError::Inbox)?;
        let mut tx = match begun {
            Begun::Duplicate => return Ok(Handled::Duplicate),
            Begun::Fresh(tx) => tx,
        };
        if let Err(error) = self.handler.handle(event, &mut tx).await {
            // Rolling back now instead of on drop lets the next attempt begin without waiting for it. When it fails
            // the connection is gone, and with it the transaction.
            let _ = tx.rollback().await;
            return Err(AttemptError::Handler(error.into_source()));
        }
        // When the answer to this is lost, the next attempt finds out: its mark waits for the transaction's end.
        tx.commit().await.map_err(AttemptError::Commit)?;
        Ok(Handled::Fresh)
    }
}

/// Tells the polling thread that a lane's task has ended, however it ended.
struct End<'a> {
    epoch: Epoch,
    mailbox: &'a Mailbox,
}

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.mailbox.ended(self.epoch);
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("a value that is no text").to_owned()
}
