//! What may happen next: commits, failures, and the single steps of relays (`session`) and of changes between the sources
//! (`switch`).
//!
//! A step is what is atomic in truth: one transaction in Postgres, or one record in Kafka. A relay that has lost its lease
//! goes on until it hears of it, and hears of it when it writes.

use crate::set::Set;
use crate::world::{Session, Table, World};
use crate::{Guard, Outbox};

/// Something that happens. A number is an event's or a relay's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// The event's transaction commits.
    Commit(u8),
    /// What made Kafka reject events is mended.
    Mend,
    /// The relay takes the lease.
    Acquire(u8),
    /// The relay dies; its lease stays.
    Die(u8),
    /// The lease of a relay that sleeps runs out.
    Expire,
    /// The lease of a dead relay runs out.
    Lapse,
    /// A relay hears that it has lost its lease.
    Notice(u8),
    /// It reads one event.
    Read(u8),
    /// It sends one event, and Kafka answers.
    Send(u8),
    /// It sets aside what Kafka has rejected, and what must not pass that.
    Hold(u8),
    /// It writes how far everything is settled.
    Settle(u8),
    /// It reads the next held event that can go.
    DrainRead(u8),
    /// It sends that.
    DrainSend(u8),
    /// It takes that out of its hold, and ends a hold that is empty.
    DrainEnd(u8),
    /// A slot is made, to stream from.
    MakeSlot,
    /// The relay begins to stream.
    StartStream(u8),
    /// Leaving the stream begins.
    BeginLeaving,
    /// Its second half: the end of the log is looked up.
    FindEnd,
    /// The relay polls again, from a checkpoint.
    Leave(u8),
    /// Somebody drops the slot.
    DropSlot,
    /// Somebody else reads from the slot.
    ReadSlot,
    /// The relay polls again, from the last checkpoint, because the slot cannot be used.
    FallBack(u8),
}

impl Step {
    /// Does it only happen because somebody wants it, or something fails?
    pub fn is_chosen(self) -> bool {
        matches!(
            self,
            Self::Die(_) | Self::Expire | Self::MakeSlot | Self::BeginLeaving | Self::DropSlot | Self::ReadSlot
        )
    }
}

impl Outbox {
    /// Every step that may be possible.
    pub(crate) fn steps(&self, world: &World) -> Vec<Step> {
        let mut steps: Vec<_> = self.events().map(Step::Commit).collect();
        steps.extend([Step::Mend, Step::Expire, Step::Lapse]);
        steps.extend([Step::MakeSlot, Step::BeginLeaving, Step::FindEnd, Step::DropSlot, Step::ReadSlot]);
        for (relay, session) in (0..).zip(&world.relays) {
            if session.is_none() {
                steps.push(Step::Acquire(relay));
                continue;
            }
            steps.extend([Step::Die(relay), Step::Notice(relay), Step::Read(relay), Step::Send(relay)]);
            steps.extend([Step::Hold(relay), Step::Settle(relay)]);
            steps.extend([Step::DrainRead(relay), Step::DrainSend(relay), Step::DrainEnd(relay)]);
            steps.extend([Step::StartStream(relay), Step::Leave(relay), Step::FallBack(relay)]);
        }
        steps
    }

    /// Takes a step, if it is possible.
    pub(crate) fn take(&self, world: &mut World, step: Step) -> bool {
        match step {
            Step::Commit(event) => self.commit(world, event),
            Step::Mend => {
                !world.bad.is_empty() && {
                    world.bad = Set::default();
                    true
                }
            }
            Step::Acquire(relay) => self.acquire(world, relay),
            Step::Die(relay) => self.fail(world) && world.relays[usize::from(relay)].take().is_some(),
            Step::Expire => {
                let asleep = world.table.owner.is_some_and(|owner| world.relays[usize::from(owner)].is_some());
                asleep && self.fail(world) && world.table.owner.take().is_some()
            }
            Step::Lapse => {
                let dead = world.table.owner.is_some_and(|owner| world.relays[usize::from(owner)].is_none());
                dead && world.table.owner.take().is_some()
            }
            Step::Notice(relay) => {
                let session = &mut world.relays[usize::from(relay)];
                let lost = session.as_ref().is_some_and(|session| !owns(&world.table, session));
                lost && session.take().is_some()
            }
            Step::Read(relay) => self.step_of(world, relay, Self::read),
            Step::Send(relay) => self.step_of(world, relay, Self::send),
            Step::Hold(relay) => self.step_of(world, relay, Self::hold),
            Step::Settle(relay) => self.step_of(world, relay, Self::settle),
            Step::DrainRead(relay) => self.step_of(world, relay, Self::drain_read),
            Step::DrainSend(relay) => self.step_of(world, relay, Self::drain_send),
            Step::DrainEnd(relay) => self.step_of(world, relay, Self::drain_end),
            Step::MakeSlot => self.make_slot(world),
            Step::StartStream(relay) => self.step_of(world, relay, Self::start_stream),
            Step::BeginLeaving => self.begin_leaving(world),
            Step::FindEnd => self.find_end(world),
            Step::Leave(relay) => self.step_of(world, relay, Self::leave),
            Step::DropSlot => self.drop_slot(world),
            Step::ReadSlot => self.read_slot(world),
            Step::FallBack(relay) => self.step_of(world, relay, Self::fall_back),
        }
    }

    /// Runs a step of a relay's session, which ends if the step finds that the lease is lost.
    fn step_of(&self, world: &mut World, relay: u8, step: impl Fn(&Self, &mut World, &mut Session) -> Outcome) -> bool {
        let Some(mut session) = world.relays[usize::from(relay)].take() else { return false };
        match step(self, world, &mut session) {
            Outcome::Impossible => false,
            Outcome::Done => {
                world.relays[usize::from(relay)] = Some(session);
                true
            }
            Outcome::LeaseLost => true,
        }
    }

    fn commit(&self, world: &mut World, event: u8) -> bool {
        let waits = |earlier| self.key(earlier) == self.key(event) && !world.table.commits.contains(&earlier);
        let locked_out = self.guarded(Guard::SlotLock) && (0..event).any(waits);
        if locked_out || world.table.commits.contains(&event) {
            return false;
        }
        world.table.commits.push(event);
        true
    }

    /// Something ends a session: what it had under way may be repeated.
    fn fail(&self, world: &mut World) -> bool {
        let possible = world.faults_left > 0;
        if possible {
            world.faults_left -= 1;
            let drained = 1;
            world.repeats_allowed += u8::try_from(self.scope.window).expect("a window is small") + drained;
        }
        possible
    }

    /// May a session write, as far as the database can tell?
    pub(crate) fn may_write(&self, table: &Table, session: &Session) -> bool {
        !self.guarded(Guard::Epoch) || owns(table, session)
    }
}

/// How a step of a session went.
pub(crate) enum Outcome {
    /// There was nothing to do.
    Impossible,
    /// It is done.
    Done,
    /// The session is over.
    LeaseLost,
}

fn owns(table: &Table, session: &Session) -> bool {
    table.owner == Some(session.relay) && table.epoch == session.epoch
}
