//! Drops partitions that nothing needs any more: events behind every lane's progress and old enough, requests, marks
//! and claims behind their windows, deliveries with their events. Held and discarded events are tables of their own and never dropped.
//!
//! A partition of events is first closed: that waits for every transaction that has put something into it, and refuses
//! those that come later. What it holds then is all that it will ever hold, and either every lane has settled it or it
//! stays. Only then is it detached, concurrently, so that nobody waits for a lock for long, and dropped. While it is being
//! detached nobody sees its rows any more: an event that came into it then would be lost. One maintainer at a time; one
//! that dies half-way is finished by the next. It deliberately deletes no single row.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::{AssertSqlSafe, Executor as _, PgConnection};

use super::{Error, Failure};
use crate::config;

/// How long a lock is waited for, and how often that is tried again in one run.
const LOCK_TIMEOUT: &str = "set lock_timeout = '2s'";
const TRIES_MAX: usize = 3;
const PAUSE: Duration = Duration::from_millis(500);

/// What is kept how long.
#[derive(Clone, Copy, Debug)]
pub struct Ages {
    events: Duration,
    requests: Duration,
    marks: Duration,
    claims: Duration,
}

/// How much longer than its window a claim is kept: as long as the longest lease that one may have, so that what was
/// claimed just in time can still be completed.
const CLAIM_MARGIN: Duration = Duration::from_secs(86_400);

impl Ages {
    /// As configured.
    pub fn new(config: &config::Config) -> Self {
        let hours = |hours: u32| Duration::from_secs(u64::from(hours) * 3_600);
        Self {
            events: hours(config.retention.events_hours),
            requests: hours(config.commit.request_window_hours),
            // An event that is older is refused, marked or not.
            marks: hours(config.commit.consume_window_hours),
            claims: hours(config.inbox.window_hours) + CLAIM_MARGIN,
        }
    }
}

/// A partition whose time has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expired {
    /// Its name, in schema `outbox`.
    pub name: String,
    /// What becomes of it.
    pub verdict: Verdict,
}

/// What becomes of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is dropped, or would be.
    Dropped,
    /// Not every lane's progress has passed its events.
    Unsettled,
    /// Events of its time are still kept, or are yet to come into it.
    Needed,
    /// A lock was not to be had: the next run tries again.
    Locked,
}

#[derive(sqlx::FromRow)]
struct Partition {
    parent: String,
    name: String,
    ends_at: DateTime<Utc>,
}

/// Looks at every partition whose time has come, and drops what nothing needs; with `dry_run` it changes nothing.
/// Returns nothing when another maintainer is at it.
///
/// # Errors
/// When a statement fails.
pub async fn run(connection: &mut PgConnection, ages: Ages, dry_run: bool) -> Result<Vec<Expired>, Error> {
    maintain(connection, ages, dry_run).await.map_err(|error| Failure::read(error, None).into_error())
}

async fn maintain(connection: &mut PgConnection, ages: Ages, dry_run: bool) -> sqlx::Result<Vec<Expired>> {
    let lock = "select pg_try_advisory_lock(hashtextextended('outbox.retention', 0))";
    if !sqlx::query_scalar::<_, bool>(lock).fetch_one(&mut *connection).await? {
        return Ok(Vec::new());
    }
    connection.execute(LOCK_TIMEOUT).await?;
    let mut expired = Vec::new();
    for partition in expired_partitions(connection, ages).await? {
        let verdict = judge(connection, &partition).await?;
        let verdict = match verdict {
            Verdict::Dropped if !dry_run => drop_patiently(connection, &partition).await?,
            verdict => verdict,
        };
        expired.push(Expired { name: partition.name, verdict });
    }
    connection.execute("set lock_timeout = 0").await?;
    connection.execute("select pg_advisory_unlock(hashtextextended('outbox.retention', 0))").await?;
    Ok(expired)
}

/// The partitions that are old enough, the oldest first; events before deliveries. What was detached and not dropped
/// is among them.
async fn expired_partitions(connection: &mut PgConnection, ages: Ages) -> sqlx::Result<Vec<Partition>> {
    // The day in a name is null for every other relation, whichever condition is looked at first.
    sqlx::query_as(
        "with spans (parent, span, age) as (
            values ('events', interval '24 hours', $1::float8), ('requests', interval '168 hours', $2::float8),
                   ('deliveries', interval '24 hours', $1::float8), ('marks', interval '168 hours', $3::float8),
                   ('claims', interval '168 hours', $4::float8)
         )
         select s.parent, c.relname::text as name, bound.ends_at
         from spans s
         join pg_class c on c.relname ~ ('^' || s.parent || '_p[0-9]{8}$') and c.relkind = 'r'
                        and c.relnamespace = 'outbox'::regnamespace
         cross join lateral (
            select to_timestamp(substring(c.relname from '_p([0-9]{8})$') || ' 00', 'YYYYMMDD TZH') + s.span as ends_at
         ) as bound
         where bound.ends_at < clock_timestamp() - make_interval(secs => s.age)
         order by s.parent desc, bound.ends_at",
    )
    .bind(ages.events.as_secs_f64())
    .bind(ages.requests.as_secs_f64())
    .bind(ages.marks.as_secs_f64())
    .bind(ages.claims.as_secs_f64())
    .fetch_all(connection)
    .await
}

/// Whether anything needs a partition that is old enough.
async fn judge(connection: &mut PgConnection, partition: &Partition) -> sqlx::Result<Verdict> {
    Ok(match partition.parent.as_str() {
        "events" if is_awaited(connection, &partition.name).await? => Verdict::Needed,
        "events" if !is_settled(connection, &partition.name).await? => Verdict::Unsettled,
        "deliveries" if is_needed(connection, partition.ends_at).await? => Verdict::Needed,
        _ => Verdict::Dropped,
    })
}

/// Whether a partition of events is to take delayed ones that are due for long and were not promoted.
async fn is_awaited(connection: &mut PgConnection, name: &str) -> sqlx::Result<bool> {
    sqlx::query_scalar(
        "select exists (
            select from outbox.scheduled s
            where s.id >= outbox.uuidv7_floor(bound.starts_at)
              and s.id < outbox.uuidv7_floor(bound.starts_at + interval '24 hours'))
         from to_timestamp(substring($1 from '_p([0-9]{8})$') || ' 00', 'YYYYMMDD TZH') as bound (starts_at)",
    )
    .bind(name)
    .fetch_one(connection)
    .await
}

/// Whether every lane has settled everything in a partition of events. Looks only at what some lane's snapshot may not
/// see: the transactions from the oldest one on that was running then.
async fn is_settled(connection: &mut PgConnection, name: &str) -> sqlx::Result<bool> {
    let statement = format!(
        "select not exists (
            select from outbox.{name} e
            where e.xid >= (select pg_snapshot_xmin(p.snapshot) from outbox.progress p order by 1 limit 1)
              and not outbox.is_settled(e::outbox.events))"
    );
    sqlx::query_scalar(AssertSqlSafe(statement)).fetch_one(connection).await
}

/// Whether events are kept that may have been delivered until then.
async fn is_needed(connection: &mut PgConnection, until: DateTime<Utc>) -> sqlx::Result<bool> {
    sqlx::query_scalar(
        "select exists (
            select from pg_inherits i join pg_class c on c.oid = i.inhrelid
            where i.inhparent = 'outbox.events'::regclass
              and to_timestamp(substring(c.relname from '_p([0-9]{8})$') || ' 00', 'YYYYMMDD TZH') < $1)",
    )
    .bind(until)
    .fetch_one(connection)
    .await
}

async fn drop_patiently(connection: &mut PgConnection, partition: &Partition) -> sqlx::Result<Verdict> {
    for _ in 0..TRIES_MAX {
        match drop_partition(connection, partition).await {
            Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("55P03") => {
                tokio::time::sleep(PAUSE).await;
            }
            done => return done,
        }
    }
    Ok(Verdict::Locked)
}

async fn drop_partition(connection: &mut PgConnection, partition: &Partition) -> sqlx::Result<Verdict> {
    let Partition { parent, name, .. } = partition;
    if parent == "events" {
        let close = format!(
            "create or replace trigger closed before insert on outbox.{name}
             for each row execute function outbox.refuse_event()"
        );
        execute(connection, close).await?;
        if !is_settled(connection, name).await? {
            return Ok(Verdict::Unsettled);
        }
    }
    // An earlier try may have come further than the list says.
    let (is_attached, is_detaching): (bool, bool) = sqlx::query_as(
        "select count(*) > 0, coalesce(bool_or(inhdetachpending), false) from pg_inherits
         where inhrelid = to_regclass('outbox.' || $1)",
    )
    .bind(name)
    .fetch_one(&mut *connection)
    .await?;
    if is_detaching {
        execute(connection, format!("alter table outbox.{parent} detach partition outbox.{name} finalize")).await?;
    } else if is_attached {
        execute(connection, format!("alter table outbox.{parent} detach partition outbox.{name} concurrently")).await?;
    }
    execute(connection, format!("drop table outbox.{name}")).await?;
    tracing::info!(partition = name, "a partition that nothing needs any more is dropped");
    Ok(Verdict::Dropped)
}

async fn execute(connection: &mut PgConnection, statement: String) -> sqlx::Result<()> {
    connection.execute(AssertSqlSafe(statement)).await.map(drop)
}
