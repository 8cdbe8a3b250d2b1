//! Exponential backoff with full jitter, for the client's calls and the consumer's lanes.
//!
//! Source of the formula: M. Brooker, "Exponential Backoff and Jitter" (AWS Architecture Blog, 2015), "full jitter":
//! a delay drawn evenly from zero to `min(ceiling, base · 2^(attempt - 1))`. Invariant: no delay exceeds `ceiling`.
//!
//! It deliberately neither sleeps nor counts attempts: the caller does both, and knows when to stop.

use std::time::Duration;

/// How long to wait before another attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Backoff {
    /// The longest delay after the first failure.
    pub(crate) base: Duration,
    /// The longest delay ever.
    pub(crate) ceiling: Duration,
}

impl Backoff {
    /// A random delay after the given number of failed attempts, counted from 1.
    pub(crate) fn delay(&self, failures: u32) -> Duration {
        self.longest(failures).mul_f64(rand::random::<f64>())
    }

    fn longest(&self, failures: u32) -> Duration {
        let doublings = failures.saturating_sub(1).min(31);
        self.base.saturating_mul(1 << doublings).min(self.ceiling)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BACKOFF: Backoff = Backoff { base: Duration::from_millis(50), ceiling: Duration::from_secs(2) };

    #[test]
    fn the_longest_delay_doubles_up_to_the_ceiling() {
        let longest: Vec<u128> =
            [1, 2, 3, 6, 7, 1_000, u32::MAX].map(|failures| BACKOFF.longest(failures).as_millis()).into();
        assert_eq!(longest, [50, 100, 200, 1600, 2000, 2000, 2000]);
    }

    #[test]
    fn delays_are_spread_below_the_longest() {
        let delays: Vec<Duration> = (0..100).map(|_| BACKOFF.delay(3)).collect();
        assert!(delays.iter().all(|d| *d <= Duration::from_millis(200)));
        assert!(delays.iter().any(|d| *d < Duration::from_millis(100)), "all in the upper half: no jitter");
    }
}
