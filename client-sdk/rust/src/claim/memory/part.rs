//! One part of a store of claims in memory: what one lock guards.
//!
//! Claims lie in an array, in places that are used again, and an index of places finds them: a claim that makes room for
//! another leaves its place to it, so that two claims touch one place, and not memory far and wide.
//!
//! Invariant: a place is of one claim at most, and found by its name exactly while it is. It deliberately leaves locking
//! to the store.

use std::{
    collections::VecDeque,
    hash::BuildHasher as _,
    hint::black_box,
    time::{Duration, Instant},
};

use hashbrown::{DefaultHashBuilder, HashTable};
use uuid::Uuid;

use super::{
    entry::{Entry, Name, State},
    fingerprint::Fingerprint,
    scopes::Scopes,
};
use crate::{
    claim::{Claim, Claimed, Hold},
    inbox::{EventKey, InboxError},
};

/// How many ends of leases are noted for each claim there is room for, before those that count no more are taken out.
const ENDED_FACTOR: usize = 2;
/// After how long a lease that ran out makes room though others have ended: its holder is gone, or was held up so long.
const GONE_AFTER: u64 = 60_000_000_000;

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
    /// In the order in which they ended. A note that is not its claim's last one counts no more.
    ended: VecDeque<Note>,
    notes: u64,
    /// The place that is looked at next for a lease that ran out.
    hand: usize,
}

/// That a lease has ended.
#[derive(Clone, Copy, Debug)]
struct Note {
    number: u64,
    place: Place,
    /// Of the claim's name, which thus need not be read for the index to be.
    hash: u64,
}

/// An event that is to be claimed.
struct Wanted {
    name: Name,
    /// Of the name.
    hash: u64,
    content: Option<Fingerprint>,
}

/// Where a claim lies.
type Place = u32;

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
            notes: 0,
            hand: 0,
        }
    }

    pub(super) fn claim(
        &mut self,
        consumer: &str,
        key: &EventKey<'_>,
        content: Option<Fingerprint>,
        lease: Duration,
    ) -> Result<Claimed, InboxError> {
        let wanted = self.wanted(consumer, key, content);
        let now = self.now();
        match self.grant(&wanted, key, now.saturating_add(nanoseconds(lease)), now) {
            Some(attempts) => Ok(self.yours(&wanted, self.leases, attempts)),
            None => self.refusal(&wanted, key, now),
        }
    }

    /// Claims the events at these places among `keys`, in this order, and puts the answers into the same places. Where there
    /// is no room, those before it are answered.
    pub(super) fn claim_all(
        &mut self,
        consumer: &str,
        keys: &[EventKey<'_>],
        places: &[(usize, Option<Fingerprint>)],
        lease: Duration,
        claimed: &mut [Option<Claimed>],
    ) -> Result<(), InboxError> {
        let now = self.now();
        let until = now.saturating_add(nanoseconds(lease));
        let wanted = places.iter().map(|(at, content)| self.wanted(consumer, &keys[*at], *content));
        let wanted: Vec<Wanted> = wanted.collect();
        self.look_ahead(&wanted);
        // Claims are put together afterwards: copying one waits until what was written before it has reached memory.
        let (mut granted, before, mut outcome) = (Vec::with_capacity(wanted.len()), self.leases, Ok(()));
        for (wanted, (at, _)) in wanted.iter().zip(places) {
            let attempts = self.grant(wanted, &keys[*at], until, now);
            granted.push(attempts);
            if attempts.is_none() {
                match self.refusal(wanted, &keys[*at], now) {
                    Ok(answer) => claimed[*at] = Some(answer),
                    Err(full) => {
                        outcome = Err(full);
                        break;
                    }
                }
            }
        }
        for (((wanted, (at, _)), attempts), lease) in wanted.iter().zip(places).zip(granted).zip(before + 1..) {
            if let Some(attempts) = attempts {
                claimed[*at] = Some(self.yours(wanted, lease, attempts));
            }
        }
        outcome
    }

    fn wanted(&mut self, consumer: &str, key: &EventKey<'_>, content: Option<Fingerprint>) -> Wanted {
        let name = (self.scopes.number(consumer, key.source()), key.id());
        Wanted { name, hash: self.hasher.hash_one(name), content }
    }

    /// Reads what claiming these will read, so that memory is waited for once and not for each.
    fn look_ahead(&self, wanted: &[Wanted]) {
        for Wanted { hash, .. } in wanted {
            black_box(self.index.find(*hash, |place| black_box(*place) == Place::MAX));
        }
        // Of these, as many will make room.
        for Note { place, hash, .. } in self.ended.iter().take(wanted.len()) {
            black_box(self.entries[*place as usize].note);
            black_box(self.index.find(*hash, |other| other == place));
        }
    }

    /// Takes the next lease on an event, and says how often it has been claimed. `None` when there is none to be had.
    fn grant(&mut self, wanted: &Wanted, key: &EventKey<'_>, until: u64, now: u64) -> Option<u32> {
        let Wanted { name, hash, content } = *wanted;
        self.leases += 1;
        let (lease, state) = (self.leases, State::Leased(until));
        let Some(place) = self.place(name, hash) else {
            let entry = Entry { name, content, lease, attempts: 1, note: 0, state };
            return self.put(entry, hash, now).then_some(1);
        };
        let entry = &mut self.entries[place as usize];
        if entry.differs(key, content) || !matches!(entry.state, State::Leased(until) if until <= now) {
            return None;
        }
        entry.attempts = entry.attempts.saturating_add(1);
        (entry.lease, entry.state) = (lease, state);
        Some(entry.attempts)
    }

    /// Why there is no lease to be had.
    fn refusal(&self, wanted: &Wanted, key: &EventKey<'_>, now: u64) -> Result<Claimed, InboxError> {
        let Some(place) = self.place(wanted.name, wanted.hash) else { return Err(InboxError::Full(self.capacity)) };
        let entry = &self.entries[place as usize];
        let answer = entry.found(entry.differs(key, wanted.content), now).answer();
        Ok(answer.unwrap_or(Claimed::Held { left: Duration::ZERO }))
    }

    fn yours(&self, wanted: &Wanted, lease: u64, attempts: u32) -> Claimed {
        let token = Uuid::from_u128(self.first_token.as_u128().wrapping_add(lease.into()));
        Claimed::Yours(Claim::new(wanted.name.0, wanted.name.1, token, attempts))
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
    fn put(&mut self, entry: Entry, hash: u64, now: u64) -> bool {
        let place = if self.entries.len() < self.capacity && self.free.is_empty() {
            self.entries.push(entry);
            // The capacity is cut to what a place can number.
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

    /// Takes the claim out that ended longest ago, or one of a holder that is gone. `None` when all are being worked on.
    fn make_room(&mut self, now: u64) -> Option<Place> {
        if let Some(place) = self.take_gone(now) {
            return Some(place);
        }
        while let Some(Note { number, place, hash }) = self.ended.pop_front() {
            let entry = &mut self.entries[place as usize];
            if entry.note != number {
                continue;
            }
            entry.note = 0;
            // It may have been extended or claimed since.
            if entry.has_ended(now) {
                self.take_out(place, hash);
                return Some(place);
            }
        }
        // Holders that are gone, of late.
        for place in 0..self.entries.len() as Place {
            let entry = &self.entries[place as usize];
            if entry.has_ended(now) {
                self.take_out(place, self.hasher.hash_one(entry.name));
                self.free.push(place);
            }
        }
        self.free.pop()
    }

    /// Looks at one place, so that all are looked at in time, and takes the claim out if its holder is gone: nobody notes
    /// the end of such a lease.
    fn take_gone(&mut self, now: u64) -> Option<Place> {
        self.hand = if self.hand + 1 < self.entries.len() { self.hand + 1 } else { 0 };
        let entry = self.entries.get(self.hand)?;
        let gone = matches!(entry.state, State::Leased(until) if until.saturating_add(GONE_AFTER) <= now);
        if entry.lease == 0 || entry.note != 0 || !gone {
            return None;
        }
        let place = self.hand as Place;
        self.take_out(place, self.hasher.hash_one(entry.name));
        Some(place)
    }

    fn take_out(&mut self, place: Place, hash: u64) {
        let entry = &mut self.entries[place as usize];
        (entry.lease, entry.note) = (0, 0);
        if let Ok(found) = self.index.find_entry(hash, |other| *other == place) {
            found.remove();
        }
    }

    /// Notes that the last lease of a claim has ended.
    fn note(&mut self, place: Place, hash: u64) {
        if self.ended.len() >= self.capacity.saturating_mul(ENDED_FACTOR) {
            let entries = &self.entries;
            self.ended.retain(|Note { number, place, .. }| entries[*place as usize].note == *number);
        }
        self.notes += 1;
        self.entries[place as usize].note = self.notes;
        self.ended.push_back(Note { number: self.notes, place, hash });
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
        let content = key.held().and_then(|held| Fingerprint::of(held, &part.hasher));
        part.claim("mailer", key, content, LEASE)
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
            part.claim("mailer", &key(), None, Duration::ZERO).expect("there is room");
        }
        for _ in 0..3 {
            yours(&mut part, &key());
        }
        assert!(matches!(claim(&mut part, &key()), Err(InboxError::Full(3))));
        assert_eq!((part.index.len(), part.free.len()), (3, 0));
    }

    #[test]
    fn an_end_that_another_lease_has_followed_makes_no_room() {
        let mut part = Part::new(2);
        let (again, other, third) = (key(), key(), key());
        let first = yours(&mut part, &again);
        part.release(&first);
        let claim = yours(&mut part, &other);
        part.complete(&claim, b"");
        let second = yours(&mut part, &again);
        part.complete(&second, b"");
        yours(&mut part, &third);
        assert!(is_done(&mut part, &again), "the other one ended first");
        assert_eq!((part.index.len(), part.entries.len()), (2, 2));
    }

    #[test]
    fn an_end_that_an_extension_has_followed_makes_no_room() {
        let mut part = Part::new(2);
        let (extended, other, third, fourth) = (key(), key(), key(), key());
        let first = yours(&mut part, &extended);
        part.release(&first);
        part.extend(&first, LEASE);
        let second = yours(&mut part, &other);
        part.complete(&second, b"");
        part.complete(&first, b"");
        let third = yours(&mut part, &third);
        assert!(is_done(&mut part, &extended), "the other one ended first");
        part.complete(&third, b"");
        yours(&mut part, &fourth);
        assert!(!is_done(&mut part, &extended), "and then it");
    }

    /// A holder that is gone notes nothing, and its claim would keep its place for ever.
    #[test]
    fn holders_that_are_gone_make_room_in_time_though_others_have_ended() {
        let mut part = Part::new(10);
        for _ in 0..8 {
            part.claim("mailer", &key(), None, Duration::ZERO).expect("there is room");
        }
        let completed = [key(), key()];
        for key in &completed {
            let claim = yours(&mut part, key);
            part.complete(&claim, b"");
        }
        // Seven of the eight places are looked at before those of the others.
        let later = part.now() + GONE_AFTER;
        for _ in 0..7 {
            let place = part.make_room(later).expect("nobody works on any");
            part.free.push(place);
        }
        assert!(completed.iter().all(|key| is_done(&mut part, key)));
        assert_eq!(part.index.len(), 3);
    }

    #[test]
    fn a_holder_that_extends_what_it_gave_up_and_is_gone_then_makes_room_too() {
        let mut part = Part::new(1);
        let holder = yours(&mut part, &key());
        part.release(&holder);
        part.extend(&holder, LEASE);
        assert!(matches!(claim(&mut part, &key()), Err(InboxError::Full(1))), "its end is void");
        let later = part.now() + nanoseconds(LEASE) + GONE_AFTER;
        assert_eq!((part.take_gone(later - GONE_AFTER), part.take_gone(later)), (None, Some(0)));
    }

    #[test]
    fn what_is_given_up_again_and_again_is_noted_within_bounds() {
        let mut part = Part::new(10);
        let (again, completed) = (key(), key());
        let first = yours(&mut part, &completed);
        part.complete(&first, b"");
        for _ in 0..100 {
            let claim = yours(&mut part, &again);
            for _ in 0..10 * ENDED_FACTOR {
                assert_eq!((part.release(&claim), part.extend(&claim, LEASE)), (Hold::Kept, Hold::Kept));
                assert!(part.ended.len() <= 10 * ENDED_FACTOR, "{}", part.ended.len());
            }
            part.release(&claim);
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
    fn other_content_is_told_where_it_is_known_on_both_sides_and_can_be_compared() {
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
        assert!(held(claim(&mut part, &one)), "the same content, by its parts");
        assert!(matches!(claim(&mut part, &other), Ok(Claimed::Conflict)));
        let mut part = Part::new(10);
        yours(&mut part, &one);
        assert!(matches!(claim(&mut part, &cut), Ok(Claimed::Conflict)), "where parts end counts");
    }

    /// Claims together and one after the other, in stores that are alike but for that, and both come to the same.
    #[test]
    fn what_is_claimed_together_is_answered_as_if_it_were_claimed_in_turn() {
        let (mut part, mut turn) = (Part::new(40), Part::new(40));
        let keys: Vec<_> = (0..200).map(|_| key()).collect();
        let kind = |claimed: &Claimed| match claimed {
            Claimed::Yours(claim) => format!("attempt {} on {}", claim.attempt(), claim.event_id()),
            Claimed::Held { .. } => "held".to_owned(),
            other => format!("{other:?}"),
        };
        for first in (0..180).step_by(7) {
            // Some that are known, some that are known no more, and one that is given twice.
            let wanted: Vec<_> = (first..first + 20).chain([first + 19, first / 2]).map(|at| keys[at]).collect();
            let places: Vec<_> = (0..wanted.len()).map(|at| (at, None)).collect();
            let mut together = vec![None; wanted.len()];
            part.claim_all("mailer", &wanted, &places, LEASE, &mut together).expect("there is room");
            let together: Vec<Claimed> = together.into_iter().flatten().collect();
            let in_turn: Vec<Claimed> =
                wanted.iter().map(|key| claim(&mut turn, key).expect("there is room")).collect();
            assert!(together.iter().map(kind).eq(in_turn.iter().map(kind)), "{together:?} and {in_turn:?}");
            for (part, claimed) in [(&mut part, together), (&mut turn, in_turn)] {
                for (at, claimed) in claimed.into_iter().enumerate() {
                    let Claimed::Yours(claim) = claimed else { continue };
                    let hold = if at % 5 == 0 { part.release(&claim) } else { part.complete(&claim, b"sent") };
                    assert_eq!(hold, Hold::Kept);
                }
            }
        }
    }
}
