//! Interactive transactions: what a caller reads, decides and writes, step by step, in one transaction.
//!
//! Invariants: the request id is claimed before the caller reads anything, so a retry never sees its own effects; slots
//! of keys are locked just before COMMIT, so no key waits for an idle caller; and a connection goes back to its pool
//! only between statements and after ROLLBACK or COMMIT. One whose statement nobody waits for any more is closed, upon
//! which the database gives the statement up (`client_connection_check_interval`).
//!
//! Deliberately not here: time limits. Whoever holds a transaction drops or ends it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use sqlx::{AssertSqlSafe, Executor as _, PgConnection, Row as _, types::Json};
use tokio::time::{Instant, timeout};

use super::{Claim, Commit, Operation, Statements, Windows, apply, statement::Arguments};
use crate::{
    config,
    model::{
        commit::{Answer, OperationResult},
        document::Document,
        event::NewEvent,
        link::Links,
        transact::Isolation,
    },
    store::{
        Error, Failure,
        connections::{Connections, Lease},
        session::Connector,
        state::{self, State},
    },
};

/// A row as Postgres writes it.
pub type Texts = Vec<Option<String>>;

/// How long a ROLLBACK may take before its connection is closed instead.
const ROLLBACK_PATIENCE: Duration = Duration::from_secs(1);
/// How much longer than this process the database waits for an idle caller: for when the process itself hangs.
const IDLE_GRACE_MS: u64 = 5_000;

/// Opens transactions, on connections of their own.
#[derive(Clone)]
pub struct Transactions(Arc<Inner>);

struct Inner {
    connections: Connections,
    statements: Arc<Statements>,
    state: State,
    windows: Windows,
}

/// What beginning came to.
pub enum Begun {
    /// It is open.
    Open(Box<Transaction>),
    /// Its request has been answered before.
    Answered(Answer),
}

/// An open transaction. Dropping it rolls it back, by closing its connection.
pub struct Transaction {
    inner: Arc<Inner>,
    lease: Lease,
    /// Whether a statement has been sent whose end has not been seen.
    busy: bool,
    reading: bool,
}

impl Transactions {
    /// Makes one. Connections are opened when they are first needed.
    pub fn new(connector: &Connector, statements: Arc<Statements>, state: State, config: &config::Config) -> Self {
        let settings = format!(
            "set client_connection_check_interval = '100ms'; set idle_in_transaction_session_timeout = {}",
            config.transact.idle_ms + IDLE_GRACE_MS
        );
        let connections = config.transact.connections as usize;
        Self(Arc::new(Inner {
            connections: Connections::new(connector.with(settings), connections, config.transact.queue_max),
            statements,
            state,
            windows: Windows::new(&config.commit),
        }))
    }

    /// Begins a transaction, and claims its request id first, if it has one.
    ///
    /// # Errors
    /// As a commit.
    pub async fn begin(&self, claim: Option<&Claim>, isolation: Isolation, deadline: Instant) -> Result<Begun, Error> {
        let mut lease = self.0.connections.acquire(deadline).await?;
        let begin = match (isolation, claim.is_some()) {
            (Isolation::ReadCommitted, true) => "begin",
            (Isolation::RepeatableRead, true) => "begin isolation level repeatable read",
            (Isolation::Serializable, true) => "begin isolation level serializable",
            (Isolation::ReadCommitted, false) => "begin read only",
            (Isolation::RepeatableRead, false) => "begin isolation level repeatable read read only",
            (Isolation::Serializable, false) => "begin isolation level serializable read only",
        };
        // An idle connection may have died since it was last used.
        if lease.ready(deadline).await?.execute(begin).await.is_err() {
            lease.discard();
            let again = lease.ready(deadline).await?.execute(begin).await;
            again.map_err(|error| Failure::read(error, None).into_error())?;
        }
        let mut transaction = Transaction { inner: Arc::clone(&self.0), lease, busy: false, reading: false };
        let Some(claim) = claim else { return Ok(Begun::Open(Box::new(transaction))) };
        let claimed = transaction.claim(claim).await;
        // The claim's look-up used the snapshot from before it waited: it may have missed what it waited for, and finds a
        // mark in its way that it does not see. Another connection sees both, and the claim keeps more from coming.
        if isolation != Isolation::ReadCommitted
            && matches!(claimed, Ok(()) | Err(Failure::Final(_)))
            && self.0.state.answer(claim, self.0.windows.request, deadline).await?.is_some()
        {
            transaction.end().await;
            return Box::pin(self.begin(Some(claim), Isolation::ReadCommitted, deadline)).await;
        }
        let missing = match claimed {
            Ok(()) => return Ok(Begun::Open(Box::new(transaction))),
            Err(Failure::Answered) => Error::Internal("an answered request has no stored answer".into()),
            // Marks are kept a little longer than they count; the answer may have gone before its mark.
            Err(Failure::Handled) => Error::EventTooOld,
            Err(failure) => {
                transaction.end().await;
                return Err(failure.into_error());
            }
        };
        transaction.end().await;
        let answer = self.0.state.answer(claim, self.0.windows.request, deadline).await?;
        answer.map(Begun::Answered).ok_or(missing)
    }
}

impl Transaction {
    async fn claim(&mut self, claim: &Claim) -> Result<(), Failure> {
        let mut arguments = Arguments::default();
        arguments.claim(claim, self.inner.windows);
        let query = sqlx::query_with(self.inner.statements.claim(claim), arguments.into_inner());
        let claimed = query.execute(self.start().map_err(Failure::Final)?).await;
        self.busy = false;
        claimed.map(drop).map_err(|error| Failure::read(error, None))
    }

    /// Runs an operation. After an error only ending it is left.
    ///
    /// # Errors
    /// As an operation of a commit; its rows are held against what its command expects.
    pub async fn run(&mut self, operation: &Operation, index: usize) -> Result<OperationResult, Error> {
        let statements = Arc::clone(&self.inner.statements);
        let result = apply::operation(&statements, self.start()?, operation, index).await;
        self.busy = false;
        let result = result.map_err(|failure| self.failed(failure))?;
        statements.check(&operation.command, index, &result)?;
        Ok(result)
    }

    /// Opens a read of a read-only command, in the place of one that is open.
    ///
    /// # Errors
    /// As an operation of a commit.
    pub async fn open(&mut self, operation: &Operation) -> Result<(), Error> {
        if self.reading {
            let closed = self.start()?.execute("close outboxd_read").await;
            self.done(closed, None)?;
        }
        let mut arguments = Arguments::default();
        arguments.texts(&operation.arguments);
        let query = sqlx::query_with(self.inner.statements.read(&operation.command), arguments.into_inner());
        let opened = query.execute(self.start()?).await;
        self.done(opened, Some(0))?;
        self.reading = true;
        Ok(())
    }

    /// The next rows of the open read, at most so many; fewer mean that there are no more. `None` if none is open.
    ///
    /// # Errors
    /// As an operation of a commit.
    pub async fn page(&mut self, rows_max: u32) -> Result<Option<Vec<Texts>>, Error> {
        if !self.reading {
            return Ok(None);
        }
        let sql = format!("fetch forward {rows_max} from outboxd_read");
        let rows = sqlx::query(AssertSqlSafe(sql)).persistent(false).fetch_all(self.start()?).await;
        let rows = self.done(rows, Some(0))?;
        let rows = rows.iter().map(|row| row.try_get("row").map(|Json(row)| row)).collect::<Result<_, _>>();
        rows.map(Some).map_err(|error| Failure::read(error, None).into_error())
    }

    /// One document, as the transaction sees it.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn document(&mut self, namespace: &str, collection: &str, id: &str) -> Result<Option<Document>, Error> {
        let found = state::find(self.start()?, namespace, collection, id).await;
        self.done(found, None)
    }

    /// Stores events and answer, and commits.
    ///
    /// # Errors
    /// As a commit.
    pub async fn commit(
        mut self,
        claim: Claim,
        request_id: String,
        results: Vec<OperationResult>,
        events: Vec<NewEvent>,
    ) -> Result<Answer, Error> {
        let commit = Commit {
            claim,
            request_id,
            operations: Vec::new(),
            events,
            links: Links::default(),
            rooms: BTreeMap::new(),
            validate_only: false,
        };
        let statements = Arc::clone(&self.inner.statements);
        let ended = apply::end(&statements, self.start()?, &commit, &results, commit.event_ids()).await;
        self.busy = false;
        match ended {
            Ok(answer) => self.close().await.map(|()| answer),
            Err(failure) => {
                let error = self.failed(failure);
                self.end().await;
                Err(error)
            }
        }
    }

    /// Commits what has nothing to remember.
    ///
    /// # Errors
    /// As a commit.
    pub async fn close(mut self) -> Result<(), Error> {
        let committed = self.start()?.execute("commit").await;
        self.done(committed, None)?;
        self.lease.put_back();
        Ok(())
    }

    /// Rolls back at once, and gives the connection back; one that is in the middle of a statement is closed.
    pub async fn end(mut self) {
        if self.busy {
            return;
        }
        if let Some(connection) = self.lease.connection()
            && let Ok(Ok(_)) = timeout(ROLLBACK_PATIENCE, connection.execute("rollback")).await
        {
            self.lease.put_back();
        }
    }

    /// The connection, for one statement. If that one's future is dropped, the connection is never used again.
    fn start(&mut self) -> Result<&mut PgConnection, Error> {
        self.busy = true;
        self.lease.connection().ok_or_else(|| Error::Unavailable("the transaction's connection is gone".into()))
    }

    fn done<T>(&mut self, done: Result<T, sqlx::Error>, operation: Option<usize>) -> Result<T, Error> {
        self.busy = false;
        done.map_err(|error| self.failed(Failure::read(error, operation)))
    }

    /// What to tell of a failure; a lost connection is not used again.
    fn failed(&mut self, failure: Failure) -> Error {
        if matches!(failure, Failure::Lost(_)) {
            self.lease.discard();
        }
        failure.into_error()
    }
}
