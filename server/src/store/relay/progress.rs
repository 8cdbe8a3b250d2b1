//! What each lane has settled, written only by its owner.
//!
//! Every write is a compare-and-set on lane, owner and epoch: a relay that has lost a lane cannot move it.

use sqlx::{PgConnection, Row as _, postgres::PgRow};
use uuid::Uuid;

use super::delivery;
use crate::model::{
    delivery::Batch,
    progress::{Base, Progress},
    snapshot::Snapshot,
};

/// A lane as the table has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaneRow {
    /// The lane.
    pub lane: i16,
    /// Raised by each claim.
    pub epoch: i64,
    /// What is settled.
    pub progress: Progress,
    /// Events settled since this was last written.
    pub settled: i64,
}

/// Writes the lanes' progress, durably, and with it where the events went. Returns the lanes that are still the
/// relay's; the others are unchanged.
///
/// # Errors
/// When the statement fails. It may then have been applied or not.
pub async fn write(
    connection: &mut PgConnection,
    instance: Uuid,
    lanes: &[LaneRow],
    delivered: Option<Batch>,
) -> sqlx::Result<Vec<i16>> {
    let delivered: delivery::Columns = delivered.into_iter().collect();
    let mut columns = Columns::default();
    for lane in lanes {
        columns.push(lane);
    }
    let statement = format!(
        "with {}
         update outbox.progress p
         set snapshot = u.snapshot::pg_snapshot, floor = u.floor, target = u.target::pg_snapshot,
             target_floor = u.target_floor, position = u.position, settled = p.settled + u.settled,
             updated_at = clock_timestamp()
         from unnest($7::smallint[], $8::bigint[], $9::text[], $10::bigint[], $11::text[], $12::bigint[],
                     $13::bigint[], $14::bigint[])
             as u (lane, epoch, snapshot, floor, target, target_floor, position, settled)
         where p.lane = u.lane
           and p.owner = $6 and p.epoch = u.epoch
         returning p.lane",
        delivery::insert(delivery::NOT_HELD)
    );
    let rows = delivered
        .bind(sqlx::query(sqlx::AssertSqlSafe(statement)))
        .bind(instance)
        .bind(&columns.lane)
        .bind(&columns.epoch)
        .bind(&columns.snapshot)
        .bind(&columns.floor)
        .bind(&columns.target)
        .bind(&columns.target_floor)
        .bind(&columns.position)
        .bind(&columns.settled)
        .fetch_all(connection)
        .await?;
    rows.iter().map(|row| row.try_get("lane")).collect()
}

/// What each lane's progress sees, as it is written.
///
/// # Errors
/// When the statement fails or its answer cannot be read.
pub async fn seen(connection: &mut PgConnection) -> sqlx::Result<Vec<Snapshot>> {
    let texts: Vec<String> =
        sqlx::query_scalar("select distinct snapshot::text from outbox.progress").fetch_all(connection).await?;
    texts.iter().map(|text| Snapshot::parse(text).map_err(super::decode_error)).collect()
}

#[derive(Default)]
struct Columns<'a> {
    lane: Vec<i16>,
    epoch: Vec<i64>,
    snapshot: Vec<&'a str>,
    floor: Vec<i64>,
    target: Vec<Option<&'a str>>,
    target_floor: Vec<Option<i64>>,
    position: Vec<Option<i64>>,
    settled: Vec<i64>,
}

impl<'a> Columns<'a> {
    fn push(&mut self, row: &'a LaneRow) {
        let (base, target, position) = match &row.progress {
            Progress::Idle(base) => (base, None, None),
            Progress::Draining { base, target, position } => (base, Some(target), Some(*position)),
        };
        self.lane.push(row.lane);
        self.epoch.push(row.epoch);
        self.snapshot.push(base.seen.as_str());
        self.floor.push(base.floor);
        self.target.push(target.map(|t| t.seen.as_str()));
        self.target_floor.push(target.map(|t| t.floor));
        self.position.push(position);
        self.settled.push(row.settled);
    }
}

/// Reads `lane, epoch, snapshot, floor, target, target_floor, position`, the snapshots as text.
pub(super) fn lane_row(row: &PgRow) -> sqlx::Result<LaneRow> {
    let snapshot = |text: &str| Snapshot::parse(text).map_err(super::decode_error);
    let base = Base { seen: snapshot(row.try_get("snapshot")?)?, floor: row.try_get("floor")? };
    let progress = match row.try_get::<Option<&str>, _>("target")? {
        None => Progress::Idle(base),
        Some(target) => Progress::Draining {
            base,
            target: Base { seen: snapshot(target)?, floor: row.try_get("target_floor")? },
            position: row.try_get("position")?,
        },
    };
    Ok(LaneRow { lane: row.try_get("lane")?, epoch: row.try_get("epoch")?, progress, settled: 0 })
}
