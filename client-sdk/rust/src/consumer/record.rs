//! Kafka records that outlive the client's buffers.
//!
//! Invariant: what is here is what the record held, byte for byte. Small records that are read together share one piece of
//! memory, for a consumer that is quick would spend most of its time on getting memory in one thread and giving it back in
//! another; what others find in there is kept as a [`Span`]. A piece lives as long as any of its records, so it is small,
//! [`PIECE_BYTES`] or so, and a large record has one of its own.
//!
//! It deliberately does not interpret anything: `event` does.

use std::{ops::Range, sync::Arc};

use rdkafka::{Message, message::Headers};

/// How much records may take that share a piece of memory.
const PIECE_BYTES: usize = 16 << 10;
/// What the value of a header usually takes.
const HEADER_BYTES: usize = 32;

/// Where something lies in a record's piece of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    start: u32,
    end: u32,
}

impl Span {
    fn range(self) -> Range<usize> {
        self.start as usize..self.end as usize
    }

    /// That of `part` bytes which follow the first `within`. Kafka keeps a record below 2 GiB.
    #[allow(clippy::cast_possible_truncation, reason = "see above")]
    fn behind(within: usize, part: usize) -> Self {
        Self { start: within as u32, end: (within + part) as u32 }
    }

    /// Where `part` lies in `within`, of which it is a part.
    #[allow(clippy::cast_possible_truncation, reason = "a part is no longer than the whole")]
    fn of(part: &[u8], within: &[u8]) -> Self {
        let start = part.as_ptr().addr().wrapping_sub(within.as_ptr().addr());
        debug_assert!(start <= within.len() && part.len() <= within.len() - start, "it is a part of this record");
        Self { start: start as u32, end: (start + part.len()) as u32 }
    }
}

/// Where a record was read from.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) topic: Arc<str>,
    pub(crate) partition: i32,
    pub(crate) offset: i64,
}

/// A record. Moving it is cheap.
#[derive(Debug)]
pub(crate) struct Record {
    piece: Arc<Piece>,
    layout: Layout,
}

/// A piece of memory with records of one topic.
#[derive(Debug)]
struct Piece {
    topic: Arc<str>,
    /// Keys, payloads, and values of headers.
    bytes: Vec<u8>,
    /// Names of headers. Records that follow each other mostly have the same ones, and share them.
    names: String,
    headers: Vec<Header>,
}

/// How much of a piece is taken.
#[derive(Clone, Copy)]
struct Extent {
    bytes: usize,
    names: usize,
    headers: usize,
}

#[derive(Clone, Copy, Debug)]
struct Header {
    /// In the names.
    name: Span,
    /// In the bytes.
    value: Option<Span>,
}

/// Where a record was read from, and lies in its piece of memory.
#[derive(Debug)]
struct Layout {
    partition: i32,
    offset: i64,
    /// Milliseconds since 1970.
    timestamp: Option<i64>,
    key: Option<Span>,
    payload: Option<Span>,
    /// Its headers among those of the piece.
    headers: Range<usize>,
}

/// What a record holds besides its headers.
struct Body<'a> {
    partition: i32,
    offset: i64,
    timestamp: Option<i64>,
    key: Option<&'a [u8]>,
    payload: Option<&'a [u8]>,
}

impl Body<'_> {
    fn len(&self) -> usize {
        self.key.map_or(0, <[u8]>::len) + self.payload.map_or(0, <[u8]>::len)
    }
}

impl Piece {
    fn new(topic: Arc<str>) -> Self {
        Self { topic, bytes: Vec::new(), names: String::new(), headers: Vec::new() }
    }

    /// An empty one with room for what is in this one: the next records are mostly like those before.
    fn like(&self) -> Self {
        let bytes = Vec::with_capacity(self.bytes.len().min(PIECE_BYTES));
        let names = String::with_capacity(self.names.len().min(PIECE_BYTES));
        let headers = Vec::with_capacity(self.headers.len().min(PIECE_BYTES / HEADER_BYTES));
        Self { topic: Arc::clone(&self.topic), bytes, names, headers }
    }

    fn len(&self) -> usize {
        self.bytes.len() + self.names.len()
    }

    fn extent(&self) -> Extent {
        Extent { bytes: self.bytes.len(), names: self.names.len(), headers: self.headers.len() }
    }

    /// Takes out what was put in since.
    fn truncate(&mut self, to: Extent) {
        self.bytes.truncate(to.bytes);
        self.names.truncate(to.names);
        self.headers.truncate(to.headers);
    }

    /// Copies a record behind the others, of which `before` is the last. `count` is how many headers to expect.
    fn add<'a>(
        &mut self,
        body: &Body<'_>,
        headers: impl Iterator<Item = (&'a str, Option<&'a [u8]>)>,
        count: usize,
        before: Option<&Layout>,
    ) -> Layout {
        self.make_room(body.len() + count * HEADER_BYTES);
        self.headers.reserve(count);
        let key = body.key.map(|key| self.append(key));
        let payload = body.payload.map(|payload| self.append(payload));
        let first = self.headers.len();
        let mut before = before.map_or(0..0, |before| before.headers.clone());
        for (name, value) in headers {
            let like = before.next().and_then(|at| self.headers.get(at)).map(|header| header.name);
            let name = like.filter(|like| self.name(*like) == name).unwrap_or_else(|| self.append_name(name));
            let value = value.map(|value| self.append(value));
            self.headers.push(Header { name, value });
        }
        let Body { partition, offset, timestamp, .. } = *body;
        Layout { partition, offset, timestamp, key, payload, headers: first..self.headers.len() }
    }

    /// Room for so many bytes. Behind a large record not twice as much is taken as is needed.
    fn make_room(&mut self, bytes: usize) {
        let length = self.bytes.len();
        if length + bytes <= PIECE_BYTES {
            self.bytes.reserve(bytes);
        } else if self.bytes.capacity() - length < bytes {
            self.bytes.reserve_exact(bytes.max(length / 8));
        }
    }

    fn append(&mut self, part: &[u8]) -> Span {
        let span = Span::behind(self.bytes.len(), part.len());
        self.make_room(part.len());
        self.bytes.extend_from_slice(part);
        span
    }

    fn append_name(&mut self, name: &str) -> Span {
        let span = Span::behind(self.names.len(), name.len());
        self.names.push_str(name);
        span
    }

    fn name(&self, span: Span) -> &str {
        self.names.get(span.range()).unwrap_or_default()
    }
}

/// Copies of records of one topic, in the order in which they were made.
pub(crate) struct Copies {
    piece: Piece,
    /// The records in the piece.
    layouts: Vec<Layout>,
    /// Those whose piece is full.
    records: Vec<Record>,
}

impl Copies {
    pub(crate) fn new(topic: Arc<str>) -> Self {
        Self { piece: Piece::new(topic), layouts: Vec::new(), records: Vec::new() }
    }

    /// Copies a record; says what it counts as against a lane's bound.
    pub(crate) fn add(&mut self, record: &impl Message) -> usize {
        let (key, payload) = (record.key(), record.payload());
        let (partition, offset, timestamp) = (record.partition(), record.offset(), record.timestamp().to_millis());
        let body = Body { partition, offset, timestamp, key, payload };
        if !self.layouts.is_empty() && self.piece.len() + body.len() > PIECE_BYTES {
            self.seal(self.piece.like());
        }
        let before = self.piece.extent();
        let mut layout = self.put(&body, record);
        // Only now is it known how long its headers are.
        if !self.layouts.is_empty() && self.piece.len() > PIECE_BYTES {
            self.piece.truncate(before);
            self.seal(self.piece.like());
            layout = self.put(&body, record);
        }
        self.layouts.push(layout);
        size(key, payload)
    }

    fn put(&mut self, body: &Body<'_>, record: &impl Message) -> Layout {
        let headers = record.headers();
        let count = headers.map_or(0, Headers::count);
        let headers = headers.into_iter().flat_map(|headers| headers.iter());
        self.piece.add(body, headers.map(|header| (header.key, header.value)), count, self.layouts.last())
    }

    /// The piece takes no more records; `next` does.
    fn seal(&mut self, next: Piece) {
        let piece = Arc::new(std::mem::replace(&mut self.piece, next));
        let records = self.layouts.drain(..).map(|layout| Record { piece: Arc::clone(&piece), layout });
        self.records.extend(records);
    }

    pub(crate) fn finish(mut self) -> Vec<Record> {
        if !self.layouts.is_empty() {
            self.seal(Piece::new(Arc::clone(&self.piece.topic)));
        }
        self.records
    }
}

impl Record {
    /// One in a piece of memory of its own.
    pub(crate) fn new<'a>(
        place: Place,
        timestamp: Option<i64>,
        key: Option<&[u8]>,
        payload: Option<&[u8]>,
        headers: impl IntoIterator<Item = (&'a str, Option<&'a [u8]>)>,
    ) -> Self {
        let mut piece = Piece::new(place.topic);
        let body = Body { partition: place.partition, offset: place.offset, timestamp, key, payload };
        let layout = piece.add(&body, headers.into_iter(), 0, None);
        Self { piece: Arc::new(piece), layout }
    }

    pub(crate) fn place(&self) -> Place {
        Place { topic: Arc::clone(&self.piece.topic), partition: self.partition(), offset: self.offset() }
    }

    pub(crate) fn topic(&self) -> &str {
        &self.piece.topic
    }

    pub(crate) fn partition(&self) -> i32 {
        self.layout.partition
    }

    pub(crate) fn offset(&self) -> i64 {
        self.layout.offset
    }

    /// Milliseconds since 1970, by its producer's or its broker's clock.
    pub(crate) fn timestamp(&self) -> Option<i64> {
        self.layout.timestamp
    }

    pub(crate) fn key(&self) -> Option<&[u8]> {
        self.layout.key.map(|span| self.part(span))
    }

    pub(crate) fn payload(&self) -> Option<&[u8]> {
        self.layout.payload.map(|span| self.part(span))
    }

    /// Name and value of each header, in order.
    pub(crate) fn headers(&self) -> impl ExactSizeIterator<Item = (&str, Option<&[u8]>)> {
        let headers = self.piece.headers.get(self.layout.headers.clone()).unwrap_or_default();
        headers.iter().map(|header| (self.name(header.name), header.value.map(|value| self.part(value))))
    }

    /// What it counts as against a lane's bound.
    pub(crate) fn size(&self) -> usize {
        size(self.key(), self.payload())
    }

    /// Where a key, a payload or a header's value lies, or a part of one.
    pub(crate) fn span(&self, part: &[u8]) -> Span {
        Span::of(part, &self.piece.bytes)
    }

    pub(crate) fn part(&self, span: Span) -> &[u8] {
        self.piece.bytes.get(span.range()).unwrap_or_default()
    }

    /// A part that was given as text.
    pub(crate) fn text(&self, span: Span) -> &str {
        std::str::from_utf8(self.part(span)).unwrap_or_default()
    }

    /// Where a header's name lies.
    pub(crate) fn name_span(&self, name: &str) -> Span {
        Span::of(name.as_bytes(), self.piece.names.as_bytes())
    }

    /// A header's name.
    pub(crate) fn name(&self, span: Span) -> &str {
        self.piece.name(span)
    }
}

/// Payload, key and a flat sum for the rest.
fn size(key: Option<&[u8]>, payload: Option<&[u8]>) -> usize {
    payload.map_or(0, <[u8]>::len) + key.map_or(0, <[u8]>::len) + 256
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
        let others: [(&str, Option<&[u8]>); 2] = [("a", None), ("other", Some(b"x"))];
        let mut copies = Copies::new("t".into());
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
        let header = vec![7; PIECE_BYTES];
        let mut copies = Copies::new("t".into());
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
}
