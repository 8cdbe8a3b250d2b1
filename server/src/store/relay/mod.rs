//! The relay's statements: leases, progress, and reading events.
//!
//! Each function is one statement of one purpose on a connection that the relay holds. A statement that fails leaves
//! the caller to throw the connection and everything it remembers away. Nothing here decides what to do next.

pub mod attempt;
pub mod delivery;
pub mod drain;
pub mod fetch;
pub mod held;
pub mod identity;
pub mod lease;
pub mod progress;
pub mod replay;
pub mod replication;
pub mod row;
pub mod schedule;
pub mod slot;
pub mod stream;

use std::{str::FromStr as _, time::Duration};

use sqlx::{
    Connection as _, Executor as _,
    postgres::{PgConnectOptions, types::PgInterval},
};

/// The relay's connection.
pub use sqlx::PgConnection as Connection;

/// Why a statement failed.
pub use sqlx::Error;

/// Opens a connection for the relay.
///
/// Commits on it are flushed before they are answered, whatever the database's default: the relay publishes what it
/// has read only after such a commit. Each statement takes its own snapshot.
///
/// # Errors
/// When the server cannot be reached or the URL is none.
pub async fn connect(url: &str) -> Result<Connection, Error> {
    let options = PgConnectOptions::from_str(url)?.application_name("outboxd relay");
    let mut connection = Connection::connect_with(&options).await?;
    connection.execute("set synchronous_commit = on; set default_transaction_isolation = 'read committed'").await?;
    Ok(connection)
}

/// A row that does not have the shape its statement asks for.
pub(crate) fn decode_error(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::Decode(Box::new(error))
}

fn interval(duration: Duration) -> PgInterval {
    PgInterval { months: 0, days: 0, microseconds: i64::try_from(duration.as_micros()).unwrap_or(i64::MAX) }
}
