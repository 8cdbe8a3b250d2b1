//! What a protobuf field holds, as SQL sees it, and with which SQL types it goes together.
//!
//! Invariant: a pair of types that `becomes` or `holds` lets pass loses nothing: either every value fits, or one that
//! does not is told when it comes. A pair that would fail on ordinary values of a type that protobuf has is refused.
//!
//! Not here: maps, which have no form of their own (inside a message they are part of its JSON).

mod read;
mod time;
mod write;

use std::fmt;

use prost_reflect::{EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor};

pub(super) use self::write::json;
use crate::model::value::SqlType;

const PACKAGE: &str = "google.protobuf.";

/// The form of a field's values.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Form {
    Bool,
    Int32,
    Int64,
    Uint32,
    Uint64,
    Float,
    Double,
    Text,
    Bytes,
    /// By label or by number.
    Enum(EnumDescriptor),
    Timestamp(MessageDescriptor),
    Duration(MessageDescriptor),
    /// One of protobuf's wrappers, such as `StringValue`, and the form of what it wraps.
    Wrapper(MessageDescriptor, Box<Form>),
    /// `Struct`, `Value`, `ListValue` and every other message, in protobuf's JSON form.
    Json(MessageDescriptor),
    List(Box<Form>),
}

impl Form {
    /// The form of a field; none for a map.
    pub(super) fn of(field: &FieldDescriptor) -> Option<Self> {
        match field.is_map() {
            true => None,
            false if field.is_list() => Some(Self::List(Box::new(Self::of_kind(&field.kind())))),
            false => Some(Self::of_kind(&field.kind())),
        }
    }

    fn of_kind(kind: &Kind) -> Self {
        match kind {
            Kind::Bool => Self::Bool,
            Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => Self::Int32,
            Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => Self::Int64,
            Kind::Uint32 | Kind::Fixed32 => Self::Uint32,
            Kind::Uint64 | Kind::Fixed64 => Self::Uint64,
            Kind::Float => Self::Float,
            Kind::Double => Self::Double,
            Kind::String => Self::Text,
            Kind::Bytes => Self::Bytes,
            Kind::Enum(descriptor) => Self::Enum(descriptor.clone()),
            Kind::Message(descriptor) => Self::of_message(descriptor),
        }
    }

    fn of_message(descriptor: &MessageDescriptor) -> Self {
        match descriptor.full_name().strip_prefix(PACKAGE) {
            Some("Timestamp") => Self::Timestamp(descriptor.clone()),
            Some("Duration") => Self::Duration(descriptor.clone()),
            Some(
                "BoolValue" | "Int32Value" | "Int64Value" | "UInt32Value" | "UInt64Value" | "FloatValue"
                | "DoubleValue" | "StringValue" | "BytesValue",
            ) => {
                let inner = descriptor.get_field_by_name("value").and_then(|field| Self::of(&field));
                Self::Wrapper(descriptor.clone(), Box::new(inner.unwrap_or(Self::Bytes)))
            }
            _ => Self::Json(descriptor.clone()),
        }
    }

    /// Whether its values can be parameters of this type.
    pub(super) fn becomes(&self, ty: &SqlType) -> bool {
        use SqlType as T;
        match self {
            Self::Bool => *ty == T::Bool,
            Self::Int32 | Self::Int64 | Self::Uint32 | Self::Uint64 => {
                matches!(ty, T::Int2 | T::Int4 | T::Int8 | T::Numeric | T::Float4 | T::Float8)
            }
            Self::Float | Self::Double => matches!(ty, T::Float4 | T::Float8),
            Self::Text => has_text(ty),
            Self::Bytes => *ty == T::Bytea,
            Self::Enum(_) => is_text(ty) || matches!(ty, T::Int2 | T::Int4 | T::Int8),
            Self::Timestamp(_) => *ty == T::Timestamptz,
            Self::Duration(_) => *ty == T::Interval,
            Self::Wrapper(_, inner) => inner.becomes(ty),
            Self::Json(_) => matches!(ty, T::Json | T::Jsonb),
            Self::List(inner) => matches!(ty, T::Array(element) if inner.becomes(element)),
        }
    }

    /// Whether it can take results of this type. Unsigned numbers have no SQL type of their own, so that of signed ones
    /// the negative are told when they come.
    pub(super) fn holds(&self, ty: &SqlType) -> bool {
        use SqlType as T;
        match self {
            Self::Bool => *ty == T::Bool,
            Self::Int32 => matches!(ty, T::Int2 | T::Int4),
            Self::Int64 | Self::Uint32 => matches!(ty, T::Int2 | T::Int4 | T::Int8),
            Self::Uint64 => matches!(ty, T::Int2 | T::Int4 | T::Int8 | T::Numeric),
            Self::Float => *ty == T::Float4,
            Self::Double => matches!(ty, T::Float4 | T::Float8 | T::Int2 | T::Int4),
            Self::Text => has_text(ty),
            Self::Bytes => *ty == T::Bytea,
            Self::Enum(_) => is_text(ty) || matches!(ty, T::Int2 | T::Int4),
            Self::Timestamp(_) => *ty == T::Timestamptz,
            Self::Duration(_) => *ty == T::Interval,
            Self::Wrapper(_, inner) => inner.holds(ty),
            Self::Json(_) => matches!(ty, T::Json | T::Jsonb),
            Self::List(inner) => matches!(ty, T::Array(element) if inner.holds(element)),
        }
    }

    /// Whether values of the other form can be put in its place as they are.
    pub(super) fn takes(&self, other: &Self) -> bool {
        self == other
    }

    /// The SQL type whose notation a constant for it has; none if it takes none.
    pub(super) fn notation(&self) -> Option<SqlType> {
        Some(match self {
            Self::Bool => SqlType::Bool,
            Self::Int32 => SqlType::Int4,
            Self::Int64 | Self::Uint32 => SqlType::Int8,
            Self::Uint64 => SqlType::Numeric,
            Self::Float => SqlType::Float4,
            Self::Double => SqlType::Float8,
            Self::Text | Self::Enum(_) => SqlType::Text,
            Self::Bytes => SqlType::Bytea,
            Self::Timestamp(_) => SqlType::Timestamptz,
            Self::Duration(_) => SqlType::Interval,
            Self::Wrapper(_, inner) => inner.notation()?,
            Self::Json(_) => SqlType::Jsonb,
            Self::List(_) => return None,
        })
    }
}

/// As protobuf writes it.
impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bool => "bool",
            Self::Int32 => "int32",
            Self::Int64 => "int64",
            Self::Uint32 => "uint32",
            Self::Uint64 => "uint64",
            Self::Float => "float",
            Self::Double => "double",
            Self::Text => "string",
            Self::Bytes => "bytes",
            Self::Enum(descriptor) => descriptor.full_name(),
            Self::Timestamp(descriptor)
            | Self::Duration(descriptor)
            | Self::Wrapper(descriptor, _)
            | Self::Json(descriptor) => descriptor.full_name(),
            Self::List(inner) => return write!(f, "repeated {inner}"),
        })
    }
}

/// Is it text and nothing else, or a type of the operator's own, such as an enum?
fn is_text(ty: &SqlType) -> bool {
    matches!(ty, SqlType::Text | SqlType::Varchar | SqlType::Bpchar | SqlType::Other(_))
}

/// Has it a notation that is more than protobuf's own types can hold?
fn has_text(ty: &SqlType) -> bool {
    use SqlType as T;
    is_text(ty)
        || matches!(ty, T::Uuid | T::Numeric | T::Date | T::Time | T::Timetz | T::Timestamp | T::Timestamptz)
        || matches!(ty, T::Interval | T::Json | T::Jsonb)
}

/// The SQL labels of an enum's values: the value's name, or, when all names begin with the enum's own as the style guide
/// has it, what follows, in small letters. So `USER_STATUS_ACTIVE` of `UserStatus` is `active`.
fn label(descriptor: &EnumDescriptor, name: &str) -> String {
    let prefix = prefix(descriptor.name());
    let styled =
        descriptor.values().all(|value| value.name().len() > prefix.len() && value.name().starts_with(&prefix));
    if styled { name[prefix.len()..].to_lowercase() } else { name.to_owned() }
}

/// `UserStatus` as `USER_STATUS_`.
fn prefix(name: &str) -> String {
    let mut prefix = String::with_capacity(name.len() + 4);
    for (index, letter) in name.char_indices() {
        if letter.is_uppercase() && index > 0 {
            prefix.push('_');
        }
        prefix.extend(letter.to_uppercase());
    }
    prefix + "_"
}
