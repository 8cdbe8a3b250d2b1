//! From Rust to the wire: what can be a command's parameter.

use bytes::Bytes;
use chrono::{DateTime, NaiveDate, NaiveDateTime, NaiveTime, TimeZone};
use outbox_proto::v1::{self, value::Kind};
use uuid::Uuid;

use super::{Interval, Numeric, text};

/// A Rust type that can be a command's parameter.
///
/// | Rust | SQL |
/// |---|---|
/// | `bool` | bool |
/// | `i16`, `i32`, `i64`, `u16`, `u32` | int2, int4, int8, as far as the value fits |
/// | `f32`, `f64` | float4, float8 |
/// | [`Numeric`] | numeric |
/// | `&str`, `String` | text, and every SQL type that has a textual form |
/// | `&[u8]`, `Vec<u8>`, [`Bytes`] | bytea |
/// | [`Uuid`] | uuid |
/// | `NaiveDate`, `NaiveTime`, `NaiveDateTime`, `DateTime` | date, time, timestamp, timestamptz |
/// | [`Interval`] | interval |
/// | [`serde_json::Value`] | json, jsonb |
/// | `Option<T>` | the same, `None` being NULL |
/// | `Vec<T>`, `&[T]` | an array of it |
pub trait IntoValue {
    /// The value as it goes on the wire.
    fn into_value(self) -> v1::Value;
}

impl IntoValue for v1::Value {
    fn into_value(self) -> v1::Value {
        self
    }
}

/// `type => |value| kind` for each type that maps to one kind.
macro_rules! into_value {
    ($($type:ty => |$value:ident| $kind:expr;)*) => {
        $(impl IntoValue for $type {
            fn into_value(self) -> v1::Value {
                let $value = self;
                v1::Value { kind: Some($kind) }
            }
        })*
    };
}

into_value! {
    bool => |v| Kind::Bool(v);
    i16 => |v| Kind::Int(v.into());
    i32 => |v| Kind::Int(v.into());
    i64 => |v| Kind::Int(v);
    u16 => |v| Kind::Int(v.into());
    u32 => |v| Kind::Int(v.into());
    f32 => |v| Kind::Double(v.into());
    f64 => |v| Kind::Double(v);
    Numeric => |v| Kind::Numeric(v.0);
    &str => |v| Kind::Text(v.to_owned());
    String => |v| Kind::Text(v);
    &String => |v| Kind::Text(v.clone());
    Vec<u8> => |v| Kind::Bytes(v.into());
    &[u8] => |v| Kind::Bytes(Bytes::copy_from_slice(v));
    Bytes => |v| Kind::Bytes(v);
    Uuid => |v| Kind::Uuid(v.hyphenated().to_string());
    NaiveDate => |v| Kind::Date(text::date(v));
    NaiveTime => |v| Kind::Time(text::time(v));
    NaiveDateTime => |v| Kind::Timestamp(text::timestamp(v, ""));
    Interval => |v| Kind::Interval(v.0);
    serde_json::Value => |v| Kind::Json(v.to_string());
    &serde_json::Value => |v| Kind::Json(v.to_string());
}

impl<Tz: TimeZone> IntoValue for DateTime<Tz> {
    fn into_value(self) -> v1::Value {
        v1::Value { kind: Some(Kind::Timestamptz(text::timestamp(self.naive_utc(), "+00"))) }
    }
}

impl<T: IntoValue> IntoValue for Option<T> {
    fn into_value(self) -> v1::Value {
        self.map_or(v1::Value { kind: Some(Kind::Null(v1::Null::Unspecified.into())) }, T::into_value)
    }
}

// `u8` is deliberately not a value: `Vec<u8>` is one bytea, not an array.
impl<T: IntoValue> IntoValue for Vec<T> {
    fn into_value(self) -> v1::Value {
        let elements = self.into_iter().map(T::into_value).collect();
        v1::Value { kind: Some(Kind::Array(v1::Array { elements, ..v1::Array::default() })) }
    }
}

impl<T: IntoValue + Clone> IntoValue for &[T] {
    fn into_value(self) -> v1::Value {
        self.to_vec().into_value()
    }
}

#[cfg(test)]
mod tests {
    use chrono::{FixedOffset, NaiveDate};
    use serde_json::json;

    use super::*;

    fn kind(value: impl IntoValue) -> Kind {
        value.into_value().kind.expect("every value has a kind")
    }

    #[test]
    fn each_rust_type_has_its_kind() {
        let day = NaiveDate::from_ymd_opt(2024, 2, 29).expect("a leap day");
        let noon = day.and_hms_micro_opt(12, 0, 0, 250_000).expect("a time of day");
        let east = noon.and_utc().with_timezone(&FixedOffset::east_opt(7200).expect("an offset"));
        assert_eq!(kind(true), Kind::Bool(true));
        assert_eq!(kind(i64::MIN), Kind::Int(i64::MIN));
        assert_eq!(kind(u32::MAX), Kind::Int(4_294_967_295));
        assert_eq!(kind(0.1_f64), Kind::Double(0.1));
        assert_eq!(kind("a"), Kind::Text("a".into()));
        assert_eq!(kind(vec![0_u8, 255]), Kind::Bytes(Bytes::from_static(&[0, 255])));
        assert_eq!(kind(&[0_u8, 255][..]), Kind::Bytes(Bytes::from_static(&[0, 255])));
        assert_eq!(kind(Numeric("1e400".into())), Kind::Numeric("1e400".into()));
        assert_eq!(kind(Uuid::nil()), Kind::Uuid("00000000-0000-0000-0000-000000000000".into()));
        assert_eq!(kind(day), Kind::Date("2024-02-29".into()));
        assert_eq!(kind(noon.time()), Kind::Time("12:00:00.250".into()));
        assert_eq!(kind(noon), Kind::Timestamp("2024-02-29 12:00:00.250".into()));
        assert_eq!(kind(east), Kind::Timestamptz("2024-02-29 12:00:00.250+00".into()));
        assert_eq!(kind(Interval("P1D".into())), Kind::Interval("P1D".into()));
        assert_eq!(kind(json!({"a": 1})), Kind::Json(r#"{"a":1}"#.into()));
        assert_eq!(kind(None::<i64>), Kind::Null(0));
        let expected =
            v1::Array { elements: vec![1_i64.into_value(), None::<i64>.into_value()], ..v1::Array::default() };
        assert_eq!(kind(vec![Some(1_i64), None]), Kind::Array(expected));
    }
}
