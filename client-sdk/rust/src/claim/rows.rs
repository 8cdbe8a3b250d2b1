//! Claims that are rows of a database: what the stores on Postgres and SQLite have in common, and what is answered from a
//! claim, wherever it is held.
//!
//! Invariant: each call that changes something is one statement, so it is done or not done.
//! It deliberately holds no SQL: each store has its own.

use std::time::Duration;

use super::{Claimed, Hold};
use crate::inbox::Content;

/// Content, result, and how many milliseconds are left of the lease.
pub(super) type Row = (Option<i64>, Option<Vec<u8>>, i64);

/// A claim as a store holds it.
pub(super) struct Found {
    /// It was made for another event under the same name.
    pub(super) differs: bool,
    pub(super) result: Option<Vec<u8>>,
    /// What is left of its lease.
    pub(super) left: Duration,
}

impl Found {
    /// Of a row with content, result, and milliseconds that are left, for whoever claims an event with this content.
    pub(super) fn of_row(content: Option<Content>, (stored, result, left): Row) -> Self {
        let (differs, left) = (Content::differs(content, stored), Duration::from_millis(left.unsigned_abs()));
        Self { differs, result, left }
    }

    /// What whoever claims the event is answered; `None` when the lease has run out, so that it is the claimer's.
    pub(super) fn answer(self) -> Option<Claimed> {
        match self {
            Self { differs: true, .. } => Some(Claimed::Conflict),
            Self { result: Some(result), .. } => Some(Claimed::Done(result)),
            Self { left, .. } if !left.is_zero() => Some(Claimed::Held { left }),
            Self { .. } => None,
        }
    }
}

pub(super) fn hold(rows: u64) -> Hold {
    if rows == 1 { Hold::Kept } else { Hold::Lost }
}

pub(super) fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// What [`Claims`](super::Claims) needs of a store with a `pool`, its `scopes` and a `scope` function, by the statements
/// `CLAIM`, `FOUND`, `EXTEND`, `COMPLETE`, `RELEASE` and `EXPIRE` where it is used. A macro, because sqlx's queries have
/// another type for each database.
macro_rules! claims_in_rows {
    ($scope:path) => {
        async fn claim(&self, consumer: &str, key: &EventKey<'_>, lease: Duration) -> Result<Claimed, InboxError> {
            let scope = $scope(&self.pool, &self.scopes, consumer, key.source()).await?;
            let (token, content) = (Uuid::now_v7(), key.content());
            loop {
                let claim = sqlx::query_scalar::<_, i32>(CLAIM).bind(scope).bind(key.id());
                let claim = claim.bind(content.map(Content::number)).bind(token).bind(millis(lease));
                if let Some(attempts) = claim.fetch_optional(&self.pool).await? {
                    return Ok(Claimed::Yours(Claim::new(scope, key.id(), token, attempts.unsigned_abs())));
                }
                let found = sqlx::query_as::<_, (Option<i64>, Option<Vec<u8>>, i64)>(FOUND);
                let found = found.bind(scope).bind(key.id()).fetch_optional(&self.pool).await?;
                // None when it ran out, or was deleted, just now.
                let answer = found.and_then(|row| Found::of_row(content, row).answer());
                if let Some(answer) = answer {
                    return Ok(answer);
                }
            }
        }

        async fn extend(&self, claim: &Claim, lease: Duration) -> Result<Hold, InboxError> {
            let extend = sqlx::query(EXTEND).bind(claim.number()).bind(claim.event_id).bind(claim.token);
            Ok(hold(extend.bind(millis(lease)).execute(&self.pool).await?.rows_affected()))
        }

        async fn complete(&self, claim: &Claim, result: &[u8]) -> Result<Hold, InboxError> {
            let complete = sqlx::query(COMPLETE).bind(claim.number()).bind(claim.event_id).bind(claim.token);
            Ok(hold(complete.bind(result).execute(&self.pool).await?.rows_affected()))
        }

        async fn release(&self, claim: &Claim) -> Result<Hold, InboxError> {
            let release = sqlx::query(RELEASE).bind(claim.number()).bind(claim.event_id).bind(claim.token);
            Ok(hold(release.execute(&self.pool).await?.rows_affected()))
        }

        async fn expire(&self, consumer: &str, older_than: Duration, max: i64) -> Result<u64, InboxError> {
            let expire = sqlx::query(EXPIRE).bind(consumer).bind(millis(older_than)).bind(max);
            Ok(expire.execute(&self.pool).await?.rows_affected())
        }
    };
}

pub(super) use claims_in_rows;
