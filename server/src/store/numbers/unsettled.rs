//! What is not settled: how many events, and how old the oldest is.
//!
//! They are counted in the order of their positions, and only so far: the index on positions gives them, whatever else is
//! stored. The planner is held to that: left to itself it supposes so much or so little of the table to be unsettled that
//! it reads all of it and sorts. So what each lane has done goes into the statement as arrays of constants, one element for
//! each lane, instead of a join; and scans of whole tables are off. Where one lane is far behind the others, what these have
//! settled beyond it is passed over, by the index. The age is that of the id.

use chrono::Utc;
use serde::Serialize;
use sqlx::{AssertSqlSafe, PgPool};

use super::COUNT_MAX;

/// What is not settled.
#[derive(Clone, Debug, Serialize)]
pub struct Unsettled {
    /// The age of the oldest one. With the source `wal` that of the oldest one beyond the last checkpoint, which may be settled:
    /// up to a third of the lease too old, within a large commit more.
    pub lag_ms: Option<i64>,
    /// How many.
    pub events: i64,
    /// Whether that was counted, and is not estimated.
    pub is_exact: bool,
}

/// What the lanes have done, as SQL writes it; arrays in the order of the lanes, which are numbered from 0.
#[derive(Debug, sqlx::FromRow)]
struct Lanes {
    /// Every event up to here is settled, but for those of transactions that were open.
    lowest: i64,
    /// The same of each lane.
    bounds: String,
    snapshots: String,
    targets: String,
    positions: String,
    /// Transactions that a snapshot of a lane saw as open.
    running: String,
    /// Events that are settled beyond all that.
    settled_beyond: i64,
}

const LANES: &str = "
    with lanes as (
        select *, case when target is null then floor else greatest(floor, least(position, target_floor)) end as bound
        from outbox.progress
    )
    select coalesce(min(bound), 0) as lowest,
           array_agg(bound order by lane)::text as bounds,
           array_agg(snapshot order by lane)::text as snapshots,
           array_agg(target order by lane)::text as targets,
           array_agg(position order by lane)::text as positions,
           array(select pg_snapshot_xip(snapshot) from lanes union select pg_snapshot_xip(target) from lanes)::text
               as running,
           (select settled_beyond from outbox.stream) as settled_beyond
    from lanes";

const BY_INDEX: &str = "
    set local enable_seqscan = off; set local enable_bitmapscan = off; set local max_parallel_workers_per_gather = 0;
    -- What cannot be done without these counts as endlessly dear, and would be compiled for a second before it runs.
    set local jit = off";

/// Counts.
pub(super) async fn read(pool: &PgPool) -> sqlx::Result<Unsettled> {
    // All statements see the same progress.
    let mut reading = pool.begin_with("begin isolation level repeatable read, read only").await?;
    sqlx::raw_sql(BY_INDEX).execute(&mut *reading).await?;
    let lanes: Lanes = sqlx::query_as(LANES).fetch_one(&mut *reading).await?;
    let counted = sqlx::query_as(AssertSqlSafe(statement(&lanes))).persistent(false).bind(COUNT_MAX);
    let counted: (i64, Option<i64>, Option<i64>, Option<i64>, i64, bool) = counted.fetch_one(&mut *reading).await?;
    reading.commit().await?;
    let (events, oldest_ms, first, last, head, is_cut) = counted;
    let lag_ms = oldest_ms.map(|oldest| (Utc::now().timestamp_millis() - oldest).max(0));
    let is_exact = events <= COUNT_MAX && !is_cut;
    // As dense as the first ones are, up to the last position taken.
    let events = match (first, last) {
        (Some(first), Some(last)) if !is_exact => {
            let density = events as f64 / (last - first + 1) as f64;
            (((head - first + 1) as f64 * density) as i64).max(events)
        }
        _ => events,
    };
    // The source `wal` writes lanes' progress with checkpoints only. Of an estimate something is left.
    let events = (events - lanes.settled_beyond).max(i64::from(!is_exact));
    Ok(Unsettled { lag_ms: lag_ms.filter(|_| events > 0), events, is_exact })
}

/// Counts events above each lane's bound, those of transactions that its snapshots saw as open, and those that are due.
fn statement(lanes: &Lanes) -> String {
    let Lanes { lowest, bounds, snapshots, targets, positions, running, .. } = lanes;
    let open = format!(
        "not pg_visible_in_snapshot(xid, ('{snapshots}'::pg_snapshot[])[lane + 1])
         and not coalesce(position <= ('{positions}'::bigint[])[lane + 1]
                          and pg_visible_in_snapshot(xid, ('{targets}'::pg_snapshot[])[lane + 1]), false)"
    );
    format!(
        "with ended as materialized (
            select id, position, lane, xid from outbox.events where xid = any('{running}'::xid8[]) limit $1 + 1
         ), open as (
            (select id, position from outbox.events
             where position > {lowest} and position > ('{bounds}'::bigint[])[lane + 1] and {open}
             order by position limit $1 + 1)
            union
            (select id, position from ended where {open})
            union
            -- Due, and not in the stream yet.
            (select id, null from outbox.scheduled where due_at <= clock_timestamp() order by due_at limit $1 + 1)
         )
         select count(*), min(('x' || substr(replace(id::text, '-', ''), 1, 12))::bit(48)::bigint),
                min(position), max(position), (select last_value from outbox.positions),
                (select count(*) > $1 from ended)
         from open"
    )
}
