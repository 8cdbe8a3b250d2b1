//! The lanes that this relay owns: how far each has been read, and how far it is settled.
//!
//! Reading runs ahead of settling; only what is settled is ever written. Lanes that have been read equally far are
//! read together. It deliberately knows neither the database nor Kafka.

use std::{collections::BTreeMap, time::Instant};

use super::status::StoppedLane;
use crate::{
    model::progress::{Base, Progress},
    store::relay::{
        fetch::{self, Now},
        progress::LaneRow,
    },
};

/// The relay's lanes.
#[derive(Default)]
pub(super) struct Lanes {
    lanes: BTreeMap<i16, Lane>,
    /// The lane whose group was read last: the next one's turn comes after it.
    last_read: i16,
}

/// One of them.
pub(super) struct Lane {
    epoch: i64,
    /// Polls before this one began before the lane was claimed: their snapshot may lie before its progress.
    first_poll: u64,
    /// What has been read.
    pub(super) read: Progress,
    /// What is settled.
    settled: Progress,
    unwritten: Unwritten,
    pub(super) state: State,
    /// The event that it has failed to pass.
    pub(super) failed_at: Option<StoppedLane>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Being relayed.
    Open,
    /// Stopped before an event; tried again then.
    Stopped { retry_at: Instant },
    /// To be given to another relay once what was read is settled.
    Leaving { since: Instant },
}

/// Whether `settled` is ahead of the table.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Unwritten {
    /// It is not.
    Nothing,
    /// Only by ranges without events: can wait.
    Empty,
    /// By events, which a crash would repeat.
    Events,
}

impl Lanes {
    /// Adds a claimed lane. Polls from number `first_poll` on are later than its progress.
    pub(super) fn add(&mut self, row: LaneRow, first_poll: u64) {
        let lane = Lane {
            epoch: row.epoch,
            first_poll,
            read: row.progress.clone(),
            settled: row.progress,
            unwritten: Unwritten::Nothing,
            state: State::Open,
            failed_at: None,
        };
        self.lanes.insert(row.lane, lane);
    }

    pub(super) fn remove(&mut self, lane: i16) {
        self.lanes.remove(&lane);
    }

    pub(super) fn get_mut(&mut self, lane: i16) -> Option<&mut Lane> {
        self.lanes.get_mut(&lane)
    }

    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = (i16, &Lane)> {
        self.lanes.iter().map(|(number, lane)| (*number, lane))
    }

    pub(super) fn len(&self) -> usize {
        self.lanes.len()
    }

    /// Whether any lane waits for a snapshot.
    pub(super) fn any_idle(&self) -> bool {
        self.lanes.values().any(|l| l.state == State::Open && matches!(l.read, Progress::Idle(_)))
    }

    /// Whether any lane has a range to be read.
    pub(super) fn any_draining(&self) -> bool {
        self.lanes.values().any(Lane::is_to_be_read)
    }

    /// Gives idle lanes the range up to a poll's snapshot. Returns those for which it is known to be empty; they are
    /// idle again.
    pub(super) fn start(&mut self, poll: u64, now: &Now, target: &Base) -> Vec<i16> {
        let mut empty = Vec::new();
        for (number, lane) in &mut self.lanes {
            let Progress::Idle(base) = &lane.read else { continue };
            if lane.state != State::Open || lane.first_poll > poll {
                continue;
            }
            if fetch::may_hold(base, now) {
                lane.read = lane.read.start(target.clone());
            } else {
                lane.read = Progress::Idle(target.clone());
                empty.push(*number);
            }
        }
        empty
    }

    /// The next group of lanes to be read, and the progress they share.
    pub(super) fn next_group(&mut self) -> Option<(Vec<i16>, Progress)> {
        let after = self.lanes.range(self.last_read.saturating_add(1)..).chain(self.lanes.iter());
        let (first, lane) = after.into_iter().find(|(_, lane)| lane.is_to_be_read())?;
        self.last_read = *first;
        let from = lane.read.clone();
        let group = self.lanes.iter().filter(|(_, l)| l.is_to_be_read() && l.read == from).map(|(n, _)| *n);
        Some((group.collect(), from))
    }

    /// Of a group that has been read from `from` to `to`, those for which this still holds; they move.
    pub(super) fn move_read(&mut self, group: &[i16], from: &Progress, to: &Progress) -> Vec<i16> {
        let mut moved = Vec::new();
        for number in group {
            let Some(lane) = self.lanes.get_mut(number) else { continue };
            if lane.state == State::Open && lane.read == *from {
                lane.read = to.clone();
                moved.push(*number);
            }
        }
        moved
    }

    /// Moves a lane's settled progress.
    pub(super) fn settle(&mut self, lane: i16, to: &Progress, unwritten: Unwritten) {
        let Some(lane) = self.lanes.get_mut(&lane) else { return };
        lane.settled = to.clone();
        lane.unwritten = lane.unwritten.max(unwritten);
        if unwritten == Unwritten::Events && lane.state == State::Open {
            lane.failed_at = None;
        }
    }

    /// The rows to be written: those ahead by at least this much.
    pub(super) fn unwritten(&self, at_least: Unwritten) -> Vec<LaneRow> {
        let ahead = self.lanes.iter().filter(|(_, l)| l.unwritten >= at_least);
        ahead.map(|(n, l)| LaneRow { lane: *n, epoch: l.epoch, progress: l.settled.clone() }).collect()
    }

    /// Notes that a lane's settled progress is in the table.
    pub(super) fn written(&mut self, lane: i16) {
        if let Some(lane) = self.lanes.get_mut(&lane) {
            lane.unwritten = Unwritten::Nothing;
        }
    }

    /// Lets stopped lanes whose time has come read on from what is settled. `held` are lanes with pages under way.
    pub(super) fn retry(&mut self, now: Instant, held: impl Fn(i16) -> bool) -> Vec<i16> {
        let mut retried = Vec::new();
        for (number, lane) in &mut self.lanes {
            if matches!(lane.state, State::Stopped { retry_at } if retry_at <= now) && !held(*number) {
                lane.state = State::Open;
                lane.read = lane.settled.clone();
                retried.push(*number);
            }
        }
        retried
    }
}

impl Lane {
    fn is_to_be_read(&self) -> bool {
        self.state == State::Open && matches!(self.read, Progress::Draining { .. })
    }
}
