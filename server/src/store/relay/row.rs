//! Rows of events as `copy … (format binary)` sends them.
//!
//! A row keeps the bytes that came from the server and is read in place: nothing is copied. Source of the format: PostgreSQL documentation, `COPY`, "Binary Format".

use std::collections::BTreeMap;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use chrono::{DateTime, Utc};
use outbox_proto::record::REPLAY_OF;
use uuid::Uuid;

const SIGNATURE: &[u8] = b"PGCOPY\n\xff\r\n\0";
const HEADER_LEN: usize = SIGNATURE.len() + 8;
/// The columns of a row, in its order.
pub(super) const COLUMN_NAMES: [&str; 15] = [
    "position",
    "lane",
    "id",
    "namespace",
    "topic",
    "key",
    "source",
    "type",
    "subject",
    "data",
    "content_type",
    "headers",
    "time",
    "traceparent",
    "tracestate",
];
const COLUMNS: i16 = COLUMN_NAMES.len() as i16;
/// Key and payload, which count as the row's size.
const SIZED: [usize; 2] = [5, 9];
/// Microseconds from the Unix epoch to Postgres's, 2000-01-01.
const EPOCH_MICROS: i64 = 946_684_800_000_000;

/// What came is not what was asked for.
#[derive(Debug, thiserror::Error)]
#[error("an event's row cannot be read: {0}")]
pub struct Malformed(pub(super) &'static str);

/// One event's row.
#[derive(Clone, Debug)]
pub struct Row {
    bytes: Bytes,
    lane: i16,
    position: i64,
    size: usize,
}

/// A row's contents.
#[derive(Debug)]
pub struct Event<'a> {
    /// UUIDv7.
    pub id: Uuid,
    /// Tenant.
    pub namespace: &'a str,
    /// Kafka topic.
    pub topic: &'a str,
    /// Kafka key.
    pub key: Option<&'a [u8]>,
    /// CloudEvents `source`.
    pub source: &'a str,
    /// CloudEvents `type`.
    pub event_type: &'a str,
    /// CloudEvents `subject`.
    pub subject: Option<&'a str>,
    /// The record's value.
    pub data: Option<&'a [u8]>,
    /// Media type of `data`.
    pub content_type: Option<&'a str>,
    /// When it happened.
    pub time: DateTime<Utc>,
    /// W3C `traceparent` of its creation.
    pub traceparent: Option<&'a str>,
    /// W3C `tracestate`.
    pub tracestate: Option<&'a str>,
    headers: Option<&'a [u8]>,
}

impl Row {
    /// The fixed hash class of its key.
    pub fn lane(&self) -> i16 {
        self.lane
    }

    /// Its place in the order of its lane.
    pub fn position(&self) -> i64 {
        self.position
    }

    /// Bytes of key and payload.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Its contents.
    ///
    /// # Errors
    /// [`Malformed`] when they cannot be read.
    pub fn event(&self) -> Result<Event<'_>, Malformed> {
        let mut fields = Fields(&self.bytes);
        fields.required()?;
        fields.required()?;
        let id = Uuid::from_slice(fields.required()?).map_err(|_| Malformed("the id is not 16 bytes"))?;
        let (namespace, topic, key) = (fields.required_text()?, fields.required_text()?, fields.next()?);
        let (source, event_type, subject) = (fields.required_text()?, fields.required_text()?, fields.text()?);
        let (data, content_type, headers) = (fields.next()?, fields.text()?, fields.next()?);
        let micros = i64::from_be_bytes(fixed(fields.required()?)?);
        let time = micros.checked_add(EPOCH_MICROS).and_then(DateTime::from_timestamp_micros);
        let time = time.ok_or(Malformed("the time is out of range"))?;
        let (traceparent, tracestate) = (fields.text()?, fields.text()?);
        Ok(Event {
            id,
            namespace,
            topic,
            key,
            source,
            event_type,
            subject,
            data,
            content_type,
            time,
            traceparent,
            tracestate,
            headers,
        })
    }

    /// Puts a row together from its columns, in the order of `fetch`'s statement and in their binary form.
    ///
    /// # Errors
    /// [`Malformed`] when position or lane cannot be read.
    pub(super) fn assemble(columns: &[Option<&[u8]>; COLUMN_NAMES.len()]) -> Result<Self, Malformed> {
        let len = columns.iter().map(|column| 4 + column.map_or(0, <[u8]>::len)).sum();
        let mut bytes = BytesMut::with_capacity(len);
        for column in columns {
            let len = column.map_or(Ok(-1), |value| i32::try_from(value.len()));
            bytes.put_i32(len.map_err(|_| Malformed("a column is too long"))?);
            bytes.put_slice(column.unwrap_or_default());
        }
        let size = SIZED.iter().map(|column| columns[*column].map_or(0, <[u8]>::len)).sum();
        Self::new(bytes.freeze(), size)
    }

    fn new(bytes: Bytes, size: usize) -> Result<Self, Malformed> {
        let mut fields = Fields(&bytes);
        let position = i64::from_be_bytes(fixed(fields.required()?)?);
        let lane = i16::from_be_bytes(fixed(fields.required()?)?);
        Ok(Self { bytes, lane, position, size })
    }

    /// Takes one row off the front; `None` when it has not come whole.
    fn split(bytes: &mut Bytes) -> Result<Option<Self>, Malformed> {
        let mut rest = &bytes[..];
        let mut size = 0;
        if rest.len() < 2 {
            return Ok(None);
        }
        if rest.get_i16() != COLUMNS {
            return Err(Malformed("it has another number of columns"));
        }
        for column in 0..COLUMN_NAMES.len() {
            if rest.len() < 4 {
                return Ok(None);
            }
            let len = usize::try_from(rest.get_i32()).unwrap_or(0);
            if rest.len() < len {
                return Ok(None);
            }
            if SIZED.contains(&column) {
                size += len;
            }
            rest = &rest[len..];
        }
        let len = bytes.len() - rest.len();
        let bytes = bytes.split_to(len).slice(2..);
        Self::new(bytes, size).map(Some)
    }
}

/// Takes the id out of an event's headers that it is a copy of.
///
/// # Errors
/// [`Malformed`] when it is none.
pub fn replay_of(headers: &mut BTreeMap<String, String>) -> Result<Option<Uuid>, Malformed> {
    let id = headers.remove(REPLAY_OF).map(|id| Uuid::try_parse(&id));
    id.transpose().map_err(|_| Malformed("what it is a copy of is not named by a UUID"))
}

impl Event<'_> {
    /// Its free headers. A value that is no JSON string is given as its JSON text.
    ///
    /// # Errors
    /// [`Malformed`] when they are no JSON object.
    pub fn headers(&self) -> Result<BTreeMap<String, String>, Malformed> {
        let Some(json) = self.headers_json()? else { return Ok(BTreeMap::new()) };
        let headers: BTreeMap<String, serde_json::Value> =
            serde_json::from_str(json).map_err(|_| Malformed("the headers are not a JSON object"))?;
        let text = |value| match value {
            serde_json::Value::String(text) => text,
            other => other.to_string(),
        };
        Ok(headers.into_iter().map(|(name, value)| (name, text(value))).collect())
    }

    /// The same as the text of a JSON object.
    ///
    /// # Errors
    /// [`Malformed`] when they cannot be read.
    pub fn headers_json(&self) -> Result<Option<&str>, Malformed> {
        let Some(jsonb) = self.headers else { return Ok(None) };
        match jsonb.split_first() {
            Some((1, json)) => std::str::from_utf8(json).map(Some).map_err(|_| Malformed("the headers are not UTF-8")),
            _ => Err(Malformed("the headers are in another version of jsonb")),
        }
    }
}

/// Cuts the stream into rows. The server sends a row a message, but the protocol does not promise it.
#[derive(Default)]
pub(super) struct Decoder {
    started: bool,
    partial: BytesMut,
}

impl Decoder {
    pub(super) fn feed(&mut self, bytes: Bytes, rows: &mut Vec<Row>) -> Result<(), Malformed> {
        let mut bytes = if self.partial.is_empty() {
            bytes
        } else {
            self.partial.extend_from_slice(&bytes);
            std::mem::take(&mut self.partial).freeze()
        };
        if !self.started && bytes.len() >= HEADER_LEN {
            if !bytes.starts_with(SIGNATURE) {
                return Err(Malformed("the stream does not begin with the signature of COPY"));
            }
            bytes.advance(HEADER_LEN);
            self.started = true;
        }
        if self.started {
            // The trailer: a row of -1 columns.
            while bytes != [0xff, 0xff][..] {
                let Some(row) = Row::split(&mut bytes)? else { break };
                rows.push(row);
            }
        }
        if bytes != [0xff, 0xff][..] {
            self.partial.extend_from_slice(&bytes);
        }
        Ok(())
    }
}

struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn next(&mut self) -> Result<Option<&'a [u8]>, Malformed> {
        const SHORT: Malformed = Malformed("it ends early");
        let (len, rest) = self.0.split_first_chunk::<4>().ok_or(SHORT)?;
        let Ok(len) = usize::try_from(i32::from_be_bytes(*len)) else {
            self.0 = rest;
            return Ok(None);
        };
        let (field, rest) = rest.split_at_checked(len).ok_or(SHORT)?;
        self.0 = rest;
        Ok(Some(field))
    }

    fn required(&mut self) -> Result<&'a [u8], Malformed> {
        self.next()?.ok_or(Malformed("a column is null"))
    }

    fn text(&mut self) -> Result<Option<&'a str>, Malformed> {
        let text = |bytes| std::str::from_utf8(bytes).map_err(|_| Malformed("a text is not UTF-8"));
        self.next()?.map(text).transpose()
    }

    fn required_text(&mut self) -> Result<&'a str, Malformed> {
        self.text()?.ok_or(Malformed("a column is null"))
    }
}

fn fixed<const N: usize>(bytes: &[u8]) -> Result<[u8; N], Malformed> {
    bytes.try_into().map_err(|_| Malformed("a number has another width"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(rows: &[(i64, i16, &str)]) -> Vec<u8> {
        let mut bytes = [SIGNATURE, &[0; 8]].concat();
        let field = |value: Option<&[u8]>, bytes: &mut Vec<u8>| {
            bytes.extend(value.map_or(-1, |v| i32::try_from(v.len()).expect("short")).to_be_bytes());
            bytes.extend(value.unwrap_or_default());
        };
        for (position, lane, data) in rows {
            bytes.extend(COLUMNS.to_be_bytes());
            let (time, id) = (0i64.to_be_bytes(), Uuid::nil());
            let (position, lane) = (position.to_be_bytes(), lane.to_be_bytes());
            let columns: [Option<&[u8]>; 15] = [
                Some(&position),
                Some(&lane),
                Some(id.as_bytes()),
                Some(b"default"),
                Some(b"topic"),
                Some(b"key"),
                Some(b"source"),
                Some(b"type"),
                None,
                Some(data.as_bytes()),
                None,
                Some(b"\x01{\"a\": \"x\", \"n\": 7}"),
                Some(&time),
                None,
                None,
            ];
            columns.iter().for_each(|c| field(*c, &mut bytes));
        }
        bytes.extend([0xff, 0xff]);
        bytes
    }

    #[test]
    fn rows_are_the_same_however_the_stream_is_cut() {
        let bytes = stream(&[(7, 3, "one"), (9, 4, ""), (12, 3, "three")]);
        for cut in 1..bytes.len() {
            let (mut decoder, mut rows) = (Decoder::default(), Vec::new());
            for chunk in bytes.chunks(cut) {
                decoder.feed(Bytes::copy_from_slice(chunk), &mut rows).expect("the stream is whole");
            }
            let seen: Vec<_> = rows.iter().map(|r| (r.position(), r.lane(), r.size())).collect();
            assert_eq!(seen, [(7, 3, 6), (9, 4, 3), (12, 3, 8)], "cut every {cut} bytes");
            let event = rows[2].event().expect("it can be read");
            assert_eq!((event.topic, event.data, event.subject), ("topic", Some(&b"three"[..]), None));
            assert_eq!(event.time.to_rfc3339(), "2000-01-01T00:00:00+00:00");
        }
    }

    #[test]
    fn free_headers_are_text() {
        let (mut decoder, mut rows) = (Decoder::default(), Vec::new());
        decoder.feed(stream(&[(1, 1, "")]).into(), &mut rows).expect("the stream is whole");
        let headers = rows[0].event().expect("it can be read").headers().expect("an object");
        assert_eq!(headers, [("a".to_owned(), "x".to_owned()), ("n".to_owned(), "7".to_owned())].into());
    }
}
