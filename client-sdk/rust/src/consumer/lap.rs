//! When attempts begin and end, by as few looks at a clock as will do.
//!
//! Invariant: durations come from the monotonic clock alone. The time of day is read once, and what has passed since is
//! added to it. It deliberately is not for long: whoever sets the clock meanwhile is noticed by the next one that begins.

use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};

/// A moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lap {
    at: Instant,
    /// When the first of its row began, by both clocks.
    first: (Instant, DateTime<Utc>),
}

impl Lap {
    /// Now, as the first of a row.
    pub(super) fn begin() -> Self {
        let at = Instant::now();
        Self { at, first: (at, Utc::now()) }
    }

    /// Now, as the next of this one's row.
    pub(super) fn next(&self) -> Self {
        Self { at: Instant::now(), ..*self }
    }

    /// The moment, by the monotonic clock.
    pub(super) fn at(&self) -> Instant {
        self.at
    }

    /// How much later this is than an earlier one.
    pub(super) fn since(&self, earlier: &Self) -> Duration {
        self.at.saturating_duration_since(earlier.at)
    }

    /// Seconds since a time of day; zero when that is yet to come.
    pub(super) fn age(&self, time: DateTime<Utc>) -> f64 {
        let (at, now) = self.first;
        let before = now.signed_duration_since(time).as_seconds_f64();
        (before + self.at.saturating_duration_since(at).as_secs_f64()).max(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_grow_with_the_laps() {
        let first = Lap::begin();
        std::thread::sleep(Duration::from_millis(20));
        let second = first.next();
        let (took, hour) = (second.since(&first), Duration::from_secs(3_600));
        assert!(took >= Duration::from_millis(20) && first.since(&second).is_zero());
        let older = |lap: &Lap| lap.age(first.first.1 - hour) - hour.as_secs_f64();
        assert!(older(&first).abs() < 1e-6 && (older(&second) - took.as_secs_f64()).abs() < 1e-6);
        assert!(first.age(first.first.1 + hour) == 0.0);
    }
}
