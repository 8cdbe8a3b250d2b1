//! The publication and the replication slots of the outbox.
//!
//! A slot belongs to a database, and its name to the cluster: ours carry the database's id and a number that is never
//! used twice, so that a slot is either the one of `outbox.stream` or a leftover. Deliberately not here: streaming from
//! one, which `replication` does.

use sqlx::{Connection as _, Executor as _, PgConnection};

use super::{replication, stream::Slot};
use crate::model::{
    log::{LogPosition, Lsn},
    snapshot::Snapshot,
};

/// The publication that slots are read through.
pub const PUBLICATION: &str = "outboxd";

/// Makes the publication if it is not there: inserts only, and under the name of the partitioned table.
///
/// # Errors
/// When the statement fails: the role must own the table and be allowed to create in the database.
pub async fn publish(connection: &mut PgConnection) -> sqlx::Result<()> {
    let there: bool = sqlx::query_scalar("select exists (select from pg_publication where pubname = $1)")
        .bind(PUBLICATION)
        .fetch_one(&mut *connection)
        .await?;
    if there {
        // Somebody may have changed it: this puts right what the relay rests on.
        connection
            .execute("alter publication outboxd set (publish = 'insert', publish_via_partition_root = true)")
            .await?;
        connection.execute("alter publication outboxd set table outbox.events").await?;
    } else {
        connection
            .execute(
                "create publication outboxd for table outbox.events
                 with (publish = 'insert', publish_via_partition_root = true)",
            )
            .await?;
    }
    Ok(())
}

/// The name of this database's slot of a number.
///
/// # Errors
/// When the statement fails.
pub async fn name(connection: &mut PgConnection, number: i64) -> sqlx::Result<String> {
    let prefix = prefix(connection).await?;
    Ok(format!("{prefix}{number}"))
}

async fn prefix(connection: &mut PgConnection) -> sqlx::Result<String> {
    sqlx::query_scalar("select 'outboxd_' || oid || '_' from pg_database where datname = current_database()")
        .fetch_one(connection)
        .await
}

/// Makes a slot. Waits until every transaction of the cluster that is writing now has ended, which nothing bounds: the
/// caller does. What was made is a leftover until it is written down.
///
/// # Errors
/// When it cannot be made or its snapshot cannot be read.
pub async fn make(url: &str, name: String) -> Result<Slot, replication::Error> {
    let mut beside = super::connect(url).await?;
    let version: i32 =
        sqlx::query_scalar("select current_setting('server_version_num')::int").fetch_one(&mut beside).await?;
    // A failover slot is kept on standbys, too, from Postgres 17 on.
    let options = if version >= 170_000 { "snapshot 'export', failover" } else { "snapshot 'export'" };
    let mut session = replication::Session::open(url).await?;
    // Replication commands are known in upper case only.
    let made = session.query(&format!("CREATE_REPLICATION_SLOT {name} LOGICAL pgoutput ({options})")).await?;
    let column = |n: usize| made.first().and_then(|row| row.get(n)?.clone()).ok_or(replication::Error::Answer);
    let lsn: Lsn = column(1)?.parse().map_err(|_| replication::Error::Answer)?;
    let snapshot = exported(&mut beside, &column(2)?).await?;
    Ok(Slot { name, snapshot, settled: LogPosition::at(lsn) })
}

/// Reads a snapshot that another session has exported, and holds open.
async fn exported(connection: &mut PgConnection, id: &str) -> sqlx::Result<Snapshot> {
    let mut transaction = connection.begin_with("begin isolation level repeatable read, read only").await?;
    let adopt = format!("set transaction snapshot '{}'", id.replace('\'', "''"));
    transaction.execute(sqlx::AssertSqlSafe(adopt)).await?;
    let text: String = sqlx::query_scalar("select pg_current_snapshot()::text").fetch_one(&mut *transaction).await?;
    transaction.rollback().await?;
    Snapshot::parse(&text).map_err(super::decode_error)
}

/// What the cluster says of a slot.
#[derive(Clone, Debug)]
pub struct State {
    /// Whether the log that it needs has been removed, or it was invalidated otherwise.
    pub lost: bool,
    /// Everything below was confirmed and will not come again.
    pub confirmed: Lsn,
    /// Bytes of log that are kept for it.
    pub retained_bytes: i64,
}

/// Looks a slot up; `None` when it is not there.
///
/// # Errors
/// When the statement fails or its answer cannot be read.
pub async fn state(connection: &mut PgConnection, name: &str) -> sqlx::Result<Option<State>> {
    let row: Option<(bool, String, i64)> = sqlx::query_as(
        "select coalesce(wal_status = 'lost', true) or restart_lsn is null, confirmed_flush_lsn::text,
                coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn), 0)::bigint
         from pg_replication_slots
         where slot_name = $1 and database = current_database() and plugin = 'pgoutput'",
    )
    .bind(name)
    .fetch_optional(connection)
    .await?;
    row.map(|(lost, confirmed, retained_bytes)| {
        Ok(State { lost, confirmed: confirmed.parse().map_err(super::decode_error)?, retained_bytes })
    })
    .transpose()
}

/// Ends whoever streams from a slot. Called by the owner of the stream only: whoever else it is has lost it.
///
/// # Errors
/// When the statement fails.
pub async fn free(connection: &mut PgConnection, name: &str) -> sqlx::Result<bool> {
    let ended: Option<bool> = sqlx::query_scalar(
        "select pg_terminate_backend(active_pid) from pg_replication_slots where slot_name = $1 and active",
    )
    .bind(name)
    .fetch_optional(connection)
    .await?;
    Ok(ended.is_some())
}

/// Drops this database's slots that nobody streams from, save the one named, and ends those who make or use others.
/// Returns how many it dropped and how many are still in use.
///
/// # Errors
/// When a statement fails.
pub async fn drop_leftovers(connection: &mut PgConnection, keep: Option<&str>) -> sqlx::Result<(usize, usize)> {
    let prefix = prefix(connection).await?;
    let slots: Vec<(String, Option<i32>)> = sqlx::query_as(
        "select slot_name::text, active_pid from pg_replication_slots
         where database = current_database() and starts_with(slot_name, $1) and slot_name is distinct from $2",
    )
    .bind(prefix)
    .bind(keep)
    .fetch_all(&mut *connection)
    .await?;
    let (mut dropped, mut used) = (0, 0);
    for (slot, pid) in slots {
        match pid {
            None => {
                sqlx::query("select pg_drop_replication_slot($1)").bind(slot).execute(&mut *connection).await?;
                dropped += 1;
            }
            Some(pid) => {
                sqlx::query("select pg_terminate_backend($1)").bind(pid).execute(&mut *connection).await?;
                used += 1;
            }
        }
    }
    Ok((dropped, used))
}
