//! What an event held, as a claim in memory keeps it.
//!
//! Invariant: two are told to differ only if their events do. It deliberately is of one store: others draw other hashes.

use std::{
    hash::{BuildHasher, Hasher as _},
    num::NonZero,
};

use crate::inbox::{Content, Held};

/// A hash whose last bit tells how it was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fingerprint(NonZero<u64>);

impl Fingerprint {
    /// That of parts may come out as zero, one in 2^63, and counts as unknown.
    pub(super) fn of(held: Held<'_>, hasher: &impl BuildHasher) -> Option<Self> {
        match held {
            Held::Hashed(content) => Some(Self::of_content(content)),
            Held::Parts(parts) => {
                let mut hash = hasher.build_hasher();
                for part in parts {
                    hash.write_usize(part.len());
                    hash.write(part);
                }
                NonZero::new(hash.finish() & !1).map(Self)
            }
        }
    }

    fn of_content(content: Content) -> Self {
        Self(NonZero::<u64>::MIN | content.number().cast_unsigned())
    }

    /// Whether this is known to be of another event than one that holds this, of which `given` is the hash.
    pub(super) fn differs(self, held: Option<Held<'_>>, given: Option<Self>) -> bool {
        match (held, given) {
            (Some(Held::Parts(parts)), _) if self.is_of_content() => self != Self::of_content(Content::of(parts)),
            (_, Some(given)) => self.is_of_content() == given.is_of_content() && self != given,
            (_, None) => false,
        }
    }

    fn is_of_content(self) -> bool {
        self.0.get() & 1 == 1
    }
}
