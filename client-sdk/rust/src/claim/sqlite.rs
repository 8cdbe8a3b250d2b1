//! Claims on SQLite.
//!
//! Invariant: as on Postgres, each call that changes something is one statement on one row. Time is the machine's.

use std::time::Duration;

use sqlx::SqlitePool;
use uuid::Uuid;

use super::{
    Claim, Claimed, Claims, Hold,
    postgres::{hold, millis},
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
    update outbox_inbox_claims set leased_until = 0
    where scope = ?1 and event_id = ?2 and token = ?3 and completed_at is null";
const EXPIRE: &str = "
    delete from outbox_inbox_claims where (scope, event_id) in (
        select c.scope, c.event_id from outbox_inbox_claims c join outbox_inbox_scopes s on s.id = c.scope
        where c.completed_at < cast(unixepoch('subsec') * 1000 as integer) - ?2 and s.consumer = ?1
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
    async fn claim(&self, consumer: &str, key: &EventKey<'_>, lease: Duration) -> Result<Claimed, InboxError> {
        let scope = crate::inbox::sqlite_scope(&self.pool, &self.scopes, consumer, key.source()).await?;
        let token = Uuid::now_v7();
        loop {
            let claim = sqlx::query_scalar::<_, i32>(CLAIM).bind(scope).bind(key.id());
            let claim = claim.bind(key.content().map(Content::number)).bind(token).bind(millis(lease));
            if let Some(attempts) = claim.fetch_optional(&self.pool).await? {
                return Ok(Claimed::Yours(Claim::new(scope, key.id(), token, attempts.unsigned_abs())));
            }
            let found = sqlx::query_as::<_, (Option<i64>, Option<Vec<u8>>, i64)>(FOUND).bind(scope).bind(key.id());
            match found.fetch_optional(&self.pool).await? {
                Some((content, ..)) if Content::differs(key.content(), content) => return Ok(Claimed::Conflict),
                Some((_, Some(result), _)) => return Ok(Claimed::Done(result)),
                Some((_, None, left)) if left > 0 => {
                    return Ok(Claimed::Held { left: Duration::from_millis(left.unsigned_abs()) });
                }
                Some(_) | None => {}
            }
        }
    }

    async fn extend(&self, claim: &Claim, lease: Duration) -> Result<Hold, InboxError> {
        let extend = sqlx::query(EXTEND).bind(claim.scope).bind(claim.event_id).bind(claim.token).bind(millis(lease));
        Ok(hold(extend.execute(&self.pool).await?.rows_affected()))
    }

    async fn complete(&self, claim: &Claim, result: &[u8]) -> Result<Hold, InboxError> {
        let complete = sqlx::query(COMPLETE).bind(claim.scope).bind(claim.event_id).bind(claim.token).bind(result);
        Ok(hold(complete.execute(&self.pool).await?.rows_affected()))
    }

    async fn release(&self, claim: &Claim) -> Result<Hold, InboxError> {
        let release = sqlx::query(RELEASE).bind(claim.scope).bind(claim.event_id).bind(claim.token);
        Ok(hold(release.execute(&self.pool).await?.rows_affected()))
    }

    async fn expire(&self, consumer: &str, older_than: Duration, max: i64) -> Result<u64, InboxError> {
        let expire = sqlx::query(EXPIRE).bind(consumer).bind(millis(older_than)).bind(max);
        Ok(expire.execute(&self.pool).await?.rows_affected())
    }
}
