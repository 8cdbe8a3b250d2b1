//! What enters the stream by itself: delayed events when they are due, and replays at their rates.
//!
//! Every relay's process looks, on a connection of its own; the database lets one at a time promote, so any number of
//! them share the work and none is needed in particular. Invariant: an event is promoted once, in one transaction that
//! takes it from `scheduled` and stores it, never before it is due, and copied once for a replay, in one transaction with
//! how far that is; whoever dies in between has done nothing. What is in the stream is like any other event, whichever
//! source reads it. Deliberately not here: publishing, and pausing, which holds back what is published and not what is
//! stored.

use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use tokio_util::sync::CancellationToken;

use super::{Error, PAUSE_MAX, PAUSE_MIN, Wake, jittered, session::within};
use crate::{
    config,
    store::relay::{
        self as store, Connection,
        replay::{self, Turn},
        schedule::{self, Promotion},
    },
};

/// How late an event may be that was scheduled for a moment before the next look.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Of one transaction, which holds the slots of its keys.
const EVENTS_MAX: i32 = 500;
const BYTES_MAX: i64 = 8 << 20;
/// What was due so long before the last promotion is passed over, and with it what is left of the rows promoted since:
/// an old transaction keeps that from being cleaned away, and each look would read all of it.
const LOOK_BACK: TimeDelta = TimeDelta::seconds(60);
/// Then nothing is passed over: a transaction may have committed later than its event was due.
const LOOK_AT_ALL_EVERY: Duration = Duration::from_secs(60);
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(30);

/// Promotes delayed events and goes on with replays, as long as it runs.
pub struct Inflow {
    database_url: String,
    connect_timeout: Duration,
    wake: Wake,
    passed: Passed,
}

/// What is passed over.
#[derive(Default)]
struct Passed {
    until: Option<DateTime<Utc>>,
    all_looked_at: Option<Instant>,
}

impl Inflow {
    /// One that wakes this relay. Connects to nothing yet.
    pub fn new(database: &config::Database, wake: Wake) -> Self {
        let connect_timeout = Duration::from_millis(database.connect_timeout_ms);
        Self { database_url: database.url.clone(), connect_timeout, wake, passed: Passed::default() }
    }

    /// Runs until `shutdown`. Dropping the future at any point is like a crash, which is harmless.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut pause = PAUSE_MIN;
        loop {
            let Some(ended) = shutdown.run_until_cancelled(self.session(&mut pause)).await else { return };
            let Err(error) = ended;
            tracing::warn!(%error, pause_ms = pause.as_millis(), "nothing is promoted or replayed; again after a pause");
            if shutdown.run_until_cancelled(tokio::time::sleep(jittered(pause))).await.is_none() {
                return;
            }
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// Runs until the first error.
    async fn session(&mut self, pause: &mut Duration) -> Result<std::convert::Infallible, Error> {
        let mut connection = within(self.connect_timeout, store::connect(&self.database_url)).await?;
        loop {
            let wait = self.run_once(&mut connection).await?;
            *pause = PAUSE_MIN;
            tokio::time::sleep(wait).await;
        }
    }

    /// Does what is due, and says how long to wait before the next look.
    async fn run_once(&mut self, connection: &mut Connection) -> Result<Duration, Error> {
        let after = self.passed.over(Instant::now());
        let promoting = schedule::promote(connection, after, EVENTS_MAX, BYTES_MAX);
        let Promotion { promoted, promoted_to, next_due_at } = within(STATEMENT_TIMEOUT, promoting).await?;
        self.passed.promoted(promoted_to);
        let replaying = replay::go_on(connection, EVENTS_MAX, BYTES_MAX);
        let Turn { replayed, next_at } = within(STATEMENT_TIMEOUT, replaying).await?;
        let is_done = promoted > 0 || replayed > 0;
        if is_done {
            tracing::debug!(promoted, replayed, "events have entered the stream");
            self.wake.wake();
        }
        let next = next_due_at.into_iter().chain(next_at).min();
        let until_next = next.map(|next| (next - Utc::now()).to_std().unwrap_or_default());
        // What is due and was not done waits for a slot, or another process is at it.
        let at_least = if is_done { Duration::ZERO } else { PAUSE_MIN };
        Ok(until_next.unwrap_or(LOOK_EVERY).clamp(at_least, LOOK_EVERY))
    }
}

impl Passed {
    /// Until when to pass over what is due; `None` when it is time to look at all of it.
    fn over(&mut self, now: Instant) -> Option<DateTime<Utc>> {
        match self.all_looked_at {
            Some(last) if now - last < LOOK_AT_ALL_EVERY => self.until,
            _ => {
                self.all_looked_at = Some(now);
                None
            }
        }
    }

    fn promoted(&mut self, to: Option<DateTime<Utc>>) {
        self.until = self.until.max(to.map(|to| to - LOOK_BACK));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_promoted_is_passed_over_but_for_a_while_and_now_and_then_not_at_all() {
        let (mut passed, now, due_at) = (Passed::default(), Instant::now(), Utc::now());
        assert_eq!(passed.over(now), None, "the first look is at everything");
        passed.promoted(Some(due_at));
        passed.promoted(Some(due_at - TimeDelta::hours(1)));
        passed.promoted(None);
        assert_eq!(passed.over(now + Duration::from_secs(59)), Some(due_at - LOOK_BACK));
        assert_eq!(passed.over(now + Duration::from_secs(60)), None, "it is time to look at all of it");
        assert_eq!(passed.over(now + Duration::from_secs(61)), Some(due_at - LOOK_BACK));
    }
}
