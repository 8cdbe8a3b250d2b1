//! The `wal` source: streams the database's log.
//!
//! One relay owns every lane, and streams from one slot. Progress is a place in the log; the server is told of it only
//! after it is durable, and never past what is settled. Events that a lane's progress had done when this session began
//! are passed over: that is how it joins on to polling without a gap or a repeat. Now and then a checkpoint is written
//! as the lanes' progress, so that polling can take over at any moment. Deliberately not here: the way from `poll`.

mod checkpoint;

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use tokio::task::JoinHandle;

use self::checkpoint::Checkpoints;
use super::{Apart, Batch, Room, Source, Steered, Unwritten, poll::over_budget};
use crate::{
    model::{delivery, log::LogPosition, progress::Progress, source::Source as Name},
    relay::{Error, Settings, lane::Lanes, session::Entry, window::Settled},
    store::relay::{
        self as store, Connection, fetch,
        lease::Mark,
        progress::LaneRow,
        replication::{Error as StreamError, Item, Stream as Link},
        row::Row,
        slot,
        stream::{self, Direction, Stream},
    },
};

/// Every lane.
const LANES: usize = 64;
/// How often the slot is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long whoever streamed before may take to let the slot go.
const FREE_WITHIN: Duration = Duration::from_secs(10);
const FREE_PAUSE: Duration = Duration::from_millis(50);
/// Transactions to be remembered beside a snapshot before another one is taken.
const BESIDE_MAX: usize = 10_000;

/// The source.
pub(in crate::relay) struct Wal {
    by: Direction,
    url: String,
    slot: String,
    retained_log_bytes_max: u64,
    /// Events settled between two checkpoints, at most, unless a commit has more.
    checkpoint_events_max: usize,
    /// What each lane had done when it was claimed.
    done_before: BTreeMap<i16, Progress>,
    link: State,
    failed: Option<Error>,
    /// What was asked for.
    room: Option<Room>,
    rows: Vec<Row>,
    bytes: usize,
    /// Everything before this has come.
    read: LogPosition,
    /// Everything before this was handed to the session.
    taken: LogPosition,
    settled: LogPosition,
    /// What the table has.
    written: LogPosition,
    unwritten: Unwritten,
    checkpoints: Checkpoints,
    settled_since_checkpoint: usize,
    /// Events settled that no lane's progress in the table has.
    beyond: i64,
    /// The same by lane, to be counted in the table with the next checkpoint.
    events: BTreeMap<i16, i64>,
    mark: Mark,
    /// `poll` is wanted: streams up to a checkpoint and no further.
    leaving: bool,
    /// The checkpoint to poll from is written.
    left: bool,
    look_at: Instant,
    retained_log_bytes: Option<i64>,
}

/// The connection.
enum State {
    /// Until every lane is owned.
    Closed,
    Opening(JoinHandle<Result<Link, StreamError>>),
    Open(Box<Link>),
}

impl Wal {
    /// Makes sure that the slot is the one that progress was made with, and ends whoever streams from it still.
    ///
    /// # Errors
    /// [`Error::SourceChanged`] when it is not: then `poll` was put in force, from the last checkpoint.
    pub(in crate::relay) async fn open(settings: &Settings, by: Direction, entry: &mut Entry) -> Result<Self, Error> {
        let Some(slot) = entry.stream.slot.clone().filter(|_| entry.stream.source == Name::Wal) else {
            return Err(Error::SourceChanged(entry.stream.source));
        };
        if let Err(fault) = slot::usable(&mut entry.control, &slot.name, slot.settled.lsn).await? {
            return Err(slot_lost(&mut entry.control, by, &slot.name, &fault).await?);
        }
        Ok(Self {
            by,
            url: settings.database_url.clone(),
            slot: slot.name,
            retained_log_bytes_max: settings.config.retained_log_bytes_max,
            checkpoint_events_max: (settings.config.in_flight_events_max / 2).max(1),
            done_before: BTreeMap::new(),
            link: State::Closed,
            failed: None,
            room: None,
            rows: Vec::new(),
            bytes: 0,
            read: slot.settled,
            taken: slot.settled,
            settled: slot.settled,
            written: slot.settled,
            unwritten: Unwritten::Nothing,
            checkpoints: Checkpoints::default(),
            settled_since_checkpoint: 1,
            beyond: entry.stream.settled_beyond,
            events: BTreeMap::new(),
            mark: Mark { floor: 0, xid: u64::MAX },
            leaving: false,
            left: false,
            look_at: Instant::now(),
            retained_log_bytes: None,
        })
    }

    fn absorb(&mut self, item: Item) {
        match item {
            // A commit that was settled in part comes whole again.
            Item::Event { behind, .. } if behind <= self.read => {}
            Item::Event { row, xid, behind } => {
                self.read = behind;
                self.checkpoints.read(xid, behind.lsn);
                let before = self.done_before.get(&row.lane());
                if !before.is_some_and(|progress| progress.has_done(xid, row.position())) {
                    self.bytes += row.size();
                    self.rows.push(row);
                }
            }
            Item::Through(lsn) => self.read = self.read.max(LogPosition::at(lsn)),
        }
    }

    /// Whether nothing more is to be read: `poll` takes over at the end of a commit beyond the checkpoint.
    fn is_at_the_end(&self) -> bool {
        self.left || (self.leaving && self.read.index == 0 && self.checkpoints.is_reached_at(self.read.lsn))
    }

    fn can_read(&self) -> bool {
        self.done_before.len() == LANES && !self.is_at_the_end()
    }

    /// Takes a checkpoint when it is time, and writes the pending one when it is reached.
    async fn keep_checkpoint(
        &mut self,
        connection: &mut Connection,
        lanes: &Lanes,
        is_time: bool,
    ) -> Result<(), Error> {
        let is_due = self.leaving
            || self.settled_since_checkpoint > self.checkpoint_events_max
            || self.checkpoints.beside() > BESIDE_MAX
            || (is_time && self.settled_since_checkpoint > 0);
        if is_due && !self.left && !self.checkpoints.is_pending() {
            let (snapshot, lsn) = fetch::checkpoint(connection).await?;
            self.checkpoints.take(snapshot, lsn, self.mark);
        }
        // To leave, everything that was read has to be settled; within a commit no snapshot sees what is settled of it.
        if self.leaving && (self.settled != self.read || self.settled.index > 0) {
            return Ok(());
        }
        let Some(progress) = self.checkpoints.reach(self.settled.lsn) else { return Ok(()) };
        let row = |(lane, _)| {
            let settled = self.events.get(&lane).copied().unwrap_or_default();
            Some(LaneRow { lane, epoch: lanes.epoch(lane)?, progress: progress.clone(), settled })
        };
        let rows: Vec<LaneRow> = lanes.iter().filter_map(row).collect();
        // Within a commit, progress does not see what is settled of it.
        let beyond = self.settled.index.cast_signed();
        if rows.len() != LANES || !stream::checkpoint(connection, self.by, &rows, beyond).await? {
            return Err(Error::LeaseLost);
        }
        self.beyond = beyond;
        self.events.clear();
        self.settled_since_checkpoint = 0;
        self.left = self.leaving;
        Ok(())
    }

    /// Looks whether the slot is still good, and how much log it keeps.
    async fn look(&mut self, connection: &mut Connection) -> Result<(), Error> {
        if Instant::now() < self.look_at {
            return Ok(());
        }
        self.look_at = Instant::now() + LOOK_EVERY;
        let state = match slot::usable(connection, &self.slot, self.settled.lsn).await? {
            Ok(state) => state,
            Err(fault) => return Err(slot_lost(connection, self.by, &self.slot, &fault).await?),
        };
        self.retained_log_bytes = Some(state.retained_bytes);
        if state.retained_bytes.unsigned_abs() > self.retained_log_bytes_max {
            let note = over_budget(state.retained_bytes, self.retained_log_bytes_max);
            tracing::error!(slot = self.slot, "{note}");
            return Err(fall_back(connection, self.by, Name::Poll, &note).await?);
        }
        Ok(())
    }
}

/// Says that the slot is lost, and has polling repair it: from the last checkpoint, until another slot is made.
async fn slot_lost(connection: &mut Connection, by: Direction, slot: &str, fault: &str) -> Result<Error, Error> {
    tracing::error!(slot, fault, "the slot is lost; polling goes on from the last checkpoint, and another is made");
    fall_back(connection, by, Name::Wal, &slot::lost_note(slot, fault)).await
}

/// Puts `poll` in force, from the last checkpoint; returns what ends the session.
async fn fall_back(connection: &mut Connection, by: Direction, desired: Name, note: &str) -> Result<Error, Error> {
    match stream::put_poll_in_force(connection, by, desired, Some(note)).await? {
        true => Ok(Error::SourceChanged(Name::Poll)),
        false => Err(Error::LeaseLost),
    }
}

/// Streams from the slot, as soon as whoever did before has let it go.
async fn open(url: String, slot: String, from: LogPosition) -> Result<Link, StreamError> {
    let mut beside = store::connect(&url).await?;
    let began = Instant::now();
    loop {
        slot::free(&mut beside, &slot).await?;
        match Link::open(&url, &slot, from).await {
            Err(error) if began.elapsed() < FREE_WITHIN => {
                tracing::debug!(%error, slot, "the slot cannot be streamed from yet");
                tokio::time::sleep(FREE_PAUSE).await;
            }
            opened => return opened,
        }
    }
}

impl Source for Wal {
    type Reach = LogPosition;

    fn claimed(&mut self, row: LaneRow) {
        self.done_before.insert(row.lane, row.progress);
    }

    fn lost(&mut self, lane: i16) {
        self.done_before.remove(&lane);
        self.failed = Some(Error::LeaseLost);
    }

    fn wake(&mut self) {}

    fn next_read(&self, _: &Lanes) -> Option<Instant> {
        // The stream tells by itself when there is something; it only has to be asked once.
        (self.room.is_none() && self.can_read()).then(Instant::now)
    }

    fn ask(&mut self, _: &Lanes, room: Room, apart: Apart<'_>, mark: Mark) {
        self.mark = mark;
        if !self.can_read() {
            return;
        }
        let rows_max = if apart.under_way { apart.rows_max } else { room.rows_max };
        self.room = Some(Room { rows_max, ..room });
        if let State::Closed = self.link {
            self.link = State::Opening(tokio::spawn(open(self.url.clone(), self.slot.clone(), self.read)));
        }
    }

    async fn done(&mut self) {
        if self.failed.is_some() || self.read > self.taken {
            return;
        }
        match &mut self.link {
            State::Opening(task) => match task.await {
                Ok(Ok(link)) => {
                    tracing::info!(slot = self.slot, from = %self.read.lsn, "the log is streamed");
                    self.link = State::Open(Box::new(link));
                }
                Ok(Err(error)) => self.failed = Some(error.into()),
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            },
            State::Open(link) if self.room.is_some() => match link.next().await {
                Ok(item) => self.absorb(item),
                Err(error) => self.failed = Some(error.into()),
            },
            State::Closed | State::Open(_) => std::future::pending().await,
        }
    }

    fn take(&mut self, _: &Lanes) -> Result<Option<Batch<LogPosition>>, Error> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        let (Some(room), true) = (self.room, self.read > self.taken) else { return Ok(None) };
        while self.rows.len() < room.rows_max && self.bytes < room.bytes_max && !self.is_at_the_end() {
            let State::Open(link) = &mut self.link else { break };
            match link.next_now()? {
                Some(item) => self.absorb(item),
                None => break,
            }
        }
        self.room = None;
        self.bytes = 0;
        self.taken = self.read;
        let lanes = self.done_before.keys().copied().collect();
        Ok(Some(Batch { lanes, rows: std::mem::take(&mut self.rows), reach: self.read, round: 0 }))
    }

    fn round(&self) -> u64 {
        // The server sends only what is on disk.
        0
    }

    fn settle(&mut self, page: &Settled<LogPosition>) -> bool {
        self.settled = page.reach;
        for lane in page.lanes_of_events.iter() {
            *self.events.entry(*lane).or_default() += 1;
        }
        self.settled_since_checkpoint += page.lanes_of_events.len();
        self.beyond += page.lanes_of_events.len() as i64;
        let has_events = !page.lanes_of_events.is_empty();
        self.unwritten = self.unwritten.max(if has_events { Unwritten::Events } else { Unwritten::Empty });
        // What is next in the log may be of any lane.
        false
    }

    async fn write(
        &mut self,
        connection: &mut Connection,
        lanes: &Lanes,
        at_least: Unwritten,
        delivered: Option<delivery::Batch>,
    ) -> Result<Vec<i16>, Error> {
        if self.done_before.len() < LANES {
            return Ok(Vec::new());
        }
        if self.unwritten >= at_least && self.settled > self.written {
            if !stream::settle(connection, self.by, self.settled, self.beyond, delivered).await? {
                return Err(Error::LeaseLost);
            }
            self.written = self.settled;
            self.unwritten = Unwritten::Nothing;
        }
        self.keep_checkpoint(connection, lanes, at_least == Unwritten::Empty).await?;
        Ok(Vec::new())
    }

    fn committed(&mut self) {
        if let State::Open(link) = &self.link {
            link.confirm(self.written.lsn);
        }
    }

    fn is_leaving(&self) -> bool {
        self.leaving
    }

    async fn steer(
        &mut self,
        connection: &mut Connection,
        _: &Lanes,
        stream: &Stream,
        drains: bool,
    ) -> Result<Steered, Error> {
        if stream.owner != self.by.owner || stream.epoch != self.by.epoch {
            return Err(Error::LeaseLost);
        }
        if stream.source != Name::Wal {
            return Err(Error::SourceChanged(stream.source));
        }
        if stream.desired == Name::Poll && !self.leaving {
            tracing::info!("`poll` is wanted: the log is streamed up to a checkpoint");
            self.leaving = true;
        }
        if self.left && !drains {
            stream::put_poll_in_force(connection, self.by, Name::Poll, None).await?;
            tracing::info!("the source in force is `poll` now");
            return Err(Error::SourceChanged(Name::Poll));
        }
        self.look(connection).await?;
        let share = i64::try_from(LANES).ok();
        Ok(Steered { share, retained_log_bytes: self.retained_log_bytes })
    }
}

impl Drop for Wal {
    fn drop(&mut self) {
        if let State::Opening(task) = &self.link {
            task.abort();
        }
    }
}
