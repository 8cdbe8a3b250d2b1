//! What operators ask of the relays of all processes: how far behind they are, by which source, who owns what, what is
//! held; and of the inbox, what it remembers.
//!
//! Nothing here is to cost more than probes of indexes and a bounded scan of what is not settled: what would have to be
//! counted at length is counted to a limit, and an estimate beyond it says so. One case costs more, a lane far behind the
//! others (see [`unsettled`]). Readings are shared: a second one within a
//! second is the first one again.

pub mod inbox;
pub mod lane;
pub mod source;
pub mod unsettled;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Serialize, Serializer};
use sqlx::PgPool;
use tokio::sync::Mutex;
use uuid::Uuid;

use super::{
    Error,
    event::{Reader, read},
};
use crate::config::Config;

/// Events are counted this far.
pub const COUNT_MAX: i64 = 10_000;
/// How long a reading is good for everybody, and the least time between two that give a rate.
const FRESH: Duration = Duration::from_secs(1);

/// How the relays are.
#[derive(Clone, Debug, Serialize)]
pub struct Numbers {
    /// Set while every relay is paused.
    pub paused: Option<Paused>,
    /// Where events are read from.
    pub source: source::State,
    /// What is not settled.
    pub unsettled: unsettled::Unsettled,
    /// Delayed events that are not due yet, counted to [`COUNT_MAX`].
    pub scheduled: i64,
    /// What is held.
    pub held: HeldCounts,
    /// What consumers have the server remember.
    pub inbox: inbox::Inbox,
    /// The relays that run.
    pub instances: Vec<Instance>,
    /// All lanes.
    pub lanes: Vec<lane::Lane>,
}

/// A pause.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, sqlx::FromRow)]
pub struct Paused {
    /// Why.
    pub reason: String,
    /// Since when.
    #[serde(serialize_with = "rfc3339")]
    pub paused_at: DateTime<Utc>,
}

/// Held events, each counted to [`COUNT_MAX`].
#[derive(Clone, Debug, Serialize, sqlx::FromRow)]
pub struct HeldCounts {
    /// Failed, and behind failed ones.
    pub failed: i64,
    /// Parked, and behind parked ones.
    pub parked: i64,
    /// What they wait for.
    pub holds: i64,
}

/// A relay that runs.
#[derive(Clone, Debug, Serialize, sqlx::FromRow)]
pub struct Instance {
    /// Its id.
    pub instance: Uuid,
    /// Where it runs.
    pub host: String,
    /// Since when.
    #[serde(serialize_with = "rfc3339")]
    pub started_at: DateTime<Utc>,
    /// Until when its lanes are its own.
    #[serde(serialize_with = "rfc3339")]
    pub lease_until: DateTime<Utc>,
    /// How many it owns.
    pub lanes: i64,
}

/// Takes readings. Clones share them.
#[derive(Clone)]
pub struct Gauge {
    pool: PgPool,
    /// The relay's budget, if this process relays.
    retained_log_bytes_max: Option<u64>,
    last: Arc<Mutex<Option<Reading>>>,
}

struct Reading {
    at: Instant,
    numbers: Numbers,
    /// Something was changed since: only good for rates.
    is_stale: bool,
}

impl Gauge {
    /// On a reader's connections.
    pub fn new(reader: &Reader, config: &Config) -> Self {
        let retained_log_bytes_max = config.relay.enabled.then_some(config.relay.retained_log_bytes_max);
        Self { pool: reader.pool().clone(), retained_log_bytes_max, last: Arc::default() }
    }

    /// How the relays are now, or were less than a second ago.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn read(&self) -> Result<Numbers, Error> {
        let mut last = self.last.lock().await;
        if let Some(reading) = last.as_ref().filter(|reading| !reading.is_stale && reading.at.elapsed() < FRESH) {
            return Ok(reading.numbers.clone());
        }
        let at = Instant::now();
        let mut numbers = self.numbers().await.map_err(read)?;
        if let Some(before) = last.as_ref() {
            lane::rates(&mut numbers.lanes, &before.numbers.lanes, at - before.at);
        }
        *last = Some(Reading { at, numbers: numbers.clone(), is_stale: false });
        Ok(numbers)
    }

    async fn numbers(&self) -> sqlx::Result<Numbers> {
        Ok(Numbers {
            paused: sqlx::query_as("select reason, paused_at from outbox.pause").fetch_optional(&self.pool).await?,
            source: source::read(&self.pool, self.retained_log_bytes_max).await?,
            unsettled: unsettled::read(&self.pool).await?,
            scheduled: self.scheduled().await?,
            held: self.held().await?,
            inbox: inbox::read(&self.pool).await?,
            instances: sqlx::query_as(
                "select instance, host, started_at, lease_until,
                        (select count(*) from outbox.progress p where p.owner = r.instance) as lanes
                 from outbox.relays r order by started_at, instance",
            )
            .fetch_all(&self.pool)
            .await?,
            lanes: sqlx::query_as(
                "select lane, owner, epoch, settled, updated_at, claims from outbox.progress order by lane",
            )
            .fetch_all(&self.pool)
            .await?,
        })
    }

    async fn scheduled(&self) -> sqlx::Result<i64> {
        sqlx::query_scalar(
            "select count(*) from (select from outbox.scheduled where due_at > clock_timestamp() limit $1) as counted",
        )
        .bind(COUNT_MAX)
        .fetch_one(&self.pool)
        .await
    }

    async fn held(&self) -> sqlx::Result<HeldCounts> {
        sqlx::query_as(
            "select (select count(*) from (select from outbox.holds h join outbox.held e on e.hold = h.hold
                                           where not h.parked limit $1) as counted) as failed,
                    (select count(*) from (select from outbox.holds h join outbox.held e on e.hold = h.hold
                                           where h.parked limit $1) as counted) as parked,
                    (select count(*) from (select from outbox.holds limit $1) as counted) as holds",
        )
        .bind(COUNT_MAX)
        .fetch_one(&self.pool)
        .await
    }

    /// Has every relay publish nothing until [`resume`](Self::resume).
    ///
    /// # Errors
    /// When the database cannot be written.
    pub async fn pause(&self, reason: &str) -> Result<(), Error> {
        let pause =
            "insert into outbox.pause (reason) values ($1) on conflict (one) do update set reason = excluded.reason";
        sqlx::query(pause).bind(reason).execute(&self.pool).await.map_err(read)?;
        self.forget().await;
        Ok(())
    }

    /// Ends a pause.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub async fn resume(&self) -> Result<(), Error> {
        sqlx::query("delete from outbox.pause").execute(&self.pool).await.map_err(read)?;
        self.forget().await;
        Ok(())
    }

    /// Whoever has changed something sees it in the next reading.
    async fn forget(&self) {
        if let Some(reading) = self.last.lock().await.as_mut() {
            reading.is_stale = true;
        }
    }
}

fn rfc3339<S: Serializer>(time: &DateTime<Utc>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&time.to_rfc3339_opts(SecondsFormat::Millis, true))
}
