//! How long this relay may believe in its lease.
//!
//! Measured with the process's own monotonic clock from before the renewal was sent, so that it ends here before it
//! ends in the database. It deliberately does not renew by itself: the session does, when it is due.

use std::time::{Duration, Instant};

use crate::store::relay::lease::Mark;

/// The part of the lease that is given away to clocks that run at different speeds.
const MARGIN_DIVISOR: u32 = 10;
/// The longest time between two looks at one's share: until the death of another is noticed.
const SHARE_PAUSE_MAX: Duration = Duration::from_millis(500);

/// A lease.
pub(super) struct Lease {
    ttl: Duration,
    held_until: Instant,
    /// When to renew it.
    pub(super) renew_at: Instant,
    /// When to look at one's share of the lanes.
    pub(super) share_at: Instant,
    /// What the last renewal marked.
    pub(super) mark: Mark,
}

impl Lease {
    /// A lease whose first renewal was sent at `sent` and returned `mark`.
    pub(super) fn new(ttl: Duration, sent: Instant, mark: Mark) -> Self {
        let mut lease = Self { ttl, held_until: sent, renew_at: sent, share_at: sent, mark };
        lease.renewed(sent, mark);
        lease
    }

    /// A renewal that was sent at `sent` has succeeded.
    pub(super) fn renewed(&mut self, sent: Instant, mark: Mark) {
        self.held_until = sent + self.ttl - self.ttl / MARGIN_DIVISOR;
        self.renew_at = sent + self.ttl / 3;
        self.mark = mark;
    }

    /// The share was looked at.
    pub(super) fn shared(&mut self, now: Instant) {
        self.share_at = now + (self.ttl / 10).min(SHARE_PAUSE_MAX);
    }

    /// Whether it is certain that nobody else has been given the lanes.
    pub(super) fn is_held(&self, now: Instant) -> bool {
        now < self.held_until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_ends_here_before_it_ends_in_the_database() {
        let (ttl, sent) = (Duration::from_secs(10), Instant::now());
        let lease = Lease::new(ttl, sent, Mark { floor: 0, xid: 1 });
        assert!(lease.is_held(sent + Duration::from_secs(8)));
        assert!(!lease.is_held(sent + Duration::from_millis(9_500)));
        assert!(lease.renew_at < sent + ttl / 2);
    }
}
