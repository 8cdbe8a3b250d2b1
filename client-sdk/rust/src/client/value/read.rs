//! From the wire to Rust: what a result's column can be read as.

use bytes::Bytes;
use chrono::{DateTime, NaiveDate, NaiveDateTime, NaiveTime, Utc};
use outbox_proto::v1::{self, value::Kind};
use uuid::Uuid;

use super::{Interval, Numeric, text};

/// A Rust type that a result's column can be read as. The table of [`IntoValue`](super::IntoValue) holds in this
/// direction too. `String` reads every kind that has a text, such as numeric, uuid or `infinity`; reading NULL as
/// anything but `Option` is an error.
pub trait FromValue: Sized {
    /// Reads the value.
    ///
    /// # Errors
    /// [`ValueError`] when the value is of another kind, or does not fit the type.
    fn from_value(value: &v1::Value) -> Result<Self, ValueError>;
}

/// Why a value cannot be read as the type asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// NULL, where the type has no room for it.
    #[error("it is NULL: read it as Option<{expected}>")]
    Null {
        /// The Rust type asked for.
        expected: &'static str,
    },
    /// Another kind of value.
    #[error("it is {found}, which cannot be read as {expected}")]
    Kind {
        /// The kind on the wire.
        found: &'static str,
        /// The Rust type asked for.
        expected: &'static str,
    },
    /// The right kind, with a value that the type does not hold.
    #[error("`{value}` does not fit {expected}")]
    Range {
        /// The value in text.
        value: String,
        /// The Rust type asked for.
        expected: &'static str,
    },
}

impl FromValue for v1::Value {
    fn from_value(value: &v1::Value) -> Result<Self, ValueError> {
        Ok(value.clone())
    }
}

impl<T: FromValue> FromValue for Option<T> {
    fn from_value(value: &v1::Value) -> Result<Self, ValueError> {
        match &value.kind {
            None | Some(Kind::Null(_)) => Ok(None),
            Some(_) => T::from_value(value).map(Some),
        }
    }
}

impl<T: FromValue> FromValue for Vec<T> {
    fn from_value(value: &v1::Value) -> Result<Self, ValueError> {
        match &value.kind {
            Some(Kind::Array(array)) => array.elements.iter().map(T::from_value).collect(),
            other => Err(mismatch(other.as_ref(), "Vec")),
        }
    }
}

/// `type { pattern => Option<value>, … }`: `None` is a value out of range.
macro_rules! from_value {
    ($($type:ty { $($pattern:pat => $value:expr),+ })*) => {
        $(impl FromValue for $type {
            fn from_value(value: &v1::Value) -> Result<Self, ValueError> {
                let expected = stringify!($type);
                let read = match &value.kind {
                    $(Some($pattern) => $value,)+
                    other => return Err(mismatch(other.as_ref(), expected)),
                };
                read.ok_or_else(|| ValueError::Range { value: shown(value), expected })
            }
        })*
    };
}

from_value! {
    bool { Kind::Bool(v) => Some(*v) }
    i16 { Kind::Int(v) => (*v).try_into().ok() }
    i32 { Kind::Int(v) => (*v).try_into().ok() }
    i64 { Kind::Int(v) => Some(*v) }
    u16 { Kind::Int(v) => (*v).try_into().ok() }
    u32 { Kind::Int(v) => (*v).try_into().ok() }
    u64 { Kind::Int(v) => (*v).try_into().ok() }
    f32 { Kind::Double(v) => narrow(*v) }
    f64 { Kind::Double(v) => Some(*v) }
    Numeric { Kind::Numeric(v) => Some(Numeric(v.clone())) }
    Bytes { Kind::Bytes(v) => Some(v.clone()) }
    Vec<u8> { Kind::Bytes(v) => Some(v.to_vec()) }
    Uuid { Kind::Uuid(v) | Kind::Text(v) => Uuid::try_parse(v).ok() }
    NaiveDate { Kind::Date(v) => text::read_date(v) }
    NaiveTime { Kind::Time(v) => text::read_time(v) }
    NaiveDateTime { Kind::Timestamp(v) => text::read_timestamp(v) }
    DateTime<Utc> { Kind::Timestamptz(v) => text::read_timestamptz(v) }
    Interval { Kind::Interval(v) => Some(Interval(v.clone())) }
    serde_json::Value { Kind::Json(v) => serde_json::from_str(v).ok() }
    String {
        Kind::Text(v) | Kind::Numeric(v) | Kind::Uuid(v) | Kind::Date(v) | Kind::Time(v) | Kind::Timestamp(v)
            | Kind::Timestamptz(v) | Kind::Interval(v) | Kind::Json(v) => Some(v.clone())
    }
}

/// A float4 comes back exactly; a float8 that is not one does not fit.
#[allow(clippy::cast_possible_truncation, reason = "checked by the comparison")]
fn narrow(value: f64) -> Option<f32> {
    let narrowed = value as f32;
    (value.is_nan() || f64::from(narrowed) == value).then_some(narrowed)
}

fn mismatch(found: Option<&Kind>, expected: &'static str) -> ValueError {
    match found {
        None | Some(Kind::Null(_)) => ValueError::Null { expected },
        Some(kind) => ValueError::Kind { found: name(kind), expected },
    }
}

fn name(kind: &Kind) -> &'static str {
    match kind {
        Kind::Null(_) => "null",
        Kind::Bool(_) => "bool",
        Kind::Int(_) => "int",
        Kind::Double(_) => "double",
        Kind::Text(_) => "text",
        Kind::Bytes(_) => "bytes",
        Kind::Numeric(_) => "numeric",
        Kind::Uuid(_) => "uuid",
        Kind::Date(_) => "date",
        Kind::Time(_) => "time",
        Kind::Timestamp(_) => "timestamp",
        Kind::Timestamptz(_) => "timestamptz",
        Kind::Interval(_) => "interval",
        Kind::Json(_) => "json",
        Kind::Array(_) => "array",
        Kind::Reference(_) => "reference",
    }
}

/// The value in an error message.
fn shown(value: &v1::Value) -> String {
    match &value.kind {
        Some(Kind::Int(v)) => v.to_string(),
        Some(Kind::Double(v)) => v.to_string(),
        _ => String::from_value(value).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Debug;

    use serde_json::json;

    use super::*;
    use crate::client::value::IntoValue;

    #[track_caller]
    fn comes_back<T: IntoValue + FromValue + Clone + PartialEq + Debug>(value: T) {
        assert_eq!(T::from_value(&value.clone().into_value()), Ok(value));
    }

    #[test]
    fn what_is_written_is_read_back() {
        let moment = DateTime::from_timestamp_micros(1_700_000_000_123_456).expect("a moment");
        comes_back(true);
        comes_back(i16::MIN);
        comes_back(i64::MAX);
        comes_back(u32::MAX);
        comes_back(0.1_f32);
        comes_back(f64::NEG_INFINITY);
        comes_back(Numeric("123456789012345678901234567890.5".into()));
        comes_back(String::from("ø"));
        comes_back(vec![0_u8, 255]);
        comes_back(Uuid::now_v7());
        comes_back(moment);
        comes_back(moment.naive_utc());
        comes_back(moment.date_naive());
        comes_back(moment.time());
        comes_back(Interval("P1DT2H".into()));
        comes_back(json!({"a": [1, null]}));
        comes_back(None::<i64>);
        comes_back(vec![vec![Some(1_i64), None], vec![Some(2), Some(3)]]);
        assert!(f32::from_value(&f32::NAN.into_value()).is_ok_and(f32::is_nan));
    }

    #[test]
    fn what_does_not_fit_says_why() {
        let said = |error: ValueError| error.to_string();
        assert_eq!(i16::from_value(&40_000_i64.into_value()).map_err(said), Err("`40000` does not fit i16".into()));
        assert_eq!(f32::from_value(&0.1_f64.into_value()).map_err(said), Err("`0.1` does not fit f32".into()));
        assert_eq!(
            i64::from_value(&"7".into_value()).map_err(said),
            Err("it is text, which cannot be read as i64".into())
        );
        assert_eq!(
            String::from_value(&None::<i64>.into_value()).map_err(said),
            Err("it is NULL: read it as Option<String>".into())
        );
        let infinity = v1::Value { kind: Some(Kind::Date("infinity".into())) };
        assert_eq!(NaiveDate::from_value(&infinity).map_err(said), Err("`infinity` does not fit NaiveDate".into()));
        assert_eq!(String::from_value(&infinity), Ok("infinity".into()));
    }
}
