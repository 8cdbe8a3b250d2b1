//! How far each lane has been read, and how far it is settled.
//!
//! Reading runs ahead of settling; only what is settled is ever written. Lanes that have been read equally far are read
//! together, save those that others are not to wait for. It deliberately does not know the database.

use std::collections::BTreeMap;

use super::super::{Apart, Unwritten};
use crate::{
    model::progress::{Base, Progress},
    relay::lane::Lanes,
    store::relay::{
        fetch::{self, Now},
        progress::LaneRow,
    },
};

/// The ranges of the relay's lanes.
#[derive(Default)]
pub(super) struct Ranges {
    ranges: BTreeMap<i16, Range>,
    /// Counts the groups that were read.
    turns: u64,
}

/// One of them.
struct Range {
    /// Polls before this one began before the lane was claimed: their snapshot may lie before its progress.
    first_poll: u64,
    /// What has been read.
    read: Progress,
    /// What is settled.
    settled: Progress,
    unwritten: Unwritten,
    /// When its group was read last: the one that waits longest is the next.
    turn: u64,
    /// Events settled since they were last counted in the table.
    events: i64,
}

impl Ranges {
    /// Adds a claimed lane. Polls from number `first_poll` on are later than its progress.
    pub(super) fn add(&mut self, row: LaneRow, first_poll: u64) {
        let LaneRow { lane, progress: settled, .. } = row;
        let range =
            Range { first_poll, read: settled.clone(), settled, unwritten: Unwritten::Nothing, turn: 0, events: 0 };
        self.ranges.insert(lane, range);
    }

    pub(super) fn remove(&mut self, lane: i16) {
        self.ranges.remove(&lane);
    }

    /// Whether any open lane waits for a snapshot.
    pub(super) fn any_idle(&self, lanes: &Lanes) -> bool {
        self.open(lanes).any(|(_, range)| matches!(range.read, Progress::Idle(_)))
    }

    /// Whether any open lane has a range to be read.
    pub(super) fn any_draining(&self, lanes: &Lanes) -> bool {
        self.to_be_read(lanes).next().is_some()
    }

    /// Gives idle lanes the range up to a poll's snapshot. Returns those for which it is known to be empty; they are
    /// idle again.
    pub(super) fn start(&mut self, lanes: &Lanes, poll: u64, now: &Now, target: &Base) -> Vec<i16> {
        let mut empty = Vec::new();
        for (lane, range) in &mut self.ranges {
            let Progress::Idle(base) = &range.read else { continue };
            if !lanes.is_open(*lane) || range.first_poll > poll {
                continue;
            }
            if fetch::may_hold(base, now) {
                range.read = range.read.start(target.clone());
            } else {
                range.read = Progress::Idle(target.clone());
                empty.push(*lane);
            }
        }
        empty
    }

    /// The next group of lanes to be read, and the progress they share; a lane that others are not to wait for is one by
    /// itself.
    pub(super) fn next_group(&mut self, lanes: &Lanes, apart: Apart<'_>) -> Option<(Vec<i16>, Progress)> {
        let is_apart = |lane: i16| apart.lanes.contains(&lane);
        let wanted = || self.to_be_read(lanes).filter(|(lane, _)| !(apart.enough && is_apart(*lane)));
        let (first, range) = wanted().min_by_key(|(_, range)| range.turn)?;
        let from = range.read.clone();
        let is_alike =
            |lane: i16, range: &Range| lane == first || !is_apart(first) && !is_apart(lane) && range.read == from;
        let group: Vec<i16> = wanted().filter(|(lane, range)| is_alike(*lane, range)).map(|(lane, _)| lane).collect();
        self.turns += 1;
        for lane in &group {
            if let Some(range) = self.ranges.get_mut(lane) {
                range.turn = self.turns;
            }
        }
        Some((group, from))
    }

    /// Of a group that has been read from `from` to `to`, those for which this still holds; they move.
    pub(super) fn move_read(&mut self, lanes: &Lanes, group: &[i16], from: &Progress, to: &Progress) -> Vec<i16> {
        let mut moved = Vec::new();
        for lane in group {
            let Some(range) = self.ranges.get_mut(lane) else { continue };
            if lanes.is_open(*lane) && range.read == *from {
                range.read = to.clone();
                moved.push(*lane);
            }
        }
        moved
    }

    /// Moves a lane's settled progress past so many events.
    pub(super) fn settle(&mut self, lane: i16, to: &Progress, events: i64) {
        let Some(range) = self.ranges.get_mut(&lane) else { return };
        range.settled = to.clone();
        range.events += events;
        range.unwritten = range.unwritten.max(if events > 0 { Unwritten::Events } else { Unwritten::Empty });
    }

    /// The rows to be written: those ahead by at least this much.
    pub(super) fn unwritten(&self, lanes: &Lanes, at_least: Unwritten) -> Vec<LaneRow> {
        let ahead = self.ranges.iter().filter(|(_, range)| range.unwritten >= at_least);
        let row = |(lane, range): (&i16, &Range)| {
            let epoch = lanes.epoch(*lane)?;
            Some(LaneRow { lane: *lane, epoch, progress: range.settled.clone(), settled: range.events })
        };
        ahead.filter_map(row).collect()
    }

    /// Notes that a lane's settled progress is in the table.
    pub(super) fn written(&mut self, lane: i16) {
        if let Some(range) = self.ranges.get_mut(&lane) {
            (range.unwritten, range.events) = (Unwritten::Nothing, 0);
        }
    }

    fn open(&self, lanes: &Lanes) -> impl Iterator<Item = (i16, &Range)> {
        self.ranges.iter().map(|(lane, range)| (*lane, range)).filter(|(lane, _)| lanes.is_open(*lane))
    }

    fn to_be_read(&self, lanes: &Lanes) -> impl Iterator<Item = (i16, &Range)> {
        self.open(lanes).filter(|(_, range)| matches!(range.read, Progress::Draining { .. }))
    }
}
