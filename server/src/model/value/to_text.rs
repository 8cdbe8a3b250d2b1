//! A parameter's value in the notation of its SQL type.
//!
//! Each kind must fit the type exactly; `text` stands for any kind and is checked as that kind would be. Nothing is
//! rounded and nothing is cut: what the type cannot hold is refused here, before a statement runs.
//!
//! Not here: an enum's labels, a domain's checks, a column's length: Postgres refuses those.

use super::number::{Fault, check_float4, check_float8, check_numeric, float_text};
use super::{SqlType, Value, ValueError, array, json, time};

impl Value {
    /// The text that Postgres casts to `ty`, or none for NULL.
    ///
    /// # Errors
    /// If the value is of another kind, out of range, malformed, or would have to be rounded. A `double` for a
    /// `float4` must be exactly a `float4`.
    pub fn to_sql_text(&self, ty: &SqlType) -> Result<Option<String>, ValueError> {
        let text = match (self, ty) {
            (Self::Null, _) => return Ok(None),
            (Self::Bool(value), SqlType::Bool) => value.to_string(),
            (Self::Int(value), _) => int_text(*value, ty)?,
            (Self::Double(value), SqlType::Float8) => float_text(*value),
            (Self::Double(value), SqlType::Float4) => float4_text(*value, ty)?,
            (Self::Bytes(bytes), SqlType::Bytea) => format!("\\x{}", hex::encode(bytes)),
            (Self::Array(elements), SqlType::Array(element)) => array::to_literal(&[], elements, element)?,
            (Self::ArrayFrom { lower_bounds, elements }, SqlType::Array(element)) => {
                array::to_literal(lower_bounds, elements, element)?
            }
            (Self::Text(text), _)
            | (Self::Numeric(text), SqlType::Numeric)
            | (Self::Uuid(text), SqlType::Uuid)
            | (Self::Date(text), SqlType::Date)
            | (Self::Time(text), SqlType::Time | SqlType::Timetz)
            | (Self::Timestamp(text), SqlType::Timestamp)
            | (Self::Timestamptz(text), SqlType::Timestamptz)
            | (Self::Interval(text), SqlType::Interval)
            | (Self::Json(text), SqlType::Json | SqlType::Jsonb) => {
                check_text(text, ty)?;
                text.clone()
            }
            _ => return Err(ValueError::WrongKind { given: self.kind(), ty: ty.clone(), takes: ty.takes() }),
        };
        Ok(Some(text))
    }
}

fn int_text(value: i64, ty: &SqlType) -> Result<String, ValueError> {
    let fits = match ty {
        SqlType::Int2 => i16::try_from(value).is_ok(),
        SqlType::Int4 => i32::try_from(value).is_ok(),
        SqlType::Int8 | SqlType::Numeric => true,
        // Through i128, since the nearest double of i64::MAX is beyond i64.
        SqlType::Float8 if (value as f64) as i128 == i128::from(value) => true,
        SqlType::Float4 if (value as f32) as i128 == i128::from(value) => true,
        SqlType::Float8 | SqlType::Float4 => return Err(ValueError::Inexact { ty: ty.clone() }),
        _ => return Err(ValueError::WrongKind { given: "int", ty: ty.clone(), takes: ty.takes() }),
    };
    if fits { Ok(value.to_string()) } else { Err(ValueError::OutOfRange { ty: ty.clone() }) }
}

fn float4_text(value: f64, ty: &SqlType) -> Result<String, ValueError> {
    let narrow = value as f32;
    if narrow.is_infinite() && value.is_finite() {
        return Err(ValueError::OutOfRange { ty: ty.clone() });
    }
    if f64::from(narrow) == value || value.is_nan() {
        Ok(float_text(value))
    } else {
        Err(ValueError::Inexact { ty: ty.clone() })
    }
}

/// Checks a text that is to be read as `ty`.
fn check_text(text: &str, ty: &SqlType) -> Result<(), ValueError> {
    if text.contains('\0') {
        return Err(ValueError::Nul);
    }
    let (valid, expected) = match ty {
        SqlType::Bool => {
            (matches!(text, "true" | "false" | "t" | "f" | "yes" | "no" | "on" | "off" | "1" | "0"), "true or false")
        }
        SqlType::Int2 | SqlType::Int4 | SqlType::Int8 => return check_int_text(text, ty),
        SqlType::Float4 => return check_number(check_float4(text), ty),
        SqlType::Float8 => return check_number(check_float8(text), ty),
        SqlType::Numeric => return check_number(check_numeric(text), ty),
        SqlType::Bytea => (
            text.strip_prefix("\\x").is_some_and(|digits| hex::decode(digits).is_ok()),
            "pairs of hexadecimal digits after \\x; other data goes as `bytes`",
        ),
        SqlType::Uuid => (is_uuid(text), "the form 00000000-0000-0000-0000-000000000000"),
        SqlType::Date => (time::is_date(text), time::DATE),
        SqlType::Time => (time::is_time(text), time::TIME),
        SqlType::Timetz => (time::is_timetz(text), time::TIMETZ),
        SqlType::Timestamp => (time::is_timestamp(text), time::TIMESTAMP),
        SqlType::Timestamptz => (time::is_timestamptz(text), time::TIMESTAMPTZ),
        SqlType::Interval => (time::is_interval(text), time::INTERVAL),
        SqlType::Json => (json::check(text), json::JSON),
        SqlType::Jsonb if json::check(text) => (json::check_text(text), json::JSONB),
        SqlType::Jsonb => (false, json::JSON),
        SqlType::Array(element) => return check_array_text(text, element, ty),
        SqlType::Text | SqlType::Varchar | SqlType::Bpchar => (true, ""),
        SqlType::Other(name) => return check_short_text(text, name, ty),
    };
    if valid { Ok(()) } else { Err(ValueError::Syntax { ty: ty.clone(), expected }) }
}

fn check_int_text(text: &str, ty: &SqlType) -> Result<(), ValueError> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(ValueError::Syntax { ty: ty.clone(), expected: "a whole number in decimal digits" });
    }
    let value = text.parse().map_err(|_| ValueError::OutOfRange { ty: ty.clone() })?;
    int_text(value, ty).map(drop)
}

fn check_number(result: Result<(), Fault>, ty: &SqlType) -> Result<(), ValueError> {
    result.map_err(|fault| match fault {
        Fault::Range => ValueError::OutOfRange { ty: ty.clone() },
        Fault::Syntax => ValueError::Syntax { ty: ty.clone(), expected: "a number such as -12.5 or 1e9" },
    })
}

fn is_uuid(text: &str) -> bool {
    !text.starts_with("urn:") && uuid::Uuid::try_parse(text).is_ok()
}

/// A caller may write an array out; its elements are held to the same rules.
fn check_array_text(text: &str, element: &SqlType, ty: &SqlType) -> Result<(), ValueError> {
    let expected = "an array such as {1,2,NULL}";
    let array::Literal { lower_bounds, elements } =
        array::from_literal(text, element).ok_or_else(|| ValueError::Syntax { ty: ty.clone(), expected })?;
    array::to_literal(&lower_bounds, &elements, element).map(drop)
}

/// Two types cut a longer text without a word.
fn check_short_text(text: &str, name: &str, ty: &SqlType) -> Result<(), ValueError> {
    let bytes_max = match name {
        "name" => 63,
        "\"char\"" => 1,
        _ => return Ok(()),
    };
    if text.len() <= bytes_max { Ok(()) } else { Err(ValueError::OutOfRange { ty: ty.clone() }) }
}
