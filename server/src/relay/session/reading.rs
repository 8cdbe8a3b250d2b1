//! Reading: when to look for new events, and what becomes of what was read.
//!
//! A poll takes a snapshot, the target of the idle lanes; pages then follow, as far as the window has room, while
//! earlier ones are still under way.

use std::time::{Duration, Instant};

use super::Session;
use crate::{
    config,
    model::progress::Base,
    relay::{
        Error,
        publisher::Publisher,
        reader::{Answer, Question},
    },
    store::relay::{
        fetch::{Now, Page, Request},
        row::Row,
    },
};

/// Pause between two polls while there is work: commits gather meanwhile, and a poll costs a plan and a flush. The first
/// commit after a pause does not wait for it.
const POLL_PAUSE_MIN: Duration = Duration::from_millis(5);
/// A page is a quarter of the window, so that reading, sending and settling overlap.
const PAGES_PER_WINDOW: usize = 4;
/// Pages of few events each; only a Kafka that is slow to answer lets them pile up.
const PAGES_MAX: usize = 256;

/// When to look for new events.
pub(super) struct Pace {
    pub(super) next_poll: Instant,
    /// Polls begun.
    pub(super) polls: u64,
    last_poll: Instant,
    pause: Duration,
    pause_max: Duration,
}

impl Pace {
    pub(super) fn new(config: &config::Relay) -> Self {
        let now = Instant::now();
        let pause_max = Duration::from_millis(config.poll_interval_max_ms).max(POLL_PAUSE_MIN);
        Self { next_poll: now, polls: 0, last_poll: now, pause: POLL_PAUSE_MIN, pause_max }
    }

    /// There may be something.
    pub(super) fn wake(&mut self) {
        self.pause = POLL_PAUSE_MIN;
        self.next_poll = self.next_poll.min(self.last_poll + self.pause);
    }

    fn begin(&mut self) -> u64 {
        self.polls += 1;
        self.last_poll = Instant::now();
        self.next_poll = self.last_poll + self.pause;
        self.polls
    }

    fn found_nothing(&mut self) {
        self.pause = (self.pause * 2).min(self.pause_max);
        self.next_poll = self.last_poll + self.pause;
    }
}

impl<P: Publisher> Session<'_, P> {
    /// Begins the next read, when there is one to begin.
    pub(super) fn ask(&mut self) {
        if self.draining || !self.reader.is_free() || !self.has_room() || !self.lease.is_held(Instant::now()) {
            return;
        }
        if Instant::now() >= self.pace.next_poll && self.lanes.any_idle() {
            let number = self.pace.begin();
            self.poll_mark = self.lease.mark;
            self.reader.ask(Question::Poll(number));
        } else if let Some((lanes, from)) = self.lanes.next_group() {
            let (rows_max, bytes_max) = self.room();
            self.reader.ask(Question::Page(Request { lanes, from, rows_max, bytes_max }));
        }
    }

    /// Takes what was read, when it is there.
    pub(super) async fn take_answer(&mut self) -> Result<(), Error> {
        if self.draining {
            return Ok(());
        }
        match self.reader.take().transpose()? {
            Some(Answer::Poll(number, now)) => self.take_snapshot(number, &now),
            Some(Answer::Page(request, page)) => self.take_page(request, page).await?,
            None => {}
        }
        Ok(())
    }

    fn take_snapshot(&mut self, number: u64, now: &Now) {
        self.round += 1;
        // The mark's transaction ended before the snapshot was taken, so that a transaction which the snapshot does
        // not know came after the mark, and took all its positions above the mark's.
        let floor = if self.poll_mark.xid < now.snapshot.xmax() { self.poll_mark.floor } else { 0 };
        let target = Base { seen: now.snapshot.clone(), floor };
        let empty = self.lanes.start(number, now, &target);
        if let Some(first) = empty.first().and_then(|lane| self.lanes.get_mut(*lane)) {
            let to = first.read.clone();
            self.window.push(empty, Vec::new(), to.clone(), to, self.round);
        }
        if !self.lanes.any_draining() {
            self.pace.found_nothing();
        }
    }

    async fn take_page(&mut self, request: Request, page: Page) -> Result<(), Error> {
        let Request { lanes, from, .. } = request;
        let Page { rows, complete } = page;
        let to = from.reach(if complete { None } else { rows.last().map(Row::position) });
        let lanes = self.lanes.move_read(&lanes, &from, &to);
        if rows.is_empty() {
            self.pace.found_nothing();
        } else {
            self.pace.wake();
            // A snapshot sees commits that are not flushed yet, and that a crash would undo: a durable commit of our
            // own flushes them before anything is published.
            if self.flushed_round < self.round {
                self.renew().await?;
            }
        }
        self.window.push(lanes, rows, from, to, self.round);
        Ok(())
    }

    pub(super) fn has_room(&self) -> bool {
        let (config, window) = (&self.settings.config, &self.window);
        let events = (config.in_flight_events_max / PAGES_PER_WINDOW).max(1);
        let bytes = (config.in_flight_bytes_max / PAGES_PER_WINDOW).max(1);
        window.pages.len() < PAGES_MAX
            && window.events() + events <= config.in_flight_events_max.max(1)
            && (window.bytes() + bytes <= config.in_flight_bytes_max || window.events() == 0)
    }

    fn room(&self) -> (usize, usize) {
        let config = &self.settings.config;
        (
            (config.in_flight_events_max / PAGES_PER_WINDOW).max(1),
            (config.in_flight_bytes_max / PAGES_PER_WINDOW).max(1),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn polls_grow_rarer_while_there_is_nothing_and_a_wake_ends_that() {
        let config = config::Relay { poll_interval_max_ms: 1_000, ..config::Relay::default() };
        let mut pace = Pace::new(&config);
        let mut pauses = Vec::new();
        for _ in 0..10 {
            pace.begin();
            pace.found_nothing();
            pauses.push(pace.next_poll - pace.last_poll);
        }
        assert!(pauses.is_sorted() && pauses[0] < pauses[9]);
        assert_eq!(pauses[9], Duration::from_secs(1), "never rarer than this");

        pace.wake();
        assert_eq!(pace.next_poll - pace.last_poll, POLL_PAUSE_MIN);
    }
}
