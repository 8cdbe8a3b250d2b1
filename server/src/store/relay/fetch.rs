//! Reads events: the present snapshot, and a page of what it sees beyond a lane's progress.
//!
//! A page is everything of its lanes between two positions that `target` sees and `base` does not, in order of
//! position. All bounds are literals, so that the plan can use the indexes' ends, and only numbers go in. The planner is
//! held to the order of the index on positions: it does not know that positions and transactions go hand in hand, supposes
//! next to nothing to be beyond both, and would read and sort all of a backlog for each page. Rows come as `copy … (format
//! binary)`: no row is copied or decoded twice. It deliberately locks and updates nothing.

use std::fmt::Write as _;

use futures_util::TryStreamExt as _;
use sqlx::PgConnection;

use super::row::{COLUMN_NAMES, Decoder, Row};
use crate::model::{
    log::Lsn,
    progress::{Base, Progress},
    snapshot::Snapshot,
};

/// What the database has now.
#[derive(Debug)]
pub struct Now {
    /// The present snapshot.
    pub snapshot: Snapshot,
    /// The highest position taken, read after the snapshot was.
    pub head: i64,
}

/// What to read.
#[derive(Clone, Debug)]
pub struct Request {
    /// The lanes, all at the same progress.
    pub lanes: Vec<i16>,
    /// Their progress; nothing is read for an idle one.
    pub from: Progress,
    /// Rows at most.
    pub rows_max: usize,
    /// Bytes of keys and payloads at most, save that the first row always comes.
    pub bytes_max: usize,
}

/// What was read.
#[derive(Debug)]
pub struct Page {
    /// Events in order of position.
    pub rows: Vec<Row>,
    /// Whether the range has no more.
    pub complete: bool,
}

/// Takes the present snapshot.
///
/// # Errors
/// When the statement fails.
pub async fn now(connection: &mut PgConnection) -> sqlx::Result<Now> {
    let (snapshot, head): (String, i64) = sqlx::query_as(
        "select pg_current_snapshot()::text, last_value - (not is_called)::integer from outbox.positions",
    )
    .fetch_one(connection)
    .await?;
    Ok(Now { snapshot: Snapshot::parse(&snapshot).map_err(super::decode_error)?, head })
}

/// Takes the present snapshot, and then the end of the log: every commit that the snapshot sees lies below it.
///
/// # Errors
/// When the statement fails.
pub async fn checkpoint(connection: &mut PgConnection) -> sqlx::Result<(Snapshot, Lsn)> {
    // The statement's snapshot is taken before its functions run.
    let (snapshot, lsn): (String, String) =
        sqlx::query_as("select pg_current_snapshot()::text, pg_current_wal_insert_lsn()::text")
            .fetch_one(connection)
            .await?;
    let snapshot = Snapshot::parse(&snapshot).map_err(super::decode_error)?;
    Ok((snapshot, lsn.parse().map_err(super::decode_error)?))
}

/// Whether there can be anything between the two: else there is no need to look.
pub fn may_hold(base: &Base, now: &Now) -> bool {
    now.head > base.floor || base.seen.ended_by(&now.snapshot).next().is_some()
}

/// Prepares a connection for reading pages: for as long as it lives.
///
/// # Errors
/// When the statement fails.
pub async fn prepare(connection: &mut PgConnection) -> sqlx::Result<()> {
    // As `numbers::unsettled` says of compiling.
    let by_index = "set enable_sort = off; set enable_seqscan = off; set enable_bitmapscan = off;
                    set max_parallel_workers_per_gather = 0; set jit = off";
    sqlx::raw_sql(by_index).execute(connection).await.map(drop)
}

/// Reads a page on a prepared connection.
///
/// # Errors
/// When the statement fails or its answer cannot be read.
pub async fn page(connection: &mut PgConnection, request: &Request) -> sqlx::Result<Page> {
    let Some(statement) = statement(request) else {
        return Ok(Page { rows: Vec::new(), complete: true });
    };
    let mut decoder = Decoder::default();
    let mut rows = Vec::new();
    let mut stream = connection.copy_out_raw(&statement).await?;
    while let Some(bytes) = stream.try_next().await? {
        decoder.feed(bytes, &mut rows).map_err(super::decode_error)?;
    }
    let bytes: usize = rows.iter().map(Row::size).sum();
    let complete = rows.len() < request.rows_max && bytes < request.bytes_max;
    Ok(Page { rows, complete })
}

fn statement(request: &Request) -> Option<String> {
    let Progress::Draining { base, target, position } = &request.from else { return None };
    let Request { lanes, rows_max, bytes_max, .. } = request;
    let (columns, lanes, seen) = (COLUMN_NAMES.join(", "), list(lanes), target.seen.as_str());
    let part = |range: String| {
        format!(
            "(select {columns} from outbox.events
              where {range} and lane = any('{{{lanes}}}'::smallint[]) and pg_visible_in_snapshot(xid, '{seen}')
              order by position limit {rows_max})"
        )
    };
    // What the earlier snapshot did not know …
    let (xmax, after) = (base.seen.xmax(), base.floor.max(*position));
    let mut parts = part(format!("xid >= '{xmax}'::xid8 and position > {after}"));
    // … and what it knew as still running, of each transaction by itself: one may have as much as a backlog.
    let ended = list(base.seen.ended_by(&target.seen));
    if !ended.is_empty() {
        let of_one = part(format!("xid = ended.xid and position > {position}"));
        parts += &format!(
            " union all (select e.* from unnest('{{{ended}}}'::xid8[]) as ended (xid) cross join lateral {of_one} as e
                         order by e.position limit {rows_max})"
        );
    }
    Some(format!(
        "copy (
            select {columns} from (
                select *, sum(octet_length(coalesce(data, '')) + octet_length(coalesce(key, ''))) over (
                    order by position rows between unbounded preceding and 1 preceding) as bytes_before
                from (select * from ({parts}) as parts order by position limit {rows_max}) as candidates
            ) as page
            where coalesce(bytes_before, 0) < {bytes_max}
            order by position
         ) to stdout (format binary)"
    ))
}

pub(super) fn list<N: std::fmt::Display>(numbers: impl IntoIterator<Item = N>) -> String {
    let mut list = String::new();
    for number in numbers {
        if !list.is_empty() {
            list.push(',');
        }
        // Writing to a string cannot fail.
        let _ = write!(list, "{number}");
    }
    list
}
