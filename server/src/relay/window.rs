//! What has been read and is not settled: pages in the order they were read.
//!
//! A page is settled when each of its events is acknowledged or given up, and only after every page before it. What is
//! in here is what a crash repeats; the session reads no more than its limits leave room for. Tokens number the events
//! without gaps. It deliberately sends nothing by itself.

use std::collections::VecDeque;

use super::lane::Unwritten;
use crate::{model::progress::Progress, store::relay::row::Row};

/// The pages.
#[derive(Default)]
pub(super) struct Window {
    pub(super) pages: VecDeque<Page>,
    next_token: usize,
    events: usize,
    bytes: usize,
    /// Events enqueued and not yet reported.
    pub(super) enqueued: usize,
}

/// Events of lanes that were read together.
pub(super) struct Page {
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
    from: Progress,
    to: Progress,
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

/// What a lane has settled.
pub(super) struct Settled {
    pub(super) lane: i16,
    pub(super) to: Progress,
    pub(super) unwritten: Unwritten,
}

impl Page {
    pub(super) fn token(&self, index: usize) -> usize {
        self.first_token + index
    }
}

impl Window {
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

    /// Adds what was read of `lanes` between `from` and `to`. Rows of other lanes are given up.
    pub(super) fn push(&mut self, lanes: Vec<i16>, rows: Vec<Row>, from: Progress, to: Progress, round: u64) {
        if rows.is_empty()
            && let Some(last) = self.pages.back_mut()
            && last.rows.is_empty()
            && last.lanes == lanes
        {
            (last.to, last.round) = (to, round);
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
            from,
            to,
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

    /// Takes the pages off the front that are done, and tells what their lanes have settled, in order.
    pub(super) fn settle(&mut self) -> Vec<Settled> {
        let mut settled = Vec::new();
        while self.pages.front().is_some_and(|p| p.open == 0) {
            let Some(page) = self.pages.pop_front() else { break };
            self.events -= page.rows.len();
            self.bytes -= page.bytes;
            page.settled(&mut settled);
        }
        settled
    }
}

impl Page {
    fn give_up(&mut self, lane: i16, from: i64) {
        for (row, mark) in self.rows.iter().zip(&mut self.marks) {
            if row.lane() == lane && row.position() >= from && *mark == Mark::Waiting {
                *mark = Mark::Done;
                self.open -= 1;
            }
        }
    }

    fn settled(&self, settled: &mut Vec<Settled>) {
        let mut with_events: Vec<i16> = self.rows.iter().map(Row::lane).collect();
        with_events.sort_unstable();
        with_events.dedup();
        for lane in self.lanes.iter().copied() {
            let stop = self.stops.iter().filter(|(l, _)| *l == lane).map(|(_, position)| *position).min();
            let to = match stop {
                Some(position) => self.from.reach(Some(position - 1)),
                None => self.to.clone(),
            };
            let events = with_events.binary_search(&lane).is_ok();
            settled.push(Settled { lane, to, unwritten: if events { Unwritten::Events } else { Unwritten::Empty } });
        }
    }
}
