//! Attempts: finds the event that ends the process, by writing down each attempt before it begins.
//!
//! Only once a lane was taken over again and again from relays that died, without progress in between; then in every lane
//! that was taken over and has passed nothing since. Of all of them one event at a time is under way, so that no other is
//! blamed. The least suspected one is the next, so that deaths which come by themselves do not meet the same one each time;
//! but first those of pages that can be settled next, or nothing would be done with for good between two deaths. A row that
//! a dead process has left names its event; too many of them, and the event is held. An attempt counts only against a
//! broker that answers, and is taken back when the process has outlived it for a while: an outage of Kafka, and whoever
//! restarts the process because of it, count for nothing. So do a clean stop, and the loss of the database that the process
//! survives.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use uuid::Uuid;

use super::{Session, held::Failure, within};
use crate::{
    relay::{
        Error,
        publisher::{Publisher, Topic},
        source::Source,
        window::{Mark, Page},
    },
    store::relay::{attempt, row::Row},
};

/// What would have ended the process has done so by then.
pub(super) const OUTLIVED_AFTER: Duration = Duration::from_secs(5);

/// The attempt under way, and where attempts are made.
#[derive(Default)]
pub(super) struct Attempts {
    /// Lanes without progress since they were claimed.
    claimed: BTreeSet<i16>,
    /// Lanes to be sent with care.
    careful: BTreeSet<i16>,
    /// Events during whose attempt a process died, the least suspected first.
    suspects: Vec<Uuid>,
    /// The last one.
    last: Option<Attempt>,
    /// Whether events of careful lanes are under way, or may be among those read next.
    under_way: bool,
}

struct Attempt {
    token: usize,
    id: Uuid,
    since: Instant,
    counted: bool,
}

/// What to try next: its lane, its token, its event.
type Next = (i16, usize, Uuid);

impl Attempts {
    /// What the table says.
    pub(super) fn look_out(&mut self, claimed: Vec<i16>, careful: &[i16], suspects: Vec<Uuid>) {
        self.claimed = claimed.into_iter().collect();
        // What ends the process may be in any of them, also in one that had passed an event before the last death.
        self.careful = if careful.is_empty() { BTreeSet::new() } else { self.claimed.clone() };
        self.suspects = suspects;
        self.under_way |= !self.careful.is_empty();
    }

    /// Whether few events are to be read at a time. A lane is sent without care again once an event of it has been passed
    /// durably, and for that all of its page has to be done: of large pages, one event at a time.
    pub(super) fn wants_small_pages(&self) -> bool {
        self.under_way
    }

    /// Lanes to be sent with care.
    pub(super) fn careful(&self) -> &BTreeSet<i16> {
        &self.careful
    }

    /// The event of the last one, if it counts as long as nobody takes it back.
    pub(super) fn counted(&self) -> Option<Uuid> {
        self.last.as_ref().filter(|attempt| attempt.counted).map(|attempt| attempt.id)
    }

    /// How suspect an event is among others; `None`, and so the least, when nothing is known of it.
    fn suspicion(&self, id: Uuid) -> Option<usize> {
        self.suspects.iter().position(|suspect| *suspect == id)
    }

    /// Whether an event may be enqueued now.
    pub(super) fn admit(&self, lane: i16, token: usize) -> bool {
        !self.careful.contains(&lane) || self.last.as_ref().is_some_and(|attempt| attempt.token == token)
    }

    /// Of the first events of careful lanes in these pages, up to a round, the least suspected.
    fn least_suspected<'p, R: 'p>(
        &self,
        pages: impl Iterator<Item = &'p Page<R>>,
        round: u64,
        publisher: &mut impl Publisher,
    ) -> Option<Next> {
        let (mut passed_over, mut next) = (BTreeSet::new(), None);
        for page in pages.take_while(|page| page.round <= round) {
            for (index, row) in page.rows.iter().enumerate() {
                let lane = row.lane();
                if !page.is_open(index) || !self.careful.contains(&lane) || !passed_over.insert(lane) {
                    continue;
                }
                let Ok(event) = row.event() else { continue };
                if page.marks[index] == Mark::Waiting && publisher.topic(event.topic) != Topic::Asking {
                    let suspicion = self.suspicion(event.id);
                    let found = (lane, page.token(index), event.id);
                    if suspicion.is_none() {
                        return Some(found);
                    }
                    if next.is_none_or(|(least, _)| suspicion < least) {
                        next = Some((suspicion, found));
                    }
                }
            }
        }
        next.map(|(_, found)| found)
    }

    /// Of these lanes, those that have not passed an event since they were claimed.
    pub(super) fn first_passes(&self, lanes: impl Iterator<Item = i16>) -> Vec<i16> {
        lanes.filter(|lane| self.claimed.contains(lane)).collect()
    }
}

impl<P: Publisher, S: Source> Session<'_, P, S> {
    /// Begins the next attempt, once the one before has ended.
    pub(super) async fn start_attempt(&mut self) -> Result<(), Error> {
        self.attempts.under_way = !self.attempts.careful.is_empty();
        if !self.attempts.under_way {
            return Ok(());
        }
        if self.attempts.last.as_ref().is_some_and(|attempt| self.window.is_open(attempt.token)) {
            self.take_back_attempt(OUTLIVED_AFTER).await?;
            // What the process has outlived is not what ends it: others need not wait for its end.
            if self.attempts.last.as_ref().is_some_and(|attempt| attempt.counted) {
                return Ok(());
            }
        }
        let Some((lane, token, id)) = self.next_attempt() else {
            // What is read next may be careful lanes'; or an attempt waits for news of its topic, or for a flush.
            self.attempts.under_way = self.window.events() == 0 || self.careful_events().next().is_some();
            return Ok(());
        };
        let owner = self.lanes.owner(self.settings.instance, [lane]);
        let ended = self.attempts.last.as_ref().filter(|attempt| !self.window.is_open(attempt.token));
        let ended = ended.map(|attempt| attempt.id);
        let patience = self.patience();
        let started = within(patience, attempt::start(&mut self.control, &owner, id, ended)).await?;
        let Some(attempts) = started else {
            self.drop_lane(lane);
            return Ok(());
        };
        self.attempts.last = Some(Attempt { token, id, since: Instant::now(), counted: true });
        if u32::try_from(attempts).unwrap_or_default() > self.settings.config.attempts_max {
            return self.set_aside(token, &Failure::Crashes(attempts - 1)).await;
        }
        if attempts > 1 {
            tracing::warn!(lane, event_id = %id, attempts, "an event is tried again that a process died with");
        }
        Ok(())
    }

    /// Whether so many events, or bytes, of careful lanes are to be tried, now or later.
    pub(super) fn careful_events_reach(&self, events: usize, bytes: usize) -> bool {
        let mut found = (0, 0);
        self.careful_events().any(|row| {
            found = (found.0 + 1, found.1 + row.size());
            found.0 >= events || found.1 >= bytes
        })
    }

    fn careful_events(&self) -> impl Iterator<Item = &Row> {
        let careful = &self.attempts.careful;
        // Of none there is nothing to look for.
        let pages = self.window.pages.iter().take(if careful.is_empty() { 0 } else { usize::MAX });
        let open = pages.flat_map(|page| page.rows.iter().enumerate().filter(|(index, _)| page.is_open(*index)));
        open.map(|(_, row)| row).filter(|row| careful.contains(&row.lane()))
    }

    /// Of the first events of careful lanes, those that wait and whose topics are known, the least suspected; one of a page
    /// that can be settled next, if there is one, for only whole pages are progress.
    fn next_attempt(&mut self) -> Option<Next> {
        let (attempts, flushed) = (&self.attempts, self.flushed_round);
        let next_pages = self.window.next_to_settle();
        attempts
            .least_suspected(next_pages, flushed, self.publisher)
            .or_else(|| attempts.least_suspected(self.window.pages.iter(), flushed, self.publisher))
    }

    /// Takes the last attempt back when it began so long ago: the process has outlived it.
    pub(super) async fn take_back_attempt(&mut self, after: Duration) -> Result<(), Error> {
        let Some(attempt) = &mut self.attempts.last else { return Ok(()) };
        if !attempt.counted || attempt.since.elapsed() < after {
            return Ok(());
        }
        attempt.counted = false;
        let taking = attempt::take_back(&mut self.control, attempt.id);
        within(Duration::from_millis(self.settings.config.lease_ttl_ms), taking).await
    }

    /// Lanes have passed events, durably.
    pub(super) async fn passed(&mut self, lanes: Vec<i16>) -> Result<(), Error> {
        if lanes.is_empty() {
            return Ok(());
        }
        for lane in &lanes {
            self.attempts.claimed.remove(lane);
            self.attempts.careful.remove(lane);
        }
        let owner = self.lanes.owner(self.settings.instance, lanes);
        let patience = self.patience();
        within(patience, attempt::passed(&mut self.control, &owner)).await
    }
}
