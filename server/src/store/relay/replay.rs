//! Going on with replays, at their rates.
//!
//! One statement stores copies of the next events and notes how far the replay is, so that a crash neither repeats nor
//! skips any. What operators ask for is in `store::replay`.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

/// Events that are looked at in one turn, which few of them may match.
const LOOKS_MAX: i32 = 5_000;

/// What a turn came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, sqlx::FromRow)]
pub struct Turn {
    /// Events that are in the stream again.
    pub replayed: i32,
    /// When the next turn is; `None` while no replay runs.
    pub next_at: Option<DateTime<Utc>>,
}

/// Goes on with the replay whose turn it is, by so many events at most and about so many bytes of keys and payloads.
///
/// # Errors
/// When the statement fails.
pub async fn go_on(connection: &mut PgConnection, events_max: i32, bytes_max: i64) -> sqlx::Result<Turn> {
    sqlx::query_as("select * from outbox.go_on_replaying($1, $2, $3)")
        .bind(events_max)
        .bind(bytes_max)
        .bind(LOOKS_MAX)
        .fetch_one(connection)
        .await
}
