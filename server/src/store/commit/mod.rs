//! The commit path: claims a request id, runs its operations, stores its events and its answer, in one transaction.
//!
//! Invariant: whatever the network does, a request is applied at most once within the window. The claim comes first
//! in the transaction, the answer last; after a lost connection the request is claimed *again*, which waits for the
//! transaction whose end was not heard, and only then looks for its answer.
//!
//! A request with one operation or none is one statement and one round trip. More operations take a statement each:
//! several data-modifying parts of one statement would not see each other's changes.

mod connections;
mod statement;

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use sqlx::{Connection as _, PgConnection, Row as _, types::Json};
use tokio::time::Instant;
use tracing::Instrument as _;
use uuid::Uuid;

pub use self::statement::Statements;
use self::{connections::Connections, statement::Arguments};
use super::{Error, Failure, RowCount, session::Connector};
use crate::{
    catalog::Command,
    config,
    model::{
        commit::{Answer, Disposition, OperationResult},
        event::NewEvent,
    },
};

/// One commit, ready to run.
#[derive(Clone, Debug)]
pub struct Commit {
    /// Tenant.
    pub namespace: String,
    /// The caller's name for it.
    pub request_id: String,
    /// What it is remembered under.
    pub request_key: Uuid,
    /// What its body is recognised by.
    pub fingerprint: [u8; 32],
    /// Business-state changes, in order.
    pub operations: Vec<Operation>,
    /// Events, in order.
    pub events: Vec<NewEvent>,
}

/// A command with its arguments.
#[derive(Clone, Debug)]
pub struct Operation {
    /// The command.
    pub command: Arc<Command>,
    /// The text of each of its SQL parameters, in order.
    pub arguments: Vec<Option<String>>,
}

/// Runs commits on connections of its own.
#[derive(Clone)]
pub struct Executor(Arc<Inner>);

struct Inner {
    connections: Connections,
    statements: Statements,
    /// How long a request id is remembered.
    window: Duration,
}

impl Executor {
    /// Makes an executor. Connections are opened when they are first needed.
    pub fn new(
        connector: Connector,
        statements: Statements,
        database: &config::Database,
        commit: &config::Commit,
    ) -> Self {
        Self(Arc::new(Inner {
            connections: Connections::new(connector, database.commit_connections as usize, commit.queue_max),
            statements,
            window: Duration::from_secs(u64::from(commit.request_window_hours) * 3_600),
        }))
    }

    /// Runs a commit, or answers what it was answered before.
    ///
    /// # Errors
    /// [`Error`] says whether and how to try again. Nothing was written, except that after
    /// [`Error::Unavailable`] and [`Error::DeadlineExceeded`] the commit may have been applied: the same request
    /// settles that.
    ///
    /// # Cancellation
    /// Dropping the future before a connection is free does nothing; after that the commit runs to its end.
    pub async fn commit(&self, commit: Commit, deadline: Instant) -> Result<Answer, Error> {
        let lease = self.0.connections.acquire(deadline).await?;
        let inner = Arc::clone(&self.0);
        let run = async move { inner.run(lease, &commit, deadline).await };
        match tokio::spawn(run.in_current_span()).await {
            Ok(answer) => answer,
            Err(panic) => Err(Error::Internal(panic.into())),
        }
    }
}

impl Inner {
    /// Runs a commit until it has ended one way or the other: a lost connection only means to claim again.
    async fn run(&self, mut lease: connections::Lease, commit: &Commit, deadline: Instant) -> Result<Answer, Error> {
        let mut lost = false;
        loop {
            let connection = lease.ready(deadline).await?;
            match self.attempt(connection, commit).await {
                Ok(answer) => {
                    lease.put_back();
                    return Ok(answer);
                }
                Err(Failure::Lost(source)) => {
                    lease.discard();
                    // A second loss in a row is an outage, which the caller should hear of.
                    if lost {
                        return Err(Error::Unavailable(source));
                    }
                    lost = true;
                    tracing::warn!(error = %source, "connection lost during a commit: claiming its request id again");
                }
                Err(Failure::Final(error)) => {
                    lease.put_back();
                    return Err(error);
                }
                Err(Failure::Answered) => unreachable!("an attempt reads the answer itself"),
            }
        }
    }

    async fn attempt(&self, connection: &mut PgConnection, commit: &Commit) -> Result<Answer, Failure> {
        let applied = match commit.operations.as_slice() {
            [] => self.one_statement(connection, commit, None).await,
            [operation] if self.statements.is_fused(&operation.command) => {
                self.one_statement(connection, commit, Some(operation)).await
            }
            _ => self.transaction(connection, commit).await,
        };
        match applied {
            Err(Failure::Answered) => self.stored(connection, commit.request_key).await,
            other => other.map_err(|failure| self.name_row_limit(failure, commit)),
        }
    }

    /// Everything in one statement.
    async fn one_statement(
        &self,
        connection: &mut PgConnection,
        commit: &Commit,
        operation: Option<&Operation>,
    ) -> Result<Answer, Failure> {
        let mut arguments = Arguments::default();
        let sql = match operation {
            None => self.statements.events_only(),
            Some(operation) => {
                arguments.texts(&operation.arguments);
                self.statements.fused(&operation.command)
            }
        };
        arguments.claim(commit, self.window);
        arguments.finish(commit, &self.statements, None);
        let row = sqlx::query_with(sql, arguments.into_inner())
            .fetch_one(connection)
            .await
            .map_err(|error| Failure::read(error, operation.map(|_| 0)))?;
        answer(&row, Disposition::Applied, commit.events.iter().map(|event| event.id).collect())
    }

    /// A statement for each operation, between a claim and an end.
    async fn transaction(&self, connection: &mut PgConnection, commit: &Commit) -> Result<Answer, Failure> {
        let plain = |error| Failure::read(error, None);
        let mut transaction = connection.begin().await.map_err(plain)?;

        let mut claim = Arguments::default();
        claim.claim(commit, self.window);
        let claim = sqlx::query_with(self.statements.claim(), claim.into_inner());
        claim.execute(&mut *transaction).await.map_err(plain)?;

        let mut results = Vec::with_capacity(commit.operations.len());
        for (index, operation) in commit.operations.iter().enumerate() {
            results.push(self.operation(&mut transaction, operation, index).await?);
        }

        let mut finish = Arguments::default();
        finish.finish(commit, &self.statements, Some(&results));
        let finish = sqlx::query_with(self.statements.finish(), finish.into_inner());
        let row = finish.fetch_one(&mut *transaction).await.map_err(plain)?;
        let answer = answer(&row, Disposition::Applied, commit.events.iter().map(|event| event.id).collect())?;
        transaction.commit().await.map_err(plain)?;
        Ok(answer)
    }

    async fn operation(
        &self,
        connection: &mut PgConnection,
        operation: &Operation,
        index: usize,
    ) -> Result<OperationResult, Failure> {
        let failed = |error| Failure::read(error, Some(index));
        let mut arguments = Arguments::default();
        arguments.texts(&operation.arguments);
        let query = sqlx::query_with(self.statements.single(&operation.command), arguments.into_inner());
        if !operation.command.wrappable {
            let done = query.execute(connection).await.map_err(failed)?;
            let rows_affected = i64::try_from(done.rows_affected()).unwrap_or(i64::MAX);
            return Ok(OperationResult { rows_affected, columns: Vec::new(), rows: Vec::new() });
        }
        let row = query.fetch_one(connection).await.map_err(failed)?;
        let Json(rows) = row.try_get("rows").map_err(failed)?;
        Ok(OperationResult {
            rows_affected: row.try_get("n").map_err(failed)?,
            columns: statement::columns(&operation.command),
            rows,
        })
    }

    /// The answer that a claim has found. Only after a claim: alone it could miss one that is about to appear.
    async fn stored(&self, connection: &mut PgConnection, request_key: Uuid) -> Result<Answer, Failure> {
        let stored = find(connection, request_key, self.window).await?;
        stored.ok_or_else(|| Failure::Final(Error::Internal("an answered request has no stored answer".into())))
    }

    /// Tells a command's expectation from the limit on rows, which the database holds in one place.
    fn name_row_limit(&self, failure: Failure, commit: &Commit) -> Failure {
        match failure {
            Failure::Final(Error::RowCount(RowCount { operation, rows, .. }))
                if commit.operations.get(operation).is_some_and(|o| rows <= o.command.expect.max) =>
            {
                let too_many = commit.operations.get(operation).is_some_and(|o| rows >= o.command.expect.min);
                let max = self.statements.rows_max;
                if too_many { Failure::Final(Error::TooManyRows { operation, max }) } else { failure }
            }
            other => other,
        }
    }
}

/// The stored answer of a request, if it is remembered.
pub(super) async fn find(
    connection: &mut PgConnection,
    request_key: Uuid,
    window: Duration,
) -> Result<Option<Answer>, Failure> {
    let read = |error| Failure::read(error, None);
    let row = sqlx::query(
        "select r.results, r.event_ids, r.arrived_at as committed_at from outbox.requests r
         where r.request_key = $1 and r.arrived_at > now() - make_interval(secs => $2) limit 1",
    )
    .bind(request_key)
    .bind(window.as_secs_f64())
    .fetch_optional(connection)
    .await
    .map_err(read)?;
    row.map(|row| answer(&row, Disposition::Replayed, row.try_get("event_ids").map_err(read)?)).transpose()
}

fn answer(row: &sqlx::postgres::PgRow, disposition: Disposition, event_ids: Vec<Uuid>) -> Result<Answer, Failure> {
    let read = |error| Failure::read(error, None);
    let results: String = row.try_get("results").map_err(read)?;
    let committed_at: DateTime<Utc> = row.try_get("committed_at").map_err(read)?;
    let results = serde_json::from_str(&results).map_err(|error| Failure::Final(Error::Internal(error.into())))?;
    Ok(Answer { disposition, results, event_ids, committed_at })
}
