//! The ledgers, and what must be in them at the end. They have no unique constraint: a second effect must show, not fail.

use sqlx::{AssertSqlSafe, PgPool};

use super::Mode;

/// Makes the ledger of a mode. `claims` is the table that is watched in those with claims: a trigger writes down each
/// change of a claim, with the time at which it was made.
pub(super) async fn make(pool: &PgPool, mode: Mode) {
    let ledger = match mode.claims() {
        None => {
            "create table effects (place bigserial, event_id uuid not null, key text not null, n int8 not null)".into()
        }
        Some(claims) => format!(
            "create table deeds (event_id uuid not null, key text not null, n int8 not null, token uuid not null,
                                 ended boolean not null default false);
             create index on deeds (token);
             create table changes (place bigserial, event_id uuid not null, before uuid, after uuid not null,
                                   until timestamptz, was_completed boolean, is_completed boolean not null,
                                   made_at timestamptz not null default clock_timestamp());
             create function write_down() returns trigger language plpgsql as $$
             begin
                 insert into changes (event_id, before, after, until, was_completed, is_completed)
                 values (new.event_id, old.token, new.token, old.leased_until, old.completed_at is not null,
                         new.completed_at is not null);
                 return null;
             end $$;
             create trigger write_down after insert or update on {claims} for each row execute function write_down()"
        ),
    };
    sqlx::raw_sql(AssertSqlSafe(ledger)).execute(pool).await.expect("the ledger can be made");
}

/// How many events are done with; `None` while the database is away.
pub(super) async fn done(pool: &PgPool, mode: Mode) -> Option<i64> {
    let count = match mode.claims() {
        None => "select count(*) from effects".into(),
        Some(claims) => format!("select count(*) from {claims} where completed_at is not null"),
    };
    sqlx::query_scalar(AssertSqlSafe(count)).fetch_one(pool).await.ok()
}

/// Every event has one effect, in its key's order.
pub(super) async fn effects(pool: &PgPool, events: i64) {
    let once = "select count(*), count(distinct event_id) from effects";
    let (effects, different): (i64, i64) = sqlx::query_as(once).fetch_one(pool).await.expect("the ledger can be read");
    assert_eq!((effects, different), (events, events), "effects, different events");
    let order = "select count(*) from (
                     select n, row_number() over (partition by key order by place) as expected from effects
                 ) as e where n <> expected";
    let misplaced: i64 = sqlx::query_scalar(order).fetch_one(pool).await.expect("the ledger can be read");
    assert_eq!(misplaced, 0, "effects out of their key's order");
    println!("effects {effects}, different events {different}, out of their key's order {misplaced}");
}

/// Every event was completed once, in its key's order, by the holder of its lease, and no lease was taken while another
/// held it.
pub(super) async fn claims(pool: &PgPool, mode: Mode, table: &str, events: i64) {
    let number = async |sql: String| -> i64 {
        sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(pool).await.expect("the ledger can be read")
    };
    let completed = number(format!("select count(*) from {table} where completed_at is not null")).await;
    let different = number(format!("select count(distinct event_id) from {table}")).await;
    assert_eq!((completed, different), (events, events), "completed claims, different events");
    let taken = "select count(*) from changes where before <> after and (until > made_at or was_completed)";
    assert_eq!(number(taken.into()).await, 0, "leases that were taken while another held them");
    let twice = "select count(*) from (select from changes where is_completed and not coalesce(was_completed, false)
                                       group by event_id having count(*) > 1) as t";
    assert_eq!(number(twice.into()).await, 0, "events that were completed twice");
    // Each holder's result is its token: a late one's would stand beside another's. Batches have none.
    let strangers = match mode {
        Mode::ClaimBatch => format!("select count(*) from {table} where result <> ''"),
        _ => format!("select count(*) from {table} where result <> uuid_send(token)"),
    };
    assert_eq!(number(strangers).await, 0, "results of others than the holder");
    let without =
        format!("select count(*) from {table} c where not exists (select from deeds d where d.token = c.token)");
    assert_eq!(number(without).await, 0, "events that were completed without an effect");
    let order = "select count(*) from (
                     select e.n, row_number() over (partition by e.key order by c.place) as expected
                     from changes c join (select distinct event_id, key, n from deeds) e using (event_id)
                     where c.is_completed and not coalesce(c.was_completed, false)
                 ) as e where n <> expected";
    let misplaced = number(order.into()).await;
    assert_eq!(misplaced, 0, "completions out of their key's order");
    let late =
        format!("select count(*) from deeds d join {table} c using (event_id) where d.ended and c.token <> d.token");
    let (late, deeds) = (number(late).await, number("select count(*) from deeds".into()).await);
    let handed = number("select count(*) from changes where before <> after".into()).await;
    println!(
        "completed {completed}, out of their key's order {misplaced}, effects {deeds}, leases taken over {handed}, of them \
         late effects whose completion was refused {late}"
    );
}
