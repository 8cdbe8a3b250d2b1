//! Why an inbox or a claim store could not do its work.
//!
//! It deliberately has no variant for a duplicate or a lease held by another: those are answers, not errors.

use tonic::Code;

use crate::client::Failure;

/// Why a store could not do its work. The event is then not handled, and nothing was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InboxError {
    /// The inbox's tables are missing or of an older version.
    #[error("the inbox's tables are missing or outdated: call ensure_schema(), or run the files below inbox/")]
    NoSchema(#[source] sqlx::Error),
    /// The inbox's tables were made by a newer version of the SDK.
    #[error("the inbox's tables have version {found}, this SDK knows {known}: use a newer SDK")]
    NewerSchema {
        /// What the database holds.
        found: i32,
        /// The newest version that this SDK knows.
        known: i32,
    },
    /// The database failed, or no connection was free in time.
    #[error("the inbox's database failed")]
    Database(#[source] sqlx::Error),
    /// The server that keeps the claims refused the call, or was not reached in time.
    #[error("the server that keeps the claims failed: {0}")]
    Server(#[source] Box<Failure>),
    /// A store in memory, or the part of it that the event belongs to, is full of claims that are being worked on.
    #[error("there is no room for the event: as many as {0} claims are being worked on")]
    Full(usize),
}

impl InboxError {
    /// Whether no waiting will mend it: the SDK is too old for the tables, or the server does not accept the call.
    pub(crate) fn stays(&self) -> bool {
        match self {
            Self::NewerSchema { .. } => true,
            Self::Server(failure) => matches!(
                failure.code(),
                Code::InvalidArgument | Code::Unimplemented | Code::PermissionDenied | Code::Unauthenticated
            ),
            Self::NoSchema(_) | Self::Database(_) | Self::Full(_) => false,
        }
    }
}

impl From<sqlx::Error> for InboxError {
    fn from(error: sqlx::Error) -> Self {
        let missing = error.as_database_error().is_some_and(|e| {
            // undefined_table, invalid_schema_name, undefined_column; SQLite has one code for all.
            matches!(e.code().as_deref(), Some("42P01" | "3F000" | "42703")) || e.message().starts_with("no such table")
        });
        if missing { Self::NoSchema(error) } else { Self::Database(error) }
    }
}
