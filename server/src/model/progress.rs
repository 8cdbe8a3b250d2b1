//! How far a lane has been relayed: a small state machine.
//!
//! `Idle`: everything that `seen` sees is done. `Draining`: of what `target` sees beyond `seen`, everything up to
//! `position` is done. The relay keeps two of these per lane: how far it has read, and how far it has settled.
//! It deliberately knows nothing of leases.

use super::snapshot::Snapshot;

/// A place in a lane's history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Everything that `base` sees is done.
    Idle(Base),
    /// Working through what `target` sees and `base` does not.
    Draining {
        /// What was done before.
        base: Base,
        /// What will be done after.
        target: Base,
        /// Everything in the range up to here is done; 0 at its start.
        position: i64,
    },
}

/// A snapshot, and a bound that spares the relay from looking at what it sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base {
    /// What is seen.
    pub seen: Snapshot,
    /// Below the position of every event of a transaction whose id is not below the snapshot's xmax.
    pub floor: i64,
}

impl Progress {
    /// Whether the event of a transaction at a position is done.
    pub fn has_done(&self, xid: u64, position: i64) -> bool {
        match self {
            Self::Idle(base) => base.seen.sees(xid),
            Self::Draining { base, target, position: done } => {
                base.seen.sees(xid) || (target.seen.sees(xid) && position <= *done)
            }
        }
    }

    /// The snapshot of which everything is done.
    pub fn seen(&self) -> &Snapshot {
        match self {
            Self::Idle(base) | Self::Draining { base, .. } => &base.seen,
        }
    }

    /// Starts on what `target` sees.
    ///
    /// # Panics
    /// When it is draining already: a range is finished before the next begins.
    #[must_use]
    pub fn start(&self, target: Base) -> Self {
        match self {
            Self::Idle(base) => Self::Draining { base: base.clone(), target, position: 0 },
            Self::Draining { .. } => panic!("a lane's range is finished before its next one starts"),
        }
    }

    /// The same range, done up to `position`; `None` when it is all done.
    #[must_use]
    pub fn reach(&self, position: Option<i64>) -> Self {
        match (self, position) {
            (Self::Draining { base, target, .. }, Some(position)) => {
                Self::Draining { base: base.clone(), target: target.clone(), position }
            }
            (Self::Draining { target, .. }, None) => Self::Idle(target.clone()),
            (Self::Idle(_), _) => self.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_done_when_the_progress_sees_it_or_has_passed_its_position() {
        let base = |text| Base { seen: Snapshot::parse(text).expect("it is one"), floor: 0 };
        let idle = Progress::Idle(base("10:15:10,12"));
        assert!(idle.has_done(11, 999) && !idle.has_done(12, 1) && !idle.has_done(15, 1));
        let draining = idle.start(base("12:20:12")).reach(Some(50));
        assert!(draining.has_done(11, 999), "it was done before");
        assert!(draining.has_done(16, 50) && !draining.has_done(16, 51), "up to the position");
        assert!(!draining.has_done(12, 1) && !draining.has_done(20, 1), "the target does not see it");
    }
}
