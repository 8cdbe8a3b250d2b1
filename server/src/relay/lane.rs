//! The lanes that this relay owns: under which epoch, and how each fares.
//!
//! It deliberately does not know how far they have been read or settled: their source does.

use std::{collections::BTreeMap, time::Instant};

use uuid::Uuid;

use crate::store::relay::held::Owner;

/// The relay's lanes.
#[derive(Default)]
pub(super) struct Lanes(BTreeMap<i16, Lane>);

/// One of them.
pub(super) struct Lane {
    epoch: i64,
    pub(super) state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Being relayed.
    Open,
    /// To be given to another relay once what was read is settled.
    Leaving { since: Instant },
}

impl Lanes {
    /// Adds a claimed lane.
    pub(super) fn add(&mut self, lane: i16, epoch: i64) {
        self.0.insert(lane, Lane { epoch, state: State::Open });
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

    /// These of the lanes as the store wants them named; those that are not owned are left out.
    pub(super) fn owner(&self, instance: Uuid, lanes: impl IntoIterator<Item = i16>) -> Owner {
        let mut owner = Owner { instance, ..Owner::default() };
        for lane in lanes {
            if let Some(epoch) = self.epoch(lane) {
                owner.lanes.push(lane);
                owner.epochs.push(epoch);
            }
        }
        owner
    }
}
