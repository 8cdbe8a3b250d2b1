//! A database connection that a worker keeps while it has events to handle, and the transactions on it.
//!
//! What it saves: a pool checks a connection when it gives it out and when it takes it back, one round trip each.
//! And where the database lets a commit and the next begin travel together, the next event's transaction is open
//! already. Invariant: after an error that leaves the connection in doubt it is given up, never used again.
//!
//! It deliberately keeps no connection for long: others may wait for one.

use std::{
    fmt,
    time::{Duration, Instant},
};

use sqlx::Database;
use sqlx_core::transaction::TransactionManager as _;

use super::{Inbox, InboxError, Transaction};

/// How long a worker keeps a connection at most before others get a turn.
const KEEP: Duration = Duration::from_secs(1);

/// A worker's connection, if it has one.
pub struct Session<DB: Database> {
    held: Option<Held<DB>>,
}

struct Held<DB: Database> {
    /// Begun again after each end: `sqlx::Transaction` by itself gives its connection up at commit.
    transaction: Transaction<DB>,
    since: Instant,
}

impl<DB: Database> Default for Session<DB> {
    fn default() -> Self {
        Self { held: None }
    }
}

impl<DB: Database> fmt::Debug for Session<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("connected", &self.held.is_some()).finish()
    }
}

impl<DB: Database> Session<DB> {
    /// The open transaction, in which nothing has happened yet.
    pub(crate) async fn begin<I: Inbox<Database = DB>>(
        &mut self,
        inbox: &I,
    ) -> Result<&mut Transaction<DB>, InboxError> {
        // Taken out meanwhile: when this is cancelled or fails, the connection is given up.
        let held = match self.held.take() {
            Some(mut held) => {
                if depth::<DB>(&held.transaction) == 0 {
                    <DB::TransactionManager>::begin(&mut held.transaction, I::begin_statement()).await?;
                }
                held
            }
            None => {
                let transaction = match I::begin_statement() {
                    Some(statement) => inbox.pool().begin_with(statement).await?,
                    None => inbox.pool().begin().await?,
                };
                Held { transaction, since: Instant::now() }
            }
        };
        Ok(&mut self.held.insert(held).transaction)
    }

    /// Commits. Whether the database took it is known only when this returns `Ok`.
    pub(crate) async fn commit<I: Inbox<Database = DB>>(&mut self) -> Result<(), sqlx::Error> {
        let Some(mut held) = self.held.take() else { return Err(sqlx::Error::WorkerCrashed) };
        if depth::<DB>(&held.transaction) != 1 {
            return Err(sqlx::Error::Protocol(
                "the handler ended the transaction, or left a savepoint open: nothing was committed".to_owned(),
            ));
        }
        I::commit(&mut held.transaction).await?;
        self.held = Some(held);
        Ok(())
    }

    /// Ends an open transaction without a trace, and gives the connection up when it has been kept for long.
    pub(crate) async fn roll_back(&mut self) {
        let Some(mut held) = self.held.take() else { return };
        while depth::<DB>(&held.transaction) > 0 {
            if <DB::TransactionManager>::rollback(&mut held.transaction).await.is_err() {
                return;
            }
        }
        if held.since.elapsed() < KEEP {
            self.held = Some(held);
        }
    }

    /// How long the connection may be kept now that there is nothing to do; `None` when there is none.
    pub(crate) fn keep_for(&self) -> Option<Duration> {
        self.held.as_ref().map(|held| KEEP.saturating_sub(held.since.elapsed()))
    }
}

fn depth<DB: Database>(connection: &DB::Connection) -> usize {
    <DB::TransactionManager>::get_transaction_depth(connection)
}
