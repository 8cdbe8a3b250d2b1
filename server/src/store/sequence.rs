//! Which topics number their events per key, without a gap, so that consumers can tell when something is missing.
//!
//! Invariant: a topic that has not asked for it pays nothing. Numbers are given out by the database
//! (`migrations/0007_sequences.sql`); it deliberately does not read them.

use std::time::Duration;

use sqlx::{Executor as _, PgConnection};

use super::{Error, Failure};

/// How often a change that did not get its lock is tried again.
const TRIES_MAX: usize = 5;
const PAUSE: Duration = Duration::from_millis(500);

/// A topic that numbers its events.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
pub struct Sequenced {
    /// Its name.
    pub topic: String,
    /// What its numbers belong to.
    pub epoch: i64,
    /// How many keys have a number.
    pub keys: i64,
}

/// Has a topic number its events from now on; returns the epoch of its numbers.
///
/// # Errors
/// [`Error::Conflict`] when the events could not be locked for a moment; otherwise when a statement fails.
pub async fn start(connection: &mut PgConnection, topic: &str) -> Result<i64, Error> {
    change(connection, "select outbox.start_sequence($1)", topic).await
}

/// Has a topic number its events no more; false when it did not.
///
/// # Errors
/// As [`start`].
pub async fn stop(connection: &mut PgConnection, topic: &str) -> Result<bool, Error> {
    change(connection, "select outbox.stop_sequence($1)", topic).await
}

/// The topics that number their events.
///
/// # Errors
/// When the statement fails.
pub async fn list(connection: &mut PgConnection) -> Result<Vec<Sequenced>, Error> {
    let list = "select t.topic, t.epoch,
                       (select count(*) from outbox.sequences s where s.topic = t.topic and s.epoch = t.epoch) as keys
                from outbox.sequenced_topics t order by t.topic";
    sqlx::query_as(list).fetch_all(connection).await.map_err(read)
}

async fn change<T>(connection: &mut PgConnection, sql: &'static str, topic: &str) -> Result<T, Error>
where
    T: for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres> + Send + Unpin,
{
    connection.execute("set lock_timeout = '2s'").await.map_err(read)?;
    let mut tried = 0;
    let changed = loop {
        tried += 1;
        match sqlx::query_scalar(sql).bind(topic).fetch_one(&mut *connection).await.map_err(read) {
            Err(Error::Conflict) if tried < TRIES_MAX => tokio::time::sleep(PAUSE).await,
            changed => break changed,
        }
    };
    connection.execute("set lock_timeout = 0").await.map_err(read)?;
    changed
}

fn read(error: sqlx::Error) -> Error {
    Failure::read(error, None).into_error()
}
