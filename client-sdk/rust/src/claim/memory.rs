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
#[derive(Clone, Debug)]
pub struct MemoryClaims {
    parts: Arc<[Mutex<Part>]>,
}

#[derive(Debug, Default)]
struct Part {
    capacity: usize,
    /// Numbers by consumer and source.
    scopes: HashMap<String, HashMap<String, i32>>,
    last_scope: i32,
    /// Counted up from one that was drawn, so that no other store's are the same.
    last_token: Uuid,
    claims: HashMap<(i32, Uuid), Entry>,
    /// In the order of their completion.
    completed: VecDeque<(i32, Uuid)>,
}

#[derive(Debug)]
struct Entry {
    content: Option<Content>,
    token: Uuid,
    until: Instant,
    attempts: u32,
    result: Option<Vec<u8>>,
}

impl MemoryClaims {
    /// Room for so many claims. When it is full, what was completed first is forgotten, or else what was given up; claiming
    /// fails with [`InboxError::Full`] while all of them are being worked on.
    pub fn new(capacity: usize) -> Self {
        let parts = (capacity / PART_MIN).clamp(1, PARTS_MAX);
        let part = |number: usize| {
            let capacity = capacity / parts + usize::from(number < capacity % parts);
            Mutex::new(Part { capacity, last_token: Uuid::now_v7(), ..Part::default() })
        };
        Self { parts: (0..parts).map(part).collect() }
    }

    /// The part of this event.
    fn part(&self, event_id: Uuid) -> MutexGuard<'_, Part> {
        // The last bytes are those that differ, whichever kind of id it is.
        let number = event_id.as_u64_pair().1 as usize % self.parts.len();
        self.parts[number].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something with the claim of this holder.
    fn held(&self, claim: &Claim, change: impl FnOnce(&mut Entry)) -> Hold {
        match self.part(claim.event_id).claims.get_mut(&(claim.number(), claim.event_id)) {
            Some(entry) if entry.token == claim.token && entry.result.is_none() => {
                change(entry);
                Hold::Kept
            }
            _ => Hold::Lost,
        }
    }
}

impl Part {
    fn scope(&mut self, consumer: &str, source: &str) -> i32 {
        if let Some(scope) = self.scopes.get(consumer).and_then(|sources| sources.get(source)) {
            return *scope;
        }
        self.last_scope += 1;
        self.scopes.entry(consumer.to_owned()).or_default().insert(source.to_owned(), self.last_scope);
        self.last_scope
    }

    /// Room for another claim; false when all are being worked on.
    fn make_room(&mut self, now: Instant) -> bool {
        if self.claims.len() < self.capacity {
            return true;
        }
        if let Some(oldest) = self.completed.pop_front() {
            return self.claims.remove(&oldest).is_some();
        }
        // Events that were given up, and those of holders that are gone.
        self.claims.retain(|_, entry| entry.until > now);
        self.claims.len() < self.capacity
    }

    fn token(&mut self) -> Uuid {
        self.last_token = Uuid::from_u128(self.last_token.as_u128().wrapping_add(1));
        self.last_token
    }
}

impl Claims for MemoryClaims {
    async fn claim(&self, consumer: &str, key: &EventKey<'_>, lease: Duration) -> Result<Claimed, InboxError> {
        let mut part = self.part(key.id());
        let now = Instant::now();
        let (scope, token) = (part.scope(consumer, key.source()), part.token());
        let name = (scope, key.id());
        if let Some(entry) = part.claims.get_mut(&name) {
            let content = entry.content.map(Content::number);
            let found =
                Found { content, result: entry.result.clone(), left: entry.until.saturating_duration_since(now) };
            if let Some(answer) = found.answer(key) {
                return Ok(answer);
            }
            (entry.token, entry.until, entry.attempts) = (token, now + lease, entry.attempts.saturating_add(1));
            return Ok(Claimed::Yours(Claim::new(scope, key.id(), token, entry.attempts)));
        }
        if !part.make_room(now) {
            return Err(InboxError::Full(part.capacity));
        }
        let entry = Entry { content: key.content(), token, until: now + lease, attempts: 1, result: None };
        part.claims.insert(name, entry);
        Ok(Claimed::Yours(Claim::new(scope, key.id(), token, 1)))
    }

    async fn extend(&self, claim: &Claim, lease: Duration) -> Result<Hold, InboxError> {
        Ok(self.held(claim, |entry| entry.until = Instant::now() + lease))
    }

    async fn complete(&self, claim: &Claim, result: &[u8]) -> Result<Hold, InboxError> {
        let name = (claim.number(), claim.event_id);
        let mut part = self.part(claim.event_id);
        let Some(entry) = part.claims.get_mut(&name).filter(|entry| entry.token == claim.token) else {
            return Ok(Hold::Lost);
        };
        if entry.result.is_none() {
            entry.result = Some(result.to_vec());
            part.completed.push_back(name);
        }
        Ok(Hold::Kept)
    }

    /// Nothing: the oldest make room by themselves.
    async fn expire(&self, _: &str, _: Duration, _: i64) -> Result<u64, InboxError> {
        Ok(0)
    }

    async fn release(&self, claim: &Claim) -> Result<Hold, InboxError> {
        Ok(self.held(claim, |entry| entry.until = Instant::now()))
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
