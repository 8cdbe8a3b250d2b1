//! Promoting delayed events that are due into the stream.
//!
//! One statement, so that a crash leaves an event either scheduled or in the stream. It deliberately needs no rights on
//! what it changes: `outbox.promote` has them.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

/// What a promotion came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, sqlx::FromRow)]
pub struct Promotion {
    /// Events that are in the stream now.
    pub promoted: i32,
    /// Everything that was to be seen was promoted that was due until then; `None`: some of it was not, or none was due.
    pub promoted_to: Option<DateTime<Utc>>,
    /// When the next event is due; `None` when there is none, or another relay is promoting.
    pub next_due_at: Option<DateTime<Utc>>,
}

/// Promotes what is due, so many events at most and about so many bytes of keys and payloads. What was due until `after`
/// is passed over.
///
/// # Errors
/// When the statement fails.
pub async fn promote(
    connection: &mut PgConnection,
    after: Option<DateTime<Utc>>,
    events_max: i32,
    bytes_max: i64,
) -> sqlx::Result<Promotion> {
    sqlx::query_as("select * from outbox.promote(coalesce($1, '-infinity'), $2, $3)")
        .bind(after)
        .bind(events_max)
        .bind(bytes_max)
        .fetch_one(connection)
        .await
}
