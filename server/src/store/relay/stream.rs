//! Which source is in force, who directs it, and how far the log has been relayed.
//!
//! Every write is a compare-and-set on owner and epoch, and says whether it was made: a relay that has lost the
//! direction changes nothing. Deliberately not here: what a change of source has to wait for.

use sqlx::{Connection as _, PgConnection, Row as _};
use uuid::Uuid;

use super::{
    delivery,
    progress::{self, LaneRow},
};
use crate::model::{
    delivery::Batch,
    log::LogPosition,
    snapshot::Snapshot,
    source::{Source, UnknownSource},
};

/// The row of `outbox.stream`.
#[derive(Clone, Debug)]
pub struct Stream {
    /// In force.
    pub source: Source,
    /// What is wanted.
    pub desired: Source,
    /// Who directs it, and owns all lanes while `wal` is in force.
    pub owner: Option<Uuid>,
    /// Raised whenever the owner changes or connects anew.
    pub epoch: i64,
    /// Slots made so far: a name is never used twice.
    pub slots_made: i64,
    /// The slot, once there is one to stream from.
    pub slot: Option<Slot>,
    /// Why things are not as they were asked for.
    pub note: Option<String>,
    /// Events that are settled beyond the lanes' progress.
    pub settled_beyond: i64,
}

/// A replication slot, and how far it has been relayed.
#[derive(Clone, Debug)]
pub struct Slot {
    /// Its name in the cluster.
    pub name: String,
    /// The slot gives what commits after what this sees.
    pub snapshot: Snapshot,
    /// What is settled.
    pub settled: LogPosition,
}

/// By whom, and under which epoch, the row is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Direction {
    /// The relay; none while the database is set up and no relay directs.
    pub owner: Option<Uuid>,
    /// What the row has to say.
    pub epoch: i64,
}

/// Reads the row.
///
/// # Errors
/// When the statement fails or its answer cannot be read.
pub async fn read(connection: &mut PgConnection) -> sqlx::Result<Stream> {
    let row = sqlx::query(
        "select source, desired, owner, epoch, slots_made, slot, slot_snapshot::text, lsn::text, lsn_index, note,
                settled_beyond
         from outbox.stream",
    )
    .fetch_one(connection)
    .await?;
    let source = |column: &str| -> sqlx::Result<Source> {
        let name: &str = row.try_get(column)?;
        name.parse().map_err(|error: UnknownSource| super::decode_error(error))
    };
    let slot = match row.try_get::<Option<String>, _>("slot")? {
        None => None,
        Some(name) => Some(Slot {
            name,
            snapshot: Snapshot::parse(row.try_get("slot_snapshot")?).map_err(super::decode_error)?,
            settled: LogPosition {
                lsn: row.try_get::<&str, _>("lsn")?.parse().map_err(super::decode_error)?,
                index: row.try_get::<i64, _>("lsn_index")?.cast_unsigned(),
            },
        }),
    };
    Ok(Stream {
        source: source("source")?,
        desired: source("desired")?,
        owner: row.try_get("owner")?,
        epoch: row.try_get("epoch")?,
        slots_made: row.try_get("slots_made")?,
        slot,
        note: row.try_get("note")?,
        settled_beyond: row.try_get("settled_beyond")?,
    })
}

/// Takes the direction if nobody has it, or takes it anew under another epoch if the relay has it already.
///
/// # Errors
/// When the statement fails.
pub async fn direct(connection: &mut PgConnection, instance: Uuid) -> sqlx::Result<Option<Direction>> {
    let epoch: Option<i64> = sqlx::query_scalar(
        "update outbox.stream set owner = $1, epoch = epoch + 1 where owner is null or owner = $1 returning epoch",
    )
    .bind(instance)
    .fetch_optional(connection)
    .await?;
    Ok(epoch.map(|epoch| Direction { owner: Some(instance), epoch }))
}

/// Takes the direction for nobody, if no relay has it: until one takes it, or the same is done elsewhere.
///
/// # Errors
/// When the statement fails.
pub async fn direct_without_relay(connection: &mut PgConnection) -> sqlx::Result<Option<Direction>> {
    let epoch: Option<i64> =
        sqlx::query_scalar("update outbox.stream set epoch = epoch + 1 where owner is null returning epoch")
            .fetch_optional(connection)
            .await?;
    Ok(epoch.map(|epoch| Direction { owner: None, epoch }))
}

/// Gives the direction back.
///
/// # Errors
/// When the statement fails.
pub async fn leave(connection: &mut PgConnection, by: Direction) -> sqlx::Result<()> {
    let statement = sqlx::query("update outbox.stream set owner = null where owner = $1 and epoch = $2");
    statement.bind(by.owner).bind(by.epoch).execute(connection).await.map(drop)
}

/// Counts a slot that is about to be made.
///
/// # Errors
/// When the statement fails.
pub async fn count_slot(connection: &mut PgConnection, by: Direction) -> sqlx::Result<Option<i64>> {
    let statement = sqlx::query_scalar(
        "update outbox.stream set slots_made = slots_made + 1 where owner is not distinct from $1 and epoch = $2 and slot is null
         returning slots_made",
    );
    statement.bind(by.owner).bind(by.epoch).fetch_optional(connection).await
}

/// Notes that there is a slot to stream from once polling has settled what its snapshot sees.
///
/// # Errors
/// When the statement fails.
pub async fn set_slot(connection: &mut PgConnection, by: Direction, slot: &Slot) -> sqlx::Result<bool> {
    let statement = sqlx::query(
        "update outbox.stream
         set slot = $3, slot_snapshot = $4::pg_snapshot, lsn = $5::pg_lsn, lsn_index = $6
         where owner is not distinct from $1 and epoch = $2 and source = 'poll' and desired = 'wal'",
    )
    .bind(by.owner)
    .bind(by.epoch)
    .bind(&slot.name)
    .bind(slot.snapshot.as_str())
    .bind(slot.settled.lsn.to_string())
    .bind(slot.settled.index.cast_signed());
    Ok(statement.execute(connection).await?.rows_affected() == 1)
}

/// Puts `wal` in force. The caller has made sure that every lane's progress covers the slot's snapshot.
///
/// # Errors
/// When the statement fails.
pub async fn put_wal_in_force(connection: &mut PgConnection, by: Direction) -> sqlx::Result<bool> {
    let statement = sqlx::query(
        "update outbox.stream set source = 'wal', note = null, changed_at = clock_timestamp()
         where owner = $1 and epoch = $2 and source = 'poll' and desired = 'wal' and slot is not null",
    );
    Ok(statement.bind(by.owner).bind(by.epoch).execute(connection).await?.rows_affected() == 1)
}

/// Puts `poll` in force and forgets the slot: polling goes on from the lanes' progress. Without a note the desired
/// source stays as it is.
///
/// # Errors
/// When the statement fails.
pub async fn put_poll_in_force(
    connection: &mut PgConnection,
    by: Direction,
    desired: Source,
    note: Option<&str>,
) -> sqlx::Result<bool> {
    let statement = sqlx::query(
        "update outbox.stream
         set source = 'poll', desired = $3, note = $4, changed_at = clock_timestamp(),
             slot = null, slot_snapshot = null, lsn = null, lsn_index = null, settled_beyond = 0
         where owner is not distinct from $1 and epoch = $2",
    )
    .bind(by.owner)
    .bind(by.epoch)
    .bind(desired.name())
    .bind(note);
    Ok(statement.execute(connection).await?.rows_affected() == 1)
}

/// Writes, durably, how far the log is settled, how many events that is beyond the lanes' progress, and where the events
/// went.
///
/// # Errors
/// When the statement fails. It may then have been applied or not.
pub async fn settle(
    connection: &mut PgConnection,
    by: Direction,
    to: LogPosition,
    beyond: i64,
    delivered: Option<Batch>,
) -> sqlx::Result<bool> {
    let delivered: delivery::Columns = delivered.into_iter().collect();
    let statement = format!(
        "with {}
         update outbox.stream set lsn = $8::pg_lsn, lsn_index = $9, settled_beyond = $10
         where owner = $6 and epoch = $7 and source = 'wal'",
        delivery::insert(delivery::NOT_HELD)
    );
    let statement = delivered
        .bind(sqlx::query(sqlx::AssertSqlSafe(statement)))
        .bind(by.owner)
        .bind(by.epoch)
        .bind(to.lsn.to_string())
        .bind(to.index.cast_signed())
        .bind(beyond);
    Ok(statement.execute(connection).await?.rows_affected() == 1)
}

/// Writes the lanes' progress, and with it, in one transaction, that this takes in all that is settled but `beyond`
/// events. Writes nothing and says false when the direction or one of the lanes is no longer the relay's.
///
/// # Errors
/// When a statement fails. All of it may then have been applied, or nothing.
pub async fn checkpoint(
    connection: &mut PgConnection,
    by: Direction,
    lanes: &[LaneRow],
    beyond: i64,
) -> sqlx::Result<bool> {
    let Some(owner) = by.owner else { return Ok(false) };
    let mut both = connection.begin().await?;
    let statement = sqlx::query("update outbox.stream set settled_beyond = $3 where owner = $1 and epoch = $2");
    let directs = statement.bind(owner).bind(by.epoch).bind(beyond).execute(&mut *both).await?.rows_affected() == 1;
    if !directs || progress::write(&mut both, owner, lanes, None).await?.len() != lanes.len() {
        return Ok(false);
    }
    both.commit().await?;
    Ok(true)
}

/// Notes why the desired source is not in force yet.
///
/// # Errors
/// When the statement fails.
pub async fn set_note(connection: &mut PgConnection, by: Direction, note: &str) -> sqlx::Result<()> {
    let statement = sqlx::query("update outbox.stream set note = $3 where owner = $1 and epoch = $2");
    statement.bind(by.owner).bind(by.epoch).bind(note).execute(connection).await.map(drop)
}

/// Asks for a source; whichever relay directs carries it out. Why it is not in force stays noted when it is only asked
/// for again. Returns the source in force.
///
/// # Errors
/// When the statement fails or its answer cannot be read.
pub async fn desire(connection: &mut PgConnection, desired: Source) -> sqlx::Result<Stream> {
    let statement = sqlx::query(
        "update outbox.stream set desired = $1, note = case when desired = $1 and source <> $1 then note end",
    );
    statement.bind(desired.name()).execute(&mut *connection).await?;
    read(connection).await
}
