//! The inbox: what makes a handler's effects happen once per event.
//!
//! Invariant: the mark of an event is the first statement of the very transaction that holds its effects, so both are
//! durable or neither is. It stands by itself and knows nothing of Kafka.
//!
//! It deliberately has no way to mark an event outside a transaction, nor to ask whether one is marked: checking
//! first and inserting later lets two instances both find nothing (trap 9). Effects outside the database are the
//! business of [`claim`](crate::claim).

mod error;
mod key;
mod postgres;
mod process;
pub(crate) mod scopes;
mod session;
#[cfg(feature = "sqlite")]
mod sqlite;

use std::time::Duration;

use futures_util::future::BoxFuture;
use sqlx::{Database, Pool, Postgres, SqlStr};

pub(crate) use self::key::Held;
pub(crate) use self::postgres::{Names, scope as postgres_scope};
#[cfg(feature = "sqlite")]
pub use self::sqlite::SqliteInbox;
#[cfg(feature = "sqlite")]
pub(crate) use self::sqlite::scope as sqlite_scope;
pub use self::{
    error::InboxError,
    key::{Content, EventKey},
    postgres::PostgresInbox,
    process::{ProcessError, Processed},
    session::Session,
};

/// A transaction, as handlers get it.
pub type Transaction<DB = Postgres> = sqlx::Transaction<'static, DB>;

/// What marking an event came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// Not handled before: its mark is in the transaction now.
    Fresh,
    /// Handled before: its effects are durable.
    Duplicate,
    /// Another event was handled under the same identity. Neither may be skipped in silence.
    Conflict,
}

impl Mark {
    /// Of an event that has a mark, which holds this of its content.
    pub(crate) fn of_repeat(given: Option<Content>, stored: Option<i64>) -> Self {
        if Content::differs(given, stored) { Self::Conflict } else { Self::Duplicate }
    }
}

/// Marks of handled events, in the database in which handlers work. Two implementations: Postgres and SQLite.
///
/// # Contract
/// - [`mark`](Self::mark) waits for a transaction that is marking the same event, and answers by its end: `Duplicate`
///   if it committed, `Fresh` if it did not. It never answers with an error for a duplicate.
/// - A mark is durable exactly when the transaction it was made in is.
/// - [`commit`](Self::commit) returns `Ok` only when the transaction's effects are durable. A database that answers
///   COMMIT of a failed transaction with a quiet rollback has to be asked first.
///
/// A store without transactions cannot be one, and so cannot be given to a consumer that promises effects once:
///
/// ```compile_fail
/// use outbox_sdk::{Consumer, claim::MemoryClaims};
///
/// let consumer = Consumer::builder("mailer").inbox(MemoryClaims::new(1_000));
/// ```
pub trait Inbox: Clone + Send + Sync + 'static {
    /// The kind of database.
    type Database: Database;

    /// Where transactions are begun.
    fn pool(&self) -> &Pool<Self::Database>;

    /// What begins a transaction, if not `BEGIN`.
    fn begin_statement() -> Option<SqlStr>;

    /// The number that stands for a consumer and a source in marks, if it is known already.
    fn known_scope(&self, consumer: &str, source: &str) -> Option<i32>;

    /// Makes that number where it is missing, in a transaction of its own: a handler's must not wait for it.
    fn add_scope(&self, consumer: &str, source: &str) -> impl Future<Output = Result<i32, InboxError>> + Send;

    /// Marks an event as handled, in the transaction that is open on this connection.
    fn mark(
        connection: &mut <Self::Database as Database>::Connection,
        scope: i32,
        key: &EventKey<'_>,
    ) -> impl Future<Output = Result<Mark, InboxError>> + Send;

    /// Marks events as handled; of several with one identity the first is the event. In the order of `keys`.
    fn mark_all(
        &self,
        connection: &mut <Self::Database as Database>::Connection,
        keys: &[(i32, EventKey<'_>)],
    ) -> impl Future<Output = Result<Vec<Mark>, InboxError>> + Send;

    /// Commits the open transaction, and may begin the next.
    fn commit(
        connection: &mut <Self::Database as Database>::Connection,
    ) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// Deletes up to `max` of the consumer's marks that are older than this; says how many.
    fn expire(
        &self,
        consumer: &str,
        older_than: Duration,
        max: i64,
    ) -> impl Future<Output = Result<u64, InboxError>> + Send;

    /// Handles one event, whatever brought it: marks it, does `work` in the same transaction, and commits.
    ///
    /// Waits while another transaction marks the same event. Cancellation: everything is rolled back.
    ///
    /// ```no_run
    /// # async fn webhook(pool: sqlx::PgPool, delivery: &str, order: i64) -> Result<(), Box<dyn std::error::Error>> {
    /// use outbox_sdk::{EventKey, Inbox as _, PostgresInbox, Processed};
    ///
    /// let inbox = PostgresInbox::new(pool);
    /// let paid = inbox.process("payments", EventKey::named("stripe", delivery), |tx| Box::pin(async move {
    ///     sqlx::query("update orders set paid = true where id = $1").bind(order).execute(&mut **tx).await
    /// }));
    /// if let Processed::Duplicate = paid.await? {
    ///     println!("delivered before");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`ProcessError`] says what failed; after `Commit` the outcome is settled by calling again.
    fn process<T: Send, E: Send>(
        &self,
        consumer: &str,
        key: EventKey<'_>,
        work: impl for<'t> FnOnce(&'t mut Transaction<Self::Database>) -> BoxFuture<'t, Result<T, E>> + Send,
    ) -> impl Future<Output = Result<Processed<T>, ProcessError<E>>> + Send {
        process::process(self, consumer, key, work)
    }
}
