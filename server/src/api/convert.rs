//! Messages to the domain's types and back.

mod answer;
mod link;
mod request;
mod transact;
mod value;

use chrono::{DateTime, Utc};
use prost_types::Timestamp;

pub(super) use self::{
    answer::{command, document, event, event_id, held, history_step, place, response, result, state},
    link::condition,
    request::{query, request},
    transact::{begin, done, empty_step, step},
};

/// A moment, if it is one that Postgres and RFC 3339 can hold: years 1 to 9999.
pub(super) fn time(timestamp: Timestamp) -> Option<DateTime<Utc>> {
    let nanos = u32::try_from(timestamp.nanos).ok().filter(|nanos| *nanos < 1_000_000_000)?;
    let range = -62_135_596_800..=253_402_300_799;
    range.contains(&timestamp.seconds).then(|| DateTime::from_timestamp(timestamp.seconds, nanos))?
}

pub(super) fn timestamp(time: DateTime<Utc>) -> Timestamp {
    Timestamp { seconds: time.timestamp(), nanos: i32::try_from(time.timestamp_subsec_nanos()).unwrap_or_default() }
}
