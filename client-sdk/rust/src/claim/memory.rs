//! Claims in memory: for tests, and where a repeat after a restart does no harm.
//!
//! Invariant: at most `capacity` claims are held. The oldest completed one makes room for a new one, so what was
//! completed long ago may be claimed again; if there is none, those whose leases have run out do. What is being worked on
//! is never dropped. Large stores are divided by event, so that workers seldom wait for each other; room is then made, and
//! found missing, in the event's part.
//!
//! It deliberately is no inbox: without transactions it cannot promise effects once, and the types do not let it.

use std::{
    collections::{HashMap, VecDeque},
    num::NonZero,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use uuid::Uuid;

use super::{Claim, Claimed, Claims, Hold, rows::Found};
use crate::inbox::{Content, EventKey, InboxError};

/// How many parts there are at most.
const PARTS_MAX: usize = 16;
/// A part has room for so many claims at least, unless it is the only one. Ids are spread evenly, so no part fills up much
/// earlier than another.
const PART_MIN: usize = 4_096;

/// Claims in this process's memory. Clones share them.
///
/// A claim takes about a hundred bytes, and its result. Memory is taken as claims are added.
#[derive(Clone, Debug)]
pub struct MemoryClaims {
    parts: Arc<[Mutex<Part>]>,
}

#[derive(Debug)]
struct Part {
    capacity: usize,
    scopes: Scopes,
    /// Leases are counted from here on.
    began: Instant,
    /// Drawn, so that no other store's are the same; those of leases are counted up from it.
    first_token: Uuid,
    leases: u64,
    claims: HashMap<Name, Entry>,
    /// In the order of their completion.
    completed: VecDeque<Name>,
}

/// Numbers of scopes.
#[derive(Debug, Default)]
struct Scopes {
    by_consumer: HashMap<Arc<str>, HashMap<Arc<str>, i32>>,
    /// Consumer, source and number of the one that was asked for last: mostly it is the next one, too.
    last: Option<(Arc<str>, Arc<str>, i32)>,
    count: i32,
}

/// Scope and event.
type Name = (i32, Uuid);

/// A claim. There may be many, so it is as narrow as can be: with its name a cache line.
#[derive(Debug)]
struct Entry {
    /// Content whose number is zero, one in 2^64, counts as unknown.
    content: Option<NonZero<i64>>,
    /// Which of the leases of this part is the last one.
    lease: u64,
    attempts: u32,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Until so many nanoseconds after the part began.
    Leased(u64),
    Completed(Box<[u8]>),
}

impl MemoryClaims {
    /// Room for so many claims. When it is full, what was completed first is forgotten, or else what was given up; claiming
    /// fails with [`InboxError::Full`] while all of them are being worked on.
    pub fn new(capacity: usize) -> Self {
        let parts = (capacity / PART_MIN).clamp(1, PARTS_MAX);
        let part = |number: usize| Mutex::new(Part::new(capacity / parts + usize::from(number < capacity % parts)));
        Self { parts: (0..parts).map(part).collect() }
    }

    /// The part of this event.
    fn part(&self, event_id: Uuid) -> MutexGuard<'_, Part> {
        // The last bytes are those that differ, whichever kind of id it is.
        let number = event_id.as_u64_pair().1 as usize % self.parts.len();
        self.parts[number].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the holder of this claim hold it for so long from now on.
    fn hold_for(&self, claim: &Claim, lease: Duration) -> Hold {
        let mut part = self.part(claim.event_id);
        let until = part.now().saturating_add(nanoseconds(lease));
        match part.of_holder(claim) {
            Some(Entry { state: State::Leased(end), .. }) => {
                *end = until;
                Hold::Kept
            }
            _ => Hold::Lost,
        }
    }
}

impl Part {
    fn new(capacity: usize) -> Self {
        Self {
            capacity,
            scopes: Scopes::default(),
            began: Instant::now(),
            first_token: Uuid::now_v7(),
            leases: 0,
            claims: HashMap::new(),
            completed: VecDeque::new(),
        }
    }

    /// In nanoseconds from its beginning.
    fn now(&self) -> u64 {
        nanoseconds(self.began.elapsed())
    }

    fn token(&self, lease: u64) -> Uuid {
        Uuid::from_u128(self.first_token.as_u128().wrapping_add(lease.into()))
    }

    /// The claim, unless another has claimed the event since.
    fn of_holder(&mut self, claim: &Claim) -> Option<&mut Entry> {
        let lease = claim.token.as_u128().wrapping_sub(self.first_token.as_u128());
        let entry = self.claims.get_mut(&(claim.number(), claim.event_id))?;
        (u128::from(entry.lease) == lease).then_some(entry)
    }

    /// Room for another claim; false when all are being worked on.
    fn make_room(&mut self, now: u64) -> bool {
        if self.claims.len() < self.capacity {
            return true;
        }
        if let Some(oldest) = self.completed.pop_front() {
            return self.claims.remove(&oldest).is_some();
        }
        // Events that were given up, and those of holders that are gone.
        self.claims.retain(|_, entry| matches!(entry.state, State::Leased(until) if until > now));
        self.claims.len() < self.capacity
    }
}

/// There is room for five centuries.
fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl Scopes {
    fn number(&mut self, consumer: &str, source: &str) -> i32 {
        if let Some((last_consumer, last_source, number)) = &self.last
            && (&**last_consumer, &**last_source) == (consumer, source)
        {
            return *number;
        }
        let known = self.by_consumer.get_key_value(consumer);
        let known = known.and_then(|(consumer, sources)| Some((consumer, sources.get_key_value(source)?)));
        if let Some((consumer, (source, number))) = known {
            self.last = Some((Arc::clone(consumer), Arc::clone(source), *number));
            return *number;
        }
        self.count += 1;
        let sources = self.by_consumer.entry(consumer.into()).or_default();
        sources.insert(source.into(), self.count);
        self.count
    }
}

impl Entry {
    /// What it tells someone who claims its event now.
    fn found(&self, now: u64) -> Found {
        let (result, left) = match &self.state {
            State::Leased(until) => (None, until.saturating_sub(now)),
            State::Completed(result) => (Some(result.to_vec()), 0),
        };
        Found { content: self.content.map(NonZero::get), result, left: Duration::from_nanos(left) }
    }
}

impl Claims for MemoryClaims {
    async fn claim(&self, consumer: &str, key: &EventKey<'_>, lease: Duration) -> Result<Claimed, InboxError> {
        let mut part = self.part(key.id());
        let now = part.now();
        let until = now.saturating_add(nanoseconds(lease));
        let name = (part.scopes.number(consumer, key.source()), key.id());
        part.leases += 1;
        let (lease, state) = (part.leases, State::Leased(until));
        let yours = |token, attempts| Ok(Claimed::Yours(Claim::new(name.0, name.1, token, attempts)));
        let token = part.token(lease);
        if let Some(entry) = part.claims.get_mut(&name) {
            if let Some(answer) = entry.found(now).answer(key) {
                return Ok(answer);
            }
            let attempts = entry.attempts.saturating_add(1);
            *entry = Entry { content: entry.content, lease, attempts, state };
            return yours(token, attempts);
        }
        if !part.make_room(now) {
            return Err(InboxError::Full(part.capacity));
        }
        let content = key.content().map(Content::number).and_then(NonZero::new);
        part.claims.insert(name, Entry { content, lease, attempts: 1, state });
        yours(token, 1)
    }

    async fn extend(&self, claim: &Claim, lease: Duration) -> Result<Hold, InboxError> {
        Ok(self.hold_for(claim, lease))
    }

    async fn complete(&self, claim: &Claim, result: &[u8]) -> Result<Hold, InboxError> {
        let mut part = self.part(claim.event_id);
        let Some(entry) = part.of_holder(claim) else { return Ok(Hold::Lost) };
        if matches!(entry.state, State::Leased(_)) {
            entry.state = State::Completed(result.into());
            part.completed.push_back((claim.number(), claim.event_id));
        }
        Ok(Hold::Kept)
    }

    /// Nothing: the oldest make room by themselves.
    async fn expire(&self, _: &str, _: Duration, _: i64) -> Result<u64, InboxError> {
        Ok(0)
    }

    async fn release(&self, claim: &Claim) -> Result<Hold, InboxError> {
        Ok(self.hold_for(claim, Duration::ZERO))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> EventKey<'static> {
        EventKey::new("/shop", Uuid::now_v7())
    }

    async fn yours(claims: &MemoryClaims, key: &EventKey<'_>, lease: Duration) -> Claim {
        match claims.claim("mailer", key, lease).await {
            Ok(Claimed::Yours(claim)) => claim,
            other => panic!("expected the lease, got {other:?}"),
        }
    }

    #[tokio::test]
    async fn what_is_completed_makes_room_and_what_is_worked_on_does_not() {
        let (claims, lease) = (MemoryClaims::new(2), Duration::from_secs(60));
        let (first, second, third) = (key(), key(), key());
        let one = yours(&claims, &first, lease).await;
        yours(&claims, &second, lease).await;
        assert!(matches!(claims.claim("mailer", &third, lease).await, Err(InboxError::Full(2))));
        claims.complete(&one, b"sent").await.expect("memory does not fail");
        yours(&claims, &third, lease).await;
        assert!(matches!(claims.claim("mailer", &second, lease).await, Ok(Claimed::Held { .. })));
    }

    /// Otherwise dead letters would fill the store for good.
    #[tokio::test]
    async fn what_was_given_up_makes_room() {
        let (claims, lease) = (MemoryClaims::new(2), Duration::from_secs(60));
        let given_up = yours(&claims, &key(), lease).await;
        let working = key();
        yours(&claims, &working, lease).await;
        claims.release(&given_up).await.expect("memory does not fail");
        yours(&claims, &key(), lease).await;
        assert!(matches!(claims.claim("mailer", &working, lease).await, Ok(Claimed::Held { .. })));
        assert!(matches!(claims.claim("mailer", &key(), lease).await, Err(InboxError::Full(2))));
    }

    #[test]
    fn a_claim_with_its_name_fits_a_cache_line() {
        assert_eq!(size_of::<(Name, Entry)>(), 64);
    }

    #[test]
    fn a_scope_keeps_its_number_and_no_other_has_it() {
        let mut scopes = Scopes::default();
        let mut numbers = || {
            let names = [("mailer", "/shop"), ("mailer", "/bank"), ("biller", "/shop"), ("mailer", "/shop")];
            names.map(|(consumer, source)| scopes.number(consumer, source))
        };
        let first = numbers();
        assert_eq!(first, numbers());
        assert!(first[0] == first[3] && first[0] != first[1] && first[0] != first[2] && first[1] != first[2]);
    }

    #[tokio::test]
    async fn the_parts_of_a_large_store_have_room_for_as_many_as_it_was_made_for() {
        let (claims, lease) = (MemoryClaims::new(3 * PART_MIN + 2), Duration::from_secs(60));
        let capacity = |part: &Mutex<Part>| part.lock().expect("nobody panics with it").capacity;
        assert!(claims.parts.iter().map(capacity).eq([PART_MIN + 1, PART_MIN + 1, PART_MIN]));
        for _ in 0..100 {
            let key = key();
            let claim = yours(&claims, &key, lease).await;
            assert!(matches!(claims.claim("mailer", &key, lease).await, Ok(Claimed::Held { .. })));
            assert_eq!(claims.complete(&claim, b"sent").await.expect("memory does not fail"), Hold::Kept);
            assert!(matches!(claims.claim("mailer", &key, lease).await, Ok(Claimed::Done(sent)) if sent == b"sent"));
        }
    }
}
