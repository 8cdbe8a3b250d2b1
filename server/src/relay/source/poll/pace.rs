//! When to look for new events.

use std::time::{Duration, Instant};

use crate::config;

/// Pause between two polls while there is work: commits gather meanwhile, and a poll costs a plan and a flush. The first
/// commit after a pause does not wait for it.
const POLL_PAUSE_MIN: Duration = Duration::from_millis(5);

/// The pauses between polls: longer and longer while nothing is found.
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

    pub(super) fn begin(&mut self) -> u64 {
        self.polls += 1;
        self.last_poll = Instant::now();
        self.next_poll = self.last_poll + self.pause;
        self.polls
    }

    pub(super) fn found_nothing(&mut self) {
        self.pause = (self.pause * 2).min(self.pause_max);
        self.next_poll = self.last_poll + self.pause;
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
