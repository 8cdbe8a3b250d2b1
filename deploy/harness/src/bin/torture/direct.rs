//! Services that emit in transactions of their own, by SQL: they roll back on purpose, wholly or to a savepoint, and commit
//! without waiting for the disk.
//!
//! What was rolled back must never be seen. What was committed without a flush may be lost in a crash of Postgres, but
//! then from table and Kafka alike: nothing is published that a crash takes back.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use sqlx::{Connection as _, Executor as _, PgConnection};
use uuid::Uuid;

use crate::Run;

/// Of one after the other, each with a key of its own.
pub(crate) const SERVICES: usize = 2;
const PAUSE: Duration = Duration::from_millis(10);

/// What they did.
#[derive(Debug, Default)]
pub(crate) struct Direct {
    /// Ids whose transaction, or savepoint, was rolled back.
    pub(crate) undone: Vec<Uuid>,
    /// Ids that were committed without a flush, in order; of the last one before a crash it is not known.
    pub(crate) unflushed: Vec<Uuid>,
    /// Rollbacks and commits that were answered.
    pub(crate) answered: (usize, usize),
}

/// Emits until every commit of the callers has been started; goes on through crashes of Postgres.
pub(crate) async fn emit(run: Arc<Run>, service: usize) -> Direct {
    let mut random = StdRng::seed_from_u64(run.seed.wrapping_sub(1 + service as u64));
    let mut direct = Direct::default();
    while run.started.load(Ordering::Relaxed) < run.options.commits {
        if let Ok(mut connection) = PgConnection::connect(&run.database.url).await {
            // Ends with the connection.
            let _ended: sqlx::Result<()> = serve(&run, service, &mut connection, &mut random, &mut direct).await;
        }
        tokio::time::sleep(PAUSE).await;
    }
    direct
}

async fn serve(
    run: &Run,
    service: usize,
    connection: &mut PgConnection,
    random: &mut StdRng,
    direct: &mut Direct,
) -> sqlx::Result<()> {
    connection.execute("set synchronous_commit = off").await?;
    while run.started.load(Ordering::Relaxed) < run.options.commits {
        let (undone, kept) = (Uuid::now_v7(), Uuid::now_v7());
        // Written down first: whatever comes of it, this one is never seen.
        direct.undone.push(undone);
        if random.random_bool(0.5) {
            connection.execute("begin").await?;
            store(run, service, connection, undone).await?;
            connection.execute("rollback").await?;
            direct.answered.0 += 1;
        } else {
            direct.unflushed.push(kept);
            connection.execute("begin; savepoint undone").await?;
            store(run, service, connection, undone).await?;
            connection.execute("rollback to undone").await?;
            store(run, service, connection, kept).await?;
            connection.execute("commit").await?;
            direct.answered.1 += 1;
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}

async fn store(run: &Run, service: usize, connection: &mut PgConnection, id: Uuid) -> sqlx::Result<()> {
    sqlx::query("select outbox.emit($1, 'emitted', '{}', key => $2, id => $3)")
        .bind(&run.topic)
        .bind(format!("service {service}"))
        .bind(id)
        .execute(connection)
        .await
        .map(drop)
}
