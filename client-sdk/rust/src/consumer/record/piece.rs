//! Pieces of memory that records lie in.
//!
//! A consumer that is quick would spend most of its time on getting memory in one thread and giving it back in another, so
//! small records share a piece, and a piece that no record needs any more is filled again. Invariant: a piece does not
//! change as long as any of its records lives, and lives as long; so it is small, [`PIECE_BYTES`] or so, unless it holds
//! one large record.
//!
//! It deliberately does not decide which records share one: `copies` does.

use std::{collections::VecDeque, ops::Range, sync::Arc};

/// How much records may take that share a piece of memory.
pub(super) const PIECE_BYTES: usize = 16 << 10;
/// How many pieces are kept to be used again.
const PIECES_KEPT: usize = 256;
/// How many of them are looked at for one that nobody has any more.
const PIECES_TRIED: usize = 4;
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

/// A piece of memory with records of one topic.
#[derive(Debug)]
pub(super) struct Piece {
    pub(super) topic: Arc<str>,
    /// Keys, payloads, and values of headers.
    bytes: Vec<u8>,
    /// Names of headers. Records that follow each other mostly have the same ones, and share them.
    names: String,
    headers: Vec<Header>,
}

/// How much of a piece is taken.
#[derive(Clone, Copy)]
pub(super) struct Extent {
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
pub(super) struct Layout {
    pub(super) partition: i32,
    pub(super) offset: i64,
    /// Milliseconds since 1970.
    pub(super) timestamp: Option<i64>,
    pub(super) key: Option<Span>,
    pub(super) payload: Option<Span>,
    /// Its headers among those of the piece.
    headers: Range<usize>,
}

/// What a record holds besides its headers.
pub(super) struct Body<'a> {
    pub(super) partition: i32,
    pub(super) offset: i64,
    pub(super) timestamp: Option<i64>,
    pub(super) key: Option<&'a [u8]>,
    pub(super) payload: Option<&'a [u8]>,
}

impl Body<'_> {
    pub(super) fn len(&self) -> usize {
        self.key.map_or(0, <[u8]>::len) + self.payload.map_or(0, <[u8]>::len)
    }
}

impl Piece {
    pub(super) fn new(topic: Arc<str>) -> Self {
        Self { topic, bytes: Vec::new(), names: String::new(), headers: Vec::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len() + self.names.len()
    }

    /// Whether it takes no more memory than one that is full of small records may.
    fn is_small(&self) -> bool {
        let (bytes, names, headers) = (self.bytes.capacity(), self.names.capacity(), self.headers.capacity());
        bytes <= 2 * PIECE_BYTES && names <= PIECE_BYTES && headers <= PIECE_BYTES / HEADER_BYTES * 2
    }

    pub(super) fn extent(&self) -> Extent {
        Extent { bytes: self.bytes.len(), names: self.names.len(), headers: self.headers.len() }
    }

    /// Takes out what was put in since.
    pub(super) fn truncate(&mut self, to: Extent) {
        self.bytes.truncate(to.bytes);
        self.names.truncate(to.names);
        self.headers.truncate(to.headers);
    }

    /// Copies a record behind the others, of which `before` is the last. `count` is how many headers to expect.
    pub(super) fn add<'a>(
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

    /// Name and value of each header of a record.
    pub(super) fn headers(&self, layout: &Layout) -> impl ExactSizeIterator<Item = (&str, Option<&[u8]>)> {
        let headers = self.headers.get(layout.headers.clone()).unwrap_or_default();
        headers.iter().map(|header| (self.name(header.name), header.value.map(|value| self.part(value))))
    }

    /// Where a part of the bytes lies.
    pub(super) fn span(&self, part: &[u8]) -> Span {
        Span::of(part, &self.bytes)
    }

    pub(super) fn part(&self, span: Span) -> &[u8] {
        self.bytes.get(span.range()).unwrap_or_default()
    }

    /// Where a header's name lies.
    pub(super) fn name_span(&self, name: &str) -> Span {
        Span::of(name.as_bytes(), self.names.as_bytes())
    }

    pub(super) fn name(&self, span: Span) -> &str {
        self.names.get(span.range()).unwrap_or_default()
    }
}

/// Pieces that were handed out. One that its records have left is filled again: memory that one thread gets and another
/// gives back is what both wait for.
#[derive(Default)]
pub(crate) struct Pieces {
    /// Mostly the oldest first.
    out: VecDeque<Arc<Piece>>,
}

impl Pieces {
    /// An empty one.
    pub(super) fn take(&mut self, topic: &Arc<str>) -> Piece {
        for _ in 0..PIECES_TRIED.min(self.out.len()) {
            match self.out.pop_front().map(Arc::try_unwrap) {
                Some(Ok(mut piece)) => {
                    piece.truncate(Extent { bytes: 0, names: 0, headers: 0 });
                    piece.topic = Arc::clone(topic);
                    return piece;
                }
                Some(Err(in_use)) => self.out.push_back(in_use),
                None => break,
            }
        }
        Piece::new(Arc::clone(topic))
    }

    #[cfg(test)]
    pub(super) fn kept(&self) -> usize {
        self.out.len()
    }

    pub(super) fn hand_out(&mut self, piece: Piece) -> Arc<Piece> {
        let is_small = piece.is_small();
        let piece = Arc::new(piece);
        if is_small {
            if self.out.len() == PIECES_KEPT {
                self.out.pop_front();
            }
            self.out.push_back(Arc::clone(&piece));
        }
        piece
    }
}
