//! One lane's task: hands the records of one partition to workers, in order per key.
//!
//! Invariant: a record is reported as settled only after it is. A lane has at most `concurrency` workers, and ends
//! after all of them.
//!
//! It deliberately knows nothing of offsets committed and rebalances.

use std::{
    collections::hash_map::DefaultHasher,
    future::poll_fn,
    hash::{Hash as _, Hasher as _},
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::{sync::Notify, task::JoinSet};
use tokio_util::sync::CancellationToken;

use super::{
    ConsumerError,
    lanes::{Epoch, LaneEnd},
    mailbox::{Mailbox, Settled},
    metrics::Labels,
    mode::Mode,
    queue::{Line, Queue},
    record::Record,
    sequence::Watch,
    worker::{Desk, Outcome, Work},
};

/// How many records a worker takes at once where each is handled by itself.
const SINGLY_MAX: usize = 256;
/// After how many settled records the polling thread is told of them.
const REPORTED_MAX: usize = 256;
/// It is told of them with the first one that is settled so long after them.
const REPORTED_WITHIN: Duration = Duration::from_millis(10);

/// What the workers of a lane share.
struct Lane<M> {
    work: Arc<Work<M>>,
    epoch: Epoch,
    labels: Labels,
    stop: CancellationToken,
    state: Mutex<State>,
    /// Wakes a worker that has nothing to do.
    ready: Notify,
}

#[derive(Default)]
struct State {
    queue: Queue<Record>,
    workers: usize,
    resting: usize,
}

/// Works a lane off until it is stopped, its queue is closed, or a record cannot be settled.
pub(super) async fn run<M: Mode>(work: Arc<Work<M>>, mut end: LaneEnd) {
    let mailbox = Arc::clone(&work.mailbox);
    let _end = End { epoch: end.epoch, mailbox: &mailbox };
    let labels = work.metrics.labels(&end.topic);
    let lane = Arc::new(Lane {
        work,
        epoch: end.epoch,
        labels,
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
            records = end.records.recv() => {
                let Some(records) = records else { break };
                if let Some(watcher) = &mut watcher {
                    records.iter().for_each(|record| watcher.see(record, &lane.work.counters));
                }
                for _ in 0..lane.queue(records) {
                    workers.spawn(Arc::clone(&lane).worker());
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
    /// Queues records, and wakes workers. Returns how many are to be started besides: as many as there are lines to take,
    /// and no more than there may be.
    fn queue(&self, records: Vec<Record>) -> usize {
        let mut state = self.state();
        if self.work.concurrency == 1 {
            // All of the partition is one line.
            state.queue.push(Line::default(), records);
        } else {
            records.into_iter().for_each(|record| state.queue.push(self.line(&record), [record]));
        }
        let (ready, resting) = (state.queue.ready(), state.resting);
        (0..resting.min(ready)).for_each(|_| self.ready.notify_one());
        let start = ready.saturating_sub(resting).min(self.work.concurrency - state.workers);
        state.workers += start;
        start
    }

    /// The line of a record's key. A batch is taken from one line, so then there are only as many as workers.
    fn line(&self, record: &Record) -> Line {
        let workers = self.work.concurrency as u64;
        let mut hash = DefaultHasher::new();
        match record.key() {
            Some(key) => key.hash(&mut hash),
            None => record.offset().hash(&mut hash),
        }
        if self.work.mode.batch_max() > 1 { hash.finish() % workers } else { hash.finish() }
    }

    /// Settles what is ready, for as long as there is something.
    async fn worker(self: Arc<Self>) -> Result<(), ConsumerError> {
        let (session, labels, stop) = (M::Session::default(), Arc::clone(&self.labels), self.stop.clone());
        let mut desk = Desk { session, lap: None, labels, stop };
        let report = Report { mailbox: &self.work.mailbox, pending: Mutex::default() };
        loop {
            let Some((line, records)) = self.take() else {
                match self.rest(&mut desk.session).await {
                    true => continue,
                    false => return Ok(()),
                }
            };
            let settled = |record: &Record, at| report.add(Settled::of(self.epoch, record), at);
            let settling = self.work.settle_all(records, &mut desk, settled);
            match report.during(settling).await? {
                Outcome::Settled => self.state().queue.done(line),
                Outcome::Stopped => return Ok(()),
            }
        }
    }

    /// Takes what is handled in one go, or, where there is but one line, a number of records to be handled singly. With
    /// more lines none is to wait for many of another.
    fn take(&self) -> Option<(Line, Vec<Record>)> {
        if self.stop.is_cancelled() {
            return None;
        }
        let singly = if self.work.concurrency == 1 { SINGLY_MAX } else { 1 };
        let batch = self.work.mode.batch_max();
        self.state().queue.take(if batch > 1 { batch } else { singly })
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

/// What is settled and not told to the polling thread yet: it is told of many quick ones at once.
struct Report<'a> {
    mailbox: &'a Mailbox,
    pending: Mutex<Pending>,
}

#[derive(Default)]
struct Pending {
    settled: Vec<Settled>,
    /// When the first of them was.
    since: Option<Instant>,
}

impl Report<'_> {
    /// Adds one that was settled at this time.
    fn add(&self, settled: Settled, at: Instant) {
        let mut pending = self.pending();
        pending.settled.push(settled);
        let since = *pending.since.get_or_insert(at);
        if pending.settled.len() >= REPORTED_MAX || at.saturating_duration_since(since) >= REPORTED_WITHIN {
            self.tell(&mut pending);
        }
    }

    fn tell(&self, pending: &mut Pending) {
        self.mailbox.settled(&mut pending.settled);
        pending.since = None;
    }

    fn send(&self) {
        self.tell(&mut self.pending());
    }

    /// Sends whenever this waits for something, and at its end.
    async fn during<T>(&self, settling: impl Future<Output = T>) -> T {
        let mut settling = pin!(settling);
        poll_fn(|context| {
            let polled = settling.as_mut().poll(context);
            self.send();
            polled
        })
        .await
    }

    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_settled_is_told_in_time_though_its_handler_never_waits() {
        let (mailbox, began) = (Mailbox::default(), Instant::now());
        let report = Report { mailbox: &mailbox, pending: Mutex::default() };
        let told = || mailbox.wait(Duration::ZERO).settled.len();
        let add = |offset, after| report.add(Settled { epoch: 1, offset, bytes: 1 }, began + after);
        add(0, Duration::ZERO);
        add(1, REPORTED_WITHIN / 2);
        assert_eq!(told(), 0, "many quick ones are told at once");
        add(2, REPORTED_WITHIN);
        assert_eq!(told(), 3);
        add(3, REPORTED_WITHIN * 3 / 2);
        assert_eq!(told(), 0, "counted from the first that is not told");
        (4..).take(REPORTED_MAX - 1).for_each(|offset| add(offset, REPORTED_WITHIN * 3 / 2));
        assert_eq!(told(), REPORTED_MAX);
    }
}
