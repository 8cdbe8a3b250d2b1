//! Copies of what Kafka's client has read.
//!
//! Invariant: records are in the order in which they were read, and only small ones share a piece. It deliberately knows
//! no partitions: those whose records go into one lane are read together.

use std::sync::Arc;

use rdkafka::{Message, message::Headers};

use super::{
    Record,
    piece::{Body, Layout, PIECE_BYTES, Piece, Pieces},
    size,
};

/// Copies of records of one topic, in the order in which they were made.
pub(crate) struct Copies<'p> {
    topic: &'p Arc<str>,
    pieces: &'p mut Pieces,
    piece: Option<Piece>,
    /// The records in the piece.
    layouts: Vec<Layout>,
    /// Those whose piece is full.
    records: Vec<Record>,
}

impl<'p> Copies<'p> {
    pub(crate) fn new(topic: &'p Arc<str>, pieces: &'p mut Pieces) -> Self {
        Self { topic, pieces, piece: None, layouts: Vec::new(), records: Vec::new() }
    }

    /// Copies a record; says what it counts as against a lane's bound.
    pub(crate) fn add(&mut self, record: &impl Message) -> usize {
        let (key, payload) = (record.key(), record.payload());
        let (partition, offset, timestamp) = (record.partition(), record.offset(), record.timestamp().to_millis());
        let body = Body { partition, offset, timestamp, key, payload };
        if !self.layouts.is_empty() && self.piece().len() + body.len() > PIECE_BYTES {
            self.seal();
        }
        let before = self.piece().extent();
        let mut layout = self.put(&body, record);
        // Only now is it known how long its headers are.
        if !self.layouts.is_empty() && self.piece().len() > PIECE_BYTES {
            self.piece().truncate(before);
            self.seal();
            layout = self.put(&body, record);
        }
        self.layouts.push(layout);
        size(key, payload)
    }

    fn piece(&mut self) -> &mut Piece {
        self.piece.get_or_insert_with(|| self.pieces.take(self.topic))
    }

    fn put(&mut self, body: &Body<'_>, record: &impl Message) -> Layout {
        let headers = record.headers();
        let count = headers.map_or(0, Headers::count);
        let headers = headers.into_iter().flat_map(|headers| headers.iter());
        let piece = self.piece.get_or_insert_with(|| self.pieces.take(self.topic));
        piece.add(body, headers.map(|header| (header.key, header.value)), count, self.layouts.last())
    }

    /// The piece takes no more records.
    fn seal(&mut self) {
        let Some(piece) = self.piece.take() else { return };
        let piece = self.pieces.hand_out(piece);
        let records = self.layouts.drain(..).map(|layout| Record { piece: Arc::clone(&piece), layout });
        self.records.extend(records);
    }

    pub(crate) fn finish(mut self) -> Vec<Record> {
        self.seal();
        self.records
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::{
        Timestamp,
        message::{Header, OwnedHeaders, OwnedMessage},
    };

    use super::*;

    const AT: Timestamp = Timestamp::CreateTime(7);

    fn message(offset: i64, value: Vec<u8>, headers: &[(&str, Option<&[u8]>)]) -> OwnedMessage {
        let insert = |all: OwnedHeaders, (key, value): &(&str, Option<&[u8]>)| {
            let value = value.map(<[u8]>::to_vec);
            all.insert(Header { key, value: value.as_ref() })
        };
        let headers = headers.iter().fold(OwnedHeaders::new(), insert);
        OwnedMessage::new(Some(value), Some(b"".into()), "t".into(), AT, 3, offset, Some(headers))
    }

    #[test]
    fn copies_hold_what_the_records_held() {
        const HEADERS: [(&str, Option<&[u8]>); 3] = [("a", Some(b"\xff")), ("", Some(b"")), ("null", None)];
        let (topic, mut pieces) = ("t".into(), Pieces::default());
        let others: [(&str, Option<&[u8]>); 2] = [("a", None), ("other", Some(b"x"))];
        let mut copies = Copies::new(&topic, &mut pieces);
        assert_eq!(copies.add(&message(9, b"value".into(), &HEADERS)), 261);
        copies.add(&message(10, b"second".into(), &others));
        copies.add(&OwnedMessage::new(None, None, "t".into(), AT, 3, 11, None));
        copies.add(&message(12, b"fourth".into(), &HEADERS));
        let [first, second, empty, fourth] = copies.finish().try_into().expect("as many as were added");

        assert_eq!((first.topic(), first.partition(), first.offset(), first.timestamp()), ("t", 3, 9, Some(7)));
        assert_eq!(
            (first.key(), first.payload(), first.size()),
            (Some(b"".as_slice()), Some(b"value".as_slice()), 261)
        );
        assert_eq!(first.headers().collect::<Vec<_>>(), HEADERS);
        assert_eq!((second.offset(), second.payload()), (10, Some(b"second".as_slice())));
        assert_eq!(second.headers().collect::<Vec<_>>(), others);
        assert_eq!((empty.offset(), empty.key(), empty.payload(), empty.headers().len()), (11, None, None, 0));
        assert_eq!((fourth.offset(), fourth.payload()), (12, Some(b"fourth".as_slice())));
        assert_eq!(fourth.headers().collect::<Vec<_>>(), HEADERS);
        assert!(Arc::ptr_eq(&first.piece, &fourth.piece), "small records share a piece of memory");

        let (name, value) = second.headers().nth(1).expect("it has two");
        assert_eq!((second.name(second.name_span(name)), value.map(|v| second.part(second.span(v)))), others[1]);
    }

    /// Whoever keeps a small record keeps no more than a piece.
    #[test]
    fn a_large_record_has_a_piece_of_its_own() {
        let (topic, mut pieces) = ("t".into(), Pieces::default());
        let header = vec![7; PIECE_BYTES];
        let mut copies = Copies::new(&topic, &mut pieces);
        for (offset, length) in [(0, 10), (1, PIECE_BYTES), (2, 10), (3, PIECE_BYTES / 2), (4, PIECE_BYTES / 2)] {
            copies.add(&message(offset, vec![0; length], &[("a", Some(b"b"))]));
        }
        copies.add(&message(5, vec![1; 10], &[("large", Some(&header))]));
        copies.add(&message(6, vec![2; 10], &[("a", Some(b"b"))]));
        let records = copies.finish();
        assert!(records.iter().map(Record::offset).eq(0..7), "in order");
        let small = |record: &&Record| record.offset() != 5;
        assert!(records.iter().filter(small).all(|record| record.headers().eq([("a", Some(b"b".as_slice()))])));
        assert!(records[5].headers().eq([("large", Some(header.as_slice()))]));
        assert_eq!((records[5].payload(), records[6].payload()), (Some([1; 10].as_slice()), Some([2; 10].as_slice())));
        let shared: Vec<bool> = records.windows(2).map(|pair| Arc::ptr_eq(&pair[0].piece, &pair[1].piece)).collect();
        assert_eq!(shared, [false, false, true, false, false, false]);
    }

    /// Records of so many bytes, which have different values.
    fn read(pieces: &mut Pieces, offsets: std::ops::Range<i64>, length: usize) -> Vec<Record> {
        let topic = "t".into();
        let mut copies = Copies::new(&topic, pieces);
        for offset in offsets {
            copies.add(&message(offset, vec![offset as u8; length], &[("a", Some(b"b"))]));
        }
        copies.finish()
    }

    #[test]
    fn a_piece_is_filled_again_once_no_record_needs_it() {
        let mut pieces = Pieces::default();
        let place = |record: &Record| record.payload().map(<[u8]>::as_ptr);
        let mut first = read(&mut pieces, 0..100, 1_000);
        let (kept, before) = (first.swap_remove(50), first.iter().map(place).collect::<Vec<_>>());
        drop(first);
        let second = read(&mut pieces, 100..200, 1_000);
        assert!(second.iter().filter(|record| before.contains(&place(record))).count() >= 80, "memory is used again");
        assert!(second.iter().zip(100..).all(|(record, n)| record.payload() == Some([n as u8; 1_000].as_slice())));
        let third = read(&mut pieces, 200..300, 1_000);
        assert_eq!((kept.offset(), kept.payload()), (50, Some([50; 1_000].as_slice())), "it is as it was");
        assert!(second.iter().zip(100..).all(|(record, n)| record.payload() == Some([n as u8; 1_000].as_slice())));
        assert!(third.iter().zip(200..).all(|(record, n)| record.payload() == Some([n as u8; 1_000].as_slice())));
    }

    #[test]
    fn few_pieces_are_kept_and_none_that_is_large() {
        let mut pieces = Pieces::default();
        drop(read(&mut pieces, 0..10, 3 * PIECE_BYTES));
        assert_eq!(pieces.kept(), 0);
        let many = read(&mut pieces, 0..1_000, PIECE_BYTES - 100);
        assert!(pieces.kept() < many.len(), "{}", pieces.kept());
        let kept = pieces.kept();
        drop(many);
        drop(read(&mut pieces, 0..10, PIECE_BYTES - 100));
        assert_eq!(pieces.kept(), kept, "those that are used again are no more");
    }
}
