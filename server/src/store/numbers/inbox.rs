//! How many marks and claims are remembered, and how many claims are open.
//!
//! Open claims are counted to a limit, by an index that holds nothing else. What is remembered is not counted: it is
//! what Postgres last estimated when it analysed the partitions.

use serde::Serialize;
use sqlx::PgPool;

use super::COUNT_MAX;

/// What consumers have the server remember.
#[derive(Clone, Debug, Serialize, sqlx::FromRow)]
pub struct Inbox {
    /// Claims whose lease is held, counted to [`COUNT_MAX`] with the next.
    pub leased: i64,
    /// Claims whose lease has run out, or was given back, before they were completed.
    pub run_out: i64,
    /// Claims that are remembered, about.
    pub claims_estimate: i64,
    /// Marks that are remembered, about.
    pub marks_estimate: i64,
}

pub(super) async fn read(pool: &PgPool) -> sqlx::Result<Inbox> {
    sqlx::query_as(
        "with open as (
            select leased_until > clock_timestamp() as leased from outbox.claims where completed_at is null limit $1
         ), estimates as (
            select i.inhparent as parent, sum(greatest(c.reltuples, 0))::bigint as rows
            from pg_inherits i join pg_class c on c.oid = i.inhrelid
            where i.inhparent in ('outbox.claims'::regclass, 'outbox.marks'::regclass) group by 1
         )
         select (select count(*) from open where leased) as leased,
                (select count(*) from open where not leased) as run_out,
                coalesce((select rows from estimates where parent = 'outbox.claims'::regclass), 0) as claims_estimate,
                coalesce((select rows from estimates where parent = 'outbox.marks'::regclass), 0) as marks_estimate",
    )
    .bind(COUNT_MAX)
    .fetch_one(pool)
    .await
}
