//! Kafka records that outlive the client's buffers.
//!
//! Invariant: what is here is what the record held, byte for byte. Small records that are read together share one piece of
//! memory; what others find in there is kept as a [`Span`].
//!
//! It deliberately does not interpret anything: `event` does.

mod copies;
mod piece;

use std::sync::Arc;

use self::piece::{Body, Layout, Piece};
pub(crate) use self::{
    copies::Copies,
    piece::{Pieces, Span},
};

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
        self.piece.headers(&self.layout)
    }

    /// What it counts as against a lane's bound.
    pub(crate) fn size(&self) -> usize {
        size(self.key(), self.payload())
    }

    /// Where a key, a payload or a header's value lies, or a part of one.
    pub(crate) fn span(&self, part: &[u8]) -> Span {
        self.piece.span(part)
    }

    pub(crate) fn part(&self, span: Span) -> &[u8] {
        self.piece.part(span)
    }

    /// A part that was given as text.
    pub(crate) fn text(&self, span: Span) -> &str {
        std::str::from_utf8(self.part(span)).unwrap_or_default()
    }

    /// Where a header's name lies.
    pub(crate) fn name_span(&self, name: &str) -> Span {
        self.piece.name_span(name)
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
