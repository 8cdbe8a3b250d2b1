//! A Kafka record that outlives the client's buffers.
//!
//! Invariant: what is here is what the record held, byte for byte. All of it lies in one piece of memory, for a consumer
//! that is quick spends most of its time on copies; what others find in there is kept as a [`Span`].
//!
//! It deliberately does not interpret anything: `event` does.

use std::sync::Arc;

use rdkafka::{Message, message::Headers};

/// What a header usually takes, name and value.
const HEADER_BYTES: usize = 48;

/// Where something lies in a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    start: u32,
    end: u32,
}

/// Where a record was read from.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) topic: Arc<str>,
    pub(crate) partition: i32,
    pub(crate) offset: i64,
}

/// A record.
#[derive(Debug)]
pub(crate) struct Record {
    place: Place,
    /// Milliseconds since 1970.
    timestamp: Option<i64>,
    bytes: Vec<u8>,
    key: Option<Span>,
    payload: Option<Span>,
    headers: Vec<(Span, Option<Span>)>,
}

impl Record {
    /// One without headers so far, with room for so many.
    pub(crate) fn new(
        place: Place,
        timestamp: Option<i64>,
        key: Option<&[u8]>,
        payload: Option<&[u8]>,
        headers: usize,
    ) -> Self {
        let length = |part: Option<&[u8]>| part.map_or(0, <[u8]>::len);
        let bytes = Vec::with_capacity(length(key) + length(payload) + headers * HEADER_BYTES);
        let headers = Vec::with_capacity(headers);
        let mut record = Self { place, timestamp, bytes, key: None, payload: None, headers };
        record.key = key.map(|key| record.append(key));
        record.payload = payload.map(|payload| record.append(payload));
        record
    }

    /// Copies a record of this topic.
    pub(crate) fn copy(topic: Arc<str>, record: &impl Message) -> Self {
        let place = Place { topic, partition: record.partition(), offset: record.offset() };
        let (timestamp, headers) = (record.timestamp().to_millis(), record.headers());
        let count = headers.map_or(0, Headers::count);
        let mut copy = Self::new(place, timestamp, record.key(), record.payload(), count);
        for header in headers.into_iter().flat_map(|headers| headers.iter()) {
            copy.push_header(header.key, header.value);
        }
        copy
    }

    /// Adds a header behind the others.
    pub(crate) fn push_header(&mut self, name: &str, value: Option<&[u8]>) {
        let header = (self.append(name.as_bytes()), value.map(|value| self.append(value)));
        self.headers.push(header);
    }

    /// Kafka keeps a record below 2 GiB.
    #[allow(clippy::cast_possible_truncation, reason = "see above")]
    fn append(&mut self, part: &[u8]) -> Span {
        let start = self.bytes.len() as u32;
        // Behind a large payload twice as much would be taken as is needed.
        self.bytes.reserve_exact(part.len());
        self.bytes.extend_from_slice(part);
        Span { start, end: self.bytes.len() as u32 }
    }

    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    pub(crate) fn topic(&self) -> &str {
        &self.place.topic
    }

    pub(crate) fn partition(&self) -> i32 {
        self.place.partition
    }

    pub(crate) fn offset(&self) -> i64 {
        self.place.offset
    }

    /// Milliseconds since 1970, by its producer's or its broker's clock.
    pub(crate) fn timestamp(&self) -> Option<i64> {
        self.timestamp
    }

    pub(crate) fn key(&self) -> Option<&[u8]> {
        self.key.map(|span| self.part(span))
    }

    pub(crate) fn payload(&self) -> Option<&[u8]> {
        self.payload.map(|span| self.part(span))
    }

    /// Name and value of each header, in order.
    pub(crate) fn headers(&self) -> impl ExactSizeIterator<Item = (&str, Option<&[u8]>)> {
        self.headers.iter().map(|(name, value)| (self.text(*name), value.map(|value| self.part(value))))
    }

    /// What it counts as against a lane's bound: payload, key and a flat sum for the rest.
    pub(crate) fn size(&self) -> usize {
        self.payload().map_or(0, <[u8]>::len) + self.key().map_or(0, <[u8]>::len) + 256
    }

    /// Where a part of this record lies in it.
    #[allow(clippy::cast_possible_truncation, reason = "a part is no longer than the whole")]
    pub(crate) fn span(&self, part: &[u8]) -> Span {
        let start = part.as_ptr().addr().wrapping_sub(self.bytes.as_ptr().addr());
        debug_assert!(start <= self.bytes.len() && part.len() <= self.bytes.len() - start, "it is of this record");
        Span { start: start as u32, end: (start + part.len()) as u32 }
    }

    pub(crate) fn part(&self, span: Span) -> &[u8] {
        self.bytes.get(span.start as usize..span.end as usize).unwrap_or_default()
    }

    /// A part that was given as text.
    pub(crate) fn text(&self, span: Span) -> &str {
        std::str::from_utf8(self.part(span)).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::{
        Timestamp,
        message::{Header, OwnedHeaders, OwnedMessage},
    };

    use super::*;

    #[test]
    fn a_copy_holds_what_the_record_held() {
        let headers = OwnedHeaders::new()
            .insert(Header { key: "a", value: Some(b"\xff".as_slice()) })
            .insert(Header { key: "", value: Some(b"".as_slice()) })
            .insert(Header::<&[u8]> { key: "null", value: None });
        let at = Timestamp::CreateTime(7);
        let record = OwnedMessage::new(Some(b"value".into()), Some(b"".into()), "t".into(), at, 3, 9, Some(headers));
        let copy = Record::copy("t".into(), &record);
        assert_eq!((copy.topic(), copy.partition(), copy.offset(), copy.timestamp()), ("t", 3, 9, Some(7)));
        assert_eq!((copy.key(), copy.payload(), copy.size()), (Some(b"".as_slice()), Some(b"value".as_slice()), 261));
        let headers: Vec<_> = copy.headers().collect();
        assert_eq!(headers, [("a", Some(b"\xff".as_slice())), ("", Some(b"".as_slice())), ("null", None)]);
        assert_eq!(copy.part(copy.span(copy.payload().expect("it has one"))), b"value");

        let empty = Record::copy("t".into(), &OwnedMessage::new(None, None, "t".into(), at, 0, 0, None));
        assert_eq!((empty.key(), empty.payload(), empty.headers().len()), (None, None, 0));
    }
}
