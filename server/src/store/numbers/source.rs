//! Which source is in force, who directs it, why it is not as asked for, and how much log it has the database keep.
//!
//! One row and one slot are looked up, however much the outbox holds. Deliberately not here: the budget's enforcement,
//! which is the relay's.

use serde::Serialize;
use sqlx::PgPool;
use uuid::Uuid;

use crate::{
    model::source::Source,
    store::relay::{slot, stream},
};

/// How the relay's source is.
#[derive(Clone, Debug, Serialize)]
pub struct State {
    /// In force.
    pub in_force: Source,
    /// What is wanted.
    pub desired: Source,
    /// The relay that directs it: owner of every lane while `wal` is in force, of a change otherwise.
    pub owner: Option<Uuid>,
    /// Raised whenever the owner changes or connects anew.
    pub epoch: i64,
    /// The replication slot, once there is one to stream from.
    pub slot: Option<String>,
    /// Why things are not as they were asked for.
    pub note: Option<String>,
    /// Bytes of log that the database keeps for the slot; `None` without one, and when the database has it no more.
    pub retained_log_bytes: Option<i64>,
    /// With more of them `poll` is put in force, as this process is configured; `None` when it does not relay.
    pub retained_log_bytes_max: Option<u64>,
}

/// Looks.
pub(super) async fn read(pool: &PgPool, retained_log_bytes_max: Option<u64>) -> sqlx::Result<State> {
    let mut connection = pool.acquire().await?;
    let stream = stream::read(&mut connection).await?;
    let slot = stream.slot.map(|slot| slot.name);
    let state = match &slot {
        Some(name) => slot::state(&mut connection, name).await?,
        None => None,
    };
    Ok(State {
        in_force: stream.source,
        desired: stream.desired,
        owner: stream.owner,
        epoch: stream.epoch,
        slot,
        note: stream.note,
        retained_log_bytes: state.map(|state| state.retained_bytes),
        retained_log_bytes_max,
    })
}
