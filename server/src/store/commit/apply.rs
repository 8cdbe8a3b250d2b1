//! One attempt at a commit.
//!
//! A request with one operation or none is one statement and one round trip. More operations take a statement each:
//! several data-modifying parts of one statement would not see each other's changes.

use sqlx::{Connection as _, PgConnection, Row as _, types::Json};
use uuid::Uuid;

use super::{
    Claim, Commit, Inner, Operation, Statements,
    answer::{answer, find, find_handled},
    statement::{self, Arguments},
};
use crate::{
    model::{
        commit::{Answer, Disposition, OperationResult},
        event::NewEvent,
    },
    store::{Error, Failure, RowCount},
};

/// What is tried.
#[derive(Clone, Copy)]
pub(super) enum Attempt<'a> {
    /// To apply a commit.
    Commit(&'a Commit),
    /// To learn what a request was answered.
    Settle(&'a Claim),
}

impl Inner {
    pub(super) async fn apply(&self, connection: &mut PgConnection, commit: &Commit) -> Result<Answer, Failure> {
        let applied = match commit.operations.as_slice() {
            _ if commit.validate_only || !commit.links.is_empty() || commit.has_delayed() => {
                self.transaction(connection, commit).await
            }
            [] => self.one_statement(connection, commit, None).await,
            [operation] if self.statements.is_fused(&operation.command) => {
                self.one_statement(connection, commit, Some(operation)).await
            }
            _ => self.transaction(connection, commit).await,
        };
        match applied {
            Err(found @ (Failure::Answered | Failure::Handled)) => self.stored(connection, &commit.claim, found).await,
            other => other.map_err(|failure| self.name_row_limit(failure, commit)),
        }
    }

    /// Claims a request and nothing more: waits for whoever is running it, then reads its answer, if it has one.
    pub(super) async fn settle(&self, connection: &mut PgConnection, claim: &Claim) -> Result<Option<Answer>, Failure> {
        match self.look(connection, claim).await {
            Ok(()) => Ok(None),
            Err(found @ (Failure::Answered | Failure::Handled)) => {
                self.stored(connection, claim, found).await.map(Some)
            }
            Err(failure) => Err(failure),
        }
    }

    /// Claims a request for no longer than it takes to see that it has no answer, and leaves no mark.
    async fn look(&self, connection: &mut PgConnection, claim: &Claim) -> Result<(), Failure> {
        let mut transaction = connection.begin().await.map_err(plain)?;
        let looked = self.claim(&mut transaction, claim).await;
        if !matches!(looked, Err(Failure::Lost(_))) {
            transaction.rollback().await.map_err(plain)?;
        }
        looked
    }

    async fn claim(&self, connection: &mut PgConnection, claim: &Claim) -> Result<(), Failure> {
        let mut arguments = Arguments::default();
        arguments.claim(claim, self.windows);
        let query = sqlx::query_with(self.statements.claim(claim), arguments.into_inner());
        query.execute(connection).await.map(drop).map_err(plain)
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
            None => self.statements.events_only(&commit.claim),
            Some(operation) => {
                arguments.texts(&operation.arguments);
                self.statements.fused(&operation.command, &commit.claim)
            }
        };
        arguments.claim(&commit.claim, self.windows);
        arguments.finish(commit, &self.statements, None);
        match sqlx::query_with(sql, arguments.into_inner()).fetch_one(&mut *connection).await {
            Ok(row) => answer(&row, Disposition::Applied, commit.event_ids()),
            Err(error) => match Failure::read(error, operation.map(|_| 0)) {
                // Planning comes before any claim, and may refuse a statement that the catalog or the schema has
                // changed under, or compute what it can: the request may have been answered long ago.
                Failure::Final(error) if error.may_precede_claim() => {
                    self.look(connection, &commit.claim).await?;
                    Err(Failure::Final(error))
                }
                failure => Err(failure),
            },
        }
    }

    /// A statement for each operation, between a claim and an end.
    async fn transaction(&self, connection: &mut PgConnection, commit: &Commit) -> Result<Answer, Failure> {
        let mut transaction = connection.begin().await.map_err(plain)?;
        match self.steps(&mut transaction, commit).await {
            Ok(answer) if commit.validate_only => {
                transaction.rollback().await.map_err(plain)?;
                Ok(Answer { disposition: Disposition::Validated, ..answer })
            }
            Ok(answer) => {
                transaction.commit().await.map_err(plain)?;
                Ok(answer)
            }
            Err(Failure::Lost(source)) => Err(Failure::Lost(source)),
            Err(failure) => {
                // At once: left to the connection's next use, its locks would be held until then.
                transaction.rollback().await.map_err(plain)?;
                Err(failure)
            }
        }
    }

    async fn steps(&self, connection: &mut PgConnection, commit: &Commit) -> Result<Answer, Failure> {
        self.claim(connection, &commit.claim).await?;
        let mut results = Vec::with_capacity(commit.operations.len());
        for (index, operation) in commit.operations.iter().enumerate() {
            if !commit.runs(index, &results) {
                results.push(OperationResult::of_skipped());
                continue;
            }
            let result = match operation.linked.is_empty() {
                true => self::operation(&self.statements, connection, operation, index).await?,
                false => {
                    let operation = operation.resolved(index, &results)?;
                    self::operation(&self.statements, connection, &operation, index).await?
                }
            };
            // Here already, not only at the end: what a missing row would have given to others is not what is wrong.
            self.statements.check(&operation.command, index, &result).map_err(Failure::Final)?;
            results.push(result);
        }
        if commit.links.events.is_empty() {
            return end(&self.statements, connection, commit, &results, commit.event_ids()).await;
        }
        let (resolved, event_ids) = commit.resolved(&results, self.event_bytes_max)?;
        end(&self.statements, connection, &resolved, &results, event_ids).await
    }

    /// The answer that a claim has found: the request's own, or the one stored with the mark.
    async fn stored(&self, connection: &mut PgConnection, claim: &Claim, found: Failure) -> Result<Answer, Failure> {
        if let (Failure::Handled, Some(consume)) = (found, &claim.consume) {
            let stored = find_handled(connection, &claim.namespace, consume).await?;
            // Marks are kept a little longer than they count; the answer may have gone before its mark.
            return stored.ok_or(Failure::Final(Error::EventTooOld));
        }
        let stored = find(connection, claim.request_key, self.windows.request).await?;
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

/// Stores a commit's events and its answer, with these ids.
pub(super) async fn end(
    statements: &Statements,
    connection: &mut PgConnection,
    commit: &Commit,
    results: &[OperationResult],
    event_ids: Vec<Uuid>,
) -> Result<Answer, Failure> {
    if commit.has_delayed() {
        let mut schedule = Arguments::default();
        schedule.schedule(commit);
        let schedule = sqlx::query_with(statement::SCHEDULE, schedule.into_inner());
        schedule.execute(&mut *connection).await.map_err(plain)?;
    }
    let mut finish = Arguments::default();
    finish.finish(commit, statements, Some(results));
    let finish = sqlx::query_with(statements.finish(), finish.into_inner());
    let row = finish.fetch_one(&mut *connection).await.map_err(plain)?;
    let answer = answer(&row, Disposition::Applied, event_ids)?;
    if answer.event_ids.len() > commit.events_of(false).len() {
        // The ids of the events that are due later, or were not stored, have a place in the answer, too.
        let update = "update outbox.requests set event_ids = $1 where request_key = $2 and arrived_at = $3";
        let update = sqlx::query(update).bind(&answer.event_ids).bind(commit.claim.request_key);
        update.bind(answer.committed_at).execute(connection).await.map_err(plain)?;
    }
    Ok(answer)
}

/// One operation by itself.
pub(super) async fn operation(
    statements: &Statements,
    connection: &mut PgConnection,
    operation: &Operation,
    index: usize,
) -> Result<OperationResult, Failure> {
    let failed = |error| Failure::read(error, Some(index));
    let mut arguments = Arguments::default();
    arguments.texts(&operation.arguments);
    let query = sqlx::query_with(statements.single(&operation.command), arguments.into_inner());
    if !operation.command.wrappable {
        let done = query.execute(connection).await.map_err(failed)?;
        let rows_affected = i64::try_from(done.rows_affected()).unwrap_or(i64::MAX);
        return Ok(OperationResult { rows_affected, columns: Vec::new(), rows: Vec::new(), skipped: false });
    }
    let row = query.fetch_one(connection).await.map_err(failed)?;
    let Json(rows) = row.try_get("rows").map_err(failed)?;
    let rows_affected = row.try_get("n").map_err(failed)?;
    Ok(OperationResult { rows_affected, columns: statement::columns(&operation.command), rows, skipped: false })
}

impl Commit {
    pub(super) fn event_ids(&self) -> Vec<Uuid> {
        self.events.iter().map(|event| event.id).collect()
    }

    fn has_delayed(&self) -> bool {
        self.events.iter().any(|event| event.due_at.is_some())
    }

    /// Its events of now, or those that are due later.
    pub(super) fn events_of(&self, later: bool) -> Vec<&NewEvent> {
        self.events.iter().filter(|event| event.due_at.is_some() == later).collect()
    }
}

fn plain(error: sqlx::Error) -> Failure {
    Failure::read(error, None)
}
