//! The lanes that this relay owns: under which epoch, and how each fares.
//!
//! It deliberately does not know how far they have been read or settled: their source does.

use std::{collections::BTreeMap, time::Instant};

use super::status::StoppedLane;

/// The relay's lanes.
#[derive(Default)]
pub(super) struct Lanes(BTreeMap<i16, Lane>);

/// One of them.
pub(super) struct Lane {
    epoch: i64,
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

impl Lanes {
    /// Adds a claimed lane.
    pub(super) fn add(&mut self, lane: i16, epoch: i64) {
        self.0.insert(lane, Lane { epoch, state: State::Open, failed_at: None });
    }

    pub(super) fn remove(&mut self, lane: i16) {
        self.0.remove(&lane);
    }

    pub(super) fn get_mut(&mut self, lane: i16) -> Option<&mut Lane> {
        self.0.get_mut(&lane)
    }

    /// The epoch under which a lane is owned.
    pub(super) fn epoch(&self, lane: i16) -> Option<i64> {
        self.0.get(&lane).map(|lane| lane.epoch)
    }

    /// Whether a lane is owned and being relayed.
    pub(super) fn is_open(&self, lane: i16) -> bool {
        self.0.get(&lane).is_some_and(|lane| lane.state == State::Open)
    }

    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = (i16, &Lane)> {
        self.0.iter().map(|(number, lane)| (*number, lane))
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Events of an open lane have settled: whatever it failed at is passed.
    pub(super) fn passed(&mut self, lane: i16) {
        if let Some(lane) = self.0.get_mut(&lane).filter(|lane| lane.state == State::Open) {
            lane.failed_at = None;
        }
    }

    /// Opens stopped lanes whose time has come. `held` are lanes with pages under way.
    pub(super) fn retry(&mut self, now: Instant, held: impl Fn(i16) -> bool) -> Vec<i16> {
        let mut retried = Vec::new();
        for (number, lane) in &mut self.0 {
            if matches!(lane.state, State::Stopped { retry_at } if retry_at <= now) && !held(*number) {
                lane.state = State::Open;
                retried.push(*number);
            }
        }
        retried
    }
}
