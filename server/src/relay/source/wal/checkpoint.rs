//! Checkpoints: snapshots that see exactly what has been streamed and settled.
//!
//! A place in the log and a snapshot are not interchangeable: a commit can be decoded before any session sees it. So a
//! snapshot is taken first and a place in the log after it; once everything below that place is settled, all that the
//! snapshot sees is. What was settled beside it, because it committed in between, is known by its transaction's id and
//! added. Such a snapshot is what polling can go on from. Deliberately not here: when to take one.

use crate::{
    model::{
        log::Lsn,
        progress::{Base, Progress},
        snapshot::Snapshot,
    },
    store::relay::lease::Mark,
};

/// The making of checkpoints.
#[derive(Default)]
pub(super) struct Checkpoints {
    /// Taken, and to be written once everything below its place is settled.
    pending: Option<Pending>,
    /// Transactions streamed that no written or pending snapshot sees, with the places of their commits, in order.
    beside: Vec<(u64, Lsn)>,
}

struct Pending {
    snapshot: Snapshot,
    floor: i64,
    lsn: Lsn,
}

impl Checkpoints {
    /// An event of a transaction was read. Its commit's record begins at `commit`.
    pub(super) fn read(&mut self, xid: u64, commit: Lsn) {
        let is_known = self.beside.last().is_some_and(|last| *last == (xid, commit));
        if !is_known && !self.pending.as_ref().is_some_and(|pending| pending.snapshot.sees(xid)) {
            self.beside.push((xid, commit));
        }
    }

    /// Takes in a snapshot, and the end of the log after it was taken. `mark` is a lease's mark from before.
    pub(super) fn take(&mut self, snapshot: Snapshot, lsn: Lsn, mark: Mark) {
        // As for a poll: what the snapshot does not know came after the mark.
        let floor = if mark.xid < snapshot.xmax() { mark.floor } else { 0 };
        self.beside.retain(|(xid, _)| !snapshot.sees(*xid));
        self.pending = Some(Pending { snapshot, floor, lsn });
    }

    pub(super) fn is_pending(&self) -> bool {
        self.pending.is_some()
    }

    /// Transactions that have to be remembered until the next one.
    pub(super) fn beside(&self) -> usize {
        self.beside.len()
    }

    /// Whether the pending one is to be written when everything below this place is settled.
    pub(super) fn is_reached_at(&self, settled: Lsn) -> bool {
        self.pending.as_ref().is_some_and(|pending| pending.lsn <= settled)
    }

    /// The pending one, when it is reached: it sees exactly what was committed below `settled`.
    pub(super) fn reach(&mut self, settled: Lsn) -> Option<Progress> {
        let Pending { snapshot, floor, .. } = self.pending.take_if(|pending| pending.lsn <= settled)?;
        let below = self.beside.iter().filter(|(_, commit)| *commit < settled).map(|(xid, _)| *xid);
        let seen = snapshot.including(below);
        self.beside.retain(|(_, commit)| *commit >= settled);
        Some(Progress::Idle(Base { seen, floor }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_sees_exactly_what_is_settled_below_its_place() {
        let mut checkpoints = Checkpoints::default();
        checkpoints.read(11, Lsn(100));
        // 10 is still running for the snapshot although it is in the log already; 20 comes later.
        checkpoints.read(10, Lsn(110));
        let snapshot = Snapshot::parse("10:12:10").expect("it is one");
        checkpoints.take(snapshot, Lsn(150), Mark { floor: 7, xid: 9 });
        checkpoints.read(20, Lsn(160));
        checkpoints.read(21, Lsn(170));
        assert!(checkpoints.reach(Lsn(149)).is_none(), "what it sees is not all settled");

        let progress = checkpoints.reach(Lsn(165)).expect("it is reached");
        let done: Vec<u64> = (9..23).filter(|xid| progress.has_done(*xid, 1)).collect();
        assert_eq!(done, [9, 10, 11, 20], "21 is not settled");
        assert_eq!(checkpoints.beside(), 1, "it is remembered for the next one");
    }

    #[test]
    fn the_floor_is_a_mark_from_before_the_snapshot() {
        let snapshot = || Snapshot::parse("10:12:").expect("it is one");
        for (xid, expected) in [(11, 7), (12, 0)] {
            let mut checkpoints = Checkpoints::default();
            checkpoints.take(snapshot(), Lsn(1), Mark { floor: 7, xid });
            let Some(Progress::Idle(base)) = checkpoints.reach(Lsn(1)) else { panic!("it is reached") };
            assert_eq!(base.floor, expected);
        }
    }
}
