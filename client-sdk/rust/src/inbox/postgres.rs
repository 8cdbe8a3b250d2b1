//! The inbox on Postgres.
//!
//! Invariants: the mark is inserted before anything else in the transaction; a duplicate is a row that `on conflict do
//! nothing` did not insert, never an error, for an error would abort the transaction (trap 11). Where a batch is first
//! marked without that, at half the cost, a savepoint takes the error. An instance that is handling the same event makes
//! the insert wait until that one's transaction ends.
//!
//! It deliberately does not delete marks by their age alone: `retention` knows what else has to hold.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use sqlx::{Connection as _, Executor as _, PgConnection, PgPool, Pool, Postgres, SqlStr};
use uuid::Uuid;

use super::{Content, EventKey, Inbox, InboxError, Mark, scopes::Scopes};

/// The files of the schema; the version is the place in the list, counted from 1.
const VERSIONS: [&str; 3] = [
    include_str!("../../inbox/postgres/1.sql"),
    include_str!("../../inbox/postgres/2.sql"),
    include_str!("../../inbox/postgres/3.sql"),
];
const VERSIONS_TABLE: &str = "create schema if not exists outbox_inbox;
    create table if not exists outbox_inbox.versions (
        version int4 primary key, applied_at timestamptz not null default now())";
/// Serialises schema changes: `create … if not exists` by two sessions at once can fail in Postgres. The number is
/// `outboxin` in ASCII.
const SCHEMA_LOCK: &str = "select pg_advisory_xact_lock(8031170915498813806)";

const ADD_SCOPE: &str = "insert into outbox_inbox.scopes (consumer, source) values ($1, $2) on conflict do nothing";
const SCOPE: &str = "select id from outbox_inbox.scopes where consumer = $1 and source = $2";
const MARK: &str =
    "insert into outbox_inbox.marks (scope, event_id, content) values ($1, $2, $3) on conflict do nothing";
const CONTENT: &str = "select content from outbox_inbox.marks where scope = $1 and event_id = $2";
const MARK_NEW: &str = "
    insert into outbox_inbox.marks (scope, event_id, content)
    select * from unnest($1::int4[], $2::uuid[], $3::int8[])";
const MARK_ALL: &str = "
    insert into outbox_inbox.marks (scope, event_id, content)
    select * from unnest($1::int4[], $2::uuid[], $3::int8[])
    on conflict do nothing
    returning scope, event_id";
const EXPIRE: &str = "
    delete from outbox_inbox.marks where ctid = any (array(
        select m.ctid from outbox_inbox.marks m join outbox_inbox.scopes s on s.id = m.scope
        where m.marked_at < now() - $2 * interval '1 s' and s.consumer = $1
        limit $3))";
const CONTENTS: &str = "
    select m.scope, m.event_id, m.content
    from unnest($1::int4[], $2::uuid[]) as k (scope, event_id)
    join outbox_inbox.marks m using (scope, event_id)";

/// Events of a batch that is marked as new at first: with fewer, the savepoint's round trips cost more than it saves.
const HOPEFUL_MIN: usize = 64;
/// Batches that are not, after a batch had a repeat: repeats come together.
const WARY_BATCHES: u32 = 32;

/// The inbox of one or more consumers in a Postgres database: the one in which their handlers work.
///
/// Cheap to clone. Each worker that is handling an event holds one of the pool's connections: give the pool at least
/// as many as partitions are consumed at once, times the consumer's `concurrency`.
#[derive(Clone, Debug)]
pub struct PostgresInbox {
    pool: PgPool,
    scopes: Scopes,
    /// Batches in which a repeat is to be expected.
    wary: Arc<AtomicU32>,
}

impl PostgresInbox {
    /// The inbox in the database of this pool.
    pub fn new(pool: PgPool) -> Self {
        Self { pool, scopes: Scopes::default(), wary: Arc::default() }
    }

    /// Makes the inbox's tables, or brings them up to date, from the files in `inbox/postgres/`. Needs the right to
    /// create a schema. Several processes may call it at once.
    ///
    /// # Errors
    /// [`InboxError::NewerSchema`] when a newer SDK made them, [`InboxError::Database`]; nothing is half made.
    pub async fn ensure_schema(&self) -> Result<(), InboxError> {
        let mut connection = self.pool.acquire().await?;
        let mut tx = connection.begin().await?;
        tx.execute(SCHEMA_LOCK).await?;
        sqlx::raw_sql(VERSIONS_TABLE).execute(&mut *tx).await?;
        let found = sqlx::query_scalar("select coalesce(max(version), 0) from outbox_inbox.versions");
        let found: i32 = found.fetch_one(&mut *tx).await?;
        let known = VERSIONS.len() as i32;
        if found > known {
            return Err(InboxError::NewerSchema { found, known });
        }
        for (version, file) in (1..).zip(VERSIONS).skip(found as usize) {
            sqlx::raw_sql(file).execute(&mut *tx).await?;
            let applied = sqlx::query("insert into outbox_inbox.versions (version) values ($1)");
            applied.bind(version).execute(&mut *tx).await?;
        }
        Ok(tx.commit().await?)
    }
}

pub(crate) async fn scope(pool: &PgPool, scopes: &Scopes, consumer: &str, source: &str) -> Result<i32, InboxError> {
    let add = async {
        let mut connection = pool.acquire().await?;
        sqlx::query(ADD_SCOPE).bind(consumer).bind(source).execute(&mut *connection).await?;
        sqlx::query_scalar(SCOPE).bind(consumer).bind(source).fetch_one(&mut *connection).await
    };
    scopes.get_or(consumer, source, add).await
}

impl Inbox for PostgresInbox {
    type Database = Postgres;

    fn pool(&self) -> &Pool<Postgres> {
        &self.pool
    }

    fn begin_statement() -> Option<SqlStr> {
        None
    }

    fn known_scope(&self, consumer: &str, source: &str) -> Option<i32> {
        self.scopes.get(consumer, source)
    }

    async fn add_scope(&self, consumer: &str, source: &str) -> Result<i32, InboxError> {
        scope(&self.pool, &self.scopes, consumer, source).await
    }

    async fn mark(connection: &mut PgConnection, scope: i32, key: &EventKey<'_>) -> Result<Mark, InboxError> {
        let content = key.content();
        let mark = sqlx::query(MARK).bind(scope).bind(key.id()).bind(content.map(Content::number));
        if mark.execute(&mut *connection).await?.rows_affected() == 1 {
            return Ok(Mark::Fresh);
        }
        // A statement of its own, for it must see what was committed while the insert waited.
        let stored = sqlx::query_scalar(CONTENT).bind(scope).bind(key.id());
        let stored: Option<Option<i64>> = stored.fetch_optional(connection).await?;
        Ok(Mark::of_repeat(content, stored.flatten()))
    }

    async fn mark_all(
        &self,
        connection: &mut PgConnection,
        keys: &[(i32, EventKey<'_>)],
    ) -> Result<Vec<Mark>, InboxError> {
        if let [(scope, key)] = keys {
            return Ok(vec![Self::mark(connection, *scope, key).await?]);
        }
        let names = Names::of(keys);
        let is_wary = self.wary.fetch_update(Relaxed, Relaxed, |batches| batches.checked_sub(1)).is_ok();
        if names.ids.len() == keys.len() && keys.len() >= HOPEFUL_MIN && !is_wary {
            if mark_new(connection, &names).await? {
                return Ok(vec![Mark::Fresh; keys.len()]);
            }
            self.wary.store(WARY_BATCHES, Relaxed);
        }
        let Names { scopes, ids, contents, .. } = &names;
        let marked = sqlx::query_as::<_, (i32, Uuid)>(MARK_ALL).bind(scopes).bind(ids).bind(contents);
        let marked = marked.fetch_all(&mut *connection).await?;
        let mut marks = vec![Mark::Duplicate; keys.len()];
        for place in marked.iter().filter_map(|name| names.place(*name)) {
            marks[place] = Mark::Fresh;
        }
        if marked.len() == keys.len() {
            return Ok(marks);
        }
        let stored = sqlx::query_as::<_, (i32, Uuid, Option<i64>)>(CONTENTS).bind(scopes).bind(ids);
        let stored = stored.fetch_all(connection).await?;
        let stored: HashMap<(i32, Uuid), Option<i64>> =
            stored.into_iter().map(|(scope, id, content)| ((scope, id), content)).collect();
        for (mark, (scope, key)) in marks.iter_mut().zip(keys) {
            if *mark == Mark::Duplicate {
                *mark = Mark::of_repeat(key.content(), stored.get(&(*scope, key.id())).copied().flatten());
            }
        }
        Ok(marks)
    }

    async fn expire(&self, consumer: &str, older_than: Duration, max: i64) -> Result<u64, InboxError> {
        let expire = sqlx::query(EXPIRE).bind(consumer).bind(older_than.as_secs_f64()).bind(max);
        Ok(expire.execute(&self.pool).await?.rows_affected())
    }

    /// `select 1` fails in a transaction that has failed, and with it the message as a whole: COMMIT by itself would be
    /// answered without an error, although it rolls back. The next BEGIN travels along.
    async fn commit(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        sqlx::raw_sql("select 1; commit; begin").execute(connection).await.map(drop)
    }
}

/// Different events, as arrays for the database. In one order in every transaction: two batches with the same events must
/// wait, not deadlock.
pub(crate) struct Names {
    /// Each with the place at which it comes first among the keys.
    sorted: Vec<((i32, Uuid), usize)>,
    pub(crate) scopes: Vec<i32>,
    pub(crate) ids: Vec<Uuid>,
    pub(crate) contents: Vec<Option<i64>>,
}

impl Names {
    pub(crate) fn of(keys: &[(i32, EventKey<'_>)]) -> Self {
        let mut sorted: Vec<((i32, Uuid), usize)> =
            keys.iter().enumerate().map(|(at, (scope, key))| ((*scope, key.id()), at)).collect();
        sorted.sort_unstable();
        sorted.dedup_by_key(|(name, _)| *name);
        let scopes = sorted.iter().map(|((scope, _), _)| *scope).collect();
        let ids = sorted.iter().map(|((_, id), _)| *id).collect();
        let contents = sorted.iter().map(|(_, at)| keys[*at].1.content().map(Content::number)).collect();
        Self { sorted, scopes, ids, contents }
    }

    /// Where one of them comes first among the keys.
    pub(crate) fn place(&self, name: (i32, Uuid)) -> Option<usize> {
        let found = self.sorted.binary_search_by_key(&name, |(name, _)| *name).ok()?;
        Some(self.sorted[found].1)
    }
}

/// Marks all of them if none is marked. False when one is: then nothing has happened. The savepoint is the database's own,
/// not sqlx's, which would begin a transaction where it knows of none, and commit it.
async fn mark_new(connection: &mut PgConnection, names: &Names) -> Result<bool, InboxError> {
    connection.execute("savepoint outbox_marks").await?;
    let marked = sqlx::query(MARK_NEW).bind(&names.scopes).bind(&names.ids).bind(&names.contents);
    match marked.execute(&mut *connection).await {
        Ok(_) => {
            connection.execute("release savepoint outbox_marks").await?;
            Ok(true)
        }
        Err(sqlx::Error::Database(error)) if error.is_unique_violation() => {
            connection.execute("rollback to savepoint outbox_marks").await?;
            Ok(false)
        }
        Err(error) => Err(error.into()),
    }
}
