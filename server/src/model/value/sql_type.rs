//! SQL types by the name Postgres gives them.
//!
//! A name parses back to the type it came from, so stored answers keep their columns' types as names. Types of which
//! nothing special is known (enums, ranges, composites, extensions) are `Other` and travel as text.
//!
//! Not here: looking a type up in the database (`catalog::types`).

use std::fmt;

use serde::{Deserialize, Serialize};

/// An SQL type.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", from = "String")]
#[expect(missing_docs, reason = "each variant is the Postgres type of the same name")]
pub enum SqlType {
    Bool,
    Int2,
    Int4,
    Int8,
    Float4,
    Float8,
    Numeric,
    Text,
    Varchar,
    Bpchar,
    Bytea,
    Uuid,
    Date,
    Time,
    Timetz,
    Timestamp,
    Timestamptz,
    Interval,
    Json,
    Jsonb,
    /// An array, of any number of dimensions, of this element type.
    Array(Box<SqlType>),
    /// Any other type: its quoted name, with its schema unless that is `pg_catalog`.
    Other(String),
}

/// The types with a meaning of their own, by name.
const NAMED: [(&str, SqlType); 20] = [
    ("bool", SqlType::Bool),
    ("int2", SqlType::Int2),
    ("int4", SqlType::Int4),
    ("int8", SqlType::Int8),
    ("float4", SqlType::Float4),
    ("float8", SqlType::Float8),
    ("numeric", SqlType::Numeric),
    ("text", SqlType::Text),
    ("varchar", SqlType::Varchar),
    ("bpchar", SqlType::Bpchar),
    ("bytea", SqlType::Bytea),
    ("uuid", SqlType::Uuid),
    ("date", SqlType::Date),
    ("time", SqlType::Time),
    ("timetz", SqlType::Timetz),
    ("timestamp", SqlType::Timestamp),
    ("timestamptz", SqlType::Timestamptz),
    ("interval", SqlType::Interval),
    ("json", SqlType::Json),
    ("jsonb", SqlType::Jsonb),
];

impl SqlType {
    /// The type of this name, as `Display` writes it.
    pub fn from_name(name: &str) -> Self {
        if let Some(element) = name.strip_suffix("[]") {
            return Self::Array(Box::new(Self::from_name(element)));
        }
        NAMED
            .into_iter()
            .find_map(|(known, ty)| (known == name).then_some(ty))
            .unwrap_or_else(|| Self::Other(name.to_owned()))
    }

    /// Every type that has a name of its own.
    pub fn named() -> impl Iterator<Item = Self> {
        NAMED.into_iter().map(|(_, ty)| ty)
    }

    /// The character between two elements of an array of this type: `,` but for one built-in type.
    pub(super) fn delimiter(&self) -> char {
        match self {
            Self::Other(name) if name == "box" => ';',
            _ => ',',
        }
    }

    /// The kinds of value it takes as a parameter, besides `null`.
    pub(super) fn takes(&self) -> &'static str {
        match self {
            Self::Bool => "`bool` or `text`",
            Self::Int2 | Self::Int4 | Self::Int8 => "`int` or `text`",
            Self::Float4 | Self::Float8 => "`double`, `int` or `text`",
            Self::Numeric => "`numeric`, `int` or `text`",
            Self::Bytea => "`bytes`, or `text` in the form \\x00ff",
            Self::Uuid => "`uuid` or `text`",
            Self::Date => "`date` or `text`",
            Self::Time | Self::Timetz => "`time` or `text`",
            Self::Timestamp => "`timestamp` or `text`",
            Self::Timestamptz => "`timestamptz` or `text`",
            Self::Interval => "`interval` or `text`",
            Self::Json | Self::Jsonb => "`json` or `text`",
            Self::Array(_) => "`array` or `text`",
            Self::Text | Self::Varchar | Self::Bpchar | Self::Other(_) => "`text`",
        }
    }
}

impl fmt::Display for SqlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Array(element) => write!(f, "{element}[]"),
            Self::Other(name) => f.write_str(name),
            named => {
                let name = NAMED.iter().find_map(|(name, ty)| (ty == named).then_some(*name));
                f.write_str(name.expect("every type but Array and Other is in NAMED"))
            }
        }
    }
}

impl From<SqlType> for String {
    fn from(ty: SqlType) -> Self {
        ty.to_string()
    }
}

impl From<String> for SqlType {
    fn from(name: String) -> Self {
        Self::from_name(&name)
    }
}
