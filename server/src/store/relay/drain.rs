//! Draining holds, by their lanes' owner: what is due, its events in order, and what becomes of it.
//!
//! Held rows leave in the transaction that writes down where they went. As in `held`, a relay that has lost a lane changes
//! nothing in it.

use std::time::Duration;

use futures_util::TryStreamExt as _;
use sqlx::PgConnection;
use uuid::Uuid;

use super::{
    delivery,
    fetch::list,
    held::Owner,
    interval,
    row::{COLUMN_NAMES, Decoder, Row},
};

/// A hold that is to be drained.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
pub struct Due {
    /// Its number.
    pub hold: i64,
    /// Its lane.
    pub lane: i16,
    /// Its events' topic.
    pub topic: String,
    /// Drains begun since the last one that ended.
    pub drains: i32,
}

/// The holds of these lanes whose time has come, the longest due first.
///
/// # Errors
/// When the statement fails.
pub async fn due(connection: &mut PgConnection, lanes: &[i16], limit: i64) -> sqlx::Result<Vec<Due>> {
    sqlx::query_as(
        "select hold, lane, topic, drains from outbox.holds
         where lane = any($1) and retry_at <= clock_timestamp()
         order by retry_at, hold limit $2",
    )
    .bind(lanes)
    .bind(limit)
    .fetch_all(connection)
    .await
}

/// Puts holds off: until their time comes again, or, without a time, until an operator says so.
///
/// # Errors
/// When the statement fails.
pub async fn postpone(
    connection: &mut PgConnection,
    owner: &Owner,
    holds: &[i64],
    retry_after: Option<Duration>,
    reason: Option<&str>,
) -> sqlx::Result<()> {
    sqlx::query(
        "update outbox.holds
         set retry_at = clock_timestamp() + $5, reason = coalesce($6, reason), draining = false, drains = 0
         where hold = any($4) and retry_at is not null and lane = any(outbox.own_lanes($1, $2, $3))",
    )
    .bind(owner.instance)
    .bind(&owner.lanes)
    .bind(&owner.epochs)
    .bind(holds)
    .bind(retry_after.map(interval))
    .bind(reason)
    .execute(connection)
    .await
    .map(drop)
}

/// Begins to drain holds, durably, and returns those that are still due and the owner's.
///
/// # Errors
/// When the statement fails.
pub async fn begin(connection: &mut PgConnection, owner: &Owner, holds: &[i64]) -> sqlx::Result<Vec<i64>> {
    sqlx::query_scalar(
        "update outbox.holds set draining = true, drains = drains + 1
         where hold = any($4) and retry_at <= clock_timestamp() and lane = any(outbox.own_lanes($1, $2, $3))
         returning hold",
    )
    .bind(owner.instance)
    .bind(&owner.lanes)
    .bind(&owner.epochs)
    .bind(holds)
    .fetch_all(connection)
    .await
}

/// Reads the first events of holds, in order of position.
///
/// # Errors
/// When the statement fails or its answer cannot be read.
pub async fn events(
    connection: &mut PgConnection,
    holds: &[i64],
    rows_max: usize,
    bytes_max: usize,
) -> sqlx::Result<Vec<Row>> {
    let statement = format!(
        "copy (
            select {} from (
                select *, sum(octet_length(coalesce(data, '')) + octet_length(coalesce(key, ''))) over (
                    order by position rows between unbounded preceding and 1 preceding) as bytes_before
                from (select * from outbox.held where hold = any('{{{}}}'::bigint[])
                      order by position limit {rows_max}) as candidates
            ) as page
            where coalesce(bytes_before, 0) < {bytes_max}
            order by position
         ) to stdout (format binary)",
        COLUMN_NAMES.join(", "),
        list(holds)
    );
    let (mut decoder, mut rows) = (Decoder::default(), Vec::new());
    let mut stream = connection.copy_out_raw(&statement).await?;
    while let Some(bytes) = stream.try_next().await? {
        decoder.feed(bytes, &mut rows).map_err(super::decode_error)?;
    }
    Ok(rows)
}

/// Ends a drain: these events are held no more, and holds without further events are gone. That they were stays known with
/// where they went.
///
/// # Errors
/// When the statement fails.
pub async fn end(
    connection: &mut PgConnection,
    owner: &Owner,
    holds: &[i64],
    published: &[Uuid],
    delivered: &delivery::Columns,
) -> sqlx::Result<()> {
    let held = "(select jsonb_object_agg(e.position, jsonb_build_array(e.held_at, h.reason))
                 from outbox.held e join outbox.holds h using (hold) where e.id = any($10))";
    let statement = format!("with {} select outbox.end_drain($6, $7, $8, $9, $10)", delivery::insert(held));
    delivered
        .bind(sqlx::query(sqlx::AssertSqlSafe(statement)))
        .bind(owner.instance)
        .bind(&owner.lanes)
        .bind(&owner.epochs)
        .bind(holds)
        .bind(published)
        .execute(connection)
        .await
        .map(drop)
}
