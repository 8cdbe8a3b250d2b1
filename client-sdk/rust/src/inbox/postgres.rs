//! The inbox on Postgres.
//!
//! Invariants: the mark is inserted before anything else in the transaction; a duplicate is a row that `on conflict do
//! nothing` did not insert, never an error, for an error would abort the transaction (trap 11). An instance that is
//! handling the same event makes the insert wait until that one's transaction ends.
//!
//! It deliberately does not delete marks: how long they must live depends on the topic's retention, not on their age.

use sqlx::{PgPool, Postgres};
use uuid::Uuid;

/// A transaction on Postgres, as handlers get it.
pub type Transaction = sqlx::Transaction<'static, Postgres>;

const SCHEMA: &str = include_str!("../../inbox/postgres.sql");
/// Serialises schema changes: `create … if not exists` by two sessions at once can fail in Postgres. The number is
/// `outboxin` in ASCII.
const SCHEMA_LOCK: &str = "select pg_advisory_xact_lock(8031170915498813806)";

const MARK: &str = "
    with scope as (
        select id from outbox_inbox.scopes where consumer = $1 and source = $2
    ), mark as (
        insert into outbox_inbox.marks (scope, event_id) select id, $3 from scope
        on conflict do nothing
        returning scope
    )
    select exists (select from scope), exists (select from mark)";

const ADD_SCOPE: &str = "insert into outbox_inbox.scopes (consumer, source) values ($1, $2) on conflict do nothing";

/// The inbox of one or more consumers in a Postgres database: the one in which their handlers work.
///
/// Cheap to clone. Each event that is being handled holds one of the pool's connections: give the pool at least as
/// many as partitions are consumed at once.
///
/// ```no_run
/// # async fn once(pool: sqlx::PgPool, event_id: uuid::Uuid) -> Result<(), Box<dyn std::error::Error>> {
/// use outbox_sdk::{Begun, PostgresInbox};
///
/// let inbox = PostgresInbox::new(pool);
/// inbox.ensure_schema().await?;
/// match inbox.begin("welcome-mailer", "/shop", event_id).await? {
///     Begun::Fresh(mut tx) => {
///         sqlx::query("insert into mails (event_id) values ($1)").bind(event_id).execute(&mut *tx).await?;
///         tx.commit().await?;
///     }
///     Begun::Duplicate => {}
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct PostgresInbox {
    pool: PgPool,
}

/// What beginning to handle an event came to.
#[derive(Debug)]
pub enum Begun {
    /// Not handled yet: the transaction holds the event's mark, and nothing else so far. Committing it marks the
    /// event; dropping it or rolling it back leaves the event unhandled.
    Fresh(Transaction),
    /// Handled before: its effects are durable.
    Duplicate,
}

/// Why the inbox could not do its work. The event is then not handled, and nothing was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InboxError {
    /// The inbox's tables are missing.
    #[error("the inbox's tables are missing: run inbox/postgres.sql, or call PostgresInbox::ensure_schema()")]
    NoSchema(#[source] sqlx::Error),
    /// The database failed, or no connection was free in time.
    #[error("the inbox's database failed")]
    Database(#[source] sqlx::Error),
}

impl PostgresInbox {
    /// The inbox in the database of this pool.
    pub fn new(pool: PgPool) -> Self {
        Self { pool }
    }

    /// Makes the inbox's tables, where they are missing, from `inbox/postgres.sql`. Needs the right to create a
    /// schema. Several processes may call it at once.
    ///
    /// # Errors
    /// [`InboxError::Database`]; nothing is half made.
    pub async fn ensure_schema(&self) -> Result<(), InboxError> {
        let mut tx = self.pool.begin().await.map_err(InboxError::of)?;
        sqlx::query(SCHEMA_LOCK).execute(&mut *tx).await.map_err(InboxError::of)?;
        sqlx::raw_sql(SCHEMA).execute(&mut *tx).await.map_err(InboxError::of)?;
        tx.commit().await.map_err(InboxError::of)
    }

    /// Begins a transaction whose first statement marks the event as handled by this consumer.
    ///
    /// Waits while another transaction holds the same event's mark: until it commits ([`Begun::Duplicate`]) or rolls
    /// back ([`Begun::Fresh`]). Cancellation: nothing is changed.
    ///
    /// # Errors
    /// [`InboxError`]; nothing was changed.
    pub async fn begin(&self, consumer: &str, source: &str, event_id: Uuid) -> Result<Begun, InboxError> {
        loop {
            let mut tx = self.pool.begin().await.map_err(InboxError::of)?;
            let mark = sqlx::query_as::<_, (bool, bool)>(MARK).bind(consumer).bind(source).bind(event_id);
            match mark.fetch_one(&mut *tx).await.map_err(InboxError::of)? {
                (true, true) => return Ok(Begun::Fresh(tx)),
                (true, false) => {
                    tx.rollback().await.map_err(InboxError::of)?;
                    return Ok(Begun::Duplicate);
                }
                (false, _) => {
                    tx.rollback().await.map_err(InboxError::of)?;
                    self.add_scope(consumer, source).await?;
                }
            }
        }
    }

    /// Happens once per consumer and source, in a transaction of its own: the handler's must not wait for it.
    async fn add_scope(&self, consumer: &str, source: &str) -> Result<(), InboxError> {
        sqlx::query(ADD_SCOPE).bind(consumer).bind(source).execute(&self.pool).await.map_err(InboxError::of)?;
        Ok(())
    }
}

impl InboxError {
    fn of(error: sqlx::Error) -> Self {
        let code = error.as_database_error().and_then(|e| e.code().map(String::from));
        match code.as_deref() {
            Some("42P01" | "3F000") => Self::NoSchema(error), // undefined_table, invalid_schema_name
            _ => Self::Database(error),
        }
    }
}
