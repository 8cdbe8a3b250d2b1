//! Replays, from the operators' side: asking for one, looking how far it is, ending it early.
//!
//! Nothing here copies an event: the relays' processes do, at the replay's rate (`store::relay::schedule`). A request
//! that is repeated finds what the first one began.

use chrono::{DateTime, Utc};
use sqlx::{FromRow, PgPool};
use uuid::Uuid;

use super::{
    Error,
    event::{Reader, read},
};

/// Events of one replay.
pub const EVENTS_MAX: i64 = 100_000;
/// Ids that one may name.
pub const IDS_MAX: usize = 1_000;
/// Replays that run at once.
pub const RUNNING_MAX: i32 = 8;
/// Events per second of one replay.
pub const RATE_MAX: u32 = 10_000;
/// The same, of one that does not say.
pub const RATE_DEFAULT: u32 = 100;

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Request {
    /// Tenant.
    pub namespace: String,
    /// The caller's name for it.
    pub request_id: String,
    /// Which events.
    pub selection: Selection,
    /// How many a second at most.
    pub events_per_second: u32,
    /// Why.
    pub reason: String,
    /// Who asks.
    pub requested_by: String,
    /// Whether to count only.
    pub dry_run: bool,
}

/// Which events are to be published again.
#[derive(Clone, Debug)]
pub enum Selection {
    /// These.
    Ids(Vec<Uuid>),
    /// All that match.
    Filter(Filter),
}

impl Selection {
    /// These, each once.
    pub fn of_ids(mut ids: Vec<Uuid>) -> Self {
        ids.sort_unstable();
        ids.dedup();
        Self::Ids(ids)
    }
}

/// Which events match.
#[derive(Clone, Debug)]
pub struct Filter {
    /// Ids from this one on.
    pub from: Uuid,
    /// Ids before this one.
    pub before: Uuid,
    /// Only this topic.
    pub topic: Option<String>,
    /// Only this key.
    pub key: Option<Vec<u8>>,
    /// Only this type.
    pub event_type: Option<String>,
    /// Only this source.
    pub source: Option<String>,
}

/// What came of a request.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// So many events match; nothing was begun.
    Counted(i64),
    /// It runs, or has.
    Taken(Box<Replay>),
    /// Its request id was used for another replay.
    Reused,
    /// An event is not stored.
    Missing(Uuid),
    /// An event is not published.
    Unpublished(Uuid),
    /// It is of more than [`EVENTS_MAX`] events.
    TooLarge,
    /// [`RUNNING_MAX`] run already.
    TooMany,
}

/// A replay.
#[derive(Clone, Debug, FromRow)]
pub struct Replay {
    /// Its id, which the records carry.
    pub replay: Uuid,
    /// The caller's name for it.
    pub request_id: String,
    /// `running`, `done` or `cancelled`.
    pub state: String,
    /// Events that matched when it was asked for.
    pub matched: i64,
    /// Events that are in the stream again.
    pub replayed: i64,
    /// How many a second at most.
    pub events_per_second: i32,
    /// Why.
    pub reason: String,
    /// Who asked.
    pub requested_by: String,
    /// Since when.
    pub created_at: DateTime<Utc>,
    /// Until when.
    pub ended_at: Option<DateTime<Utc>>,
}

#[derive(FromRow)]
struct Requested {
    outcome: String,
    culprit: Option<Uuid>,
    matched: Option<i64>,
    replay: Option<Uuid>,
}

/// The operators' access, on the connections of a [`Reader`]: its use is rare.
#[derive(Clone)]
pub struct Replays {
    pool: PgPool,
}

impl Replays {
    /// On a reader's connections.
    pub fn new(reader: &Reader) -> Self {
        Self { pool: reader.pool().clone() }
    }

    /// Takes a replay, or finds it taken already.
    ///
    /// # Errors
    /// When the database cannot be written, [`Error::DeadlineExceeded`] when too much had to be passed over: a narrower
    /// range of time helps.
    pub async fn request(&self, request: &Request) -> Result<Outcome, Error> {
        let (ids, filter) = match &request.selection {
            Selection::Ids(ids) => (Some(ids), None),
            Selection::Filter(filter) => (None, Some(filter)),
        };
        let requested: Requested = sqlx::query_as(
            "select * from outbox.request_replay($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)",
        )
        .bind(&request.namespace)
        .bind(&request.request_id)
        .bind(ids)
        .bind(filter.map(|filter| filter.from))
        .bind(filter.map(|filter| filter.before))
        .bind(filter.and_then(|filter| filter.topic.as_deref()))
        .bind(filter.and_then(|filter| filter.key.as_deref()))
        .bind(filter.and_then(|filter| filter.event_type.as_deref()))
        .bind(filter.and_then(|filter| filter.source.as_deref()))
        .bind(request.events_per_second.cast_signed())
        .bind(&request.reason)
        .bind(&request.requested_by)
        .bind(EVENTS_MAX)
        .bind(RUNNING_MAX)
        .bind(request.dry_run)
        .fetch_one(&self.pool)
        .await
        .map_err(read)?;
        let Requested { outcome, culprit, matched, replay } = requested;
        let culprit = culprit.unwrap_or_default();
        Ok(match (outcome.as_str(), replay) {
            ("reused", _) => Outcome::Reused,
            ("missing", _) => Outcome::Missing(culprit),
            ("unpublished", _) => Outcome::Unpublished(culprit),
            ("too_large", _) => Outcome::TooLarge,
            ("too_many", _) => Outcome::TooMany,
            (_, None) => Outcome::Counted(matched.unwrap_or_default()),
            (_, Some(_)) => {
                let taken = self.find(&request.namespace, &request.request_id).await?;
                Outcome::Taken(Box::new(taken.ok_or_else(|| Error::Internal("a replay is gone".into()))?))
            }
        })
    }

    /// Ends a replay that runs; one that has ended stays as it is. `None` when there is none.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub async fn cancel(&self, namespace: &str, request_id: &str) -> Result<Option<Replay>, Error> {
        sqlx::query(
            "update outbox.replays set state = 'cancelled', ended_at = clock_timestamp()
             where namespace = $1 and request_id = $2 and state = 'running'",
        )
        .bind(namespace)
        .bind(request_id)
        .execute(&self.pool)
        .await
        .map_err(read)?;
        self.find(namespace, request_id).await
    }

    /// From when on events are kept, by the day.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn kept_from(&self) -> Result<Option<DateTime<Utc>>, Error> {
        sqlx::query_scalar(
            "select min(to_timestamp(substring(c.relname from '_p([0-9]{8})$') || ' 00', 'YYYYMMDD TZH'))
             from pg_inherits i join pg_class c on c.oid = i.inhrelid
             where i.inhparent = 'outbox.events'::regclass",
        )
        .fetch_one(&self.pool)
        .await
        .map_err(read)
    }

    async fn find(&self, namespace: &str, request_id: &str) -> Result<Option<Replay>, Error> {
        sqlx::query_as(
            "select replay, request_id, state, matched, replayed, events_per_second, reason, requested_by, created_at,
                    ended_at
             from outbox.replays where namespace = $1 and request_id = $2",
        )
        .bind(namespace)
        .bind(request_id)
        .fetch_optional(&self.pool)
        .await
        .map_err(read)
    }
}
