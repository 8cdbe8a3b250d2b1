//! Claims on Postgres.
//!
//! Invariant: time is `clock_timestamp()`: a statement that waited for another must not decide by the time at which it
//! began. It deliberately holds only SQL: how it is used is in `rows`.

use std::time::Duration;

use sqlx::PgPool;
use uuid::Uuid;

use super::{
    Claim, Claimed, Claims, Hold,
    rows::{Found, claims_in_rows, hold, millis},
};
use crate::inbox::{Content, EventKey, InboxError, PostgresInbox, scopes::Scopes};

const CLAIM: &str = "
    insert into outbox_inbox.claims as c (scope, event_id, content, token, leased_until, attempts)
    values ($1, $2, $3, $4, clock_timestamp() + $5 * interval '1 ms', 1)
    on conflict (scope, event_id) do update
    set token = excluded.token, attempts = c.attempts + 1,
        leased_until = clock_timestamp() + $5 * interval '1 ms'
    where c.completed_at is null and c.leased_until <= clock_timestamp()
      and (c.content = excluded.content or c.content is null or excluded.content is null)
    returning attempts";
const FOUND: &str = "
    select content, result, greatest(extract(epoch from leased_until - clock_timestamp()) * 1000, 0)::int8
    from outbox_inbox.claims where scope = $1 and event_id = $2";
const EXTEND: &str = "
    update outbox_inbox.claims set leased_until = clock_timestamp() + $4 * interval '1 ms'
    where scope = $1 and event_id = $2 and token = $3 and completed_at is null";
const COMPLETE: &str = "
    update outbox_inbox.claims set completed_at = coalesce(completed_at, clock_timestamp()), result = coalesce(result, $4)
    where scope = $1 and event_id = $2 and token = $3";
const RELEASE: &str = "
    update outbox_inbox.claims set leased_until = clock_timestamp()
    where scope = $1 and event_id = $2 and token = $3 and completed_at is null";
const EXPIRE: &str = "
    delete from outbox_inbox.claims where ctid = any (array(
        select c.ctid from outbox_inbox.claims c join outbox_inbox.scopes s on s.id = c.scope
        where (c.completed_at < now() - $2 * interval '1 ms'
               or c.completed_at is null and c.leased_until < now() - $2 * interval '1 ms') and s.consumer = $1
        limit $3))";

/// Claims in a Postgres database.
#[derive(Clone, Debug)]
pub struct PostgresClaims {
    pool: PgPool,
    scopes: Scopes,
}

impl PostgresClaims {
    /// The claims in the database of this pool. Their table is part of the inbox's schema.
    pub fn new(pool: PgPool) -> Self {
        Self { pool, scopes: Scopes::default() }
    }

    /// As [`PostgresInbox::ensure_schema`].
    ///
    /// # Errors
    /// As there.
    pub async fn ensure_schema(&self) -> Result<(), InboxError> {
        PostgresInbox::new(self.pool.clone()).ensure_schema().await
    }
}

claims_in_rows!(PostgresClaims, crate::inbox::postgres_scope);
