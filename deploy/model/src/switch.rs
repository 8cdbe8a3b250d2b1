//! The write-ahead log as the source, and the changes between it and polling.

use crate::set::Set;
use crate::step::Outcome;
use crate::world::{Place, Progress, Session, Slot, Source, Table, World};
use crate::{Guard, Outbox};

impl Outbox {
    /// Where a session begins to read. A slot that must not be trusted puts `poll` in force.
    pub(crate) fn begin(&self, world: &mut World) -> Place {
        match world.table.source.stream() {
            Some((slot, settled)) if slot.confirmed > settled && self.guarded(Guard::SlotTrust) => {
                poll_from_checkpoint(world)
            }
            Some((slot, _)) => Place::Wal(slot.confirmed),
            None => Place::Poll(world.table.progress),
        }
    }

    /// The next event in the log, and whether it was settled before.
    pub(crate) fn stream(&self, table: &Table, next: u8) -> Option<(u8, bool, Place)> {
        let (slot, settled) = table.source.stream()?;
        let event = *table.commits.get(usize::from(next)).filter(|_| !slot.lost)?;
        let done = next < settled || (self.guarded(Guard::DoneAlready) && table.progress.covers(event));
        Some((event, done, Place::Wal(next + 1)))
    }

    pub(crate) fn make_slot(&self, world: &mut World) -> bool {
        if world.table.source != Source::Poll || world.switches_left == 0 {
            return false;
        }
        world.switches_left -= 1;
        let (snapshot, made_at) = (world.table.committed(), commits(&world.table));
        let slot = Slot { snapshot, made_at, confirmed: made_at, lost: false };
        world.table.source = Source::Waiting { slot };
        true
    }

    pub(crate) fn start_stream(&self, world: &mut World, session: &mut Session) -> Outcome {
        let Source::Waiting { slot } = world.table.source else { return Outcome::Impossible };
        let progress = world.table.progress;
        let covered = slot.snapshot.iter().all(|event| progress.covers(event));
        if slot.lost || !session.window.is_empty() || (!covered && self.guarded(Guard::SnapshotCovered)) {
            return Outcome::Impossible;
        }
        if !self.may_write(&world.table, session) {
            return Outcome::LeaseLost;
        }
        world.table.source = Source::Wal { slot, settled: slot.made_at };
        session.read = self.begin(world);
        Outcome::Done
    }

    pub(crate) fn begin_leaving(&self, world: &mut World) -> bool {
        let Source::Wal { slot, settled } = world.table.source else { return false };
        if slot.lost || world.switches_left == 0 {
            return false;
        }
        world.switches_left -= 1;
        let (snapshot, end) = if self.guarded(Guard::SnapshotFirst) {
            (Some(world.table.committed()), None)
        } else {
            (None, Some(commits(&world.table)))
        };
        world.table.source = Source::Ending { slot, settled, snapshot, end };
        true
    }

    pub(crate) fn find_end(&self, world: &mut World) -> bool {
        let (seen, length) = (world.table.committed(), commits(&world.table));
        let Source::Ending { snapshot, end, .. } = &mut world.table.source else { return false };
        let begun = snapshot.is_none() || end.is_none();
        snapshot.get_or_insert(seen);
        end.get_or_insert(length);
        begun
    }

    pub(crate) fn leave(&self, world: &mut World, session: &mut Session) -> Outcome {
        let Source::Ending { slot, settled, snapshot: Some(snapshot), end: Some(end) } = world.table.source else {
            return Outcome::Impossible;
        };
        if slot.lost || settled < end || !session.window.is_empty() {
            return Outcome::Impossible;
        }
        if !self.may_write(&world.table, session) {
            return Outcome::LeaseLost;
        }
        let streamed: Set = world.table.commits[..usize::from(settled)].iter().copied().collect();
        let seen = if self.guarded(Guard::SettledAdded) { snapshot.and(streamed) } else { snapshot };
        write(world, |table| {
            table.source = Source::Poll;
            table.progress = Progress::Idle { seen };
        });
        session.read = Place::Poll(world.table.progress);
        Outcome::Done
    }

    pub(crate) fn drop_slot(&self, world: &mut World) -> bool {
        let spoils_left = world.spoils_left;
        let Some(slot) = slot(&mut world.table.source).filter(|slot| !slot.lost && spoils_left > 0) else {
            return false;
        };
        slot.lost = true;
        world.spoils_left -= 1;
        true
    }

    pub(crate) fn read_slot(&self, world: &mut World) -> bool {
        let end = commits(&world.table);
        let spoils_left = world.spoils_left;
        let Some(slot) = slot(&mut world.table.source).filter(|slot| slot.confirmed < end && spoils_left > 0) else {
            return false;
        };
        slot.confirmed = end;
        world.spoils_left -= 1;
        true
    }

    pub(crate) fn fall_back(&self, world: &mut World, session: &mut Session) -> Outcome {
        if !slot(&mut world.table.source).is_some_and(|slot| slot.lost) {
            return Outcome::Impossible;
        }
        if !self.may_write(&world.table, session) {
            return Outcome::LeaseLost;
        }
        session.window.clear();
        session.read = poll_from_checkpoint(world);
        Outcome::Done
    }

    /// Writes how far everything is settled; the server hears of it afterwards.
    pub(crate) fn write_progress(&self, world: &mut World, place: Place) {
        write(world, |table| match (place, &mut table.source) {
            (Place::Poll(progress), _) => table.progress = progress,
            (Place::Wal(next), Source::Wal { slot, settled } | Source::Ending { slot, settled, .. }) => {
                *settled = next;
                slot.confirmed = slot.confirmed.max(next);
            }
            (Place::Wal(_), Source::Poll | Source::Waiting { .. }) => {}
        });
    }
}

/// Changes the table, and notices if what was settled no longer is.
fn write(world: &mut World, change: impl FnOnce(&mut Table)) {
    let before: Set = world.table.commits.iter().copied().filter(|event| world.table.settled(*event)).collect();
    change(&mut world.table);
    world.went_back |= !before.iter().all(|event| world.table.settled(event));
}

/// What was settled since the checkpoint may be repeated.
fn poll_from_checkpoint(world: &mut World) -> Place {
    world.repeats_allowed += commits(&world.table);
    world.table.source = Source::Poll;
    Place::Poll(world.table.progress)
}

fn slot(source: &mut Source) -> Option<&mut Slot> {
    match source {
        Source::Poll => None,
        Source::Waiting { slot } | Source::Wal { slot, .. } | Source::Ending { slot, .. } => Some(slot),
    }
}

fn commits(table: &Table) -> u8 {
    u8::try_from(table.commits.len()).expect("a scope has at most 8 events")
}
