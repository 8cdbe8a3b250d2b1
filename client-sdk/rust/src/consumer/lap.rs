//! When attempts begin and end, by as few looks at a clock as will do.
//!
//! Invariant: durations come from the monotonic clock alone. The time of day is read once a second at most, and what has
//! passed since is added to it. It deliberately knows nothing of what is between two laps: whoever waits begins anew.

use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};

/// For how long the time of day is counted on. It may be set, and the monotonic clock stands still in suspension.
const COUNTED: Duration = Duration::from_secs(1);

/// A moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lap {
    at: Instant,
    /// A moment before it, or the same one, by both clocks.
    known: (Instant, DateTime<Utc>),
}

impl Lap {
    /// Now, as the first of a row.
    pub(super) fn begin() -> Self {
        let at = Instant::now();
        Self { at, known: (at, Utc::now()) }
    }

    /// Now, as the next of this one's row.
    pub(super) fn next(&self) -> Self {
        let at = Instant::now();
        if at.saturating_duration_since(self.known.0) < COUNTED { Self { at, ..*self } } else { Self::begin() }
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
        let (at, now) = self.known;
        let before = now.signed_duration_since(time).as_seconds_f64();
        (before + self.at.saturating_duration_since(at).as_secs_f64()).max(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_grow_with_the_laps() {
        let (first, took, hour) = (Lap::begin(), Duration::from_millis(20), Duration::from_secs(3_600));
        let second = Lap { at: first.at + took, ..first };
        assert!(second.since(&first) == took && first.since(&second).is_zero() && first.next().at >= first.at);
        let older = |lap: &Lap| lap.age(first.known.1 - hour) - hour.as_secs_f64();
        assert!(older(&first).abs() < 1e-6 && (older(&second) - took.as_secs_f64()).abs() < 1e-6);
        assert!(first.age(first.known.1 + hour) == 0.0);
    }

    #[test]
    fn the_time_of_day_is_read_again_after_a_while() {
        let began = Lap::begin();
        let day = Duration::from_secs(86_400);
        // As when the clock was set meanwhile, or the machine slept.
        let set = |at: Instant| Lap { at, known: (at, began.known.1 - day) };
        let age = |lap: Lap| lap.next().age(began.known.1 - day);
        assert!(age(set(began.at)) < 3_600.0);
        let long_ago = began.at.checked_sub(COUNTED).expect("the machine has run for a second");
        assert!(age(set(long_ago)) > 3_600.0);
    }
}
