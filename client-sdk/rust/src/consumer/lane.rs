//! One lane's task: hands the records of one partition to workers, in order per key.
//!
//! Invariant: a record is reported as settled only after it is. A lane has at most `concurrency` workers, and ends
//! after all of them.
//!
//! It deliberately knows nothing of offsets committed and rebalances.

use std::{
    collections::hash_map::DefaultHasher,
    hash::{Hash as _, Hasher as _},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rdkafka::{Message as _, message::OwnedMessage};
use tokio::{sync::Notify, task::JoinSet};
use tokio_util::sync::CancellationToken;

use super::{
    ConsumerError,
    lanes::{Epoch, LaneEnd, size},
    mailbox::{Mailbox, Settled},
    mode::Mode,
    queue::{Line, Queue},
    sequence::Watch,
    worker::{Outcome, Work},
};

/// What the workers of a lane share.
struct Lane<M> {
    work: Arc<Work<M>>,
    epoch: Epoch,
    stop: CancellationToken,
    state: Mutex<State>,
    /// Wakes a worker that has nothing to do.
    ready: Notify,
}

#[derive(Default)]
struct State {
    queue: Queue<OwnedMessage>,
    workers: usize,
    resting: usize,
}

/// What is to be done about a record that was queued.
enum Call {
    Start,
    Wake,
    /// All workers are busy, or its line is.
    Nothing,
}

/// Works a lane off until it is stopped, its queue is closed, or a record cannot be settled.
pub(super) async fn run<M: Mode>(work: Arc<Work<M>>, mut end: LaneEnd) {
    let mailbox = Arc::clone(&work.mailbox);
    let _end = End { epoch: end.epoch, mailbox: &mailbox };
    let lane = Arc::new(Lane {
        work,
        epoch: end.epoch,
        stop: end.stop.clone(),
        state: Mutex::default(),
        ready: Notify::new(),
    });
    let mut watcher = lane.work.watch.as_ref().map(Watch::begin);
    // Dropped with this task: then all workers end, too.
    let mut workers = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            () = end.stop.cancelled() => break,
            Some(ended) = workers.join_next() => {
                if !lane.goes_on(ended) {
                    break;
                }
            }
            record = end.records.recv() => {
                let Some(record) = record else { break };
                if let Some(watcher) = &mut watcher {
                    watcher.see(&record, &lane.work.counters);
                }
                match lane.queue(record) {
                    Call::Start => drop(workers.spawn(Arc::clone(&lane).worker())),
                    Call::Wake => lane.ready.notify_one(),
                    Call::Nothing => {}
                }
            }
        }
    }
    end.stop.cancel();
    while let Some(ended) = workers.join_next().await {
        lane.goes_on(ended);
    }
}

impl<M: Mode> Lane<M> {
    fn queue(&self, record: OwnedMessage) -> Call {
        let line = self.line(&record);
        let mut state = self.state();
        state.queue.push(line, record);
        match state.queue.ready() {
            0 => Call::Nothing,
            ready if state.resting >= ready => Call::Wake,
            _ if state.workers < self.work.concurrency => {
                state.workers += 1;
                Call::Start
            }
            _ => Call::Nothing,
        }
    }

    /// The line of a record's key. A batch is taken from one line, so then there are only as many as workers.
    fn line(&self, record: &OwnedMessage) -> Line {
        let mut hash = DefaultHasher::new();
        match record.key() {
            Some(key) => key.hash(&mut hash),
            None => record.offset().hash(&mut hash),
        }
        let (line, workers) = (hash.finish(), self.work.concurrency as u64);
        match () {
            () if workers == 1 => 0,
            () if self.work.mode.batch_max() > 1 => line % workers,
            () => line,
        }
    }

    /// Settles what is ready, for as long as there is something.
    async fn worker(self: Arc<Self>) -> Result<(), ConsumerError> {
        let mut session = M::Session::default();
        loop {
            let Some((line, records)) = self.take() else {
                match self.rest(&mut session).await {
                    true => continue,
                    false => return Ok(()),
                }
            };
            let settled = |record: &OwnedMessage| {
                let (offset, bytes) = (record.offset(), size(record));
                self.work.mailbox.settled(Settled { epoch: self.epoch, offset, bytes });
            };
            match self.work.settle_all(records, &mut session, &self.stop, settled).await? {
                Outcome::Settled => self.state().queue.done(line),
                Outcome::Stopped => return Ok(()),
            }
        }
    }

    fn take(&self) -> Option<(Line, Vec<OwnedMessage>)> {
        if self.stop.is_cancelled() {
            return None;
        }
        self.state().queue.take(self.work.mode.batch_max())
    }

    /// Waits for work with what the session keeps. False when there was none: then the worker is to end.
    async fn rest(&self, session: &mut M::Session) -> bool {
        let keep = self.work.mode.rest(session).await;
        {
            let mut state = self.state();
            if state.queue.ready() > 0 && !self.stop.is_cancelled() {
                return true;
            }
            state.resting += 1;
        }
        tokio::select! {
            () = self.stop.cancelled() => {}
            () = self.ready.notified() => {}
            () = tokio::time::sleep(keep.unwrap_or_default()) => {}
        }
        let mut state = self.state();
        state.resting -= 1;
        let goes_on = state.queue.ready() > 0 && !self.stop.is_cancelled();
        state.workers -= usize::from(!goes_on);
        goes_on
    }

    /// Whether the lane goes on after a worker has ended.
    fn goes_on(&self, ended: Result<Result<(), ConsumerError>, tokio::task::JoinError>) -> bool {
        let error = match ended {
            Ok(Ok(())) => return true,
            Ok(Err(error)) => error,
            Err(error) => ConsumerError::Thread(format!("a worker has died: {error}")),
        };
        self.work.mailbox.fail(error);
        false
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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
