//! Typed values: what a command takes as parameters and gives back in its rows.
//!
//! Between server and database every value travels as text in Postgres's own notation, and the SQL type says how to
//! read it. So `Value` → text → Postgres → text → `Value` loses nothing: not NaN, not a numeric of a thousand
//! digits, not the ends of int8.
//!
//! Not here: the wire form (`api` maps that) and whether a value suits a column's constraints (Postgres decides).

mod array;
mod from_text;
mod json;
mod number;
mod sql_type;
mod time;
mod to_text;

pub use sql_type::SqlType;

/// A typed value. The kinds mirror `outbox.v1.Value`.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// SQL NULL.
    Null,
    /// bool
    Bool(bool),
    /// int2, int4, int8
    Int(i64),
    /// float4, float8
    Double(f64),
    /// text, varchar, char, and any type not named here, in Postgres's own notation
    Text(String),
    /// bytea
    Bytes(Vec<u8>),
    /// numeric in decimal notation; also `NaN`, `Infinity`, `-Infinity`
    Numeric(String),
    /// uuid in its hyphenated form
    Uuid(String),
    /// date as `YYYY-MM-DD`
    Date(String),
    /// time and timetz as `HH:MM:SS[.ffffff][±HH]`
    Time(String),
    /// timestamp as `YYYY-MM-DD HH:MM:SS[.ffffff]`
    Timestamp(String),
    /// timestamptz as `YYYY-MM-DD HH:MM:SS[.ffffff]+00`
    Timestamptz(String),
    /// interval in ISO 8601 notation
    Interval(String),
    /// json and jsonb
    Json(String),
    /// An array; nested for more dimensions.
    Array(Vec<Value>),
    /// An array whose subscripts do not all begin at 1.
    ArrayFrom {
        /// The first subscript of each dimension.
        lower_bounds: Vec<i32>,
        /// As in `Array`; only the outermost has bounds.
        elements: Vec<Value>,
    },
}

impl Value {
    /// The name of its kind, as the wire contract has it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Double(_) => "double",
            Self::Text(_) => "text",
            Self::Bytes(_) => "bytes",
            Self::Numeric(_) => "numeric",
            Self::Uuid(_) => "uuid",
            Self::Date(_) => "date",
            Self::Time(_) => "time",
            Self::Timestamp(_) => "timestamp",
            Self::Timestamptz(_) => "timestamptz",
            Self::Interval(_) => "interval",
            Self::Json(_) => "json",
            Self::Array(_) | Self::ArrayFrom { .. } => "array",
        }
    }
}

pub use self::json::DEPTH_MAX as JSON_DEPTH_MAX;

/// Does a JSON text nest its objects and arrays no deeper than this?
pub fn json_depth_fits(text: &str, depth_max: usize) -> bool {
    json::depth_fits(text, depth_max)
}

/// Why a value does not fit its SQL type. The messages continue a sentence that begins with the value's name, and
/// never repeat the value itself: it may be a secret.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ValueError {
    /// The kind does not go with the SQL type.
    #[error("is of kind `{given}`, but the SQL type {ty} takes {takes}")]
    WrongKind {
        /// The value's kind.
        given: &'static str,
        /// The SQL type.
        ty: SqlType,
        /// The kinds it takes.
        takes: &'static str,
    },
    /// The value lies outside what the type can hold.
    #[error("is out of the range of {ty}")]
    OutOfRange {
        /// The SQL type.
        ty: SqlType,
    },
    /// The type could only hold a rounded form of it.
    #[error("cannot be held exactly by {ty}; round it first, or send it as `text` to have the nearest value")]
    Inexact {
        /// The SQL type.
        ty: SqlType,
    },
    /// The text is not in the type's notation.
    #[error("is not a valid {ty}: expected {expected}")]
    Syntax {
        /// The SQL type.
        ty: SqlType,
        /// What would be valid.
        expected: &'static str,
    },
    /// Postgres text cannot hold the character NUL.
    #[error("contains the character NUL (U+0000), which Postgres text cannot hold; send it as `bytes` to a bytea")]
    Nul,
    /// The array is not rectangular, is too deep, or has an empty part.
    #[error("is not a valid {ty}: {reason}")]
    Shape {
        /// The SQL type.
        ty: SqlType,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// One element of an array is wrong.
    #[error("has a wrong element, number {number}, which {source}")]
    Element {
        /// Counted from 1.
        number: usize,
        /// What is wrong with it.
        source: Box<ValueError>,
    },
    /// Postgres sent a text that its type does not explain: the session's settings are not the store's.
    #[error("came back from the database in a notation that is not the one of {ty}")]
    Unreadable {
        /// The SQL type.
        ty: SqlType,
    },
}

#[cfg(test)]
mod tests;
