//! The `poll` source: looks into the table for what the lanes' progress does not see.
//!
//! A poll takes a snapshot, the target of the idle lanes; pages then follow, as far as there is room, while earlier ones
//! are still under way. It needs only a plain role.

mod pace;
mod ranges;
mod reader;
mod to_wal;

use std::time::Instant;

use uuid::Uuid;

pub(super) use self::to_wal::over_budget;
use self::{
    pace::Pace,
    ranges::Ranges,
    reader::{Answer, Question, Reader},
    to_wal::ToWal,
};
use super::{Apart, Batch, Room, Source, Steered, Unwritten};
use crate::{
    model::{
        delivery,
        progress::{Base, Progress},
    },
    relay::{Error, Settings, lane::Lanes, window::Settled},
    store::relay::{
        Connection,
        fetch::{Now, Page, Request},
        lease::Mark,
        progress::{self, LaneRow},
        row::Row,
        stream::Stream,
    },
};

/// The source.
pub(in crate::relay) struct Poll {
    instance: Uuid,
    to_wal: ToWal,
    reader: Reader,
    ranges: Ranges,
    pace: Pace,
    /// What was marked when the running poll began.
    mark: Mark,
    /// Counts the snapshots taken.
    round: u64,
}

impl Poll {
    /// Reads on a connection of its own.
    pub(in crate::relay) fn new(settings: &Settings, connection: Connection) -> Self {
        Self {
            instance: settings.instance,
            to_wal: ToWal::new(settings),
            reader: Reader::new(connection),
            ranges: Ranges::default(),
            pace: Pace::new(&settings.config),
            mark: Mark { floor: 0, xid: u64::MAX },
            round: 1,
        }
    }

    fn take_snapshot(&mut self, lanes: &Lanes, number: u64, now: &Now) -> Option<Batch<Progress>> {
        self.round += 1;
        // The mark's transaction ended before the snapshot was taken, so that a transaction which the snapshot does
        // not know came after the mark, and took all its positions above the mark's.
        let floor = if self.mark.xid < now.snapshot.xmax() { self.mark.floor } else { 0 };
        let target = Base { seen: now.snapshot.clone(), floor };
        let empty = self.ranges.start(lanes, number, now, &target);
        if !self.ranges.any_draining(lanes) {
            self.pace.found_nothing();
        }
        if empty.is_empty() {
            return None;
        }
        Some(Batch { lanes: empty, rows: Vec::new(), reach: Progress::Idle(target), round: self.round })
    }

    fn take_page(&mut self, lanes: &Lanes, request: Request, page: Page) -> Batch<Progress> {
        let Request { lanes: group, from, .. } = request;
        let Page { rows, complete } = page;
        let to = from.reach(if complete { None } else { rows.last().map(Row::position) });
        let moved = self.ranges.move_read(lanes, &group, &from, &to);
        if rows.is_empty() {
            self.pace.found_nothing();
        } else {
            self.pace.wake();
        }
        Batch { lanes: moved, rows, reach: to, round: self.round }
    }
}

impl Source for Poll {
    /// Where a lane is when the page is settled.
    type Reach = Progress;

    fn claimed(&mut self, row: LaneRow) {
        self.ranges.add(row, self.pace.polls + 1);
    }

    fn lost(&mut self, lane: i16) {
        self.ranges.remove(lane);
    }

    fn wake(&mut self) {
        self.pace.wake();
    }

    fn next_read(&self, lanes: &Lanes) -> Option<Instant> {
        (self.reader.is_free() && self.ranges.any_idle(lanes)).then_some(self.pace.next_poll)
    }

    fn ask(&mut self, lanes: &Lanes, room: Room, apart: Apart<'_>, mark: Mark) {
        if !self.reader.is_free() {
            return;
        }
        if Instant::now() >= self.pace.next_poll && self.ranges.any_idle(lanes) {
            let number = self.pace.begin();
            self.mark = mark;
            self.reader.ask(Question::Poll(number));
        } else if let Some((lanes, from)) = self.ranges.next_group(lanes, apart) {
            let Room { rows_max, bytes_max } = room;
            let rows_max = if lanes.iter().any(|lane| apart.lanes.contains(lane)) { apart.rows_max } else { rows_max };
            self.reader.ask(Question::Page(Request { lanes, from, rows_max, bytes_max }));
        }
    }

    async fn done(&mut self) {
        self.reader.done().await;
    }

    fn take(&mut self, lanes: &Lanes) -> Result<Option<Batch<Progress>>, Error> {
        Ok(match self.reader.take().transpose()? {
            Some(Answer::Poll(number, now)) => self.take_snapshot(lanes, number, &now),
            Some(Answer::Page(request, page)) => Some(self.take_page(lanes, request, page)),
            None => None,
        })
    }

    fn round(&self) -> u64 {
        self.round
    }

    fn settle(&mut self, page: &Settled<Progress>) -> bool {
        for lane in page.lanes.iter().copied() {
            self.ranges.settle(lane, &page.reach, page.events_of(lane));
        }
        matches!(page.reach, Progress::Idle(_))
    }

    async fn write(
        &mut self,
        connection: &mut Connection,
        lanes: &Lanes,
        at_least: Unwritten,
        delivered: Option<delivery::Batch>,
    ) -> Result<Vec<i16>, Error> {
        let rows = self.ranges.unwritten(lanes, at_least);
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let written = progress::write(connection, self.instance, &rows, delivered).await?;
        let mut lost = Vec::new();
        for LaneRow { lane, .. } in rows {
            if written.contains(&lane) {
                self.ranges.written(lane);
            } else {
                lost.push(lane);
            }
        }
        Ok(lost)
    }

    fn committed(&mut self) {}

    fn is_leaving(&self) -> bool {
        // It gives its lanes up one by one, each with nothing under way.
        false
    }

    async fn steer(
        &mut self,
        connection: &mut Connection,
        lanes: &Lanes,
        stream: &Stream,
        _: bool,
    ) -> Result<Steered, Error> {
        self.to_wal.steer(connection, lanes.len(), stream).await
    }
}
