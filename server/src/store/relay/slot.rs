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

/// What Postgres says of an object that is there already, and of one that is being made elsewhere.
const DUPLICATE: [&str; 2] = ["42710", "23505"];

/// How the publication was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Publication {
    /// As it has to be.
    Found,
    /// It was not there.
    Made,
    /// Somebody had changed what the relay rests on.
    PutRight,
}

/// Makes the publication if it is not there, and puts it right if it is not as it has to be: inserts into the events,
/// and under the name of the partitioned table. Where it is right, a plain role suffices.
///
/// # Errors
/// When a statement fails: the role must own the table, and be allowed to create in the database.
pub async fn publish(connection: &mut PgConnection) -> sqlx::Result<Publication> {
    let is_right: Option<bool> = sqlx::query_scalar(
        "select p.pubinsert and not (p.pubupdate or p.pubdelete or p.pubtruncate) and p.pubviaroot
                and not p.puballtables
                and not exists (select from pg_publication_namespace n where n.pnpubid = p.oid)
                and (select count(*) = 1 and bool_and(r.prrelid = 'outbox.events'::regclass and r.prqual is null
                                                      and r.prattrs is null)
                     from pg_publication_rel r where r.prpubid = p.oid)
         from pg_publication p where p.pubname = $1",
    )
    .bind(PUBLICATION)
    .fetch_optional(&mut *connection)
    .await?;
    match is_right {
        Some(true) => Ok(Publication::Found),
        Some(false) => {
            connection
                .execute("alter publication outboxd set (publish = 'insert', publish_via_partition_root = true)")
                .await?;
            connection.execute("alter publication outboxd set table outbox.events").await?;
            Ok(Publication::PutRight)
        }
        None => {
            let made = connection
                .execute(
                    "create publication outboxd for table outbox.events
                     with (publish = 'insert', publish_via_partition_root = true)",
                )
                .await;
            match made {
                // Another process was quicker.
                Err(sqlx::Error::Database(error))
                    if error.code().is_some_and(|code| DUPLICATE.contains(&code.as_ref())) =>
                {
                    Ok(Publication::Found)
                }
                made => made.map(|_| Publication::Made),
            }
        }
    }
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
    /// Why nobody can stream from it.
    unusable: Option<String>,
    /// Everything below was confirmed and will not come again.
    confirmed: Lsn,
    /// Bytes of log that are kept for it.
    pub retained_bytes: i64,
}

/// Looks a slot up; `None` when it is not there.
///
/// # Errors
/// When the statement fails or its answer cannot be read.
pub async fn state(connection: &mut PgConnection, name: &str) -> sqlx::Result<Option<State>> {
    let row: Option<(Option<String>, Option<String>, i64)> = sqlx::query_as(
        "select case
                    when plugin is null then 'it is a physical slot: somebody else has made it'
                    when plugin <> 'pgoutput' then 'its plugin is ' || plugin || ', not pgoutput: somebody else has made it'
                    when database <> current_database()
                    then 'it belongs to the database ' || database || ': somebody else has made it'
                    when coalesce(wal_status = 'lost', true) or restart_lsn is null
                    then 'the log that it needs has been removed, or it was invalidated'
                         -- Told from Postgres 17 on.
                         || coalesce(' (' || (to_jsonb(s) ->> 'invalidation_reason') || ')', '')
                end,
                confirmed_flush_lsn::text, coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn), 0)::bigint
         from pg_replication_slots s
         where slot_name = $1",
    )
    .bind(name)
    .fetch_optional(connection)
    .await?;
    row.map(|(unusable, confirmed, retained_bytes)| {
        let confirmed = confirmed.map_or(Ok(Lsn::default()), |lsn| lsn.parse()).map_err(super::decode_error)?;
        Ok(State { unusable, confirmed, retained_bytes })
    })
    .transpose()
}

/// Looks whether a slot gives everything from a place on; the reason when it does not.
///
/// # Errors
/// As [`state`].
pub async fn usable(connection: &mut PgConnection, name: &str, settled: Lsn) -> sqlx::Result<Result<State, String>> {
    Ok(match state(connection, name).await? {
        None => Err("it is not there any more".into()),
        Some(State { unusable: Some(fault), .. }) => Err(fault),
        // It was made anew, or somebody else has read from it: what was confirmed does not come again.
        Some(State { confirmed, .. }) if confirmed > settled => {
            Err(format!("it goes on from {confirmed}, beyond what is settled ({settled})"))
        }
        Some(state) => Ok(state),
    })
}

/// What is noted of a slot that cannot be streamed from any more.
pub fn lost_note(name: &str, fault: &str) -> String {
    format!("the slot {name} is lost: {fault}; polling goes on from the last checkpoint, and another is made")
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

/// The backends whose transactions are writing, which a slot that is being made waits for; as far as the role may see
/// them, at most five.
///
/// # Errors
/// When the statement fails.
pub async fn writers(connection: &mut PgConnection) -> sqlx::Result<String> {
    sqlx::query_scalar(
        "select coalesce(string_agg(pid::text, ', ' order by xact_start), '')
         from (select pid, xact_start from pg_stat_activity
               where backend_xid is not null and pid <> pg_backend_pid() order by xact_start limit 5) as writing",
    )
    .fetch_one(connection)
    .await
}

/// Drops a slot that was made and is not written down, if it is still there.
///
/// # Errors
/// When the statement fails.
pub async fn forget(connection: &mut PgConnection, name: &str) -> sqlx::Result<()> {
    let forget =
        "select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name = $1 and not active";
    sqlx::query(forget).bind(name).execute(connection).await.map(drop)
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
