//! Reading a commit's answer.
//!
//! Invariant: reading never changes a value; what cannot be read as the type asked for is an error that names the
//! column. It deliberately maps no rows to structs: that is the application's choice.

use chrono::{DateTime, Utc};
use outbox_proto::v1;
use uuid::Uuid;

use super::{FromValue, ValueError};

/// A commit's answer.
///
/// ```no_run
/// # fn read(committed: outbox_sdk::Committed) -> Result<(), outbox_sdk::ReadError> {
/// for row in committed.result(0)?.rows() {
///     let (id, activated_at) = (row.get::<String>("id")?, row.get::<Option<String>>("activated_at")?);
/// #   let _ = (id, activated_at);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Committed {
    answer: v1::CommitResponse,
}

/// How a commit was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Disposition {
    /// This call, in one of its attempts, applied it.
    Applied,
    /// It had been applied before; this is the stored answer. After a lost answer that may be an attempt of the same
    /// call.
    Replayed,
    /// The consumer that the commit [named](crate::Commit::consume) has handled the event before: nothing was applied,
    /// and this is the answer of the commit that did.
    Duplicate,
}

/// Why a part of an answer cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// There is no such operation.
    #[error("there is no result {index}: the commit had {count} operations, counted from 0")]
    NoResult {
        /// Asked for.
        index: usize,
        /// There are.
        count: usize,
    },
    /// There is no such row.
    #[error("there is no row {index}: the command returned {count} rows, counted from 0")]
    NoRow {
        /// Asked for.
        index: usize,
        /// There are.
        count: usize,
    },
    /// There is no such column.
    #[error("there is no column `{name}`: the command returned {columns:?}")]
    NoColumn {
        /// Asked for.
        name: String,
        /// There are.
        columns: Vec<String>,
    },
    /// The column's value cannot be read as the type asked for.
    #[error("column `{column}` of SQL type {sql_type}: {source}")]
    Value {
        /// The column.
        column: String,
        /// Its SQL type.
        sql_type: String,
        /// What is wrong.
        source: ValueError,
    },
    /// An event id in the answer is not a UUID.
    #[error("the server named an event `{0}`, which is not a UUID: server and SDK do not fit together")]
    EventId(String),
}

impl Committed {
    pub(super) fn new(answer: v1::CommitResponse) -> Self {
        Self { answer }
    }

    /// The request id it is remembered by.
    pub fn request_id(&self) -> &str {
        &self.answer.request_id
    }

    /// Whether it was applied now or had been before.
    pub fn disposition(&self) -> Disposition {
        match self.answer.disposition() {
            v1::Disposition::Replayed => Disposition::Replayed,
            v1::Disposition::Duplicate => Disposition::Duplicate,
            // This client does not ask for validation.
            v1::Disposition::Applied | v1::Disposition::Validated | v1::Disposition::Unspecified => {
                Disposition::Applied
            }
        }
    }

    /// The ids of its events, in the order in which they were added.
    ///
    /// # Errors
    /// [`ReadError::EventId`] when the server does not keep the contract.
    pub fn event_ids(&self) -> Result<Vec<Uuid>, ReadError> {
        let id = |text: &String| Uuid::try_parse(text).map_err(|_| ReadError::EventId(text.clone()));
        self.answer.event_ids.iter().map(id).collect()
    }

    /// The database's time of the transaction.
    pub fn committed_at(&self) -> Option<DateTime<Utc>> {
        let at = self.answer.committed_at.as_ref()?;
        DateTime::from_timestamp(at.seconds, at.nanos.try_into().ok()?)
    }

    /// The result of the command added as number `index`, counted from 0.
    ///
    /// # Errors
    /// [`ReadError::NoResult`].
    pub fn result(&self, index: usize) -> Result<OperationResult<'_>, ReadError> {
        let results = &self.answer.results;
        let result = results.get(index).ok_or(ReadError::NoResult { index, count: results.len() })?;
        Ok(OperationResult::new(result))
    }
}

/// What one command did.
#[derive(Clone, Copy, Debug)]
pub struct OperationResult<'a> {
    result: &'a v1::OperationResult,
}

impl<'a> OperationResult<'a> {
    pub(super) fn new(result: &'a v1::OperationResult) -> Self {
        Self { result }
    }

    /// Rows returned or changed.
    pub fn rows_affected(&self) -> i64 {
        self.result.rows_affected
    }

    /// The names and SQL types of the columns; none when the command returns no rows.
    pub fn columns(&self) -> impl ExactSizeIterator<Item = (&'a str, &'a str)> + use<'a> {
        self.result.columns.iter().map(|column| (column.name.as_str(), column.r#type.as_str()))
    }

    /// The rows.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = Row<'a>> + use<'a> {
        let columns = self.result.columns.as_slice();
        self.result.rows.iter().map(move |row| Row { columns, values: &row.values })
    }

    /// One row, counted from 0.
    ///
    /// # Errors
    /// [`ReadError::NoRow`].
    pub fn row(&self, index: usize) -> Result<Row<'a>, ReadError> {
        let mut rows = self.rows();
        let count = rows.len();
        rows.nth(index).ok_or(ReadError::NoRow { index, count })
    }
}

/// One row of a result.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    columns: &'a [v1::Column],
    values: &'a [v1::Value],
}

impl Row<'_> {
    /// Reads the column of this name. Of several with one name, the first.
    ///
    /// # Errors
    /// [`ReadError::NoColumn`], and [`ReadError::Value`] when it cannot be read as `T`.
    pub fn get<T: FromValue>(&self, name: &str) -> Result<T, ReadError> {
        let found = self.columns.iter().zip(self.values).find(|(column, _)| column.name == name);
        let Some((column, value)) = found else {
            let columns = self.columns.iter().map(|column| column.name.clone()).collect();
            return Err(ReadError::NoColumn { name: name.to_owned(), columns });
        };
        T::from_value(value).map_err(|source| ReadError::Value {
            column: column.name.clone(),
            sql_type: column.r#type.clone(),
            source,
        })
    }
}
