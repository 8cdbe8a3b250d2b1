//! Held events, from the operators' side: listing, parking, unparking and giving up.
//!
//! Nothing here publishes: a lane's owner notices what has changed and drains what is due (`store::relay::held`). Each
//! change locks what the owner's statements lock, so that the two never cross.

mod topic;

use chrono::{DateTime, Utc};
use sqlx::PgPool;
use uuid::Uuid;

pub use self::topic::AT_ONCE_MAX;
use super::{
    Error,
    event::{Reader, read},
};

/// Events behind a hold are counted this far.
const COUNT_MAX: i64 = 10_000;

/// A held event.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Held {
    /// Its id.
    pub id: Uuid,
    /// Tenant.
    pub namespace: String,
    /// Kafka topic.
    pub topic: String,
    /// Kafka key.
    pub key: Option<Vec<u8>>,
    /// CloudEvents `type`.
    #[sqlx(rename = "type")]
    pub event_type: String,
    /// Its lane.
    pub lane: i16,
    /// Its place in the order of its lane.
    pub position: i64,
    /// `failed`, `behind` or `parked`.
    pub state: String,
    /// What its hold waits for: `event`, `key` or `topic`.
    pub kind: String,
    /// Why.
    pub reason: String,
    /// The event that failed or was parked.
    pub cause: Option<Uuid>,
    /// How often it was tried and failed.
    pub attempts: i32,
    /// Since when it is held.
    pub held_at: DateTime<Utc>,
    /// When its cause failed first.
    pub first_failed_at: Option<DateTime<Utc>>,
    /// When its cause failed last.
    pub last_failed_at: Option<DateTime<Utc>>,
    /// When it is tried again.
    pub retry_at: Option<DateTime<Utc>>,
}

/// Which held events to list.
#[derive(Clone, Debug)]
pub struct Filter {
    /// Tenant.
    pub namespace: String,
    /// Only this topic.
    pub topic: Option<String>,
    /// Only this key.
    pub key: Option<Vec<u8>>,
    /// Only this state.
    pub state: Option<&'static str>,
    /// Ids from this one on.
    pub from: Uuid,
    /// Most events to return.
    pub limit: i64,
}

/// What an operator names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// An event, or the hold that it is in.
    Event(Uuid),
    /// A key.
    Key {
        /// Its topic.
        topic: String,
        /// The key.
        key: Vec<u8>,
    },
    /// Every hold of a topic.
    Topic(String),
}

/// What came of a call that may leave a rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Changed {
    /// Of unparking: the events that are held, counted to 10,000. Of giving up: those that are given up.
    pub events: i64,
    /// Whether more are left than one call changes.
    pub more: bool,
}

/// What came of parking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parked {
    /// It is parked.
    Parked,
    /// The event is settled: there is nothing to park.
    Settled,
    /// It is delayed until then, and in no order yet.
    Scheduled(DateTime<Utc>),
    /// There is no such event.
    NotFound,
}

/// What came of giving an event up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Discarded {
    /// It is given up.
    Discarded,
    /// It is not held.
    NotHeld,
    /// It is being published, or was held just now: try again.
    Busy,
}

/// The operators' access, on the connections of a [`Reader`]: its use is rare.
#[derive(Clone)]
pub struct Holds {
    pool: PgPool,
}

impl Holds {
    /// On a reader's connections.
    pub fn new(reader: &Reader) -> Self {
        Self { pool: reader.pool().clone() }
    }

    /// Held events in order of their ids.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn list(&self, filter: &Filter) -> Result<Vec<Held>, Error> {
        sqlx::query_as(
            "select id, namespace, topic, key, type, lane, position, state, kind, reason, cause, attempts, held_at,
                    first_failed_at, last_failed_at, retry_at
             from outbox.held_events
             where id >= $1 and namespace = $2 and ($3::text is null or topic = $3)
               and ($4::bytea is null or key = $4) and ($5::text is null or state = $5)
             order by id limit $6",
        )
        .bind(filter.from)
        .bind(&filter.namespace)
        .bind(&filter.topic)
        .bind(&filter.key)
        .bind(filter.state)
        .bind(filter.limit)
        .fetch_all(&self.pool)
        .await
        .map_err(read)
    }

    /// Parks an event, with what follows of its key when `blocks` says so of its topic.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub async fn park_event(
        &self,
        namespace: &str,
        id: Uuid,
        blocks: impl Fn(&str) -> bool,
        reason: &str,
    ) -> Result<Parked, Error> {
        #[derive(sqlx::FromRow)]
        struct Found {
            topic: String,
            key: Option<Vec<u8>>,
            lane: i16,
            position: i64,
            state: String,
            due_at: Option<DateTime<Utc>>,
        }
        let found: Option<Found> = sqlx::query_as(
            "select e.topic, e.key, e.lane, e.position, outbox.event_state(e) as state, null::timestamptz as due_at
             from outbox.events e where e.id = $1 and e.namespace = $2
             union all
             select h.topic, h.key, h.lane, h.position, 'held', null
             from outbox.held h where h.id = $1 and h.namespace = $2
             union all
             select s.topic, s.key, 0::smallint, 0, 'scheduled', s.due_at
             from outbox.scheduled s where s.id = $1 and s.namespace = $2
             limit 1",
        )
        .bind(id)
        .bind(namespace)
        .fetch_optional(&self.pool)
        .await
        .map_err(read)?;
        let Some(Found { topic, key, lane, position, state, due_at }) = found else { return Ok(Parked::NotFound) };
        if let Some(due_at) = due_at {
            return Ok(Parked::Scheduled(due_at));
        }
        if !matches!(state.as_str(), "pending" | "held") {
            return Ok(Parked::Settled);
        }
        let kind = if key.is_some() && blocks(&topic) { "key" } else { "event" };
        sqlx::query("select outbox.park($1, $2, $3, $4, $5, $6, $7, $8)")
            .bind(kind)
            .bind(namespace)
            .bind(topic)
            .bind(key)
            .bind(lane)
            .bind(id)
            .bind(position)
            .bind(reason)
            .execute(&self.pool)
            .await
            .map_err(read)?;
        Ok(Parked::Parked)
    }

    /// Parks a key: what is not published of it yet, and what comes.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub async fn park_key(&self, namespace: &str, topic: &str, key: &[u8], reason: &str) -> Result<(), Error> {
        sqlx::query("select outbox.park('key', $1, $2, $3, (outbox.slot_of($1, $2, $3) % 64)::smallint, null, 0, $4)")
            .bind(namespace)
            .bind(topic)
            .bind(key)
            .bind(reason)
            .execute(&self.pool)
            .await
            .map(drop)
            .map_err(read)
    }

    /// Has a hold drained, or those of a topic. The `reason` is kept with it. `None` when there is no such hold.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub async fn unpark(
        &self,
        namespace: &str,
        target: &Target,
        reason: Option<&str>,
    ) -> Result<Option<Changed>, Error> {
        let (id, topic, key) = match target {
            Target::Event(id) => (Some(*id), None, None),
            Target::Key { topic, key } => (None, Some(topic), Some(key)),
            Target::Topic(topic) => return self.unpark_topic(namespace, topic, reason, AT_ONCE_MAX).await,
        };
        let hold: Option<i64> = sqlx::query_scalar(
            "update outbox.holds
             set parked = false, retry_at = clock_timestamp(), reason = outbox.unparked_reason(reason, $5)
             where hold = (
                select e.hold from outbox.held e where e.id = $1 and e.namespace = $2
                union
                select h.hold from outbox.holds h where h.event_id = $1 and h.namespace = $2
                union
                select h.hold from outbox.holds h
                where h.kind = 'key' and h.topic = $3 and h.namespace = $2 and h.subject = sha256($4)
                limit 1)
             returning hold",
        )
        .bind(id)
        .bind(namespace)
        .bind(topic)
        .bind(key)
        .bind(reason)
        .fetch_optional(&self.pool)
        .await
        .map_err(read)?;
        let Some(hold) = hold else { return Ok(None) };
        let count =
            sqlx::query_scalar("select count(*) from (select from outbox.held where hold = $1 limit $2) as counted")
                .bind(hold)
                .bind(COUNT_MAX)
                .fetch_one(&self.pool);
        Ok(Some(Changed { events: count.await.map_err(read)?, more: false }))
    }

    /// Gives an event up for good that is held, or not due yet.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub async fn discard(&self, namespace: &str, id: Uuid, reason: &str) -> Result<Discarded, Error> {
        let outcome: String = sqlx::query_scalar("select outbox.discard($1, $2, $3)")
            .bind(namespace)
            .bind(id)
            .bind(reason)
            .fetch_one(&self.pool)
            .await
            .map_err(read)?;
        Ok(match outcome.as_str() {
            "discarded" => Discarded::Discarded,
            "not_held" if self.discard_scheduled(namespace, id, reason).await? => Discarded::Discarded,
            "not_held" => Discarded::NotHeld,
            _ => Discarded::Busy,
        })
    }

    async fn discard_scheduled(&self, namespace: &str, id: Uuid, reason: &str) -> Result<bool, Error> {
        let discarded: Option<Uuid> = sqlx::query_scalar("select outbox.discard_scheduled($1, array[$2], $3)")
            .bind(namespace)
            .bind(id)
            .bind(reason)
            .fetch_optional(&self.pool)
            .await
            .map_err(read)?;
        Ok(discarded.is_some())
    }
}
