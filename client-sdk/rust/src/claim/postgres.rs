//! Claims on Postgres.
//!
//! Invariant: time is `clock_timestamp()`: a statement that waited for another must not decide by the time at which it
//! began. What is done with several claims locks them in one order. How the statements on single ones are used is in `rows`.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use sqlx::{PgPool, Postgres, postgres::PgArguments, query::QueryScalar};
use uuid::Uuid;

use super::{
    Claim, Claimed, Claims, Hold, give_back,
    rows::{Found, Row, claims_in_rows, hold, millis},
};
use crate::inbox::{Content, EventKey, InboxError, Names, PostgresInbox, postgres_scope, scopes::Scopes};

/// A statement on those of several claims that are still under their tokens. They are locked in the order in which events
/// are claimed together: who waits for another must not have what that one waits for.
macro_rules! held {
    ($statement:literal) => {
        concat!(
            "with held as materialized (
                 select c.scope, c.event_id
                 from unnest($1::int4[], $2::uuid[], $3::uuid[]) as k (scope, event_id, token)
                 join outbox_inbox.claims c using (scope, event_id, token)
                 order by c.scope, c.event_id
                 for update of c)
             ",
            $statement,
            " returning c.token"
        )
    };
}

const CLAIM: &str = "
    insert into outbox_inbox.claims as c (scope, event_id, content, token, leased_until, attempts)
    values ($1, $2, $3, $4, clock_timestamp() + $5 * interval '1 ms', 1)
    on conflict (scope, event_id) do update
    set token = excluded.token, attempts = c.attempts + 1,
        leased_until = clock_timestamp() + $5 * interval '1 ms'
    where c.completed_at is null and c.leased_until <= clock_timestamp()
      and (c.content = excluded.content or c.content is null or excluded.content is null)
    returning attempts";
const CLAIM_ALL: &str = "
    insert into outbox_inbox.claims as c (scope, event_id, content, token, leased_until, attempts)
    select k.*, clock_timestamp() + $5 * interval '1 ms', 1
    from unnest($1::int4[], $2::uuid[], $3::int8[], $4::uuid[]) as k (scope, event_id, content, token)
    on conflict (scope, event_id) do update
    set token = excluded.token, attempts = c.attempts + 1,
        leased_until = clock_timestamp() + $5 * interval '1 ms'
    where c.completed_at is null and c.leased_until <= clock_timestamp()
      and (c.content = excluded.content or c.content is null or excluded.content is null)
    returning scope, event_id, token, attempts";
const FOUND: &str = "
    select content, result, greatest(extract(epoch from leased_until - clock_timestamp()) * 1000, 0)::int8
    from outbox_inbox.claims where scope = $1 and event_id = $2";
/// Of those that were not to be had.
const FOUND_ALL: &str = "
    select c.scope, c.event_id, c.content, c.result,
           greatest(extract(epoch from c.leased_until - clock_timestamp()) * 1000, 0)::int8
    from unnest($1::int4[], $2::uuid[]) as k (scope, event_id)
    join outbox_inbox.claims c using (scope, event_id)";
const EXTEND: &str = "
    update outbox_inbox.claims set leased_until = clock_timestamp() + $4 * interval '1 ms'
    where scope = $1 and event_id = $2 and token = $3 and completed_at is null";
const COMPLETE: &str = "
    update outbox_inbox.claims set completed_at = coalesce(completed_at, clock_timestamp()), result = coalesce(result, $4)
    where scope = $1 and event_id = $2 and token = $3";
const RELEASE: &str = "
    update outbox_inbox.claims set leased_until = clock_timestamp()
    where scope = $1 and event_id = $2 and token = $3 and completed_at is null";
const EXTEND_ALL: &str = held!(
    "update outbox_inbox.claims c set leased_until = clock_timestamp() + $4 * interval '1 ms'
     from held where c.scope = held.scope and c.event_id = held.event_id and c.completed_at is null"
);
const COMPLETE_ALL: &str = held!(
    "update outbox_inbox.claims c
     set completed_at = coalesce(completed_at, clock_timestamp()), result = coalesce(result, '')
     from held where c.scope = held.scope and c.event_id = held.event_id"
);
const RELEASE_ALL: &str = held!(
    "update outbox_inbox.claims c set leased_until = clock_timestamp()
     from held where c.scope = held.scope and c.event_id = held.event_id and c.completed_at is null"
);
/// What somebody is just claiming is left for another time, and what is claimed meanwhile is not old any more.
const EXPIRE: &str = "
    delete from outbox_inbox.claims where ctid = any (array(
        select c.ctid from outbox_inbox.claims c join outbox_inbox.scopes s on s.id = c.scope
        where (c.completed_at < now() - $2 * interval '1 ms'
               or c.completed_at is null and c.leased_until < now() - $2 * interval '1 ms') and s.consumer = $1
        limit $3 for update of c skip locked))";

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

impl Claims for PostgresClaims {
    claims_in_rows!(postgres_scope);

    /// In two statements at most, but for leases that run out in between.
    async fn claim_all(
        &self,
        consumer: &str,
        keys: &[EventKey<'_>],
        lease: Duration,
    ) -> Result<Vec<Claimed>, InboxError> {
        if let [key] = keys {
            return Ok(vec![self.claim(consumer, key, lease).await?]);
        }
        let mut scoped = Vec::with_capacity(keys.len());
        for key in keys {
            scoped.push((postgres_scope(&self.pool, &self.scopes, consumer, key.source()).await?, *key));
        }
        let names = Names::of(&scoped);
        let mut claimed: Vec<Option<Claimed>> = vec![None; keys.len()];
        for claim in self.grant(&names, lease).await? {
            if let Some(place) = names.place((claim.number(), claim.event_id)) {
                claimed[place] = Some(Claimed::Yours(claim));
            }
        }
        match self.answer_others(consumer, &scoped, lease, &mut claimed).await {
            Ok(()) => Ok(claimed.into_iter().flatten().collect()),
            Err(error) => {
                give_back(self, claimed.into_iter().flatten().collect()).await;
                Err(error)
            }
        }
    }

    async fn extend_all(&self, claims: &[Claim], lease: Duration) -> Result<Vec<Hold>, InboxError> {
        let extend = Held::of(claims).query(EXTEND_ALL).bind(millis(lease));
        Ok(holds(claims, &extend.fetch_all(&self.pool).await?))
    }

    async fn complete_all(&self, claims: &[Claim]) -> Result<Vec<Hold>, InboxError> {
        Ok(holds(claims, &Held::of(claims).query(COMPLETE_ALL).fetch_all(&self.pool).await?))
    }

    async fn release_all(&self, claims: &[Claim]) -> Result<Vec<Hold>, InboxError> {
        Ok(holds(claims, &Held::of(claims).query(RELEASE_ALL).fetch_all(&self.pool).await?))
    }
}

impl PostgresClaims {
    /// Leases on those of these events that are to be had.
    async fn grant(&self, names: &Names, lease: Duration) -> Result<Vec<Claim>, InboxError> {
        let tokens: Vec<Uuid> = names.ids.iter().map(|_| Uuid::now_v7()).collect();
        let granted = sqlx::query_as::<_, (i32, Uuid, Uuid, i32)>(CLAIM_ALL).bind(&names.scopes).bind(&names.ids);
        let granted = granted.bind(&names.contents).bind(tokens).bind(millis(lease)).fetch_all(&self.pool).await?;
        let claim = |(scope, id, token, attempts): (i32, Uuid, Uuid, i32)| {
            Claim::new(scope, id, token, attempts.unsigned_abs())
        };
        Ok(granted.into_iter().map(claim).collect())
    }

    /// Answers those that are not answered yet.
    async fn answer_others(
        &self,
        consumer: &str,
        keys: &[(i32, EventKey<'_>)],
        lease: Duration,
        claimed: &mut [Option<Claimed>],
    ) -> Result<(), InboxError> {
        let others: Vec<_> = keys.iter().zip(claimed).filter(|(_, answer)| answer.is_none()).collect();
        if others.is_empty() {
            return Ok(());
        }
        let (scopes, ids): (Vec<i32>, Vec<Uuid>) = others.iter().map(|((scope, key), _)| (*scope, key.id())).unzip();
        let found = sqlx::query_as::<_, (i32, Uuid, Option<i64>, Option<Vec<u8>>, i64)>(FOUND_ALL);
        let found = found.bind(scopes).bind(ids).fetch_all(&self.pool).await?;
        let found: HashMap<(i32, Uuid), Row> = found
            .into_iter()
            .map(|(scope, id, content, result, left)| ((scope, id), (content, result, left)))
            .collect();
        for ((scope, key), answer) in others {
            let row = found.get(&(*scope, key.id())).cloned();
            *answer = row.and_then(|row| Found::of_row(key.content(), row).answer());
            // It ran out, or was deleted, just now.
            if answer.is_none() {
                *answer = Some(self.claim(consumer, key, lease).await?);
            }
        }
        Ok(())
    }
}

/// Claims as arrays for the database.
struct Held {
    scopes: Vec<i32>,
    ids: Vec<Uuid>,
    tokens: Vec<Uuid>,
}

impl Held {
    fn of(claims: &[Claim]) -> Self {
        let scopes = claims.iter().map(Claim::number).collect();
        let (ids, tokens) = claims.iter().map(|claim| (claim.event_id, claim.token)).unzip();
        Self { scopes, ids, tokens }
    }

    fn query<'q>(self, statement: &'static str) -> QueryScalar<'q, Postgres, Uuid, PgArguments> {
        sqlx::query_scalar(statement).bind(self.scopes).bind(self.ids).bind(self.tokens)
    }
}

/// The tokens of which of these the statement returned.
fn holds(claims: &[Claim], kept: &[Uuid]) -> Vec<Hold> {
    let kept: HashSet<&Uuid> = kept.iter().collect();
    claims.iter().map(|claim| hold(u64::from(kept.contains(&claim.token)))).collect()
}
