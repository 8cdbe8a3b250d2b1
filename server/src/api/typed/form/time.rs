//! `Timestamp` and `Duration` in Postgres's notation, and back.
//!
//! Postgres keeps microseconds: a finer moment is refused, never rounded. A `Duration` is seconds alone, so an interval
//! with years, months or days, whose lengths differ, is no `Duration`.

use chrono::DateTime;
use prost_reflect::{DynamicMessage, MessageDescriptor, Value as Field};
use prost_types::Timestamp;

use crate::api::convert;

const MICROS: i128 = 1_000_000;
/// Protobuf's own limit on a `Duration`, about 10,000 years.
const DURATION_SECONDS_MAX: i128 = 315_576_000_000;
/// Protobuf's own limits on a `Timestamp`: years 1 to 9999.
const TIMESTAMP_SECONDS: std::ops::RangeInclusive<i64> = -62_135_596_800..=253_402_300_799;

/// The text of a `timestamptz`.
pub(super) fn timestamptz(message: &DynamicMessage) -> Result<String, String> {
    let (seconds, nanos) = parts(message);
    let time = convert::time(Timestamp { seconds, nanos }).ok_or("is not a valid timestamp of the years 1 to 9999")?;
    if nanos % 1_000 != 0 {
        return Err("is finer than a microsecond, which the database cannot hold; round it first".into());
    }
    Ok(time.format("%Y-%m-%d %H:%M:%S%.6f+00").to_string())
}

/// The text of an `interval`.
pub(super) fn interval(message: &DynamicMessage) -> Result<String, String> {
    let (seconds, nanos) = parts(message);
    let signs_agree = seconds == 0 || nanos == 0 || (seconds < 0) == (nanos < 0);
    if i128::from(seconds).abs() > DURATION_SECONDS_MAX || nanos.abs() > 999_999_999 || !signs_agree {
        return Err("is not a valid duration".into());
    }
    if nanos % 1_000 != 0 {
        return Err("is finer than a microsecond, which the database cannot hold; round it first".into());
    }
    let sign = if seconds < 0 || nanos < 0 { "-" } else { "" };
    Ok(format!("PT{sign}{}.{:06}S", seconds.unsigned_abs(), nanos.unsigned_abs() / 1_000))
}

/// A `Timestamp`, unless the moment is an infinity or of a year that it cannot have.
pub(super) fn to_timestamp(descriptor: &MessageDescriptor, text: &str) -> Option<DynamicMessage> {
    let time = DateTime::parse_from_str(text, "%Y-%m-%d %H:%M:%S%.f%#z").ok()?;
    let seconds = Some(time.timestamp()).filter(|seconds| TIMESTAMP_SECONDS.contains(seconds))?;
    message(descriptor, seconds, i32::try_from(time.timestamp_subsec_nanos()).ok()?)
}

/// A `Duration`, unless the interval has a part that is no fixed number of seconds, or is too long.
pub(super) fn to_duration(descriptor: &MessageDescriptor, text: &str) -> Option<DynamicMessage> {
    let mut rest = text.strip_prefix("PT")?;
    let mut micros = 0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| c.is_ascii_alphabetic())?;
        let unit = match rest.as_bytes()[end] {
            b'H' => 3_600 * MICROS,
            b'M' => 60 * MICROS,
            b'S' => MICROS,
            _ => return None,
        };
        micros += in_micros(&rest[..end], unit)?;
        rest = &rest[end + 1..];
    }
    let (seconds, micros) = (micros / MICROS, micros % MICROS);
    let seconds = Some(seconds).filter(|seconds| seconds.abs() <= DURATION_SECONDS_MAX)?;
    message(descriptor, i64::try_from(seconds).ok()?, i32::try_from(micros * 1_000).ok()?)
}

/// A signed number with up to six decimals, of a unit that is given in microseconds.
fn in_micros(text: &str, unit: i128) -> Option<i128> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, "0"));
    if fraction.len() > 6 {
        return None;
    }
    let whole = i128::from(whole.parse::<u64>().ok()?);
    let part = i128::from(format!("{fraction:0<6}").parse::<u32>().ok()?);
    let micros = whole * unit + part * (unit / MICROS);
    Some(if negative { -micros } else { micros })
}

/// Both have the same two fields.
fn parts(message: &DynamicMessage) -> (i64, i32) {
    let field = |number| message.get_field_by_number(number);
    let seconds = field(1).and_then(|seconds| seconds.as_i64()).unwrap_or_default();
    (seconds, field(2).and_then(|nanos| nanos.as_i32()).unwrap_or_default())
}

fn message(descriptor: &MessageDescriptor, seconds: i64, nanos: i32) -> Option<DynamicMessage> {
    let mut message = DynamicMessage::new(descriptor.clone());
    message.try_set_field_by_number(1, Field::I64(seconds)).ok()?;
    message.try_set_field_by_number(2, Field::I32(nanos)).ok()?;
    Some(message)
}
