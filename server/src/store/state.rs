//! Reads of business state: documents, and read-only commands.
//!
//! Invariant: every connection here is read-only, whatever runs on it. Deliberately not here: changes (`commit`).

use std::{sync::Arc, time::Duration};

use sqlx::{AssertSqlSafe, PgConnection, Row as _, postgres::PgRow, types::Json};
use tokio::time::Instant;

use super::{
    Error, Failure,
    commit::{
        self, Claim, Operation, Statements,
        statement::{Arguments, columns},
    },
    connections::{Connections, Repeatable},
    session::Connector,
};
use crate::{
    config,
    model::{
        commit::{Answer, OperationResult},
        document::Document,
    },
};

const COLUMNS: &str = "d.namespace, d.collection, d.id, d.version, d.value::text as json, d.created_at, d.updated_at";

/// Which documents to list.
#[derive(Clone, Debug)]
pub struct Filter {
    /// Tenant.
    pub namespace: String,
    /// The collection.
    pub collection: String,
    /// Only ids that begin so.
    pub id_prefix: String,
    /// Only ids from this one on.
    pub from: String,
    /// Most documents to return.
    pub limit: i64,
}

/// Reads, on connections of its own.
#[derive(Clone)]
pub struct State(Arc<Inner>);

struct Inner {
    connections: Connections,
    statements: Arc<Statements>,
}

/// What is read.
enum Read<'a> {
    Document { namespace: &'a str, collection: &'a str, id: &'a str },
    Documents(&'a Filter),
    Query(&'a Operation),
}

impl State {
    /// Makes one. Connections are opened when they are first needed.
    pub fn new(connector: &Connector, statements: Arc<Statements>, config: &config::Config) -> Self {
        let connections = config.database.query_connections as usize;
        let connections = Connections::new(connector.read_only(), connections, config.commit.queue_max);
        Self(Arc::new(Inner { connections, statements }))
    }

    /// One document.
    ///
    /// # Errors
    /// When the database cannot be read in time.
    pub async fn document(
        &self,
        namespace: &str,
        collection: &str,
        id: &str,
        deadline: Instant,
    ) -> Result<Option<Document>, Error> {
        let mut found = self.read(&Read::Document { namespace, collection, id }, deadline).await?;
        Ok(found.pop())
    }

    /// Documents in order of their ids.
    ///
    /// # Errors
    /// When the database cannot be read in time.
    pub async fn documents(&self, filter: &Filter, deadline: Instant) -> Result<Vec<Document>, Error> {
        self.read(&Read::Documents(filter), deadline).await
    }

    async fn read(&self, read: &Read<'_>, deadline: Instant) -> Result<Vec<Document>, Error> {
        let rows = self.0.rows(read, deadline).await?;
        rows.iter().map(document).collect::<Result<_, _>>().map_err(unreadable)
    }

    /// The stored answer of a request, or of another one that handled its event, for one who holds its claim.
    ///
    /// # Errors
    /// When the database cannot be read in time.
    pub(super) async fn answer(
        &self,
        claim: &Claim,
        window: Duration,
        deadline: Instant,
    ) -> Result<Option<Answer>, Error> {
        self.0.connections.run(&StoredAnswer { claim, window }, deadline).await
    }

    /// Runs a read-only command.
    ///
    /// # Errors
    /// As a commit's operation, and [`Error::NotReadOnly`] when it tried to write.
    pub async fn query(&self, operation: &Operation, deadline: Instant) -> Result<OperationResult, Error> {
        let rows = self.0.rows(&Read::Query(operation), deadline).await?;
        let row = rows.first().ok_or_else(|| Error::Internal("a count has no row".into()))?;
        let Json(rows) = row.try_get("rows").map_err(unreadable)?;
        let rows_affected = row.try_get("n").map_err(unreadable)?;
        let result = OperationResult { rows_affected, columns: columns(&operation.command), rows, skipped: false };
        self.0.statements.check(&operation.command, 0, &result)?;
        Ok(result)
    }
}

impl Inner {
    async fn rows(&self, read: &Read<'_>, deadline: Instant) -> Result<Vec<PgRow>, Error> {
        self.connections.run(&(&*self.statements, read), deadline).await
    }
}

/// The answer of a request.
struct StoredAnswer<'a> {
    claim: &'a Claim,
    window: Duration,
}

impl Repeatable for StoredAnswer<'_> {
    type Answer = Option<Answer>;

    async fn run(&self, connection: &mut PgConnection) -> Result<Option<Answer>, Failure> {
        let Self { claim, window } = *self;
        match (commit::find(connection, claim.request_key, window).await?, &claim.consume) {
            (None, Some(consume)) => commit::find_handled(connection, &claim.namespace, consume).await,
            (found, _) => Ok(found),
        }
    }
}

impl Repeatable for (&Statements, &Read<'_>) {
    type Answer = Vec<PgRow>;

    async fn run(&self, connection: &mut PgConnection) -> Result<Vec<PgRow>, Failure> {
        let (statements, read) = *self;
        let rows = match *read {
            Read::Document { namespace, collection, id } => {
                fetch(connection, namespace, collection, id).await.map(|row| row.into_iter().collect())
            }
            Read::Documents(filter) => {
                let sql = format!(
                    "select {COLUMNS} from outbox.documents d
                     where d.namespace = $1 and d.collection = $2 and d.id >= $3 and starts_with(d.id, $4)
                     order by d.id limit $5"
                );
                let query = sqlx::query(AssertSqlSafe(sql)).bind(&filter.namespace).bind(&filter.collection);
                let from = filter.from.as_str().max(filter.id_prefix.as_str());
                query.bind(from).bind(&filter.id_prefix).bind(filter.limit).fetch_all(connection).await
            }
            Read::Query(operation) => {
                let mut arguments = Arguments::default();
                arguments.texts(&operation.arguments);
                let sql = statements.single(&operation.command);
                sqlx::query_with(sql, arguments.into_inner()).fetch_all(connection).await
            }
        };
        rows.map_err(|error| Failure::read(error, matches!(read, Read::Query(_)).then_some(0)))
    }
}

/// One document, on a connection of the caller's.
pub(super) async fn find(
    connection: &mut PgConnection,
    namespace: &str,
    collection: &str,
    id: &str,
) -> Result<Option<Document>, sqlx::Error> {
    fetch(connection, namespace, collection, id).await?.map(|row| document(&row)).transpose()
}

async fn fetch(
    connection: &mut PgConnection,
    namespace: &str,
    collection: &str,
    id: &str,
) -> Result<Option<PgRow>, sqlx::Error> {
    let sql =
        format!("select {COLUMNS} from outbox.documents d where d.namespace = $1 and d.collection = $2 and d.id = $3");
    sqlx::query(AssertSqlSafe(sql)).bind(namespace).bind(collection).bind(id).fetch_optional(connection).await
}

fn unreadable(error: sqlx::Error) -> Error {
    Failure::read(error, None).into_error()
}

fn document(row: &PgRow) -> Result<Document, sqlx::Error> {
    Ok(Document {
        namespace: row.try_get("namespace")?,
        collection: row.try_get("collection")?,
        id: row.try_get("id")?,
        version: row.try_get("version")?,
        json: row.try_get("json")?,
        created_at: row.try_get("created_at")?,
        updated_at: row.try_get("updated_at")?,
    })
}
