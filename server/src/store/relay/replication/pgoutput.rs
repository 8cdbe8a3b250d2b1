//! The messages of `pgoutput` that carry events.
//!
//! A table's columns are told before its first row, and again after they have changed: rows are read by the columns'
//! names. Source of the format: PostgreSQL documentation, "Logical Replication Message Formats". Deliberately not here:
//! begin and commit, which frame the rows.

use std::collections::HashMap;

use bytes::Buf as _;

use super::super::row::{COLUMN_NAMES, Malformed, Row};

const SHORT: Malformed = Malformed("a message of the log ends early");

/// What a message says.
#[derive(Debug)]
pub(super) enum Message {
    /// An event was inserted.
    Event {
        /// Its row.
        row: Row,
        /// Its transaction.
        xid: u64,
    },
    /// Nothing for us.
    Other,
}

/// Reads messages, and remembers the tables that they speak of.
#[derive(Default)]
pub(super) struct Decoder {
    tables: HashMap<u32, Option<Table>>,
}

/// Where the columns of a row are among those of the table.
#[derive(Debug)]
struct Table {
    columns: [usize; COLUMN_NAMES.len()],
    xid: usize,
}

impl Decoder {
    pub(super) fn read(&mut self, mut message: &[u8]) -> Result<Message, Malformed> {
        match message.try_get_u8() {
            Ok(b'R') => self.relation(message).map(|()| Message::Other),
            Ok(b'I') => self.insert(message),
            // Types, origins, and whatever a publication that was widened by hand lets through.
            Ok(_) => Ok(Message::Other),
            Err(_) => Err(SHORT),
        }
    }

    fn relation(&mut self, mut message: &[u8]) -> Result<(), Malformed> {
        let id = message.try_get_u32().map_err(|_| SHORT)?;
        let is_events = (text(&mut message)?, text(&mut message)?) == ("outbox", "events");
        let _replica_identity = message.try_get_u8().map_err(|_| SHORT)?;
        let count = message.try_get_u16().map_err(|_| SHORT)?;
        let mut names = Vec::with_capacity(usize::from(count));
        for _ in 0..count {
            let _flags = message.try_get_u8().map_err(|_| SHORT)?;
            names.push(text(&mut message)?);
            let _type = message.try_get_u64().map_err(|_| SHORT)?;
        }
        let table = if is_events { Some(Table::new(&names)?) } else { None };
        self.tables.insert(id, table);
        Ok(())
    }

    fn insert(&self, mut message: &[u8]) -> Result<Message, Malformed> {
        let id = message.try_get_u32().map_err(|_| SHORT)?;
        let table = self.tables.get(&id).ok_or(Malformed("a row of a table that was not told of"))?;
        let Some(table) = table else { return Ok(Message::Other) };
        if message.try_get_u8() != Ok(b'N') {
            return Err(Malformed("an insert without its new row"));
        }
        let count = message.try_get_u16().map_err(|_| SHORT)?;
        let mut values = Vec::with_capacity(usize::from(count));
        for _ in 0..count {
            values.push(value(&mut message)?);
        }
        let at = |place: usize| values.get(place).copied().ok_or(Malformed("a row has fewer columns than its table"));
        let mut columns = [None; COLUMN_NAMES.len()];
        for (column, place) in columns.iter_mut().zip(table.columns) {
            *column = at(place)?;
        }
        let xid = at(table.xid)?.and_then(|bytes| bytes.try_into().ok()).map(u64::from_be_bytes);
        Ok(Message::Event { row: Row::assemble(&columns)?, xid: xid.ok_or(Malformed("the xid is not eight bytes"))? })
    }
}

impl Table {
    fn new(names: &[&str]) -> Result<Self, Malformed> {
        let place = |name: &str| names.iter().position(|n| *n == name).ok_or(Malformed("a column is not in the log"));
        let mut columns = [0; COLUMN_NAMES.len()];
        for (column, name) in columns.iter_mut().zip(COLUMN_NAMES) {
            *column = place(name)?;
        }
        Ok(Self { columns, xid: place("xid")? })
    }
}

/// A text that ends with a zero byte.
fn text<'a>(message: &mut &'a [u8]) -> Result<&'a str, Malformed> {
    let len = message.iter().position(|byte| *byte == 0).ok_or(SHORT)?;
    let (text, rest) = message.split_at(len);
    *message = &rest[1..];
    std::str::from_utf8(text).map_err(|_| Malformed("a name is not UTF-8"))
}

/// A column's value in binary form.
fn value<'a>(message: &mut &'a [u8]) -> Result<Option<&'a [u8]>, Malformed> {
    match message.try_get_u8() {
        Ok(b'n') => Ok(None),
        Ok(b'b') => {
            let len = message.try_get_u32().map_err(|_| SHORT)? as usize;
            let (value, rest) = message.split_at_checked(len).ok_or(SHORT)?;
            *message = rest;
            Ok(Some(value))
        }
        Ok(_) => Err(Malformed("a value is not in binary form")),
        Err(_) => Err(SHORT),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn relation(id: u32, schema: &str, table: &str, columns: &[&str]) -> Vec<u8> {
        let mut message = vec![b'R'];
        message.extend(id.to_be_bytes());
        message.extend([schema.as_bytes(), b"\0", table.as_bytes(), b"\0d"].concat());
        message.extend(u16::try_from(columns.len()).expect("few").to_be_bytes());
        for name in columns {
            message.push(0);
            message.extend([name.as_bytes(), b"\0"].concat());
            message.extend([0; 8]);
        }
        message
    }

    fn insert(id: u32, values: &[Option<&[u8]>]) -> Vec<u8> {
        let mut message = vec![b'I'];
        message.extend(id.to_be_bytes());
        message.push(b'N');
        message.extend(u16::try_from(values.len()).expect("few").to_be_bytes());
        for value in values {
            match value {
                None => message.push(b'n'),
                Some(bytes) => {
                    message.push(b'b');
                    message.extend(u32::try_from(bytes.len()).expect("short").to_be_bytes());
                    message.extend(*bytes);
                }
            }
        }
        message
    }

    fn value_of(name: &str) -> Option<Vec<u8>> {
        match name {
            "position" => Some(7i64.to_be_bytes().to_vec()),
            "lane" => Some(3i16.to_be_bytes().to_vec()),
            "xid" => Some(99u64.to_be_bytes().to_vec()),
            "id" => Some(vec![0; 16]),
            "time" => Some(0i64.to_be_bytes().to_vec()),
            "namespace" | "topic" | "source" | "type" | "key" => Some(name.as_bytes().to_vec()),
            _ => None,
        }
    }

    /// A column that was added, and others that have changed places, change nothing.
    #[test]
    fn rows_are_read_by_the_names_of_their_columns() {
        let mut names: Vec<&str> = COLUMN_NAMES.into_iter().chain(["xid"]).collect();
        for round in 0..2 {
            let mut decoder = Decoder::default();
            decoder.read(&relation(5, "outbox", "events", &names)).expect("it can be read");
            let values: Vec<Option<Vec<u8>>> = names.iter().map(|name| value_of(name)).collect();
            let values: Vec<Option<&[u8]>> = values.iter().map(|value| value.as_deref()).collect();
            let Message::Event { row, xid } = decoder.read(&insert(5, &values)).expect("it can be read") else {
                panic!("it is an event")
            };
            let event = row.event().expect("it can be read");
            assert_eq!((xid, row.position(), row.lane(), row.size()), (99, 7, 3, 3), "round {round}");
            assert_eq!((event.topic, event.key, event.data), ("topic", Some(&b"key"[..]), None));
            names.reverse();
            names.push("added_later");
        }
    }

    #[test]
    fn rows_of_other_tables_are_passed_over() {
        let mut decoder = Decoder::default();
        decoder.read(&relation(5, "public", "events", &["id"])).expect("it can be read");
        assert!(matches!(decoder.read(&insert(5, &[None])), Ok(Message::Other)));
        assert!(matches!(decoder.read(b"Yabc"), Ok(Message::Other)));
        assert!(decoder.read(&insert(6, &[None])).is_err(), "it was not told of");
    }
}
