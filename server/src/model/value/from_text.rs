//! A result's value out of the text that Postgres wrote.
//!
//! The session writes in one fixed notation (`datestyle=ISO, intervalstyle=iso_8601, bytea_output=hex, timezone=UTC,
//! extra_float_digits=1`); the store sets it on every connection.
//!
//! Not here: checks of what Postgres wrote beyond what reading it takes.

use super::{SqlType, Value, ValueError, array};

impl Value {
    /// Reads a text of type `ty`; none is NULL.
    ///
    /// # Errors
    /// If the text is not in the notation above.
    pub fn from_sql_text(text: Option<&str>, ty: &SqlType) -> Result<Self, ValueError> {
        text.map_or(Ok(Self::Null), |text| read(text, ty).ok_or_else(|| ValueError::Unreadable { ty: ty.clone() }))
    }
}

fn read(text: &str, ty: &SqlType) -> Option<Value> {
    let owned = || text.to_owned();
    Some(match ty {
        SqlType::Bool => match text {
            // The cast to text writes words, an array letters.
            "true" | "t" => Value::Bool(true),
            "false" | "f" => Value::Bool(false),
            _ => return None,
        },
        SqlType::Int2 | SqlType::Int4 | SqlType::Int8 => Value::Int(text.parse().ok()?),
        // The digits are the shortest that make this float4, which may be another float8.
        SqlType::Float4 => Value::Double(f64::from(text.parse::<f32>().ok()?)),
        SqlType::Float8 => Value::Double(text.parse().ok()?),
        SqlType::Numeric => Value::Numeric(owned()),
        SqlType::Text | SqlType::Varchar | SqlType::Bpchar | SqlType::Other(_) => Value::Text(owned()),
        SqlType::Bytea => Value::Bytes(hex::decode(text.strip_prefix("\\x")?).ok()?),
        SqlType::Uuid => Value::Uuid(owned()),
        SqlType::Date => Value::Date(owned()),
        SqlType::Time | SqlType::Timetz => Value::Time(owned()),
        SqlType::Timestamp => Value::Timestamp(owned()),
        SqlType::Timestamptz => Value::Timestamptz(owned()),
        SqlType::Interval => Value::Interval(owned()),
        SqlType::Json | SqlType::Jsonb => Value::Json(owned()),
        SqlType::Array(element) => {
            let array::Literal { lower_bounds, elements } = array::from_literal(text, element)?;
            let elements = read_elements(elements, element)?;
            if lower_bounds.is_empty() { Value::Array(elements) } else { Value::ArrayFrom { lower_bounds, elements } }
        }
    })
}

fn read_elements(texts: Vec<Value>, element: &SqlType) -> Option<Vec<Value>> {
    let read_one = |value| match value {
        Value::Text(text) => read(&text, element),
        Value::Array(texts) => read_elements(texts, element).map(Value::Array),
        _ => Some(Value::Null),
    };
    texts.into_iter().map(read_one).collect()
}
