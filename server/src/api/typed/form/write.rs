//! A field's value as a parameter.
//!
//! Not here: whether it is in the parameter's range, which is checked where every parameter is.

use prost_reflect::{DynamicMessage, EnumDescriptor, Value as Field};

use super::{Form, label, time};
use crate::model::value::{SqlType, Value};

/// Says of an enum's zero value that it stands for no value.
const UNSPECIFIED: &str = "_UNSPECIFIED";

impl Form {
    /// The value for a parameter of this type, which the form `becomes`.
    ///
    /// # Errors
    /// What does not fit, as the end of a sentence that begins with the field.
    pub(crate) fn write(&self, field: &Field, ty: &SqlType) -> Result<Value, String> {
        Ok(match (self, field) {
            (Self::Bool, Field::Bool(value)) => Value::Bool(*value),
            (_, Field::I32(value)) => Value::Int((*value).into()),
            (_, Field::I64(value)) => Value::Int(*value),
            (_, Field::U32(value)) => Value::Int((*value).into()),
            // Beyond int8 it is the type's decision: numeric takes it.
            (_, Field::U64(value)) => i64::try_from(*value).map_or_else(|_| Value::Text(value.to_string()), Value::Int),
            (_, Field::F32(value)) => Value::Double((*value).into()),
            (_, Field::F64(value)) => Value::Double(*value),
            (Self::Text, Field::String(value)) => Value::Text(value.clone()),
            (Self::Bytes, Field::Bytes(value)) => Value::Bytes(value.to_vec()),
            (Self::Enum(descriptor), Field::EnumNumber(number)) => enum_value(descriptor, *number, ty)?,
            (Self::Timestamp(_), Field::Message(message)) => Value::Timestamptz(time::timestamptz(message)?),
            (Self::Duration(_), Field::Message(message)) => Value::Interval(time::interval(message)?),
            (Self::Wrapper(_, inner), Field::Message(message)) => {
                let wrapped = message.get_field_by_name("value").ok_or("is no wrapper")?;
                inner.write(&wrapped, ty)?
            }
            (Self::Json(_), Field::Message(message)) => Value::Json(json(message)?.to_string()),
            (Self::List(inner), Field::List(fields)) => match ty {
                SqlType::Array(element) => {
                    Value::Array(fields.iter().map(|field| inner.write(field, element)).collect::<Result<_, _>>()?)
                }
                _ => return Err(format!("is a list, and no {ty}")),
            },
            _ => return Err(format!("is no {self}")),
        })
    }
}

/// A message in protobuf's JSON form. The members are in order of their names, so that equal messages give equal text.
///
/// # Errors
/// When the message holds what has no such form, as a `Timestamp` out of range.
pub(crate) fn json(message: &DynamicMessage) -> Result<serde_json::Value, String> {
    serde_json::to_value(message).map_err(|error| format!("has no JSON form: {error}"))
}

fn enum_value(descriptor: &EnumDescriptor, number: i32, ty: &SqlType) -> Result<Value, String> {
    if matches!(ty, SqlType::Int2 | SqlType::Int4 | SqlType::Int8) {
        return Ok(Value::Int(number.into()));
    }
    let value = descriptor.get_value(number);
    let value = value.ok_or_else(|| format!("has the value {number}, which {} lacks", descriptor.full_name()))?;
    Ok(match number == 0 && value.name().ends_with(UNSPECIFIED) {
        true => Value::Null,
        false => Value::Text(label(descriptor, value.name())),
    })
}
