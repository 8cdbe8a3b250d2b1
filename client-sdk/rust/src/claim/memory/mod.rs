//! Claims in memory: for tests, and where a repeat after a restart does no harm.
//!
//! Invariant: at most `capacity` claims are held. The one that ended longest ago, completed or given up, makes room for a
//! new one, and so does one whose lease ran out a minute ago, so what was completed long ago may be claimed again. What is
//! being worked on is never dropped. Large stores are divided by event, so that workers seldom wait for each other; room is
//! then made, and found missing, in the event's part.
//!
//! It deliberately is no inbox: without transactions it cannot promise effects once, and the types do not let it.

mod entry;
mod fingerprint;
mod part;
mod scopes;

use std::{
    hash::BuildHasher as _,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use hashbrown::DefaultHashBuilder;
use uuid::Uuid;

use self::{fingerprint::Fingerprint, part::Part};
use super::{Claim, Claimed, Claims, Hold, give_back};
use crate::inbox::{EventKey, InboxError};

/// How many parts there are at most.
const PARTS_MAX: usize = 16;
/// A part has room for so many claims at least, unless it is the only one. Ids are spread evenly, so no part fills up much
/// earlier than another.
const PART_MIN: usize = 4_096;

/// Claims in this process's memory. Clones share them.
///
/// A claim takes 100 to 250 bytes, and its result. Memory is taken as claims are added.
///
/// What an [`Event`](crate::Event) holds is hashed in a quicker way here than by [`Content`](crate::inbox::Content): of an
/// event that was claimed as such, and comes again under a key that was given a `Content`, it is not known whether it is
/// another one.
#[derive(Clone, Debug)]
pub struct MemoryClaims {
    parts: Arc<[Mutex<Part>]>,
    hasher: DefaultHashBuilder,
}

impl MemoryClaims {
    /// Room for so many claims: for many more than are worked on at once, which with batches are as many as a batch has, times
    /// the workers. When it is full, the one that was completed or given up first is forgotten, or one whose
    /// lease ran out; claiming fails with [`InboxError::Full`] while all of them are being worked on.
    pub fn new(capacity: usize) -> Self {
        let parts = (capacity / PART_MIN).clamp(1, PARTS_MAX);
        let part = |number: usize| Mutex::new(Part::new(capacity / parts + usize::from(number < capacity % parts)));
        Self { parts: (0..parts).map(part).collect(), hasher: DefaultHashBuilder::default() }
    }

    /// The part of this event.
    fn part(&self, event_id: Uuid) -> MutexGuard<'_, Part> {
        self.lock(self.number(event_id))
    }

    fn number(&self, event_id: Uuid) -> usize {
        // Hashed, for ids may be alike for the most part, as those of version 1 are.
        self.hasher.hash_one(event_id) as usize % self.parts.len()
    }

    fn lock(&self, number: usize) -> MutexGuard<'_, Part> {
        self.parts[number].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn content(&self, key: &EventKey<'_>) -> Option<Fingerprint> {
        key.held().and_then(|held| Fingerprint::of(held, &self.hasher))
    }

    /// The numbers of these events' parts, and at which places among them the events of each are, in order.
    fn by_part(&self, event_ids: impl Iterator<Item = Uuid>) -> impl Iterator<Item = (usize, Vec<usize>)> {
        let mut places: Vec<Vec<usize>> = vec![Vec::new(); self.parts.len()];
        event_ids.enumerate().for_each(|(at, id)| places[self.number(id)].push(at));
        places.into_iter().enumerate().filter(|(_, places)| !places.is_empty())
    }
}

impl Claims for MemoryClaims {
    async fn claim(&self, consumer: &str, key: &EventKey<'_>, lease: Duration) -> Result<Claimed, InboxError> {
        // Before others are made to wait.
        let content = self.content(key);
        self.part(key.id()).claim(consumer, key, content, lease)
    }

    async fn extend(&self, claim: &Claim, lease: Duration) -> Result<Hold, InboxError> {
        Ok(self.part(claim.event_id).extend(claim, lease))
    }

    async fn complete(&self, claim: &Claim, result: &[u8]) -> Result<Hold, InboxError> {
        Ok(self.part(claim.event_id).complete(claim, result))
    }

    async fn claim_all(
        &self,
        consumer: &str,
        keys: &[EventKey<'_>],
        lease: Duration,
    ) -> Result<Vec<Claimed>, InboxError> {
        let mut claimed: Vec<Option<Claimed>> = vec![None; keys.len()];
        for (number, places) in self.by_part(keys.iter().map(EventKey::id)) {
            let places: Vec<_> = places.into_iter().map(|at| (at, self.content(&keys[at]))).collect();
            let filled = self.lock(number).claim_all(consumer, keys, &places, lease, &mut claimed);
            if let Err(full) = filled {
                give_back(self, claimed.into_iter().flatten().collect()).await;
                return Err(full);
            }
        }
        Ok(claimed.into_iter().flatten().collect())
    }

    async fn complete_all(&self, claims: &[Claim]) -> Result<Vec<Hold>, InboxError> {
        let mut holds = vec![Hold::Lost; claims.len()];
        for (number, places) in self.by_part(claims.iter().map(Claim::event_id)) {
            let mut part = self.lock(number);
            places.into_iter().for_each(|at| holds[at] = part.complete(&claims[at], b""));
        }
        Ok(holds)
    }

    /// Nothing: the oldest make room by themselves.
    async fn expire(&self, _: &str, _: Duration, _: i64) -> Result<u64, InboxError> {
        Ok(0)
    }

    async fn release(&self, claim: &Claim) -> Result<Hold, InboxError> {
        Ok(self.part(claim.event_id).release(claim))
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

    /// Otherwise what could not be claimed together would be in the way of being claimed singly.
    #[tokio::test]
    async fn what_cannot_be_claimed_together_is_given_back() {
        let (claims, lease) = (MemoryClaims::new(3), Duration::from_secs(60));
        let keys = [key(), key(), key(), key()];
        assert!(matches!(claims.claim_all("mailer", &keys, lease).await, Err(InboxError::Full(3))));
        for key in &keys {
            let claim = yours(&claims, key, lease).await;
            claims.complete(&claim, b"").await.expect("memory does not fail");
        }
    }
}
