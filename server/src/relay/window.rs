//! What has been read and is not settled: pages in the order they were read.
//!
//! A page is settled when each of its events is acknowledged or given up (it is held, or its lane is not owned any
//! more), and only after every page before it that has a lane in common. What is in here is what a crash repeats; the
//! session reads no more than its limits leave room for. Tokens number the events, ascending from page to page. It
//! deliberately sends nothing by itself.

use std::collections::{BTreeMap, VecDeque};

use uuid::Uuid;

use super::{publisher::Place, source::Batch};
use crate::{
    model::delivery::{self, Packer},
    store::relay::row::Row,
};

/// The pages. `R` is how far one reaches, which the source knows the meaning of.
pub(super) struct Window<R> {
    pub(super) pages: VecDeque<Page<R>>,
    next_token: usize,
    events: usize,
    bytes: usize,
    /// Events enqueued and not yet reported.
    pub(super) enqueued: usize,
}

/// Events that were read together.
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
    /// Those that it holds up while it is not done, lost ones as well.
    holds_up: LaneSet,
    origin: Origin<R>,
}

/// Lanes, a bit for each. Several may share one: then one waits for another without need.
#[derive(Clone, Copy, Default)]
struct LaneSet(u64);

impl LaneSet {
    fn of(lanes: &[i16]) -> Self {
        Self(lanes.iter().fold(0, |set, lane| set | 1 << lane.rem_euclid(64)))
    }

    fn meets(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    fn add(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

/// Where a page comes from.
enum Origin<R> {
    /// From the source.
    Read(R),
    /// From holds that are drained.
    Held(Vec<i64>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    /// To be enqueued.
    Waiting,
    /// Enqueued.
    Enqueued,
    /// Acknowledged.
    Published(Place),
    /// Held, or another relay's.
    GivenUp,
}

/// A page that is settled.
pub(super) enum Finished<R> {
    /// The source can go on from here.
    Read(Settled<R>),
    /// These are held no more.
    Drained(Drained),
}

/// What the source is told.
pub(super) struct Settled<R> {
    /// The lanes that it settles, ascending.
    pub(super) lanes: Vec<i16>,
    /// How far.
    pub(super) reach: R,
    /// The lanes of its events, ascending, one for each.
    pub(super) lanes_of_events: Vec<i16>,
}

impl<R> Settled<R> {
    /// How many events of the lane were in it.
    pub(super) fn events_of(&self, lane: i16) -> i64 {
        let lanes = &self.lanes_of_events;
        (lanes.partition_point(|l| *l <= lane) - lanes.partition_point(|l| *l < lane)) as i64
    }
}

/// What was drained.
pub(super) struct Drained {
    /// The lanes that are still owned.
    pub(super) lanes: Vec<i16>,
    /// The holds.
    pub(super) holds: Vec<i64>,
    /// Their events that Kafka has.
    pub(super) published: Vec<Uuid>,
    /// Where these went.
    pub(super) delivered: Option<delivery::Batch>,
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

    /// Whether the event at an index is neither acknowledged nor given up.
    pub(super) fn is_open(&self, index: usize) -> bool {
        matches!(self.marks[index], Mark::Waiting | Mark::Enqueued)
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
    pub(super) fn push(&mut self, batch: Batch<R>)
    where
        R: Clone,
    {
        let Batch { lanes, rows, reach, round } = batch;
        if rows.is_empty() {
            return self.push_empty(lanes, &reach, round);
        }
        self.add(lanes, rows, Origin::Read(reach), round);
    }

    /// Lanes in which nothing was found: where nothing of them is under way, they are settled with the next look. What holds
    /// others up takes their reach with it, so that the window does not fill with pages of nothing.
    fn push_empty(&mut self, lanes: Vec<i16>, reach: &R, round: u64)
    where
        R: Clone,
    {
        let mut by_page = BTreeMap::<Option<usize>, Vec<i16>>::new();
        for lane in lanes {
            let of_lane = LaneSet::of(&[lane]);
            by_page.entry(self.pages.iter().rposition(|page| page.holds_up.meets(of_lane))).or_default().push(lane);
        }
        for (last, lanes) in by_page {
            match last.and_then(|last| self.pages.get_mut(last)) {
                Some(Page { lanes: same, origin: Origin::Read(of_page), .. }) if *same == lanes => {
                    *of_page = reach.clone();
                }
                _ => self.add(lanes, Vec::new(), Origin::Read(reach.clone()), round),
            }
        }
    }

    /// Adds the first events of holds that are drained.
    pub(super) fn push_held(&mut self, lanes: Vec<i16>, rows: Vec<Row>, holds: Vec<i64>) {
        self.add(lanes, rows, Origin::Held(holds), 0);
    }

    fn add(&mut self, lanes: Vec<i16>, rows: Vec<Row>, origin: Origin<R>, round: u64) {
        let mark = |row: &Row| if lanes.binary_search(&row.lane()).is_ok() { Mark::Waiting } else { Mark::GivenUp };
        let marks: Vec<Mark> = rows.iter().map(mark).collect();
        let open = marks.iter().filter(|m| **m == Mark::Waiting).count();
        let bytes = rows.iter().map(Row::size).sum();
        let first_token = self.next_token;
        self.next_token += rows.len();
        self.events += rows.len();
        self.bytes += bytes;
        let holds_up = LaneSet::of(&lanes);
        self.pages.push_back(Page { first_token, rows, marks, next: 0, round, open, bytes, lanes, holds_up, origin });
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

    /// Whether an event is to be enqueued.
    pub(super) fn waits(&self, token: usize) -> bool {
        self.find(token).is_some_and(|(page, index)| self.pages[page].marks[index] == Mark::Waiting)
    }

    /// Whether an event is neither acknowledged nor given up.
    pub(super) fn is_open(&self, token: usize) -> bool {
        self.find(token).is_some_and(|(page, index)| self.pages[page].is_open(index))
    }

    /// The token that the next event gets.
    pub(super) fn next_token(&self) -> usize {
        self.next_token
    }

    /// Events that wait, from this one on, in order. `held` says which: those that are held, or those that are not.
    pub(super) fn waiting(&self, from: usize, held: bool) -> impl Iterator<Item = (usize, &Row)> {
        let pages = self.pages.iter().filter(move |page| matches!(page.origin, Origin::Held(_)) == held);
        pages.flat_map(move |page| {
            let rows = page.rows.iter().zip(&page.marks).enumerate();
            let waiting = rows.filter(|(_, (_, mark))| **mark == Mark::Waiting);
            waiting.map(|(index, (row, _))| (page.token(index), row)).filter(move |(token, _)| *token >= from)
        })
    }

    /// Whether held events are under way.
    pub(super) fn drains(&self) -> bool {
        self.pages.iter().any(|page| matches!(page.origin, Origin::Held(_)))
    }

    /// Gives up an event that waits.
    pub(super) fn give_up(&mut self, token: usize) {
        let Some((page, index)) = self.find(token) else { return };
        let page = &mut self.pages[page];
        if page.marks[index] == Mark::Waiting {
            page.marks[index] = Mark::GivenUp;
            page.open -= 1;
        }
    }

    /// Notes that an event is acknowledged.
    pub(super) fn acknowledge(&mut self, token: usize, place: Place) {
        let Some((page, index)) = self.find(token) else { return };
        let page = &mut self.pages[page];
        if page.marks[index] == Mark::Enqueued {
            page.marks[index] = Mark::Published(place);
            page.open -= 1;
            self.enqueued -= 1;
        }
    }

    /// Everything enqueued and not acknowledged is to be enqueued again, save of lanes that are not owned any more.
    pub(super) fn rewind(&mut self) {
        for page in &mut self.pages {
            for (row, mark) in page.rows.iter().zip(&mut page.marks).filter(|(_, m)| **m == Mark::Enqueued) {
                let owned = page.lanes.binary_search(&row.lane()).is_ok();
                *mark = if owned { Mark::Waiting } else { Mark::GivenUp };
                page.open -= usize::from(!owned);
            }
            page.next = 0;
        }
        self.enqueued = 0;
    }

    /// Gives up all events of a lane, which will not settle.
    pub(super) fn forget(&mut self, lane: i16) {
        for page in &mut self.pages {
            page.lanes.retain(|l| *l != lane);
            page.give_up(lane);
        }
    }

    /// Whether pages with this lane are under way.
    pub(super) fn holds(&self, lane: i16) -> bool {
        self.pages.iter().any(|p| p.lanes.binary_search(&lane).is_ok())
    }

    /// The pages that no other holds up: each is settled as soon as it is done.
    pub(super) fn next_to_settle(&self) -> impl Iterator<Item = &Page<R>> {
        self.pages
            .iter()
            .scan(LaneSet::default(), |held_up, page| {
                let is_next = !page.holds_up.meets(*held_up);
                held_up.add(page.holds_up);
                Some(is_next.then_some(page))
            })
            .flatten()
    }

    /// Takes the pages out that are done and that no other holds up, in order, and packs where the events went that were
    /// read. So lanes that cannot get on hold up no others.
    pub(super) fn settle(&mut self) -> (Vec<Finished<R>>, Option<delivery::Batch>) {
        let (mut settled, mut read) = (Vec::new(), Packer::default());
        let (mut held_up, mut index) = (LaneSet::default(), 0);
        while let Some(page) = self.pages.get(index) {
            if page.open > 0 || page.holds_up.meets(held_up) {
                held_up.add(page.holds_up);
                index += 1;
                continue;
            }
            let Some(page) = self.pages.remove(index) else { break };
            self.events -= page.rows.len();
            self.bytes -= page.bytes;
            settled.push(page.finish(&mut read));
        }
        (settled, read.pack())
    }
}

impl<R> Page<R> {
    fn give_up(&mut self, lane: i16) {
        for (row, mark) in self.rows.iter().zip(&mut self.marks) {
            if row.lane() == lane && *mark == Mark::Waiting {
                *mark = Mark::GivenUp;
                self.open -= 1;
            }
        }
    }

    /// `read` collects where the events went that were read; those of holds have a batch of their own.
    fn finish(self, read: &mut Packer) -> Finished<R> {
        let (mut held, mut published) = (Packer::default(), Vec::new());
        let packer = if let Origin::Read(_) = self.origin { read } else { &mut held };
        for (row, mark) in self.rows.iter().zip(&self.marks) {
            // What was published has been read before.
            if let (Mark::Published(place), Ok(event)) = (mark, row.event()) {
                packer.add(row.position(), event.topic, place.partition, place.offset);
                published.push(event.id);
            }
        }
        match self.origin {
            Origin::Read(reach) => {
                let mut lanes_of_events: Vec<i16> = self.rows.iter().map(Row::lane).collect();
                lanes_of_events.sort_unstable();
                Finished::Read(Settled { lanes: self.lanes, reach, lanes_of_events })
            }
            Origin::Held(holds) => {
                Finished::Drained(Drained { lanes: self.lanes, holds, published, delivered: held.pack() })
            }
        }
    }
}
