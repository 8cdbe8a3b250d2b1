//! Reading: asks the source while there is room, and puts what it has read into the window.

use std::time::Instant;

use super::Session;
use crate::relay::{
    Error,
    publisher::Publisher,
    source::{Apart, Room, Source},
};

/// A page is a quarter of the window, so that reading, sending and settling overlap.
const PAGES_PER_WINDOW: usize = 4;
/// Events of a page while others go one at a time; and so many of those may wait.
const SMALL_PAGE: usize = 64;
/// Events of a page of which each may go one at a time. Only a whole page is progress, and deaths may follow so
/// fast that no more are done between two; but with more of them an event that ends the process is found after fewer.
const CAREFUL_PAGE: usize = 5;
/// Pages of few events each; only a Kafka that is slow to answer lets them pile up.
const PAGES_MAX: usize = 256;

impl<P: Publisher, S: Source> Session<'_, P, S> {
    /// Begins the next read, when there is one to begin.
    pub(super) fn ask(&mut self) {
        if !self.draining && self.held.paused.is_none() && self.has_room() && self.lease.is_held(Instant::now()) {
            let room = self.room();
            // What goes one at a time must not fill the window, nor be in one page with what need not wait for it.
            let rows_max = room.rows_max.min(CAREFUL_PAGE);
            let enough = self.careful_events_reach(room.rows_max.min(SMALL_PAGE), room.bytes_max);
            let (lanes, under_way) = (self.attempts.careful(), self.attempts.wants_small_pages());
            let apart = Apart { lanes, rows_max, under_way, enough };
            self.source.ask(&self.lanes, room, apart, self.lease.mark);
        }
    }

    /// Takes what was read, when it is there.
    pub(super) async fn take_batch(&mut self) -> Result<(), Error> {
        if self.draining {
            return Ok(());
        }
        let Some(batch) = self.source.take(&self.lanes)? else { return Ok(()) };
        // A snapshot sees commits that are not flushed yet, and that a crash would undo: a durable commit of our own
        // flushes them before anything is published.
        if !batch.rows.is_empty() && self.flushed_round < batch.round {
            self.renew().await?;
        }
        let first = self.window.next_token();
        self.window.push(batch);
        // What belongs to a hold is held before it can be sent.
        self.hold_waiting(None, first).await
    }

    pub(super) fn has_room(&self) -> bool {
        let (config, window, room) = (&self.settings.config, &self.window, self.room());
        window.pages.len() < PAGES_MAX
            && window.events() + room.rows_max <= config.in_flight_events_max.max(1)
            && (window.bytes() + room.bytes_max <= config.in_flight_bytes_max || window.events() == 0)
    }

    pub(super) fn room(&self) -> Room {
        let config = &self.settings.config;
        let rows_max = (config.in_flight_events_max / PAGES_PER_WINDOW).max(1);
        Room {
            rows_max: if self.attempts.wants_small_pages() { rows_max.min(SMALL_PAGE) } else { rows_max },
            bytes_max: (config.in_flight_bytes_max / PAGES_PER_WINDOW).max(1),
        }
    }
}
