//! What lanes and the application tell the polling thread.
//!
//! Invariant: nothing told is lost, and telling never waits. What is held is bounded by what is in flight.
//! It deliberately carries no records: those go the other way, through each lane's own queue, bounded by its room.

use std::{
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::{ConsumerError, lanes::Epoch, record::Record};

/// How to stop. `Abort` outranks `Drain`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stop {
    /// Let what is being handled end, within the budget, and commit its offsets.
    Drain,
    /// Drop everything at once.
    Abort,
}

/// A record that a lane has settled: its transaction has committed, or it was a duplicate.
#[derive(Clone, Copy, Debug)]
pub(super) struct Settled {
    pub(super) epoch: Epoch,
    pub(super) offset: i64,
    /// What its record was counted as against the lane's bound.
    pub(super) bytes: usize,
}

impl Settled {
    pub(super) fn of(epoch: Epoch, record: &Record) -> Self {
        Self { epoch, offset: record.offset(), bytes: record.size() }
    }
}

/// News for the polling thread.
#[derive(Debug, Default)]
pub(super) struct News {
    pub(super) settled: Vec<Settled>,
    /// Lanes whose task has ended.
    pub(super) ended: Vec<Epoch>,
    /// Kafka's client has something to be polled.
    pub(super) kafka: bool,
}

impl News {
    fn is_some(&self) -> bool {
        self.kafka || !self.settled.is_empty() || !self.ended.is_empty()
    }
}

#[derive(Debug, Default)]
pub(super) struct Mailbox {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    news: News,
    stop: Option<Stop>,
    failure: Option<ConsumerError>,
}

impl Mailbox {
    /// Kafka's client has something to be polled.
    pub(super) fn kafka(&self) {
        self.tell(|state| state.news.kafka = true);
    }

    /// Takes what is in `settled`.
    pub(super) fn settled(&self, settled: &mut Vec<Settled>) {
        if !settled.is_empty() {
            self.tell(|state| state.news.settled.append(settled));
        }
    }

    pub(super) fn ended(&self, epoch: Epoch) {
        self.tell(|state| state.news.ended.push(epoch));
    }

    pub(super) fn stop(&self, stop: Stop) {
        self.tell(|state| state.stop = state.stop.max(Some(stop)));
    }

    /// Stops the consumer with this error, unless another came first.
    pub(super) fn fail(&self, error: ConsumerError) {
        self.tell(|state| {
            state.failure.get_or_insert(error);
            state.stop = state.stop.max(Some(Stop::Drain));
        });
    }

    pub(super) fn stopping(&self) -> Option<Stop> {
        self.lock().stop
    }

    pub(super) fn take_failure(&self) -> Option<ConsumerError> {
        self.lock().failure.take()
    }

    /// Takes the news, waiting up to `timeout` when there is none. A stop that has been seen does not end the wait.
    pub(super) fn wait(&self, timeout: Duration) -> News {
        let mut state = self.lock();
        let seen = state.stop;
        if !timeout.is_zero() {
            let quiet = |s: &mut State| !s.news.is_some() && s.stop == seen;
            let waited = self.changed.wait_timeout_while(state, timeout, quiet);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        std::mem::take(&mut state.news)
    }

    /// Wakes the polling thread, unless there was news before: then it has been woken, or has not taken a look yet. A call
    /// of the system for each record would cost more than handling a quick one.
    fn tell(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.lock();
        let (had_news, stopping) = (state.news.is_some(), state.stop);
        change(&mut state);
        if !had_news || state.stop != stopping {
            self.changed.notify_one();
        }
    }

    /// A panic while the lock was held cannot have left the state half changed: every change is one assignment.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
