//! What reading costs the database: how much of the events it touches, by Postgres's own counters.
//!
//! A session's counts are complete once it has ended; so these are of everything that other sessions do until they have.

use std::time::Duration;

use sqlx::PgConnection;

use super::eventually;

/// What was touched of the partitions of `outbox.events`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, sqlx::FromRow)]
pub struct Touched {
    /// Rows that were read, by scans of whole partitions or by an index.
    pub rows: i64,
    /// Blocks of tables and indexes, whether they were in memory or not.
    pub blocks: i64,
}

/// Touched between two moments at which nobody but the caller has a connection to the database. Autovacuum must be off
/// for the partitions, since it is counted, too.
///
/// # Panics
/// When `action` leaves a connection open.
pub async fn by<F: Future>(connection: &mut PgConnection, action: F) -> (Touched, F::Output) {
    let before = so_far(connection).await;
    let output = action.await;
    let after = so_far(connection).await;
    let touched = Touched { rows: after.rows - before.rows, blocks: after.blocks - before.blocks };
    (touched, output)
}

async fn so_far(connection: &mut PgConnection) -> Touched {
    eventually("every other session to end", Duration::from_secs(60), async || {
        let others = "select count(*) from pg_stat_activity where datname = current_database()
                      and backend_type = 'client backend' and pid <> pg_backend_pid()";
        let others: i64 = sqlx::query_scalar(others).fetch_one(&mut *connection).await.expect("sessions can be seen");
        (others == 0).then_some(())
    })
    .await;
    sqlx::query_as(
        "select sum(s.seq_tup_read + coalesce(s.idx_tup_fetch, 0))::bigint as rows,
                sum(b.heap_blks_read + b.heap_blks_hit + coalesce(b.idx_blks_read + b.idx_blks_hit, 0))::bigint as blocks
         from pg_inherits i
         join pg_stat_user_tables s on s.relid = i.inhrelid join pg_statio_user_tables b on b.relid = i.inhrelid
         where i.inhparent = 'outbox.events'::regclass",
    )
    .fetch_one(connection)
    .await
    .expect("the counters can be read")
}

/// Has autovacuum leave the events alone.
///
/// # Panics
/// When the partitions cannot be changed.
pub async fn by_nobody_else(connection: &mut PgConnection) {
    let off = "do $do$ declare v_partition regclass; begin
                   for v_partition in select inhrelid from pg_inherits where inhparent = 'outbox.events'::regclass loop
                       execute format('alter table %s set (autovacuum_enabled = false)', v_partition);
                   end loop;
               end $do$";
    sqlx::raw_sql(off).execute(connection).await.expect("the partitions can be changed");
}
