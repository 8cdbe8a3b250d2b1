//! Held events, from the side of their lanes' owner: setting aside what fails, and adding what waits behind it.
//!
//! Every write holds the lane's row against claims and compares owner and epoch: a relay that has lost a lane changes
//! nothing in it. Events are copied from what the relay has read. Draining is in `drain`, what operators do in
//! `store::held`.

use std::time::Duration;

use sqlx::PgConnection;
use uuid::Uuid;

use super::{
    interval,
    row::{Event, Row},
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
    /// Events during whose attempt a process died, those first that it happened to least.
    pub suspects: Vec<Uuid>,
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
                array(select lane from outbox.progress where lane = any($1) and claims >= $3) as careful,
                array(select id from outbox.attempts where lane = any($1) and attempts > 0 order by attempts) as suspects",
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

/// Holds an event whose row cannot be read, known by lane and position only. Returns false when the lane is not the
/// owner's any more.
///
/// # Errors
/// When the statement fails.
pub async fn hold_unreadable(
    connection: &mut PgConnection,
    (instance, lane, epoch): (Uuid, i16, i64),
    position: i64,
    reason: &str,
) -> sqlx::Result<bool> {
    sqlx::query_scalar("select outbox.hold_unreadable($1, $2, $3, $4, $5)")
        .bind(instance)
        .bind(lane)
        .bind(epoch)
        .bind(position)
        .bind(reason)
        .fetch_one(connection)
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
