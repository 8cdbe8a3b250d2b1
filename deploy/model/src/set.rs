//! Sets of events and of keys, small enough to be part of a state.

/// A set of numbers below 8.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Set(u8);

impl Set {
    /// Is it in the set?
    pub fn has(self, number: u8) -> bool {
        self.0 & (1 << number) != 0
    }

    /// The set with one more.
    #[must_use]
    pub fn with(self, number: u8) -> Self {
        Self(self.0 | (1 << number))
    }

    /// The set with one less.
    #[must_use]
    pub fn without(self, number: u8) -> Self {
        Self(self.0 & !(1 << number))
    }

    /// Whatever is in either.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Is nothing in it?
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Is all of `other` in it?
    pub fn covers(self, other: Self) -> bool {
        other.0 & !self.0 == 0
    }

    /// Its numbers, from the lowest.
    pub fn iter(self) -> impl Iterator<Item = u8> {
        (0..8).filter(move |number| self.has(*number))
    }
}

impl FromIterator<u8> for Set {
    fn from_iter<I: IntoIterator<Item = u8>>(numbers: I) -> Self {
        numbers.into_iter().fold(Self::default(), Self::with)
    }
}
