//! What is held of a whole topic: unparking it, and giving it up.
//!
//! One statement changes few rows of one lane, so that the lane's owner waits for none of them for long, and one call
//! changes no more than [`AT_ONCE_MAX`]: whoever calls again goes on where it ended.

use super::{COUNT_MAX, Changed, Holds};
use crate::store::{Error, event::read};

/// Holds, or events, that one call changes.
pub const AT_ONCE_MAX: i64 = 10_000;
/// Those of one statement.
const BATCH_MAX: i64 = 1_000;

impl Holds {
    /// Has every hold of a topic drained, `holds_max` of them at most, which are not due already; those of a missing topic
    /// are of every namespace. The `reason` is kept with the holds. `None` when there is none.
    ///
    /// # Errors
    /// When the database cannot be written. What was unparked by then stays so.
    pub async fn unpark_topic(
        &self,
        namespace: &str,
        topic: &str,
        reason: Option<&str>,
        holds_max: i64,
    ) -> Result<Option<Changed>, Error> {
        let lanes = self.lanes_of(namespace, topic).await?;
        if lanes.is_empty() {
            return Ok(None);
        }
        let statement = "select outbox.unpark_topic($1, $2, $3, $4, $5)";
        let unparked = self.in_batches(statement, (namespace, topic), &lanes, holds_max, reason).await?;
        let count = "select count(*) from (
                        select from outbox.holds h join outbox.held e on e.hold = h.hold
                        where h.topic = $1 and h.namespace in ($2, '') limit $3) as counted";
        let count = sqlx::query_scalar(count).bind(topic).bind(namespace).bind(COUNT_MAX).fetch_one(&self.pool);
        Ok(Some(Changed { events: count.await.map_err(read)?, more: unparked == holds_max }))
    }

    /// Gives held events of a topic up for good, `events_max` of them at most; not those that are being published, nor
    /// those that were held a moment ago. `None` when there is none.
    ///
    /// # Errors
    /// When the database cannot be written. What was given up by then stays so.
    pub async fn discard_topic(
        &self,
        namespace: &str,
        topic: &str,
        reason: &str,
        events_max: i64,
    ) -> Result<Option<Changed>, Error> {
        let lanes = self.lanes_of(namespace, topic).await?;
        let statement = "select outbox.discard_topic($1, $2, $3, $4, $5)";
        let events = self.in_batches(statement, (namespace, topic), &lanes, events_max, Some(reason)).await?;
        let more = "select exists (select from outbox.holds h join outbox.held e on e.hold = h.hold
                                   where h.topic = $1 and h.namespace in ($2, '') and e.namespace = $2)";
        let more = sqlx::query_scalar(more).bind(topic).bind(namespace).fetch_one(&self.pool).await.map_err(read)?;
        Ok((events > 0 || more).then_some(Changed { events, more }))
    }

    /// The lanes that have holds of a topic.
    async fn lanes_of(&self, namespace: &str, topic: &str) -> Result<Vec<i16>, Error> {
        sqlx::query_scalar(
            "select distinct lane from outbox.holds where topic = $1 and namespace in ($2, '') order by lane",
        )
        .bind(topic)
        .bind(namespace)
        .fetch_all(&self.pool)
        .await
        .map_err(read)
    }

    /// Runs a statement lane by lane until it finds nothing more to change; returns how much it has changed.
    async fn in_batches(
        &self,
        statement: &'static str,
        (namespace, topic): (&str, &str),
        lanes: &[i16],
        most: i64,
        reason: Option<&str>,
    ) -> Result<i64, Error> {
        let mut done = 0;
        for lane in lanes {
            loop {
                let batch = BATCH_MAX.min(most - done);
                if batch == 0 {
                    return Ok(done);
                }
                let changed: i32 = sqlx::query_scalar(statement)
                    .bind(namespace)
                    .bind(topic)
                    .bind(lane)
                    .bind(batch as i32)
                    .bind(reason)
                    .fetch_one(&self.pool)
                    .await
                    .map_err(read)?;
                done += i64::from(changed);
                if i64::from(changed) < batch {
                    break;
                }
            }
        }
        Ok(done)
    }
}
