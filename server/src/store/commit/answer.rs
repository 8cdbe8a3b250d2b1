//! Answers as they are stored and read back.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, Row as _, postgres::PgRow};
use uuid::Uuid;

use crate::{
    model::commit::{Answer, Consume, Disposition},
    store::{Error, Failure},
};

/// The stored answer of a request, if it is remembered. Without a claim before it this can miss an answer that is
/// about to appear.
pub(in crate::store) async fn find(
    connection: &mut PgConnection,
    request_key: Uuid,
    window: Duration,
) -> Result<Option<Answer>, Failure> {
    let row = sqlx::query(
        "select r.results, r.event_ids, r.arrived_at as committed_at from outbox.requests r
         where r.request_key = $1 and r.arrived_at > now() - make_interval(secs => $2) limit 1",
    )
    .bind(request_key)
    .bind(window.as_secs_f64())
    .fetch_optional(connection)
    .await
    .map_err(read)?;
    row.map(|row| answer(&row, Disposition::Replayed, row.try_get("event_ids").map_err(read)?)).transpose()
}

/// The answer stored with a consumer's mark.
pub(in crate::store) async fn find_handled(
    connection: &mut PgConnection,
    namespace: &str,
    consume: &Consume,
) -> Result<Option<Answer>, Failure> {
    let row = sqlx::query(
        "select r.results, r.event_ids, r.arrived_at as committed_at
         from outbox.consumers c
         join outbox.marks m on m.consumer = c.id and m.event_id = $4
         join outbox.requests r on r.request_key = m.request_key and r.arrived_at >= m.marked_at
         where c.namespace = $1 and c.consumer = $2 and c.source = $3
         order by r.arrived_at limit 1",
    )
    .bind(namespace)
    .bind(&consume.consumer)
    .bind(&consume.source)
    .bind(consume.event_id)
    .fetch_optional(connection)
    .await
    .map_err(read)?;
    row.map(|row| answer(&row, Disposition::Duplicate, row.try_get("event_ids").map_err(read)?)).transpose()
}

/// An answer out of the row of `results` and `committed_at` that ends a commit.
pub(super) fn answer(row: &PgRow, disposition: Disposition, event_ids: Vec<Uuid>) -> Result<Answer, Failure> {
    let results: String = row.try_get("results").map_err(read)?;
    let committed_at: DateTime<Utc> = row.try_get("committed_at").map_err(read)?;
    let results = serde_json::from_str(&results).map_err(|error| Failure::Final(Error::Internal(error.into())))?;
    Ok(Answer { disposition, results, event_ids, committed_at })
}

fn read(error: sqlx::Error) -> Failure {
    Failure::read(error, None)
}
