//! What an event is deduplicated by.
//!
//! Invariant: what is stored of a key is narrow whatever it was made of, for there is one per event. It deliberately
//! does not hold the consumer's name: that is the scope in which the key is looked up.

use std::fmt;

use chrono::{DateTime, Utc};
use sha2::{Digest as _, Sha256};
use uuid::{Uuid, Variant, Version};

/// An event's identity within one consumer: its source and its id; and, so that another event under the same identity
/// is noticed, what it held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventKey<'a> {
    source: &'a str,
    id: Uuid,
    held: Option<Held<'a>>,
    time: Option<DateTime<Utc>>,
}

/// What an event holds: the hash of it, or what that is to be made of, for not every store needs it.
#[derive(Clone, Copy)]
pub(crate) enum Held<'a> {
    Hashed(Content),
    Parts([&'a [u8]; 4]),
}

/// A short hash of what an event held: the first eight bytes of a SHA-256.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Content(i64);

impl<'a> EventKey<'a> {
    /// The key of an event whose id is a UUID.
    pub fn new(source: &'a str, id: Uuid) -> Self {
        Self { source, id, held: None, time: None }
    }

    /// The key of an event whose id is any text, such as a webhook's delivery id. The text's SHA-256 stands for it.
    ///
    /// ```
    /// use outbox_sdk::EventKey;
    ///
    /// assert_eq!(EventKey::named("stripe", "evt_1"), EventKey::named("stripe", "evt_1"));
    /// assert_ne!(EventKey::named("stripe", "evt_1"), EventKey::named("stripe", "evt_2"));
    /// ```
    pub fn named(source: &'a str, id: &str) -> Self {
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&Sha256::digest(id.as_bytes())[..16]);
        // RFC 9562, section 5.8: version 8 is for UUIDs made in a way of one's own.
        let uuid = uuid::Builder::from_bytes(bytes).with_variant(Variant::RFC4122).with_version(Version::Custom);
        Self::new(source, uuid.into_uuid())
    }

    /// Adds what the event holds.
    #[must_use]
    pub fn holding(self, content: Content) -> Self {
        Self { held: Some(Held::Hashed(content)), ..self }
    }

    /// As [`holding`](Self::holding) does, what these parts are hashed to.
    pub(crate) fn holding_parts(self, parts: [&'a [u8]; 4]) -> Self {
        Self { held: Some(Held::Parts(parts)), ..self }
    }

    /// Adds when the event happened, by its own time: stores that forget by it know what they may have forgotten.
    #[must_use]
    pub fn at(self, time: DateTime<Utc>) -> Self {
        Self { time: Some(time), ..self }
    }

    /// Who made the event.
    pub fn source(&self) -> &'a str {
        self.source
    }

    /// The event's id, or what stands for it.
    pub fn id(&self) -> Uuid {
        self.id
    }

    /// What the event holds, if that is known. That of an [`Event`](crate::Event) is hashed each time.
    pub fn content(&self) -> Option<Content> {
        self.held.map(Held::content)
    }

    pub(crate) fn held(&self) -> Option<Held<'a>> {
        self.held
    }

    /// When the event happened, if that is known.
    pub fn time(&self) -> Option<DateTime<Utc>> {
        self.time
    }
}

impl Held<'_> {
    fn content(self) -> Content {
        match self {
            Self::Hashed(content) => content,
            Self::Parts(parts) => Content::of(parts),
        }
    }
}

impl PartialEq for Held<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.content() == other.content()
    }
}

impl Eq for Held<'_> {}

/// Payloads are nothing to be printed.
impl fmt::Debug for Held<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.content().fmt(f)
    }
}

impl Content {
    /// The hash of these parts, in this order; where one ends and the next begins counts.
    pub fn of<'p>(parts: impl IntoIterator<Item = &'p [u8]>) -> Self {
        let mut hash = Sha256::new();
        for part in parts {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        let mut first = [0; 8];
        first.copy_from_slice(&hash.finalize()[..8]);
        Self(i64::from_be_bytes(first))
    }

    /// The number that stores keep.
    pub fn number(self) -> i64 {
        self.0
    }

    /// Whether this is known to differ from what a store holds; what was stored without it cannot be told apart.
    pub(crate) fn differs(given: Option<Self>, stored: Option<i64>) -> bool {
        matches!((given, stored), (Some(given), Some(stored)) if given.0 != stored)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_bytes_cut_elsewhere_are_other_content() {
        assert_eq!(Content::of([b"ab".as_slice(), b"c"]), Content::of([b"ab".as_slice(), b"c"]));
        assert_ne!(Content::of([b"ab".as_slice(), b"c"]), Content::of([b"a".as_slice(), b"bc"]));
    }

    #[test]
    fn what_is_hashed_later_is_the_same_content() {
        let parts = [b"user.activated".as_slice(), b"7", &[1], b"payload"];
        let bare = EventKey::new("/shop", Uuid::now_v7());
        let (now, later) = (bare.holding(Content::of(parts)), bare.holding_parts(parts));
        assert_eq!((now, now.content()), (later, later.content()));
        assert_ne!(later, bare.holding_parts([b"user.activated", b"8", &[1], b"payload"]));
        assert!(!format!("{later:?}").contains(&format!("{:?}", b"payload")), "payloads are not printed");
    }

    #[test]
    fn content_differs_only_where_both_sides_know_it() {
        let content = Content::of([b"a".as_slice()]);
        assert!(Content::differs(Some(content), Some(content.number() ^ 1)));
        assert!(!Content::differs(Some(content), Some(content.number())));
        assert!(!Content::differs(None, Some(1)) && !Content::differs(Some(content), None));
    }
}
