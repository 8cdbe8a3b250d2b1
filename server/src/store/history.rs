//! What became of events: the steps behind `GetEvent` and `WaitPublished`.
//!
//! Where a published event went is found in the deliveries whose range of positions it lies in. It deliberately writes
//! nothing: the steps are read off what the relay and operators have left.

use chrono::{DateTime, Utc};
use sqlx::PgPool;
use uuid::Uuid;

use super::{
    Error,
    event::{Reader, read, state},
};
use crate::model::{
    delivery::{Batch, Delivered},
    event::{EventState, Step},
};

/// Deliveries to look at for one event: those of its repeats, and those whose range of positions it only lies in.
const DELIVERIES_MAX: i64 = 100;
/// Replays of one event that are told, the first ones.
const REPLAYS_MAX: i64 = 100;

/// Where an event is.
#[derive(Clone, Debug, PartialEq)]
pub struct Whereabouts {
    /// The event.
    pub id: Uuid,
    /// Where it is on its way.
    pub state: EventState,
    /// Where it was published first.
    pub place: Option<Delivered>,
    /// Why it is held, or was discarded.
    pub reason: Option<String>,
}

#[derive(sqlx::FromRow)]
struct Found {
    id: Uuid,
    position: i64,
    state: String,
    scheduled_at: Option<DateTime<Utc>>,
    held_at: Option<DateTime<Utc>>,
    held_reason: Option<String>,
    discarded_at: Option<DateTime<Utc>>,
    discard_reason: Option<String>,
}

/// A copy of an event that a replay has made.
#[derive(sqlx::FromRow)]
struct Copy {
    id: Uuid,
    position: i64,
    reason: String,
    requested_by: String,
}

#[derive(sqlx::FromRow)]
struct Candidate {
    position: i64,
    delivered_at: DateTime<Utc>,
    topics: Vec<String>,
    places: Vec<u8>,
    held_at: Option<DateTime<Utc>>,
    held_reason: Option<String>,
}

/// An event's way to Kafka.
struct Delivery {
    place: Delivered,
    delivered_at: DateTime<Utc>,
    /// Since when and why it had been held.
    held: Option<(DateTime<Utc>, Option<String>)>,
}

impl Reader {
    /// Where events of a namespace are; those that are not stored are left out.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn whereabouts(&self, namespace: &str, ids: &[Uuid]) -> Result<Vec<Whereabouts>, Error> {
        let found = self.found(namespace, ids).await?;
        let positions: Vec<i64> = found.iter().map(|found| found.position).collect();
        let deliveries = self.deliveries(&positions).await?;
        found.into_iter().map(|found| whereabouts(found, &deliveries).map_err(read)).collect()
    }

    /// What happened to an event, in order of time; nothing when it is not stored.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn history(&self, namespace: &str, id: Uuid) -> Result<Vec<Step>, Error> {
        let Some(found) = self.found(namespace, &[id]).await?.into_iter().next() else { return Ok(Vec::new()) };
        let deliveries = self.deliveries(&[found.position]).await?;
        let step = |state, time, place, reason| Step { state, time, place, reason, requested_by: None };
        let first = match found.scheduled_at {
            Some(time) => step(EventState::Scheduled, time, None, None),
            None => step(EventState::Pending, created(id), None, None),
        };
        let mut steps = vec![first];
        for Delivery { place, delivered_at, held } in deliveries {
            steps.extend(held.map(|(time, reason)| step(EventState::Held, time, None, reason)));
            steps.push(step(EventState::Published, delivered_at, Some(place), None));
        }
        if let Some(time) = found.held_at {
            steps.push(step(EventState::Held, time, None, found.held_reason));
        }
        if let Some(time) = found.discarded_at {
            steps.push(step(EventState::Discarded, time, None, found.discard_reason));
        }
        steps.extend(self.replays(namespace, id).await?);
        // The id's time may be the caller's; it comes first all the same.
        steps[1..].sort_by_key(|step| step.time);
        // A hold whose drain was cut off is told by each of its deliveries, and as long as it lasts.
        steps.dedup_by(|step, last| {
            (step.state, last.state, step.time) == (EventState::Held, EventState::Held, last.time)
        });
        Ok(steps)
    }

    /// Each time that an event was published again.
    async fn replays(&self, namespace: &str, id: Uuid) -> Result<Vec<Step>, Error> {
        let copies: Vec<Copy> = sqlx::query_as(
            "select e.id, e.position, r.reason, r.requested_by
             from outbox.events e join outbox.replays r on r.replay = (e.headers ->> 'outbox-replay')::uuid
             where e.headers ? 'outbox-replay-of' and e.headers ->> 'outbox-replay-of' = $1 and e.namespace = $2
             order by e.position limit $3",
        )
        .bind(id.to_string())
        .bind(namespace)
        .bind(REPLAYS_MAX)
        .fetch_all(self.pool())
        .await
        .map_err(read)?;
        let positions: Vec<i64> = copies.iter().map(|copy| copy.position).collect();
        let deliveries = self.deliveries(&positions).await?;
        let steps = copies.into_iter().map(|Copy { id, position, reason, requested_by }| {
            let place = place(&deliveries, position);
            let (state, time) = (EventState::Replayed, created(id));
            Step { state, time, place, reason: Some(reason), requested_by: Some(requested_by) }
        });
        Ok(steps.collect())
    }

    async fn found(&self, namespace: &str, ids: &[Uuid]) -> Result<Vec<Found>, Error> {
        sqlx::query_as(
            "select e.id, e.position, outbox.event_state(e) as state, null::timestamptz as scheduled_at,
                    coalesce(h.held_at, d.held_at) as held_at, coalesce(s.reason, d.held_reason) as held_reason,
                    d.discarded_at, d.reason as discard_reason
             from outbox.events e
             left join outbox.held h on h.id = e.id
             left join outbox.holds s on s.hold = h.hold
             left join outbox.discarded d on d.id = e.id and d.position = e.position
             where e.id = any($1) and e.namespace = $2
             union all
             select s.id, 0, 'scheduled', s.scheduled_at, null, null, null, null
             from outbox.scheduled s
             where s.id = any($1) and s.namespace = $2
             union all
             select d.id, 0, 'discarded', d.held_at, null, null, d.discarded_at, d.reason
             from outbox.discarded d
             where d.position = 0 and not exists (select from outbox.events e where e.id = d.id)
               and d.id = any($1) and d.namespace = $2",
        )
        .bind(ids)
        .bind(namespace)
        .fetch_all(self.pool())
        .await
        .map_err(read)
    }

    /// How events of these positions came to Kafka, the earliest first.
    async fn deliveries(&self, positions: &[i64]) -> Result<Vec<Delivery>, Error> {
        let candidates = candidates(self.pool(), positions).await.map_err(read)?;
        let mut deliveries = Vec::new();
        for Candidate { position, delivered_at, topics, places, held_at, held_reason } in candidates {
            let batch = Batch { topics, places, ..Batch::default() };
            let place = batch.find(position).map_err(|error| Error::Internal(error.into()))?;
            let held = held_at.map(|time| (time, held_reason));
            deliveries.extend(place.map(|place| Delivery { place, delivered_at, held }));
        }
        Ok(deliveries)
    }
}

async fn candidates(pool: &PgPool, positions: &[i64]) -> sqlx::Result<Vec<Candidate>> {
    sqlx::query_as(
        "select p.position, d.delivered_at, d.topics, d.places,
                (d.held -> p.position::text ->> 0)::timestamptz as held_at,
                d.held -> p.position::text ->> 1 as held_reason
         from unnest($1::bigint[]) as p (position)
         cross join lateral (
            select d.delivered_at, d.topics, d.places, d.held from outbox.deliveries d
            where d.positions @> p.position order by d.delivered_at limit $2
         ) as d
         order by d.delivered_at",
    )
    .bind(positions)
    .bind(DELIVERIES_MAX)
    .fetch_all(pool)
    .await
}

/// Where an event went first.
fn place(deliveries: &[Delivery], position: i64) -> Option<Delivered> {
    let delivery = deliveries.iter().find(|delivery| delivery.place.position == position);
    delivery.map(|delivery| delivery.place.clone())
}

fn whereabouts(found: Found, deliveries: &[Delivery]) -> sqlx::Result<Whereabouts> {
    let place = place(deliveries, found.position);
    let state = match state(&found.state)? {
        // Kafka has it, although the snapshot that says so is written later.
        EventState::Pending if place.is_some() => EventState::Published,
        state => state,
    };
    let reason = found.discard_reason.or(found.held_reason);
    Ok(Whereabouts { id: found.id, state, place, reason })
}

/// The time in a UUIDv7.
fn created(id: Uuid) -> DateTime<Utc> {
    let millis = id.as_u128() >> 80;
    DateTime::from_timestamp_millis(i64::try_from(millis).unwrap_or_default()).unwrap_or_default()
}
