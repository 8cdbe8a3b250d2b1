//! The header that numbers the events of a key without a gap, in topics that were asked to have it.
//!
//! Invariant: numbers of one epoch, namespace, topic and key begin at 1 and leave none out. They are good for telling that
//! something is missing or comes again, and deliberately no ground for dropping an event: a restore begins a new epoch.

/// Name of the header. No free header may be named so.
pub const SEQUENCE: &str = "outbox-sequence";

/// An event's place in the sequence of its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sequence<'a> {
    /// What the number belongs to: numbers of two epochs say nothing of each other. The later one is greater.
    pub epoch: u64,
    /// Counted from 1 in each epoch.
    pub number: u64,
    /// The event's namespace.
    pub namespace: &'a str,
}

impl<'a> Sequence<'a> {
    /// Reads the header's value: epoch, number and namespace, parted by `/`.
    pub fn parse(value: &'a str) -> Option<Self> {
        let mut parts = value.splitn(3, '/');
        let (epoch, number) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        Some(Self { epoch, number, namespace: parts.next()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sequence_is_read_whatever_its_namespace_is_called() {
        let read = Sequence::parse("1764000000000/42/a/b").expect("it is one");
        assert_eq!(read, Sequence { epoch: 1_764_000_000_000, number: 42, namespace: "a/b" });
        for wrong in ["", "1", "1/2", "1/x/default", "-1/2/default"] {
            assert_eq!(Sequence::parse(wrong), None, "{wrong}");
        }
    }
}
