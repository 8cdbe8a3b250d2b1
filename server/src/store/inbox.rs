//! Leases on events, on connections of their own.
//!
//! Invariant: each call is one statement in a transaction of its own that may be run twice, so that a lost answer is
//! found out by asking again; all times are the database's. It deliberately knows no limits: `api` holds requests
//! against them.

use std::time::Duration;

use sqlx::{PgConnection, Row as _, postgres::PgRow};
use tokio::time::Instant;

use super::{
    Error, Failure,
    connections::{Connections, Repeatable},
    session::Connector,
};
use crate::{
    config,
    model::claim::{Change, ClaimDraft, Claimed, Delivery, Lease},
};

const CLAIM: &str = "select outcome, attempt, left_ms, result, completed_at
    from outbox.claim_event($1, $2, $3, $4, $5, $6, $7, make_interval(secs => $8), make_interval(hours => $9))";
const EXTEND: &str = "select outbox.extend_claim($1, $2, $3, $4, $5, make_interval(secs => $6))";
const COMPLETE: &str = "select outbox.complete_claim($1, $2, $3, $4, $5, $6)";

/// The claims of all consumers that ask this server.
pub struct Claims {
    connections: Connections,
    window_hours: i32,
}

impl Claims {
    /// Makes them. Connections are opened when they are first needed.
    pub fn new(connector: &Connector, config: &config::Inbox) -> Self {
        let connections = Connections::new(connector.clone(), config.connections as usize, config.queue_max);
        Self { connections, window_hours: i32::try_from(config.window_hours).unwrap_or(i32::MAX) }
    }

    /// Claims an event.
    ///
    /// # Errors
    /// When the database cannot answer in time; the claim may have been made, and sent again is the same claim.
    pub async fn claim(&self, draft: &ClaimDraft, deadline: Instant) -> Result<Claimed, Error> {
        let claim = Claim { draft, window_hours: self.window_hours };
        match self.connections.run(&claim, deadline).await {
            // So old that there is not even a partition for it.
            Err(Error::EventTooOld) => Ok(Claimed::TooOld),
            claimed => claimed,
        }
    }

    /// Does something with a lease; false when it is not the caller's any more.
    ///
    /// # Errors
    /// When the database cannot answer in time; it may have been done, and done again changes nothing.
    pub async fn change(&self, lease: &Lease, change: &Change, deadline: Instant) -> Result<bool, Error> {
        self.connections.run(&(lease, change), deadline).await
    }
}

struct Claim<'a> {
    draft: &'a ClaimDraft,
    window_hours: i32,
}

impl Repeatable for Claim<'_> {
    type Answer = Claimed;

    async fn run(&self, connection: &mut PgConnection) -> Result<Claimed, Failure> {
        let ClaimDraft { delivery, event_time, content_hash, lease, token } = self.draft;
        let Delivery { namespace, consumer, source, event_id } = delivery;
        let claim = sqlx::query(CLAIM).bind(namespace).bind(consumer).bind(source).bind(event_id);
        let claim = claim.bind(event_time).bind(content_hash).bind(token);
        let row = claim.bind(lease.as_secs_f64()).bind(self.window_hours).fetch_one(connection).await;
        row.and_then(|row| claimed(&row)).map_err(|error| Failure::read(error, None))
    }
}

impl Repeatable for (&Lease, &Change) {
    type Answer = bool;

    async fn run(&self, connection: &mut PgConnection) -> Result<bool, Failure> {
        let (Lease { delivery, token }, change) = self;
        let Delivery { namespace, consumer, source, event_id } = delivery;
        let sql = match change {
            Change::Extend(_) => EXTEND,
            Change::Complete(_) => COMPLETE,
        };
        let query = sqlx::query_scalar(sql).bind(namespace).bind(consumer).bind(source).bind(event_id).bind(token);
        let query = match change {
            Change::Extend(lease) => query.bind(lease.as_secs_f64()),
            Change::Complete(result) => query.bind(result),
        };
        query.fetch_one(connection).await.map_err(|error| Failure::read(error, None))
    }
}

fn claimed(row: &PgRow) -> sqlx::Result<Claimed> {
    Ok(match row.try_get("outcome")? {
        "granted" => Claimed::Granted { attempt: row.try_get("attempt")? },
        "completed" => {
            Claimed::Completed { result: row.try_get("result")?, completed_at: row.try_get("completed_at")? }
        }
        "held" => {
            let left: i64 = row.try_get("left_ms")?;
            Claimed::Held { left: Duration::from_millis(left.unsigned_abs()) }
        }
        "conflict" => Claimed::Conflict,
        "too_old" => Claimed::TooOld,
        other => return Err(sqlx::Error::Protocol(format!("claim_event answered `{other}`"))),
    })
}
