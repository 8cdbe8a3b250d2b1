//! Attempts of events that may be what ends the relay's process: written down before they begin.
//!
//! Only for lanes that were claimed again and again without progress; elsewhere an event costs no write of its own.

use sqlx::PgConnection;
use uuid::Uuid;

use super::held::Owner;

/// Writes down that an event of the owner's one lane here is about to be tried, and forgets the attempt that has ended.
/// Returns how often it was tried now; `None` when the lane is not the owner's any more.
///
/// # Errors
/// When the statement fails.
pub async fn start(
    connection: &mut PgConnection,
    owner: &Owner,
    id: Uuid,
    ended: Option<Uuid>,
) -> sqlx::Result<Option<i32>> {
    sqlx::query_scalar("select outbox.start_attempt($1, $2, $3, $4, $5)")
        .bind(owner.instance)
        .bind(&owner.lanes)
        .bind(&owner.epochs)
        .bind(id)
        .bind(ended)
        .fetch_one(connection)
        .await
}

/// Takes an attempt back that the process has survived, though it has not ended.
///
/// # Errors
/// When the statement fails.
pub async fn take_back(connection: &mut PgConnection, id: Uuid) -> sqlx::Result<()> {
    let take_back = "update outbox.attempts set attempts = attempts - 1 where id = $1 and attempts > 0";
    sqlx::query(take_back).bind(id).execute(connection).await.map(drop)
}

/// Notes that lanes have passed events: claims and attempts are counted anew.
///
/// # Errors
/// When the statement fails.
pub async fn passed(connection: &mut PgConnection, owner: &Owner) -> sqlx::Result<()> {
    sqlx::query("select outbox.has_passed($1, $2, $3)")
        .bind(owner.instance)
        .bind(&owner.lanes)
        .bind(&owner.epochs)
        .execute(connection)
        .await
        .map(drop)
}
