//! Brings a database's `outbox` schema up to date.
//!
//! Running it twice at once or again is safe: sqlx takes an advisory lock and skips what is done. It deliberately
//! never goes back.

use sqlx::{PgConnection, migrate::MigrateError};

/// Applies the migrations that the database lacks.
///
/// # Errors
/// [`MigrateError`] when one fails, or when one that was applied has been changed since.
pub async fn run(connection: &mut PgConnection) -> Result<(), MigrateError> {
    sqlx::migrate!("../migrations").run(connection).await
}
