//! Which source the relays use, as an operator asks for it.

use std::time::{Duration, Instant};

use clap::ValueEnum;
use sqlx::PgPool;

/// How long a change of source may take: while whoever makes a slot is killed time and again, it is begun anew each time.
const CHANGE_WITHIN: Duration = Duration::from_secs(300);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Where the relays read events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Source {
    /// They look into the table.
    Poll,
    /// They stream the write-ahead log.
    Wal,
}

impl Source {
    /// As the table has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Poll => "poll",
            Self::Wal => "wal",
        }
    }
}

/// Asks for a source and waits until it is in force; goes on through crashes of the database.
///
/// # Panics
/// When that takes too long.
pub async fn desire(pool: &PgPool, source: &str) {
    let asked = Instant::now();
    while !try_desire(pool, source).await.unwrap_or(false) {
        assert!(asked.elapsed() < CHANGE_WITHIN, "waited in vain for {source} to be in force");
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn try_desire(pool: &PgPool, source: &str) -> sqlx::Result<bool> {
    let statement = "update outbox.stream set desired = $1, note = null where desired <> $1";
    sqlx::query(statement).bind(source).execute(pool).await?;
    sqlx::query_scalar("select source = $1 from outbox.stream").bind(source).fetch_one(pool).await
}
