//! Applies the migrations, and makes partitions ahead of time.

use sqlx::{Executor as _, PgConnection, migrate::Migrator};

use super::{Error, Failure};

/// Days of event partitions to have ready. Events that `outbox.emit` stores need them when no server runs, too.
const DAYS_AHEAD: i32 = 7;

/// Applies every migration that is not applied yet. Safe to run from several processes at once.
///
/// # Errors
/// When the database refuses one, holds one this program does not know, or is a standby.
pub async fn run(connection: &mut PgConnection) -> Result<(), Error> {
    let standby = sqlx::query_scalar("select pg_is_in_recovery()").fetch_one(&mut *connection).await;
    if standby.map_err(|error| Failure::read(error, None).into_error())? {
        let reason = "the database is a standby or in recovery: migrate its primary, and serve from a standby with \
                      database.migrate_at_start = false";
        return Err(Error::Internal(reason.into()));
    }
    let mut migrator: Migrator = sqlx::migrate!("../migrations");
    migrator.create_schema("outbox");
    migrator.dangerous_set_table_name("outbox.migrations");
    migrator.run_direct(None, connection, false).await.map_err(|error| Error::Internal(error.into()))?;
    make_partitions(connection).await.map(drop)
}

/// Makes the partitions of the days to come; returns how many were missing.
///
/// # Errors
/// [`Error::Conflict`] when a lock is not to be had within two seconds: try again.
pub async fn make_partitions(connection: &mut PgConnection) -> Result<i32, Error> {
    make(connection, "select outbox.make_partitions($1) + outbox.make_delivery_partitions($1)", DAYS_AHEAD).await
}

/// Makes the partitions of marks, for events as old as the window and for the days to come; returns how many were
/// missing.
///
/// # Errors
/// As [`make_partitions`].
pub async fn make_mark_partitions(connection: &mut PgConnection, window_hours: u32) -> Result<i32, Error> {
    make(connection, "select outbox.make_week_partitions('marks', make_interval(hours => $1))", hours(window_hours))
        .await
}

/// The same for claims.
///
/// # Errors
/// As [`make_partitions`].
pub async fn make_claim_partitions(connection: &mut PgConnection, window_hours: u32) -> Result<i32, Error> {
    make(connection, "select outbox.make_week_partitions('claims', make_interval(hours => $1))", hours(window_hours))
        .await
}

fn hours(hours: u32) -> i32 {
    i32::try_from(hours).unwrap_or(i32::MAX)
}

async fn make(connection: &mut PgConnection, sql: &'static str, span: i32) -> Result<i32, Error> {
    let run = async {
        connection.execute("set lock_timeout = '2s'").await?;
        let made = sqlx::query_scalar(sql).bind(span).fetch_one(&mut *connection).await;
        connection.execute("set lock_timeout = 0").await?;
        made
    };
    run.await.map_err(|error| Failure::read(error, None).into_error())
}
