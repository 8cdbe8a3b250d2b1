//! A result's value as a field.
//!
//! Not here: where it goes.

use prost_reflect::{DynamicMessage, EnumDescriptor, MessageDescriptor, Value as Field};

use super::{Form, label, time};
use crate::model::value::Value;

impl Form {
    /// The field for a value; none for NULL.
    ///
    /// # Errors
    /// Why it cannot hold the value, as the end of a sentence that begins with the column. The value itself is not told.
    pub(crate) fn read(&self, value: Value) -> Result<Option<Field>, String> {
        let beyond = || format!("has a value that {self} cannot hold");
        Ok(Some(match (self, value) {
            (_, Value::Null) => return Ok(None),
            (Self::Wrapper(descriptor, inner), value) => {
                let Some(field) = inner.read(value)? else { return Ok(None) };
                let mut wrapper = DynamicMessage::new(descriptor.clone());
                wrapper.try_set_field_by_name("value", field).map_err(|error| error.to_string())?;
                Field::Message(wrapper)
            }
            (Self::Bool, Value::Bool(value)) => Field::Bool(value),
            (Self::Int32, Value::Int(value)) => Field::I32(value.try_into().map_err(|_| beyond())?),
            (Self::Int64, Value::Int(value)) => Field::I64(value),
            (Self::Uint32, Value::Int(value)) => Field::U32(value.try_into().map_err(|_| beyond())?),
            (Self::Uint64, Value::Int(value)) => Field::U64(value.try_into().map_err(|_| beyond())?),
            (Self::Uint64, Value::Numeric(value)) => Field::U64(value.parse().map_err(|_| beyond())?),
            (Self::Float, Value::Double(value)) => {
                let narrow = value as f32;
                if f64::from(narrow) != value && !value.is_nan() {
                    return Err(beyond());
                }
                Field::F32(narrow)
            }
            (Self::Double, Value::Double(value)) => Field::F64(value),
            (Self::Double, Value::Int(value)) => Field::F64(i32::try_from(value).map_err(|_| beyond())?.into()),
            (
                Self::Text,
                Value::Text(text)
                | Value::Numeric(text)
                | Value::Uuid(text)
                | Value::Date(text)
                | Value::Time(text)
                | Value::Timestamp(text)
                | Value::Timestamptz(text)
                | Value::Interval(text)
                | Value::Json(text),
            ) => Field::String(text),
            (Self::Bytes, Value::Bytes(bytes)) => Field::Bytes(bytes.into()),
            (Self::Enum(_), Value::Int(number)) => Field::EnumNumber(number.try_into().map_err(|_| beyond())?),
            (Self::Enum(descriptor), Value::Text(text)) => {
                let number = number(descriptor, &text);
                Field::EnumNumber(number.ok_or_else(|| format!("has a label that {} lacks", descriptor.full_name()))?)
            }
            (Self::Timestamp(descriptor), Value::Timestamptz(text)) => {
                Field::Message(time::to_timestamp(descriptor, &text).ok_or_else(beyond)?)
            }
            (Self::Duration(descriptor), Value::Interval(text)) => {
                Field::Message(time::to_duration(descriptor, &text).ok_or_else(beyond)?)
            }
            (Self::Json(descriptor), Value::Json(text)) => Field::Message(message(descriptor, &text)?),
            (Self::List(inner), Value::Array(values)) => {
                let null = || "has a NULL in its array, which a repeated field cannot hold".to_owned();
                let fields = values.into_iter().map(|value| inner.read(value)?.ok_or_else(null));
                Field::List(fields.collect::<Result<_, _>>()?)
            }
            (_, value) => return Err(format!("is {}, which {self} cannot hold", value.kind())),
        }))
    }
}

/// A message out of its JSON form. The reason is not told: it quotes the document.
fn message(descriptor: &MessageDescriptor, json: &str) -> Result<DynamicMessage, String> {
    let mut reader = serde_json::Deserializer::from_str(json);
    let message = DynamicMessage::deserialize(descriptor.clone(), &mut reader);
    message.map_err(|_| format!("has JSON that is no {}", descriptor.full_name()))
}

/// The value with this label, or else of this name.
fn number(descriptor: &EnumDescriptor, text: &str) -> Option<i32> {
    let labelled = descriptor.values().find(|value| label(descriptor, value.name()) == text);
    labelled.or_else(|| descriptor.get_value_by_name(text)).map(|value| value.number())
}
