//! Where a batch of events went in Kafka, packed: a few bytes an event.
//!
//! Format, after a version byte, per event in order of position: varints of the distance to the position before, of
//! the topic's index, of the partition, and of the zigzag distance to the offset before of the same topic and
//! partition. It deliberately holds no ids: an event's position finds it.

use std::collections::HashMap;

const VERSION: u8 = 1;

/// Where one event is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivered {
    /// Its place in the order of its lane.
    pub position: i64,
    /// Topic.
    pub topic: String,
    /// Partition of the topic.
    pub partition: i32,
    /// Offset in the partition.
    pub offset: i64,
}

/// Events that were settled together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// The lowest and the highest position.
    pub positions: (i64, i64),
    /// How many events.
    pub events: i32,
    /// The topics' names, each once.
    pub topics: Vec<String>,
    /// The rest.
    pub places: Vec<u8>,
}

/// The bytes are not those of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the places of a delivery cannot be read")]
pub struct Unreadable;

/// Collects the events of a batch.
#[derive(Default)]
pub struct Packer {
    events: Vec<(i64, u64, i32, i64)>,
    topics: Vec<String>,
}

impl Packer {
    /// Adds an event, in any order.
    pub fn add(&mut self, position: i64, topic: &str, partition: i32, offset: i64) {
        // Few topics; the last one is the likeliest.
        let known = self.topics.iter().rposition(|known| known == topic);
        let topic = known.unwrap_or_else(|| {
            self.topics.push(topic.to_owned());
            self.topics.len() - 1
        });
        self.events.push((position, topic as u64, partition, offset));
    }

    /// The batch; `None` when it has no events.
    pub fn pack(mut self) -> Option<Batch> {
        self.events.sort_unstable();
        let positions = (self.events.first()?.0, self.events.last()?.0);
        let mut places = Vec::with_capacity(1 + self.events.len() * 6);
        places.push(VERSION);
        let (mut before, mut offsets) = (0, HashMap::new());
        for (position, topic, partition, offset) in &self.events {
            let last: &mut i64 = offsets.entry((*topic, *partition)).or_default();
            put(&mut places, (*position).wrapping_sub(before).cast_unsigned());
            put(&mut places, *topic);
            put(&mut places, u64::from(partition.cast_unsigned()));
            put(&mut places, zigzag(offset.wrapping_sub(*last)));
            (before, *last) = (*position, *offset);
        }
        let events = i32::try_from(self.events.len()).unwrap_or(i32::MAX);
        Some(Batch { positions, events, topics: self.topics, places })
    }
}

impl Batch {
    /// Where the event with this position is; `None` when it is not in this batch.
    ///
    /// # Errors
    /// [`Unreadable`].
    pub fn find(&self, position: i64) -> Result<Option<Delivered>, Unreadable> {
        let Some((VERSION, mut rest)) = self.places.split_first().map(|(version, rest)| (*version, rest)) else {
            return Err(Unreadable);
        };
        let (mut at, mut offsets) = (0_i64, HashMap::new());
        while !rest.is_empty() && at < position {
            at = at.wrapping_add(take(&mut rest)?.cast_signed());
            let topic = usize::try_from(take(&mut rest)?).map_err(|_| Unreadable)?;
            let partition = i32::try_from(take(&mut rest)?).map_err(|_| Unreadable)?;
            let last: &mut i64 = offsets.entry((topic, partition)).or_default();
            *last = last.wrapping_add(unzigzag(take(&mut rest)?));
            if at == position {
                let topic = self.topics.get(topic).ok_or(Unreadable)?.clone();
                return Ok(Some(Delivered { position, topic, partition, offset: *last }));
            }
        }
        Ok(None)
    }
}

/// Seven bits a byte, the lowest first; the eighth says that more follow.
fn put(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

fn take(bytes: &mut &[u8]) -> Result<u64, Unreadable> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first().ok_or(Unreadable)?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(Unreadable)
}

fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)).cast_unsigned()
}

fn unzigzag(value: u64) -> i64 {
    (value >> 1).cast_signed() ^ -(value & 1).cast_signed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_event_of_a_batch_is_found_where_it_went() {
        let events = [
            (7, "a", 0, 100),
            (9, "b", 3, 0),
            (8, "a", 0, 99),
            (1_000_000_000_000, "a", 1, i64::MAX),
            (10, "a", i32::MAX, 5),
        ];
        let mut packer = Packer::default();
        for (position, topic, partition, offset) in events {
            packer.add(position, topic, partition, offset);
        }
        let batch = packer.pack().expect("it has events");

        assert_eq!((batch.positions, batch.events), ((7, 1_000_000_000_000), 5));
        for (position, topic, partition, offset) in events {
            let topic = topic.to_owned();
            assert_eq!(batch.find(position), Ok(Some(Delivered { position, topic, partition, offset })));
        }
        for absent in [0, 6, 11, i64::MAX] {
            assert_eq!(batch.find(absent), Ok(None), "{absent}");
        }
    }

    #[test]
    fn an_event_of_a_full_batch_takes_a_few_bytes() {
        let mut packer = Packer::default();
        for n in 0..2_500 {
            packer.add(5_000_000 + n * 2, "orders", i32::try_from(n % 12).expect("small"), 1_000_000 + n / 12);
        }
        let batch = packer.pack().expect("it has events");
        assert!(batch.places.len() < 2_500 * 5, "{} bytes", batch.places.len());
    }

    #[test]
    fn bytes_of_another_form_are_refused() {
        let whole = Batch { topics: vec!["a".into()], places: vec![VERSION, 7, 0, 0, 2], ..Batch::default() };
        assert_eq!(whole.find(7).map(|found| found.map(|d| d.offset)), Ok(Some(1)));
        for places in [vec![], vec![9, 7, 0, 0, 2], vec![VERSION, 7, 0], vec![VERSION, 7, 5, 0, 2], vec![VERSION; 12]] {
            let batch = Batch { places: places.clone(), ..whole.clone() };
            assert_eq!(batch.find(7), Err(Unreadable), "{places:?}");
        }
        assert_eq!(Packer::default().pack(), None, "no batch without events");
    }
}
