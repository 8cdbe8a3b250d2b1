//! What there is: the table in Postgres, the log of Kafka's partition, and two relays that may die or fall asleep.
//!
//! One lane, whose events go to one partition. An event is its position: it is a transaction of its own, so events
//! commit in any order that the locks of their keys allow. Not here: what may happen (`step`, `switch`), and what must
//! hold (`promises`).

use crate::set::Set;

/// A place in the lane up to which everything is settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Progress {
    /// What a snapshot sees.
    Idle {
        /// What it sees.
        seen: Set,
    },
    /// Besides, of what a newer snapshot sees, the positions below one.
    Draining {
        /// What the older snapshot sees.
        seen: Set,
        /// What the newer one sees.
        target: Set,
        /// The first position that may not be settled.
        next: u8,
    },
}

impl Progress {
    /// Does it say that this event is settled?
    pub fn covers(self, event: u8) -> bool {
        match self {
            Self::Idle { seen } => seen.has(event),
            Self::Draining { seen, target, next } => seen.has(event) || (target.has(event) && event < next),
        }
    }
}

/// The replication slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Slot {
    /// The snapshot it exported: it gives the commits that this does not see.
    pub snapshot: Set,
    /// It was made after so many commits.
    pub made_at: u8,
    /// It gives commits from here on, as a count of commits.
    pub confirmed: u8,
    /// Somebody dropped it.
    pub lost: bool,
}

/// Where events are read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// The table.
    Poll,
    /// The table, until what the slot's snapshot sees is settled.
    Waiting {
        /// The slot that will be streamed from.
        slot: Slot,
    },
    /// The write-ahead log.
    Wal {
        /// The slot that is streamed from.
        slot: Slot,
        /// How many commits are settled.
        settled: u8,
    },
    /// The same, on the way to `poll`.
    Ending {
        /// The slot that is streamed from.
        slot: Slot,
        /// How many commits are settled.
        settled: u8,
        /// What is seen by the snapshot of the checkpoint.
        snapshot: Option<Set>,
        /// How many commits must be settled until it can be written.
        end: Option<u8>,
    },
}

impl Source {
    /// The slot and what is settled, while the log is streamed.
    pub fn stream(self) -> Option<(Slot, u8)> {
        match self {
            Self::Wal { slot, settled } | Self::Ending { slot, settled, .. } => Some((slot, settled)),
            Self::Poll | Self::Waiting { .. } => None,
        }
    }
}

/// What is durable in Postgres.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Table {
    /// The events, in the order of their commits.
    pub commits: Vec<u8>,
    /// The relay that has the lease.
    pub owner: Option<u8>,
    /// How often the lease was taken.
    pub epoch: u8,
    /// As `poll` has it; while the log is streamed, the last checkpoint.
    pub progress: Progress,
    /// Events set aside.
    pub held: Set,
    /// Keys with a hold.
    pub holds: Set,
    /// Which source is in force.
    pub source: Source,
}

impl Table {
    /// What a snapshot taken now sees.
    pub fn committed(&self) -> Set {
        self.commits.iter().copied().collect()
    }

    /// Does what is written say that this event is settled?
    pub fn settled(&self, event: u8) -> bool {
        let streamed = self.source.stream().is_some_and(|(slot, settled)| {
            slot.snapshot.has(event) || self.commits[..usize::from(settled)].contains(&event)
        });
        streamed || self.progress.covers(event)
    }
}

/// How an event that was read stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Standing {
    /// It is to be sent.
    Unsent,
    /// Kafka has rejected it for good.
    Rejected,
    /// It belongs behind what is held of its key.
    Behind,
    /// Kafka has it, it is held, or it was settled before.
    Settled,
}

/// How far a session is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// In the table.
    Poll(Progress),
    /// In the log, as a count of commits.
    Wal(u8),
}

/// An event on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Entry {
    /// Which event.
    pub event: u8,
    /// How it stands.
    pub standing: Standing,
    /// How far the lane is once it is settled.
    pub then: Place,
}

/// What a relay remembers while it believes that it owns the lane.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Session {
    /// Whose it is.
    pub relay: u8,
    /// The epoch of its lease.
    pub epoch: u8,
    /// How far it has read.
    pub read: Place,
    /// What it has read and not settled, in that order.
    pub window: Vec<Entry>,
    /// The holds that it knows.
    pub holds: Set,
    /// The held event that it drains, and whether that is sent.
    pub draining: Option<(u8, bool)>,
}

/// Everything.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    /// Postgres.
    pub table: Table,
    /// Kafka's partition.
    pub log: Vec<u8>,
    /// A relay without a session waits for the lease.
    pub relays: [Option<Session>; 2],
    /// Events that Kafka rejects.
    pub bad: Set,
    /// How often a session may still die or lose its lease.
    pub faults_left: u8,
    /// How often the source may still be changed.
    pub switches_left: u8,
    /// How often the slot may still be spoiled.
    pub spoils_left: u8,
    /// How many records may be repeated, after what has happened.
    pub repeats_allowed: u8,
    /// Has written progress ever gone back?
    pub went_back: bool,
}
