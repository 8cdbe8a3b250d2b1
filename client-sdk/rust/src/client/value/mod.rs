//! Rust values to and from the wire's typed values.
//!
//! Invariant: nothing is rounded or cut on the way; a value that does not fit its Rust type is an error that says so.
//! It deliberately does not know any SQL type: the server checks parameters against the command's own.

mod read;
mod text;
mod write;

pub use read::{FromValue, ValueError};
pub use write::IntoValue;

/// A `numeric` in decimal notation, of any size; also `NaN`, `Infinity` and `-Infinity`.
///
/// ```
/// use outbox_sdk::{Command, Numeric};
///
/// let order = Command::new("place_order").param("total", Numeric("12.50".into()));
/// # let _ = order;
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Numeric(pub String);

/// An `interval` in ISO 8601 notation, such as `P1DT2H`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Interval(pub String);
