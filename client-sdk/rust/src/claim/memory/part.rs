//! One part of a store of claims in memory: what one lock guards.
//!
//! Claims lie in an array, in places that are used again, and an index of places finds them: a claim that makes room for
//! another leaves its place to it, so that two claims touch one place, and not memory far and wide.
//!
//! Invariant: a place is of one claim at most, and found by its name exactly while it is. It deliberately leaves locking
//! to the store.

use std::{
    collections::VecDeque,
    hash::{BuildHasher, Hasher as _},
    num::NonZero,
    time::{Duration, Instant},
};

use hashbrown::{DefaultHashBuilder, HashTable};
use uuid::Uuid;

use super::scopes::Scopes;
use crate::{
    claim::{Claim, Claimed, Hold, rows::Found},
    inbox::{EventKey, Held, InboxError},
};

/// How many ends of leases are noted for each claim there is room for, before those that count no more are taken out.
const ENDED_FACTOR: usize = 2;

#[derive(Debug)]
pub(super) struct Part {
    pub(super) capacity: usize,
    scopes: Scopes,
    /// Leases are counted from here on.
    began: Instant,
    /// Drawn, so that no other store's are the same; those of leases are counted up from it.
    first_token: Uuid,
    leases: u64,
    hasher: DefaultHashBuilder,
    /// Places by name.
    index: HashTable<Place>,
    entries: Vec<Entry>,
    /// Places of no claim.
    free: Vec<Place>,
    /// In the order in which they ended. Those that another lease has followed count no more.
    ended: VecDeque<Ended>,
}

/// A lease that has ended.
#[derive(Clone, Copy, Debug)]
struct Ended {
    place: Place,
    lease: u64,
    /// Of the claim's name, which thus need not be read for the index to be.
    hash: u64,
}

/// Where a claim lies.
type Place = u32;

/// Scope and event.
type Name = (i32, Uuid);

/// A claim. There may be many, so it is a cache line.
#[derive(Debug)]
#[repr(align(64))]
struct Entry {
    name: Name,
    content: Option<Fingerprint>,
    /// Which of the leases of this part is the last one. Zero, which none is: this is a place of no claim.
    lease: u64,
    attempts: u32,
    /// That its last lease has ended is noted.
    noted: bool,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Until so many nanoseconds after the part began.
    Leased(u64),
    Completed(Box<[u8]>),
}

/// What an event held. The last bit tells how it was hashed, for only what was hashed alike can be compared. One that
/// would be zero, of 2^63, counts as unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Fingerprint(NonZero<u64>);

impl Part {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            capacity: capacity.min(Place::MAX as usize),
            scopes: Scopes::default(),
            began: Instant::now(),
            first_token: Uuid::now_v7(),
            leases: 0,
            hasher: DefaultHashBuilder::default(),
            index: HashTable::new(),
            entries: Vec::new(),
            free: Vec::new(),
            ended: VecDeque::new(),
        }
    }

    pub(super) fn claim(&mut self, consumer: &str, key: &EventKey<'_>, lease: Duration) -> Result<Claimed, InboxError> {
        let now = self.now();
        let state = State::Leased(now.saturating_add(nanoseconds(lease)));
        let name = (self.scopes.number(consumer, key.source()), key.id());
        let hash = self.hasher.hash_one(name);
        let content = key.held().and_then(|held| Fingerprint::of(held, &self.hasher));
        self.leases += 1;
        let lease = self.leases;
        let token = Uuid::from_u128(self.first_token.as_u128().wrapping_add(lease.into()));
        let yours = |attempts| Ok(Claimed::Yours(Claim::new(name.0, name.1, token, attempts)));
        if let Some(place) = self.place(name, hash) {
            let entry = &mut self.entries[place as usize];
            if let Some(answer) = entry.found(content, now).answer() {
                return Ok(answer);
            }
            entry.attempts = entry.attempts.saturating_add(1);
            (entry.lease, entry.noted, entry.state) = (lease, false, state);
            return yours(entry.attempts);
        }
        let entry = Entry { name, content, lease, attempts: 1, noted: false, state };
        if self.put(entry, hash, now) { yours(1) } else { Err(InboxError::Full(self.capacity)) }
    }

    pub(super) fn extend(&mut self, claim: &Claim, lease: Duration) -> Hold {
        let until = self.now().saturating_add(nanoseconds(lease));
        match self.of_holder(claim) {
            Some((place, _)) => self.entries[place as usize].extend(until),
            None => Hold::Lost,
        }
    }

    pub(super) fn complete(&mut self, claim: &Claim, result: &[u8]) -> Hold {
        let Some((place, hash)) = self.of_holder(claim) else { return Hold::Lost };
        let entry = &mut self.entries[place as usize];
        if matches!(entry.state, State::Leased(_)) {
            entry.state = State::Completed(result.into());
            self.note(place, hash);
        }
        Hold::Kept
    }

    pub(super) fn release(&mut self, claim: &Claim) -> Hold {
        let now = self.now();
        let Some((place, hash)) = self.of_holder(claim) else { return Hold::Lost };
        let hold = self.entries[place as usize].extend(now);
        if hold == Hold::Kept {
            self.note(place, hash);
        }
        hold
    }

    /// In nanoseconds from its beginning.
    fn now(&self) -> u64 {
        nanoseconds(self.began.elapsed())
    }

    fn place(&self, name: Name, hash: u64) -> Option<Place> {
        self.index.find(hash, |place| self.entries[*place as usize].name == name).copied()
    }

    /// Where the claim lies and its name's hash, unless another has claimed the event since.
    fn of_holder(&self, claim: &Claim) -> Option<(Place, u64)> {
        let lease = claim.token.as_u128().wrapping_sub(self.first_token.as_u128());
        let name = (claim.number(), claim.event_id);
        let hash = self.hasher.hash_one(name);
        let place = self.place(name, hash)?;
        (u128::from(self.entries[place as usize].lease) == lease).then_some((place, hash))
    }

    /// Adds a claim whose name is not there; false when there is no room, for all are being worked on.
    #[allow(
        clippy::cast_possible_truncation,
        reason = "there are no more places than the capacity, which is cut to them"
    )]
    fn put(&mut self, entry: Entry, hash: u64, now: u64) -> bool {
        let place = if self.entries.len() < self.capacity && self.free.is_empty() {
            self.entries.push(entry);
            (self.entries.len() - 1) as Place
        } else {
            let Some(place) = self.free.pop().or_else(|| self.make_room(now)) else { return false };
            self.entries[place as usize] = entry;
            place
        };
        let (entries, hasher) = (&self.entries, &self.hasher);
        self.index.insert_unique(hash, place, |place| hasher.hash_one(entries[*place as usize].name));
        true
    }

    /// Takes the claim out that ended longest ago. `None` when all are being worked on.
    fn make_room(&mut self, now: u64) -> Option<Place> {
        while let Some(Ended { place, lease, hash }) = self.ended.pop_front() {
            let entry = &mut self.entries[place as usize];
            if entry.lease != lease {
                continue;
            }
            entry.noted = false;
            if entry.has_ended(now) {
                self.take_out(place, hash);
                return Some(place);
            }
        }
        // Leases that ran out, of holders that are gone.
        for place in 0..self.entries.len() as Place {
            let entry = &self.entries[place as usize];
            if entry.has_ended(now) {
                self.take_out(place, self.hasher.hash_one(entry.name));
                self.free.push(place);
            }
        }
        self.free.pop()
    }

    fn take_out(&mut self, place: Place, hash: u64) {
        self.entries[place as usize].lease = 0;
        if let Ok(found) = self.index.find_entry(hash, |other| *other == place) {
            found.remove();
        }
    }

    /// Notes that the last lease of a claim has ended.
    fn note(&mut self, place: Place, hash: u64) {
        if self.ended.len() >= self.capacity.saturating_mul(ENDED_FACTOR) {
            let entries = &self.entries;
            self.ended.retain(|Ended { place, lease, .. }| entries[*place as usize].lease == *lease);
        }
        let entry = &mut self.entries[place as usize];
        if !std::mem::replace(&mut entry.noted, true) {
            self.ended.push_back(Ended { place, lease: entry.lease, hash });
        }
    }
}

impl Entry {
    /// What it tells someone who claims its event now, with this content.
    fn found(&self, content: Option<Fingerprint>, now: u64) -> Found {
        let (result, left) = match &self.state {
            State::Leased(until) => (None, until.saturating_sub(now)),
            State::Completed(result) => (Some(result.to_vec()), 0),
        };
        Found { differs: Fingerprint::differ(self.content, content), result, left: Duration::from_nanos(left) }
    }

    fn extend(&mut self, until: u64) -> Hold {
        match &mut self.state {
            State::Leased(end) => {
                *end = until;
                Hold::Kept
            }
            State::Completed(_) => Hold::Lost,
        }
    }

    /// Whether nobody works on it. A place of no claim has not ended.
    fn has_ended(&self, now: u64) -> bool {
        let worked_on = matches!(self.state, State::Leased(until) if until > now);
        self.lease != 0 && !worked_on
    }
}

impl Fingerprint {
    fn of(held: Held<'_>, hasher: &impl BuildHasher) -> Option<Self> {
        let number = match held {
            Held::Hashed(content) => content.number().cast_unsigned() | 1,
            Held::Parts(parts) => {
                let mut hash = hasher.build_hasher();
                for part in parts {
                    hash.write_usize(part.len());
                    hash.write(part);
                }
                hash.finish() & !1
            }
        };
        NonZero::new(number).map(Self)
    }

    /// Whether these are known to be of different events.
    fn differ(one: Option<Self>, other: Option<Self>) -> bool {
        let (Some(one), Some(other)) = (one, other) else { return false };
        let alike = (one.0.get() ^ other.0.get()) & 1 == 0;
        alike && one != other
    }
}

/// There is room for five centuries.
fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inbox::Content;

    const LEASE: Duration = Duration::from_secs(60);

    fn key() -> EventKey<'static> {
        EventKey::new("/shop", Uuid::now_v7())
    }

    fn claim(part: &mut Part, key: &EventKey<'_>) -> Result<Claimed, InboxError> {
        part.claim("mailer", key, LEASE)
    }

    fn yours(part: &mut Part, key: &EventKey<'_>) -> Claim {
        match claim(part, key) {
            Ok(Claimed::Yours(claim)) => claim,
            other => panic!("expected the lease, got {other:?}"),
        }
    }

    fn is_done(part: &mut Part, key: &EventKey<'_>) -> bool {
        matches!(claim(part, key), Ok(Claimed::Done(_)))
    }

    #[test]
    fn a_claim_is_a_cache_line() {
        assert_eq!(size_of::<Entry>(), 64);
    }

    /// Otherwise many dead letters would crowd out what was completed since.
    #[test]
    fn what_ended_first_makes_room_whether_it_was_completed_or_given_up() {
        let mut part = Part::new(3);
        let keys = [key(), key(), key(), key(), key()];
        let claims = [0, 1, 2].map(|at| yours(&mut part, &keys[at]));
        part.release(&claims[1]);
        part.complete(&claims[0], b"");
        part.complete(&claims[2], b"");
        yours(&mut part, &keys[3]);
        assert!(is_done(&mut part, &keys[0]) && is_done(&mut part, &keys[2]), "what was given up has made room");
        yours(&mut part, &keys[4]);
        assert!(is_done(&mut part, &keys[2]), "then the first completed one");
        assert_eq!(
            yours(&mut part, &keys[0]).attempt(),
            1,
            "which is forgotten, now that another has made room for it"
        );
        assert!(matches!(claim(&mut part, &keys[2]), Err(InboxError::Full(3))), "the other three are worked on");
    }

    #[test]
    fn what_was_given_up_and_is_worked_on_again_makes_no_room() {
        let mut part = Part::new(2);
        let (again, extended, other) = (key(), key(), key());
        let given_up = yours(&mut part, &again);
        part.release(&given_up);
        let second = yours(&mut part, &again);
        assert_eq!((second.attempt(), part.extend(&given_up, LEASE)), (2, Hold::Lost));
        let holder = yours(&mut part, &extended);
        part.release(&holder);
        assert_eq!(part.extend(&holder, LEASE), Hold::Kept, "nobody has claimed it since");
        assert!(matches!(claim(&mut part, &other), Err(InboxError::Full(2))));
        assert_eq!((part.complete(&second, b""), part.complete(&holder, b"")), (Hold::Kept, Hold::Kept));
        yours(&mut part, &other);
        assert!(is_done(&mut part, &extended), "the other one ended first");
        assert_eq!(yours(&mut part, &again).attempt(), 1, "and is forgotten");
    }

    #[test]
    fn a_lease_that_ran_out_makes_room() {
        let mut part = Part::new(3);
        for _ in 0..3 {
            part.claim("mailer", &key(), Duration::ZERO).expect("there is room");
        }
        for _ in 0..3 {
            yours(&mut part, &key());
        }
        assert!(matches!(claim(&mut part, &key()), Err(InboxError::Full(3))));
        assert_eq!((part.index.len(), part.free.len()), (3, 0));
    }

    #[test]
    fn what_is_given_up_again_and_again_is_noted_within_bounds() {
        let mut part = Part::new(10);
        let (again, completed) = (key(), key());
        let first = yours(&mut part, &completed);
        part.complete(&first, b"");
        for _ in 0..1_000 {
            let claim = yours(&mut part, &again);
            for _ in 0..2 {
                assert_eq!((part.release(&claim), part.extend(&claim, LEASE)), (Hold::Kept, Hold::Kept));
            }
            part.release(&claim);
            assert!(part.ended.len() <= 10 * ENDED_FACTOR, "{}", part.ended.len());
        }
        (0..8).for_each(|_| drop(yours(&mut part, &key())));
        assert!(is_done(&mut part, &completed), "there was room for ten");
        yours(&mut part, &key());
        assert!(!is_done(&mut part, &completed), "and the notes still tell that this ended first");
    }

    /// Many claims come and go; a model remembers which.
    #[test]
    fn places_are_used_again_and_every_claim_is_found() {
        let mut part = Part::new(100);
        let mut completed = VecDeque::new();
        for n in 0..2_000_u32 {
            let key = key();
            let claim = yours(&mut part, &key);
            if n % 7 == 0 {
                assert_eq!(part.release(&claim), Hold::Kept);
            } else {
                assert_eq!(part.complete(&claim, &n.to_be_bytes()), Hold::Kept);
                completed.push_back((key, n));
            }
            assert!(part.entries.len() <= 100 && part.index.len() == part.entries.len());
        }
        for (key, n) in completed.iter().rev().take(80) {
            assert!(matches!(claim(&mut part, key), Ok(Claimed::Done(result)) if result == n.to_be_bytes()));
        }
        assert!(!is_done(&mut part, &completed[0].0));
    }

    #[test]
    fn other_content_is_told_only_where_it_is_known_on_both_sides_and_hashed_alike() {
        let mut part = Part::new(10);
        let bare = key();
        let parts = |payload: &'static [u8]| [b"user.activated".as_slice(), b"7", &[1], payload];
        let (one, other) = (bare.holding_parts(parts(b"one")), bare.holding_parts(parts(b"two")));
        let held = |claimed| matches!(claimed, Ok(Claimed::Held { .. }));
        yours(&mut part, &one);
        assert!(held(claim(&mut part, &one)) && held(claim(&mut part, &bare)));
        assert!(matches!(claim(&mut part, &other), Ok(Claimed::Conflict)));
        let hashed = |payload| bare.holding(Content::of(parts(payload)));
        assert!(held(claim(&mut part, &hashed(b"one"))), "the hash of the same content is no other event");

        let (mut part, cut) = (Part::new(10), bare.holding_parts([b"user.activate", b"d7", &[1], b"one"]));
        yours(&mut part, &hashed(b"one"));
        assert!(held(claim(&mut part, &hashed(b"one"))));
        assert!(matches!(claim(&mut part, &hashed(b"two")), Ok(Claimed::Conflict)));
        let mut part = Part::new(10);
        yours(&mut part, &one);
        assert!(matches!(claim(&mut part, &cut), Ok(Claimed::Conflict)), "where parts end counts");
    }
}
