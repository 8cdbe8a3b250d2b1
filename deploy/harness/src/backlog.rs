//! A backlog of events for a relay to drain, stored in transactions of any size, and waiting until it is settled.

use std::time::{Duration, Instant};

use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection, PgPool};

use super::{eventually, stream::Source};

/// Keys of its events, by turns.
pub const KEYS: usize = 10_000;
/// Bytes of each event's payload.
pub const PAYLOAD_BYTES: usize = 300;
/// Events that one statement stores, whatever its transactions hold.
const STATEMENT_EVENTS: usize = 10_000;
const SAY_EVERY: Duration = Duration::from_secs(5);

/// Where a backlog ends: its last transaction.
#[derive(Clone, Debug)]
pub struct End {
    xid: String,
    /// Where the log was just before its commit.
    commit_lsn: String,
    /// Events in it.
    events: i64,
    /// The log is on disk up to here, and the whole backlog lies below.
    pub flushed_lsn: String,
}

/// Stores so many events in transactions of so many, one after another, and has the table vacuumed.
///
/// # Panics
/// When there are none, or they cannot be stored.
pub async fn store(pool: &PgPool, topic: &str, events: usize, per_transaction: usize) -> End {
    assert!(events > 0 && per_transaction > 0, "a backlog has events, and its transactions have, too");
    let mut connection = pool.acquire().await.expect("the database can be reached");
    // Nobody waits for these commits; the last one is durable, and so are all before it then.
    connection.execute("set synchronous_commit = off").await.expect("it can be set");
    let last = (events - 1) / per_transaction * per_transaction;
    let (began, mut said) = (Instant::now(), Instant::now());
    for first in (0..last).step_by(per_transaction * (STATEMENT_EVENTS / per_transaction).max(1)) {
        let end = (first + per_transaction * (STATEMENT_EVENTS / per_transaction).max(1)).min(last);
        let transactions = format!(
            "do $do$ begin
                 for v_first in {first}..{end} - 1 by {per_transaction} loop
                     perform {};
                     commit;
                 end loop;
             end $do$",
            append(topic, "v_first", &format!("v_first + {per_transaction}"))
        );
        sqlx::raw_sql(AssertSqlSafe(transactions)).execute(&mut *connection).await.expect("events can be stored");
        if said.elapsed() > SAY_EVERY {
            said = Instant::now();
            eprintln!("stored {end} of {events} events in {:.0?}", began.elapsed());
        }
    }
    connection.execute("reset synchronous_commit").await.expect("it can be reset");
    let end = commit_last(&mut connection, topic, last, events).await;
    connection.execute("vacuum (analyze) outbox.events").await.expect("the table can be vacuumed");
    end
}

async fn commit_last(connection: &mut PgConnection, topic: &str, first: usize, end: usize) -> End {
    let mut transaction = connection.begin().await.expect("a transaction can be begun");
    let append = format!("select {}", append(topic, &first.to_string(), &end.to_string()));
    transaction.execute(AssertSqlSafe(append)).await.expect("events can be stored");
    let (xid, commit_lsn): (String, String) =
        sqlx::query_as("select pg_current_xact_id()::text, pg_current_wal_insert_lsn()::text")
            .fetch_one(&mut *transaction)
            .await
            .expect("the transaction can be asked");
    transaction.commit().await.expect("it commits");
    let flushed_lsn = sqlx::query_scalar("select pg_current_wal_flush_lsn()::text").fetch_one(connection).await;
    let events = i64::try_from(end - first).expect("not so many");
    End { xid, commit_lsn, events, flushed_lsn: flushed_lsn.expect("the server can be asked") }
}

/// A call that stores the events from number `first` up to `end`, both SQL.
fn append(topic: &str, first: &str, end: &str) -> String {
    let payload = "x".repeat(PAYLOAD_BYTES);
    format!(
        "outbox.append_events('default', array_agg(id), array_agg('{topic}'::text), array_agg(key),
             array_agg('bench'::text), array_agg('drained'::text), array_agg(null::text),
             array_agg('{payload}'::bytea), array_agg('application/json'::text), array_agg(null::jsonb),
             array_agg(now()), array_agg(null::text), array_agg(null::text))
         from (select outbox.uuidv7() as id, convert_to((n % {KEYS})::text, 'UTF8') as key
               from generate_series({first}, {end} - 1) as n) as e"
    )
}

/// Waits until every lane's progress, by this source, has passed a backlog; `each` is called with every look.
///
/// # Panics
/// When that takes longer than `within`.
pub async fn settled(pool: &PgPool, source: Source, end: &End, within: Duration, mut each: impl FnMut()) {
    eventually("every event to be settled", within, async || {
        each();
        let look = match source {
            Source::Poll => {
                sqlx::query_scalar("select bool_and(pg_visible_in_snapshot($1::xid8, snapshot)) from outbox.progress")
                    .bind(&end.xid)
            }
            // Beyond the last commit, or just behind its last event.
            Source::Wal => sqlx::query_scalar("select lsn >= $1::pg_lsn and lsn_index in (0, $2) from outbox.stream")
                .bind(&end.commit_lsn)
                .bind(end.events),
        };
        let settled: Option<bool> = look.fetch_one(pool).await.expect("progress can be read");
        (settled == Some(true)).then_some(())
    })
    .await;
}

/// Has the relays take every event that is stored now for settled, without publishing it. No relay may be running, and
/// no transaction be open.
///
/// # Panics
/// When progress cannot be written.
pub async fn pass_over(pool: &PgPool) {
    let pass = "update outbox.progress set snapshot = pg_current_snapshot(), target = null, target_floor = null,
                       position = null, floor = (select last_value from outbox.positions)";
    pool.execute(pass).await.expect("progress can be written");
}
