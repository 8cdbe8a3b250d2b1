//! What has been read and is not settled: pages in the order they were read.
//!
//! A page is settled when each of its events is acknowledged or given up, and only after every page before it. What is
//! in here is what a crash repeats; the session reads no more than its limits leave room for. Tokens number the events
//! without gaps. It deliberately sends nothing by itself.

use std::collections::VecDeque;

use super::source::Batch;
use crate::store::relay::row::Row;

/// The pages. `R` is how far one reaches, which the source knows the meaning of.
pub(super) struct Window<R> {
    pub(super) pages: VecDeque<Page<R>>,
    next_token: usize,
    events: usize,
    bytes: usize,
    /// Events enqueued and not yet reported.
    pub(super) enqueued: usize,
}

/// Events of lanes that were read together.
pub(super) struct Page<R> {
    first_token: usize,
    pub(super) rows: Vec<Row>,
    pub(super) marks: Vec<Mark>,
    /// No event before this one waits.
    pub(super) next: usize,
    /// Not to be sent before this round's snapshot is flushed.
    pub(super) round: u64,
    open: usize,
    bytes: usize,
    lanes: Vec<i16>,
    reach: R,
    stops: Vec<(i16, i64)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    /// To be enqueued.
    Waiting,
    /// Enqueued.
    Enqueued,
    /// Acknowledged, or given up.
    Done,
}

/// A page that has been settled.
pub(super) struct Settled<R> {
    /// The lanes that it settles, ascending.
    pub(super) lanes: Vec<i16>,
    /// How far.
    pub(super) reach: R,
    /// How many events were in it.
    pub(super) events: usize,
    with_events: Vec<i16>,
    stops: Vec<(i16, i64)>,
}

impl<R> Settled<R> {
    /// Whether there were events of the lane in it.
    pub(super) fn has_events_of(&self, lane: i16) -> bool {
        self.with_events.binary_search(&lane).is_ok()
    }

    /// Whether a lane has stopped within the page.
    pub(super) fn has_stops(&self) -> bool {
        !self.stops.is_empty()
    }

    /// The position that a lane has stopped before, within the page.
    pub(super) fn stop_of(&self, lane: i16) -> Option<i64> {
        self.stops.iter().filter(|(l, _)| *l == lane).map(|(_, position)| *position).min()
    }
}

impl<R> Default for Window<R> {
    fn default() -> Self {
        Self { pages: VecDeque::new(), next_token: 0, events: 0, bytes: 0, enqueued: 0 }
    }
}

impl<R> Page<R> {
    pub(super) fn token(&self, index: usize) -> usize {
        self.first_token + index
    }
}

impl<R> Window<R> {
    pub(super) fn events(&self) -> usize {
        self.events
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The token of the oldest event in here, or the next one's.
    pub(super) fn first_token(&self) -> usize {
        self.pages.front().map_or(self.next_token, |p| p.first_token)
    }

    /// Adds what was read. Rows of lanes that are not the batch's are given up.
    pub(super) fn push(&mut self, batch: Batch<R>) {
        let Batch { lanes, rows, reach, round } = batch;
        if rows.is_empty()
            && let Some(last) = self.pages.back_mut()
            && last.rows.is_empty()
            && last.lanes == lanes
        {
            (last.reach, last.round) = (reach, round);
            return;
        }
        let mark = |row: &Row| if lanes.binary_search(&row.lane()).is_ok() { Mark::Waiting } else { Mark::Done };
        let marks: Vec<Mark> = rows.iter().map(mark).collect();
        let open = marks.iter().filter(|m| **m == Mark::Waiting).count();
        let bytes = rows.iter().map(Row::size).sum();
        let first_token = self.next_token;
        self.next_token += rows.len();
        self.events += rows.len();
        self.bytes += bytes;
        self.pages.push_back(Page {
            first_token,
            rows,
            marks,
            next: 0,
            round,
            open,
            bytes,
            lanes,
            reach,
            stops: Vec::new(),
        });
    }

    /// The page and index of a token.
    fn find(&self, token: usize) -> Option<(usize, usize)> {
        let page = self.pages.partition_point(|p| p.first_token + p.rows.len() <= token);
        let index = token.checked_sub(self.pages.get(page)?.first_token)?;
        Some((page, index))
    }

    pub(super) fn row(&self, token: usize) -> Option<&Row> {
        self.find(token).map(|(page, index)| &self.pages[page].rows[index])
    }

    /// Notes that an event is acknowledged.
    pub(super) fn acknowledge(&mut self, token: usize) {
        let Some((page, index)) = self.find(token) else { return };
        let page = &mut self.pages[page];
        if page.marks[index] == Mark::Enqueued {
            page.marks[index] = Mark::Done;
            page.open -= 1;
            self.enqueued -= 1;
        }
    }

    /// Everything enqueued and not acknowledged is to be enqueued again, save of lanes that are not owned any more.
    pub(super) fn rewind(&mut self) {
        for page in &mut self.pages {
            for (row, mark) in page.rows.iter().zip(&mut page.marks).filter(|(_, m)| **m == Mark::Enqueued) {
                let owned = page.lanes.binary_search(&row.lane()).is_ok();
                *mark = if owned { Mark::Waiting } else { Mark::Done };
                page.open -= usize::from(!owned);
            }
            page.next = 0;
        }
        self.enqueued = 0;
    }

    /// Gives up a lane's events from this one on. The lane will settle right before it.
    pub(super) fn stop(&mut self, token: usize) {
        let Some((at, index)) = self.find(token) else { return };
        let (lane, position) = (self.pages[at].rows[index].lane(), self.pages[at].rows[index].position());
        self.pages[at].stops.push((lane, position));
        self.pages[at].give_up(lane, position);
        for page in self.pages.iter_mut().skip(at + 1) {
            page.lanes.retain(|l| *l != lane);
            page.give_up(lane, 0);
        }
    }

    /// Gives up all events of a lane, which will not settle.
    pub(super) fn forget(&mut self, lane: i16) {
        for page in &mut self.pages {
            page.lanes.retain(|l| *l != lane);
            page.give_up(lane, 0);
        }
    }

    /// Whether pages with this lane are under way.
    pub(super) fn holds(&self, lane: i16) -> bool {
        self.pages.iter().any(|p| p.lanes.binary_search(&lane).is_ok())
    }

    /// Takes the pages off the front that are done, in order.
    pub(super) fn settle(&mut self) -> Vec<Settled<R>> {
        let mut settled = Vec::new();
        while self.pages.front().is_some_and(|p| p.open == 0) {
            let Some(page) = self.pages.pop_front() else { break };
            self.events -= page.rows.len();
            self.bytes -= page.bytes;
            settled.push(page.settled());
        }
        settled
    }
}

impl<R> Page<R> {
    fn give_up(&mut self, lane: i16, from: i64) {
        for (row, mark) in self.rows.iter().zip(&mut self.marks) {
            if row.lane() == lane && row.position() >= from && *mark == Mark::Waiting {
                *mark = Mark::Done;
                self.open -= 1;
            }
        }
    }

    fn settled(self) -> Settled<R> {
        let mut with_events: Vec<i16> = self.rows.iter().map(Row::lane).collect();
        with_events.sort_unstable();
        with_events.dedup();
        Settled { lanes: self.lanes, reach: self.reach, events: self.rows.len(), with_events, stops: self.stops }
    }
}
