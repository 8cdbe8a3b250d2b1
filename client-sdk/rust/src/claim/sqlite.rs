//! Claims on SQLite.
//!
//! Invariant: time is the machine's, as SQLite tells it. It deliberately holds only SQL: how it is used is in `rows`.

use std::time::Duration;

use sqlx::SqlitePool;
use uuid::Uuid;

use super::{
    Claim, Claimed, Claims, Hold,
    rows::{Found, claims_in_rows, hold, millis},
};
use crate::inbox::{Content, EventKey, InboxError, SqliteInbox, scopes::Scopes};

const CLAIM: &str = "
    insert into outbox_inbox_claims as c (scope, event_id, content, token, leased_until, attempts)
    values (?1, ?2, ?3, ?4, cast(unixepoch('subsec') * 1000 as integer) + ?5, 1)
    on conflict (scope, event_id) do update
    set token = excluded.token, attempts = c.attempts + 1, leased_until = excluded.leased_until
    where c.completed_at is null and c.leased_until <= cast(unixepoch('subsec') * 1000 as integer)
      and (c.content = excluded.content or c.content is null or excluded.content is null)
    returning attempts";
const FOUND: &str = "
    select content, result, max(leased_until - cast(unixepoch('subsec') * 1000 as integer), 0)
    from outbox_inbox_claims where scope = ?1 and event_id = ?2";
const EXTEND: &str = "
    update outbox_inbox_claims set leased_until = cast(unixepoch('subsec') * 1000 as integer) + ?4
    where scope = ?1 and event_id = ?2 and token = ?3 and completed_at is null";
const COMPLETE: &str = "
    update outbox_inbox_claims
    set completed_at = coalesce(completed_at, cast(unixepoch('subsec') * 1000 as integer)), result = coalesce(result, ?4)
    where scope = ?1 and event_id = ?2 and token = ?3";
const RELEASE: &str = "
    update outbox_inbox_claims set leased_until = cast(unixepoch('subsec') * 1000 as integer)
    where scope = ?1 and event_id = ?2 and token = ?3 and completed_at is null";
const EXPIRE: &str = "
    delete from outbox_inbox_claims where (scope, event_id) in (
        select c.scope, c.event_id from outbox_inbox_claims c join outbox_inbox_scopes s on s.id = c.scope
        where (c.completed_at < cast(unixepoch('subsec') * 1000 as integer) - ?2
               or c.completed_at is null and c.leased_until < cast(unixepoch('subsec') * 1000 as integer) - ?2)
              and s.consumer = ?1
        limit ?3)";

/// Claims in a SQLite database.
#[derive(Clone, Debug)]
pub struct SqliteClaims {
    pool: SqlitePool,
    scopes: Scopes,
}

impl SqliteClaims {
    /// The claims in the database of this pool. Their table is part of the inbox's schema.
    pub fn new(pool: SqlitePool) -> Self {
        Self { pool, scopes: Scopes::default() }
    }

    /// As [`SqliteInbox::ensure_schema`].
    ///
    /// # Errors
    /// As there.
    pub async fn ensure_schema(&self) -> Result<(), InboxError> {
        SqliteInbox::new(self.pool.clone()).ensure_schema().await
    }
}

impl Claims for SqliteClaims {
    claims_in_rows!(crate::inbox::sqlite_scope);
}
