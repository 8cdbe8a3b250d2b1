//! Opens partitions: the first keyed record that a producer sends to one goes alone.
//!
//! A broker that knows nothing of a producer yet takes any sequence number from it (Kafka,
//! `ProducerAppendInfo.checkSequence`), so that a batch behind a rejected first one would be appended, and a record
//! would pass the one that it follows. Once a first record is acknowledged the broker refuses gaps. A broker forgets
//! producers that are idle for long (a day by default), so a partition is opened anew now and then.
//!
//! It deliberately does not place records: a wrong guess of the partition, after a topic has grown, only means that a
//! partition is opened by more than one record.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use super::publisher::Report;

/// How long a partition stays open; far below the broker's `producer.id.expiration.ms`.
const OPEN_FOR: Duration = Duration::from_secs(3_600);

/// The partitions of one producer.
#[derive(Default)]
pub(super) struct Openings {
    topics: HashMap<String, Vec<Door>>,
    /// The tokens of records that are opening a partition.
    opening: HashMap<usize, (String, usize)>,
}

#[derive(Clone, Copy)]
enum Door {
    Closed,
    Opening,
    Open(Instant),
}

impl Openings {
    /// Whether a record may be sent now. When it may and its partition is not open, it is the one that opens it, and
    /// must be sent.
    pub(super) fn admit(&mut self, topic: &str, partitions: usize, key: &[u8], token: usize) -> bool {
        if !self.topics.contains_key(topic) {
            self.topics.insert(topic.to_owned(), Vec::new());
        }
        let Some(doors) = self.topics.get_mut(topic) else { return true };
        doors.resize(partitions.max(1), Door::Closed);
        let partition = murmur2(key) as usize % doors.len();
        match doors[partition] {
            Door::Open(since) if since.elapsed() < OPEN_FOR => true,
            Door::Opening => false,
            Door::Closed | Door::Open(_) => {
                doors[partition] = Door::Opening;
                self.opening.insert(token, (topic.to_owned(), partition));
                true
            }
        }
    }

    /// Opens what acknowledged records have opened. A failed one opens nothing: it ends its producer.
    pub(super) fn take_note(&mut self, reports: &[Report]) {
        for report in reports {
            if self.opening.is_empty() {
                return;
            }
            if report.outcome.is_ok() {
                self.set(report.token, Door::Open(Instant::now()));
            }
        }
    }

    /// The record was not sent after all.
    pub(super) fn not_sent(&mut self, token: usize) {
        self.set(token, Door::Closed);
    }

    fn set(&mut self, token: usize, state: Door) {
        let Some((topic, partition)) = self.opening.remove(&token) else { return };
        if let Some(door) = self.topics.get_mut(&topic).and_then(|doors| doors.get_mut(partition)) {
            *door = state;
        }
    }
}

/// Kafka's hash of keys, positive (Kafka, `Utils.murmur2` and `Utils.toPositive`).
fn murmur2(key: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    let mut hash = 0x9747_b28c ^ u32::try_from(key.len()).unwrap_or(u32::MAX);
    let (words, rest) = key.as_chunks::<4>();
    for word in words {
        let mut k = u32::from_le_bytes(*word).wrapping_mul(M);
        k ^= k >> 24;
        hash = hash.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    for (place, byte) in rest.iter().enumerate().rev() {
        hash ^= u32::from(*byte) << (8 * place);
        if place == 0 {
            hash = hash.wrapping_mul(M);
        }
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    (hash ^ hash >> 15) & 0x7fff_ffff
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::publisher::Place;

    #[test]
    fn one_record_opens_a_partition_and_the_others_wait_for_it() {
        let mut openings = Openings::default();
        assert!(openings.admit("t", 1, b"a", 1));
        assert!(!openings.admit("t", 1, b"b", 2));
        assert!(openings.admit("other", 1, b"a", 3), "each topic by itself");
        let report = Report { token: 1, outcome: Ok(Place { partition: 0, offset: 0 }) };
        openings.take_note(&[report]);
        assert!(openings.admit("t", 1, b"b", 2));
        assert!(openings.admit("t", 1, b"b", 4));
    }

    #[test]
    fn a_record_that_was_not_sent_leaves_the_partition_closed() {
        let mut openings = Openings::default();
        assert!(openings.admit("t", 1, b"a", 1));
        openings.not_sent(1);
        assert!(openings.admit("t", 1, b"a", 1));
        assert!(!openings.admit("t", 1, b"a", 2));
    }

    /// The values of Kafka's own test of `Utils.murmur2`, made positive.
    #[test]
    fn keys_hash_as_javas_clients_hash_them() {
        let cases: [(&[u8], i32); 4] = [
            (b"21", -973_932_308),
            (b"foobar", -790_332_482),
            (b"a-little-bit-long-string", -985_981_536),
            (b"abc", 479_470_107),
        ];
        for (key, expected) in cases {
            assert_eq!(murmur2(key), expected.cast_unsigned() & 0x7fff_ffff, "{key:?}");
        }
    }
}
