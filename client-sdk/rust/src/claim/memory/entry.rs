//! One claim in memory.
//!
//! Invariant: what is completed stays completed, with its result. It deliberately knows no clock: whoever asks says what
//! time it is, in nanoseconds since its part began.

use std::time::Duration;

use uuid::Uuid;

use super::fingerprint::Fingerprint;
use crate::{
    claim::{Hold, rows::Found},
    inbox::EventKey,
};

/// Scope and event.
pub(super) type Name = (i32, Uuid);

/// A claim. There may be many, so it is a cache line.
#[derive(Debug)]
#[repr(align(64))]
pub(super) struct Entry {
    pub(super) name: Name,
    pub(super) content: Option<Fingerprint>,
    /// Which of the leases of this part is the last one. Zero, which none is: this is a place of no claim.
    pub(super) lease: u64,
    pub(super) attempts: u32,
    /// The last note that a lease of it has ended; zero when there is none, or it has been taken.
    pub(super) note: u64,
    pub(super) state: State,
}

#[derive(Debug)]
pub(super) enum State {
    /// Until so many nanoseconds after the part began.
    Leased(u64),
    Completed(Box<[u8]>),
}

impl Entry {
    /// Whether it is known to be of another event than this.
    pub(super) fn differs(&self, key: &EventKey<'_>, content: Option<Fingerprint>) -> bool {
        self.content.is_some_and(|known| known.differs(key.held(), content))
    }

    /// What it tells someone who claims it now, or another event under its name.
    pub(super) fn found(&self, differs: bool, now: u64) -> Found {
        let (result, left) = match &self.state {
            State::Leased(until) => (None, until.saturating_sub(now)),
            State::Completed(result) => (Some(result.to_vec()), 0),
        };
        Found { differs, result, left: Duration::from_nanos(left) }
    }

    pub(super) fn extend(&mut self, until: u64) -> Hold {
        match &mut self.state {
            State::Leased(end) => {
                *end = until;
                Hold::Kept
            }
            State::Completed(_) => Hold::Lost,
        }
    }

    /// Whether nobody works on it. A place of no claim has not ended.
    pub(super) fn has_ended(&self, now: u64) -> bool {
        let worked_on = matches!(self.state, State::Leased(until) if until > now);
        self.lease != 0 && !worked_on
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_is_a_cache_line() {
        assert_eq!((size_of::<Entry>(), align_of::<Entry>()), (64, 64));
    }
}
