//! Where the relay's events come from, and how it is written down how far they have been relayed.
//!
//! Two implementations: `poll`, which looks into the table, and `wal`, which streams the database's log. Sending,
//! acknowledgements, recovery and leases are the session's own and serve both.

pub(super) mod poll;
pub(super) mod wal;

use std::{collections::BTreeSet, future::Future, time::Instant};

use super::{Error, lane::Lanes, window::Settled};
use crate::{
    model::delivery,
    store::relay::{Connection, lease::Mark, progress::LaneRow, row::Row, stream::Stream},
};

/// Reads the events of this relay's lanes, and keeps their progress.
///
/// *Delivery*: from a lane's written progress on, every committed event of the lane is read at least once, and what is
/// in no committed transaction never is. Reading runs ahead of settling; only what is settled is written.
///
/// *Order*: the events of one key are read in commit order.
///
/// *Durability*: what was read in a round may be undone by a crash of the database until a durable commit has been made
/// that was begun after it; the session makes one before it sends anything.
///
/// *Concurrency*: one session calls it, one call at a time, and asks for a batch only once it has taken the one before.
///
/// *Cancellation*: [`done`](Self::done) may be dropped at any point without losing a batch.
///
/// *Shutdown*: dropping it cuts off what it reads and writes nothing.
pub(super) trait Source: Send {
    /// How far a batch reaches. Comes back when all of it is settled.
    type Reach: Clone + Send;

    /// A lane has been claimed, with the progress that the table has for it.
    fn claimed(&mut self, row: LaneRow);

    /// A lane is not this relay's any more.
    fn lost(&mut self, lane: i16);

    /// There may be something to read.
    fn wake(&mut self);

    /// When to ask next; `None` while something is being read, or there is nothing to ask for.
    fn next_read(&self, lanes: &Lanes) -> Option<Instant>;

    /// Begins to read what fits into the room, when it is time. `mark` is the lease's last.
    fn ask(&mut self, lanes: &Lanes, room: Room, apart: Apart<'_>, mark: Mark);

    /// Waits until there is something to take; for ever when nothing was asked for.
    fn done(&mut self) -> impl Future<Output = ()> + Send;

    /// What was read.
    ///
    /// # Errors
    /// When reading failed: the session is over.
    fn take(&mut self, lanes: &Lanes) -> Result<Option<Batch<Self::Reach>>, Error>;

    /// The last round begun. A durable commit that begins after it makes what was read in it durable.
    fn round(&self) -> u64;

    /// A batch is settled, and so is every one before it that has a lane in common. True when nothing is left of its lanes
    /// that was there when they were last looked for.
    fn settle(&mut self, page: &Settled<Self::Reach>) -> bool;

    /// Writes what is settled and ahead of the table by at least this much, by compare-and-set on the lanes' epochs, and
    /// in the same transaction appends where the events went. Returns the lanes that another relay has claimed: nothing
    /// was written for them.
    fn write(
        &mut self,
        connection: &mut Connection,
        lanes: &Lanes,
        at_least: Unwritten,
        delivered: Option<delivery::Batch>,
    ) -> impl Future<Output = Result<Vec<i16>, Error>> + Send;

    /// What was written is durable: its transaction, if it was part of one, has committed.
    fn committed(&mut self);

    /// Whether another source is wanted, and this one ends what it has begun: no drain is to be begun any more.
    fn is_leaving(&self) -> bool;

    /// Takes notice of which source is in force and which is wanted, and carries out the next step of a change. Called
    /// now and then. `drains` says whether held events are under way, which a change would repeat.
    ///
    /// # Errors
    /// [`Error::SourceChanged`] once another source is in force and this one has nothing under way.
    fn steer(
        &mut self,
        connection: &mut Connection,
        lanes: &Lanes,
        stream: &Stream,
        drains: bool,
    ) -> impl Future<Output = Result<Steered, Error>> + Send;
}

/// What follows for the relay from the source in force.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Steered {
    /// How many lanes are its share; `None`: as many as any other relay's.
    pub(super) share: Option<i64>,
    /// Bytes of log that are kept for it.
    pub(super) retained_log_bytes: Option<i64>,
}

/// How much may be read at once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    /// Events.
    pub(super) rows_max: usize,
    /// Bytes of keys and payloads, save that the first event always fits.
    pub(super) bytes_max: usize,
}

/// Lanes that others are not to wait for, as far as the source can tell lanes apart.
#[derive(Clone, Copy, Debug)]
pub(super) struct Apart<'a> {
    /// Each in batches of its own.
    pub(super) lanes: &'a BTreeSet<i16>,
    /// Events of a batch that may hold some of theirs.
    pub(super) rows_max: usize,
    /// Whether events of theirs are under way, or may be among the next.
    pub(super) under_way: bool,
    /// Whether so much of them is read already that no more is needed for now.
    pub(super) enough: bool,
}

/// Events that were read together.
pub(super) struct Batch<R> {
    /// The lanes that they are of, ascending. Rows of others are passed over.
    pub(super) lanes: Vec<i16>,
    /// The events, each lane's in order.
    pub(super) rows: Vec<Row>,
    /// How far they reach.
    pub(super) reach: R,
    /// In which round they were read.
    pub(super) round: u64,
}

/// Whether what is settled is ahead of the table.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Unwritten {
    /// It is not.
    Nothing,
    /// Only by ranges without events: can wait.
    Empty,
    /// By events, which a crash would repeat.
    Events,
}
