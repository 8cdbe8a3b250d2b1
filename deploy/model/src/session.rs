//! A relay's own steps: it takes the lease, reads, sends, sets aside, settles and drains.

use crate::step::Outcome;
use crate::world::{Entry, Place, Progress, Session, Standing, Table, World};
use crate::{Guard, Outbox};

impl Outbox {
    pub(crate) fn acquire(&self, world: &mut World, relay: u8) -> bool {
        if world.table.owner.is_some() || world.relays[usize::from(relay)].is_some() {
            return false;
        }
        world.table.owner = Some(relay);
        world.table.epoch += 1;
        let read = self.begin(world);
        let (epoch, holds) = (world.table.epoch, world.table.holds);
        world.relays[usize::from(relay)] =
            Some(Session { relay, epoch, read, window: Vec::new(), holds, draining: None });
        true
    }

    pub(crate) fn read(&self, world: &mut World, session: &mut Session) -> Outcome {
        if session.window.len() >= self.scope.window {
            return Outcome::Impossible;
        }
        let Some((event, done, then)) = (match session.read {
            Place::Poll(progress) => self.poll(&world.table, progress),
            Place::Wal(next) => self.stream(&world.table, next),
        }) else {
            return Outcome::Impossible;
        };
        let standing = if done { Standing::Settled } else { Standing::Unsent };
        session.window.push(Entry { event, standing, then });
        session.read = then;
        Outcome::Done
    }

    /// The next event in the table, and the progress behind it.
    fn poll(&self, table: &Table, progress: Progress) -> Option<(u8, bool, Place)> {
        let (seen, target, next) = match progress {
            Progress::Idle { seen } => (seen, table.committed(), 0),
            Progress::Draining { seen, target, next } => (seen, target, next),
        };
        let mut new = target.iter().filter(|event| *event >= next && !seen.has(*event));
        let event = new.next()?;
        let progress = if new.next().is_some() {
            Progress::Draining { seen, target, next: event + 1 }
        } else if self.guarded(Guard::Snapshot) {
            Progress::Idle { seen: target.and(seen) }
        } else {
            Progress::Idle { seen: seen.and((0..=event).collect()) }
        };
        Some((event, false, Place::Poll(progress)))
    }

    /// Sends the first event that was not sent yet.
    pub(crate) fn send(&self, world: &mut World, session: &mut Session) -> Outcome {
        let Some(index) = session.window.iter().position(|entry| entry.standing == Standing::Unsent) else {
            return Outcome::Impossible;
        };
        let event = session.window[index].event;
        let is_stuck = |entry: &Entry| {
            self.key(entry.event) == self.key(event) && matches!(entry.standing, Standing::Rejected | Standing::Behind)
        };
        let passes_in_flight = session.window[..index].iter().any(is_stuck);
        let passes_a_hold = session.holds.has(self.key(event));
        session.window[index].standing = if (passes_in_flight && self.guarded(Guard::NothingPassesInFlight))
            || (passes_a_hold && self.guarded(Guard::NothingPassesAHold))
        {
            Standing::Behind
        } else if world.bad.has(event) {
            Standing::Rejected
        } else {
            world.log.push(event);
            Standing::Settled
        };
        Outcome::Done
    }

    pub(crate) fn hold(&self, world: &mut World, session: &mut Session) -> Outcome {
        let set_aside = |entry: &&mut Entry| matches!(entry.standing, Standing::Rejected | Standing::Behind);
        if !session.window.iter_mut().any(|entry| set_aside(&entry)) {
            return Outcome::Impossible;
        }
        if !self.may_write(&world.table, session) {
            return Outcome::LeaseLost;
        }
        for entry in session.window.iter_mut().filter(set_aside) {
            entry.standing = Standing::Settled;
            world.table.held = world.table.held.with(entry.event);
            world.table.holds = world.table.holds.with(self.key(entry.event));
            session.holds = session.holds.with(self.key(entry.event));
        }
        Outcome::Done
    }

    pub(crate) fn settle(&self, world: &mut World, session: &mut Session) -> Outcome {
        let settled = |entry: &&Entry| match entry.standing {
            Standing::Settled => true,
            Standing::Unsent => false,
            Standing::Rejected | Standing::Behind => !self.guarded(Guard::HeldFirst),
        };
        let count = session.window.iter().take_while(settled).count();
        if count == 0 {
            return Outcome::Impossible;
        }
        if !self.may_write(&world.table, session) {
            return Outcome::LeaseLost;
        }
        let then = session.window.drain(..count).map(|entry| entry.then).next_back();
        self.write_progress(world, then.expect("it settles one at least"));
        Outcome::Done
    }

    pub(crate) fn drain_read(&self, world: &mut World, session: &mut Session) -> Outcome {
        let first = |key| world.table.held.iter().find(|event| self.key(*event) == key);
        let next = session.holds.iter().filter_map(first).find(|event| !world.bad.has(*event));
        let (None, Some(event)) = (session.draining, next) else { return Outcome::Impossible };
        if !self.may_write(&world.table, session) {
            return Outcome::LeaseLost;
        }
        session.draining = Some((event, false));
        Outcome::Done
    }

    pub(crate) fn drain_send(&self, world: &mut World, session: &mut Session) -> Outcome {
        let Some((event, false)) = session.draining else { return Outcome::Impossible };
        world.log.push(event);
        session.draining = Some((event, true));
        Outcome::Done
    }

    pub(crate) fn drain_end(&self, world: &mut World, session: &mut Session) -> Outcome {
        let Some((event, true)) = session.draining else { return Outcome::Impossible };
        if !self.may_write(&world.table, session) {
            return Outcome::LeaseLost;
        }
        let table = &mut world.table;
        let key = self.key(event);
        table.held = if self.guarded(Guard::DrainedOnly) {
            table.held.without(event)
        } else {
            table.held.iter().filter(|held| self.key(*held) != key).collect()
        };
        if !table.held.iter().any(|held| self.key(held) == key) {
            table.holds = table.holds.without(key);
            session.holds = session.holds.without(key);
        }
        session.draining = None;
        Outcome::Done
    }
}
