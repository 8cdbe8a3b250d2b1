//! The inbox on SQLite.
//!
//! Invariants: as on Postgres. Transactions take the write lock when they begin (`BEGIN IMMEDIATE`), so an event is
//! handled by one connection at a time, and a mark never fails for a lock that another holds later on.
//!
//! It deliberately does not spread over several files or machines: one writer at a time is what SQLite is.

use std::time::Duration;

use sqlx::{Database, Pool, SqlSafeStr as _, SqlStr, Sqlite, SqliteConnection, SqlitePool};
use sqlx_core::transaction::TransactionManager as _;

use super::{Content, EventKey, Inbox, InboxError, Mark, scopes::Scopes};

/// The files of the schema; the version is the place in the list, counted from 1, and stands in a table of its own:
/// `user_version` is the application's.
const VERSIONS: [&str; 2] = [include_str!("../../inbox/sqlite/1.sql"), include_str!("../../inbox/sqlite/2.sql")];
const VERSIONS_TABLE: &str =
    "create table if not exists outbox_inbox_versions (version integer primary key, applied_at integer not null)";
const BEGIN: &str = "begin immediate";

const ADD_SCOPE: &str = "insert into outbox_inbox_scopes (consumer, source) values (?, ?) on conflict do nothing";
const SCOPE: &str = "select id from outbox_inbox_scopes where consumer = ? and source = ?";
const MARK: &str = "insert into outbox_inbox_marks (scope, event_id, content, marked_at)
    values (?, ?, ?, cast(unixepoch('subsec') * 1000 as integer)) on conflict do nothing";
const CONTENT: &str = "select content from outbox_inbox_marks where scope = ? and event_id = ?";
const EXPIRE: &str = "
    delete from outbox_inbox_marks where (scope, event_id) in (
        select m.scope, m.event_id from outbox_inbox_marks m join outbox_inbox_scopes s on s.id = m.scope
        where m.marked_at < cast(unixepoch('subsec') * 1000 as integer) - ?2 and s.consumer = ?1
        limit ?3)";

/// The inbox of one or more consumers in a SQLite database: the one in which their handlers work.
///
/// Cheap to clone. Writers take turns: set a `busy_timeout` longer than handlers take.
#[derive(Clone, Debug)]
pub struct SqliteInbox {
    pool: SqlitePool,
    scopes: Scopes,
}

impl SqliteInbox {
    /// The inbox in the database of this pool.
    pub fn new(pool: SqlitePool) -> Self {
        Self { pool, scopes: Scopes::default() }
    }

    /// Makes the inbox's tables, or brings them up to date, from the files in `inbox/sqlite/`. Several processes may
    /// call it at once.
    ///
    /// # Errors
    /// [`InboxError::NewerSchema`] when a newer SDK made them, [`InboxError::Database`]; nothing is half made.
    pub async fn ensure_schema(&self) -> Result<(), InboxError> {
        let mut tx = self.pool.begin_with(BEGIN).await?;
        sqlx::query(VERSIONS_TABLE).execute(&mut *tx).await?;
        let found = sqlx::query_scalar("select coalesce(max(version), 0) from outbox_inbox_versions");
        let found: i32 = found.fetch_one(&mut *tx).await?;
        let known = VERSIONS.len() as i32;
        if found > known {
            return Err(InboxError::NewerSchema { found, known });
        }
        for (version, file) in (1..).zip(VERSIONS).skip(found as usize) {
            sqlx::raw_sql(file).execute(&mut *tx).await?;
            let applied = "insert into outbox_inbox_versions (version, applied_at) values (?, unixepoch() * 1000)";
            sqlx::query(applied).bind::<i32>(version).execute(&mut *tx).await?;
        }
        Ok(tx.commit().await?)
    }
}

pub(crate) async fn scope(pool: &SqlitePool, scopes: &Scopes, consumer: &str, source: &str) -> Result<i32, InboxError> {
    let add = async {
        let mut connection = pool.acquire().await?;
        sqlx::query(ADD_SCOPE).bind(consumer).bind(source).execute(&mut *connection).await?;
        sqlx::query_scalar(SCOPE).bind(consumer).bind(source).fetch_one(&mut *connection).await
    };
    scopes.get_or(consumer, source, add).await
}

impl Inbox for SqliteInbox {
    type Database = Sqlite;

    fn pool(&self) -> &Pool<Sqlite> {
        &self.pool
    }

    fn begin_statement() -> Option<SqlStr> {
        Some(BEGIN.into_sql_str())
    }

    fn known_scope(&self, consumer: &str, source: &str) -> Option<i32> {
        self.scopes.get(consumer, source)
    }

    async fn add_scope(&self, consumer: &str, source: &str) -> Result<i32, InboxError> {
        scope(&self.pool, &self.scopes, consumer, source).await
    }

    async fn mark(connection: &mut SqliteConnection, scope: i32, key: &EventKey<'_>) -> Result<Mark, InboxError> {
        let content = key.content();
        let mark = sqlx::query(MARK).bind(scope).bind(key.id()).bind(content.map(Content::number));
        if mark.execute(&mut *connection).await?.rows_affected() == 1 {
            return Ok(Mark::Fresh);
        }
        let stored = sqlx::query_scalar(CONTENT).bind(scope).bind(key.id());
        let stored: Option<Option<i64>> = stored.fetch_optional(connection).await?;
        Ok(Mark::of_repeat(content, stored.flatten()))
    }

    /// One by one: a statement costs no round trip here.
    async fn mark_all(
        &self,
        connection: &mut SqliteConnection,
        keys: &[(i32, EventKey<'_>)],
    ) -> Result<Vec<Mark>, InboxError> {
        let mut marks = Vec::with_capacity(keys.len());
        for (scope, key) in keys {
            marks.push(Self::mark(connection, *scope, key).await?);
        }
        Ok(marks)
    }

    async fn expire(&self, consumer: &str, older_than: Duration, max: i64) -> Result<u64, InboxError> {
        let expire = sqlx::query(EXPIRE).bind(consumer).bind(older_than.as_millis() as i64).bind(max);
        Ok(expire.execute(&self.pool).await?.rows_affected())
    }

    /// SQLite refuses to commit a transaction that it has rolled back by itself.
    async fn commit(connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
        <Sqlite as Database>::TransactionManager::commit(connection).await
    }
}
