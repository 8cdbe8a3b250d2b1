//! A small exhaustive model of the relay: lease, publish, settle, hold, drain and switch.
//!
//! Every order of steps, deaths, pauses and changes of the source is tried for a handful of events, and each state held
//! against the relay's promises. Each guard can be taken out; the model must then find what goes wrong. It is a model of
//! the design in ARCHITECTURE.md, not of the code: that is what the tests on real Postgres and Kafka are for.

pub mod promises;
pub mod scopes;
mod session;
pub mod set;
mod step;
mod switch;
pub mod world;

use stateright::{Model, Property};

use set::Set;
use step::Step;
use world::{Progress, Source, Table, World};

/// What the relay could forget to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guard {
    /// A key's slot is locked before its event takes a position.
    SlotLock,
    /// Progress is a snapshot, not the highest position.
    Snapshot,
    /// What is written is compared with the lease's epoch.
    Epoch,
    /// What follows a rejected event of its key in the window is not sent.
    NothingPassesInFlight,
    /// What is not sent yet of a key with a hold is added behind.
    NothingPassesAHold,
    /// Progress waits until a rejected event is held.
    HeldFirst,
    /// A drained page leaves its hold, not whatever the hold has by then.
    DrainedOnly,
    /// Streaming begins once progress covers the slot's snapshot.
    SnapshotCovered,
    /// The stream passes over what progress has done already.
    DoneAlready,
    /// A slot that was confirmed beyond what is settled is not trusted.
    SlotTrust,
    /// To leave the stream, a snapshot is taken first and the end of the log after it.
    SnapshotFirst,
    /// What the stream has settled beyond that snapshot is added to it.
    SettledAdded,
}

/// All guards.
pub const GUARDS: [Guard; 12] = [
    Guard::SlotLock,
    Guard::Snapshot,
    Guard::Epoch,
    Guard::NothingPassesInFlight,
    Guard::NothingPassesAHold,
    Guard::HeldFirst,
    Guard::DrainedOnly,
    Guard::SnapshotCovered,
    Guard::DoneAlready,
    Guard::SlotTrust,
    Guard::SnapshotFirst,
    Guard::SettledAdded,
];

/// How much happens. Each adds to the number of states by an order of magnitude.
#[derive(Clone, Copy, Debug)]
pub struct Scope {
    /// The key of each event, in order of position; at most 8 events.
    pub keys: &'static [u8],
    /// Events that Kafka rejects until somebody mends that.
    pub bad: &'static [u8],
    /// How many events a session has under way.
    pub window: usize,
    /// How often a session dies or loses its lease.
    pub faults: u8,
    /// How often the source is changed.
    pub switches: u8,
    /// How often the slot is dropped, or read by somebody else.
    pub spoils: u8,
}

/// The model: a scope, and at most one guard that is missing.
#[derive(Clone, Copy, Debug)]
pub struct Outbox {
    /// How much happens.
    pub scope: Scope,
    /// What the relay forgets.
    pub without: Option<Guard>,
}

impl Outbox {
    fn guarded(&self, guard: Guard) -> bool {
        self.without != Some(guard)
    }

    fn key(&self, event: u8) -> u8 {
        self.scope.keys[usize::from(event)]
    }

    fn events(&self) -> std::ops::Range<u8> {
        0..u8::try_from(self.scope.keys.len()).expect("a scope has at most 8 events")
    }
}

impl Model for Outbox {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        let table = Table {
            commits: Vec::new(),
            owner: None,
            epoch: 0,
            progress: Progress::Idle { seen: Set::default() },
            held: Set::default(),
            holds: Set::default(),
            source: Source::Poll,
        };
        vec![World {
            table,
            log: Vec::new(),
            relays: [None, None],
            bad: self.scope.bad.iter().copied().collect(),
            faults_left: self.scope.faults,
            switches_left: self.scope.switches,
            spoils_left: self.scope.spoils,
            repeats_allowed: 0,
            went_back: false,
        }]
    }

    fn actions(&self, world: &World, steps: &mut Vec<Step>) {
        steps.extend(self.steps(world));
    }

    fn next_state(&self, world: &World, step: Step) -> Option<World> {
        let mut next = world.clone();
        self.take(&mut next, step).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        promises::all()
    }
}
