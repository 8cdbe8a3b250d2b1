//! Held events, from the side of their lanes' owner: setting aside what fails, adding what waits behind it, and
//! draining what is due.
//!
//! Every write holds the lane's row against claims and compares owner and epoch: a relay that has lost a lane changes
//! nothing in it. Events are copied from what the relay has read. What operators do is in `store::held`.

use std::time::Duration;

use futures_util::TryStreamExt as _;
use sqlx::PgConnection;
use uuid::Uuid;

use super::{
    fetch::list,
    interval,
    row::{COLUMN_NAMES, Decoder, Event, Row},
};

/// A relay and lanes of its, each with the epoch that it was claimed under.
#[derive(Clone, Debug, Default)]
pub struct Owner {
    /// The relay.
    pub instance: Uuid,
    /// Its lanes.
    pub lanes: Vec<i16>,
    /// Their epochs, in the same order.
    pub epochs: Vec<i64>,
}

/// What an owner has to know of its lanes' holds.
#[derive(Clone, Debug, Default, sqlx::FromRow)]
pub struct News {
    /// Why every relay is to publish nothing, if so.
    pub paused: Option<String>,
    /// The lanes with holds.
    pub lanes: Vec<i16>,
    /// The newest hold's number, of any lane; 0 without holds.
    pub newest: i64,
    /// Whether any hold of the lanes is to be drained now.
    pub due: bool,
    /// Events held in the lanes, counted to [`HELD_COUNT_MAX`].
    pub held: i64,
    /// The lanes that were taken over from an owner that did not give them back, without progress since.
    pub claimed: Vec<i16>,
    /// Those that were so often enough to be sent with care.
    pub careful: Vec<i16>,
}

/// Held events are counted this far.
pub const HELD_COUNT_MAX: i64 = 10_000;

/// Looks for what operators, and this relay, have changed.
///
/// # Errors
/// When the statement fails.
pub async fn news(connection: &mut PgConnection, lanes: &[i16], claims_max: i32) -> sqlx::Result<News> {
    sqlx::query_as(
        "select (select reason from outbox.pause) as paused,
                array(select lane from unnest($1::smallint[]) as lane
                      where exists (select from outbox.holds h where h.lane = lane.lane)) as lanes,
                coalesce((select max(hold) from outbox.holds), 0) as newest,
                exists (select from unnest($1::smallint[]) as lane
                        join outbox.holds h on h.lane = lane.lane and h.retry_at <= clock_timestamp()) as due,
                (select count(*) from (
                    select from outbox.holds h join outbox.held e on e.hold = h.hold
                    where h.lane = any($1) limit $2) as counted) as held,
                array(select lane from outbox.progress where lane = any($1) and claims > 0) as claimed,
                array(select lane from outbox.progress where lane = any($1) and claims >= $3) as careful",
    )
    .bind(lanes)
    .bind(HELD_COUNT_MAX)
    .bind(claims_max)
    .fetch_one(connection)
    .await
}

/// Which events wait with one that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// None.
    Event,
    /// Those of its key that follow it.
    Key,
    /// Those of its topic, in its lane.
    Topic,
}

/// Why an event is set aside.
#[derive(Clone, Debug)]
pub struct Cause {
    /// What waits with it.
    pub kind: Kind,
    /// For operators.
    pub reason: String,
    /// How many attempts have failed.
    pub attempts: i32,
    /// When to try again, the first time; `None`: not before an operator says so.
    pub retry_after: Option<Duration>,
}

/// Makes or changes the hold of an event that failed; the event itself is added by [`hold`]. Returns false when its
/// lane is not the owner's any more.
///
/// # Errors
/// When the statement fails.
pub async fn set_aside(
    connection: &mut PgConnection,
    (instance, lane, epoch): (Uuid, i16, i64),
    (event, position): (&Event<'_>, i64),
    cause: &Cause,
) -> sqlx::Result<bool> {
    let kind = match cause.kind {
        Kind::Event => "event",
        Kind::Key => "key",
        Kind::Topic => "topic",
    };
    let hold: Option<i64> =
        sqlx::query_scalar("select outbox.set_aside($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)")
            .bind(instance)
            .bind(lane)
            .bind(epoch)
            .bind(kind)
            .bind(event.id)
            .bind(event.namespace)
            .bind(event.topic)
            .bind(event.key)
            .bind(position)
            .bind(&cause.reason)
            .bind(cause.attempts)
            .bind(cause.retry_after.map(interval))
            .fetch_one(connection)
            .await?;
    Ok(hold.is_some())
}

/// Adds the events that a hold waits for, durably, and returns those that are held now, of lanes that are still the
/// owner's. An event's own hold comes first, then its key's, then its topic's.
///
/// # Errors
/// When the statement fails, or a row cannot be read.
pub async fn hold(connection: &mut PgConnection, owner: &Owner, rows: &[&Row]) -> sqlx::Result<Vec<Uuid>> {
    let mut columns = Columns::default();
    for row in rows {
        columns.push(row).map_err(super::decode_error)?;
    }
    sqlx::query_scalar(
        "select outbox.hold_events($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18)",
    )
    .bind(owner.instance)
    .bind(&owner.lanes)
    .bind(&owner.epochs)
    .bind(&columns.id)
    .bind(&columns.lane)
    .bind(&columns.position)
    .bind(&columns.namespace)
    .bind(&columns.topic)
    .bind(&columns.key)
    .bind(&columns.source)
    .bind(&columns.event_type)
    .bind(&columns.subject)
    .bind(&columns.data)
    .bind(&columns.content_type)
    .bind(&columns.headers)
    .bind(&columns.time)
    .bind(&columns.traceparent)
    .bind(&columns.tracestate)
    .fetch_all(connection)
    .await
}

#[derive(Default)]
struct Columns<'a> {
    id: Vec<Uuid>,
    lane: Vec<i16>,
    position: Vec<i64>,
    namespace: Vec<&'a str>,
    topic: Vec<&'a str>,
    key: Vec<Option<&'a [u8]>>,
    source: Vec<&'a str>,
    event_type: Vec<&'a str>,
    subject: Vec<Option<&'a str>>,
    data: Vec<Option<&'a [u8]>>,
    content_type: Vec<Option<&'a str>>,
    headers: Vec<Option<String>>,
    time: Vec<chrono::DateTime<chrono::Utc>>,
    traceparent: Vec<Option<&'a str>>,
    tracestate: Vec<Option<&'a str>>,
}

impl<'a> Columns<'a> {
    fn push(&mut self, row: &'a Row) -> Result<(), super::row::Malformed> {
        let event = row.event()?;
        self.headers.push(event.headers_json()?.map(str::to_owned));
        self.id.push(event.id);
        self.namespace.push(event.namespace);
        self.lane.push(row.lane());
        self.position.push(row.position());
        self.topic.push(event.topic);
        self.key.push(event.key);
        self.source.push(event.source);
        self.event_type.push(event.event_type);
        self.subject.push(event.subject);
        self.data.push(event.data);
        self.content_type.push(event.content_type);
        self.time.push(event.time);
        self.traceparent.push(event.traceparent);
        self.tracestate.push(event.tracestate);
        Ok(())
    }
}

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
pub async fn begin_drain(connection: &mut PgConnection, owner: &Owner, holds: &[i64]) -> sqlx::Result<Vec<i64>> {
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

/// Ends a drain: these events are held no more, and holds without further events are gone.
///
/// # Errors
/// When the statement fails.
pub async fn end_drain(
    connection: &mut PgConnection,
    owner: &Owner,
    holds: &[i64],
    published: &[Uuid],
    delivered: &super::delivery::Columns,
) -> sqlx::Result<()> {
    let statement = format!("with {} select outbox.end_drain($6, $7, $8, $9, $10)", super::delivery::INSERT);
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
