//! Interactive transactions, as their callers ask for them.

use super::commit::{CommandCall, Consume, Request};

/// How a transaction begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Begin {
    /// Tenant.
    pub namespace: String,
    /// The caller's name for it; none when it only reads.
    pub request_id: Option<String>,
    /// What it sees of others.
    pub isolation: Isolation,
    /// The event that it is a consumer's answer to.
    pub consume: Option<Consume>,
}

/// What a transaction sees of others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    /// What was committed before each statement.
    ReadCommitted,
    /// What was committed before its first statement.
    RepeatableRead,
    /// The same, and as if it ran alone.
    Serializable,
}

/// One step of a transaction that is open.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Run operations, and stage events.
    Run(Request),
    /// Open a read of a read-only command, and read its first page.
    Read {
        /// The command.
        call: CommandCall,
        /// Rows of a page.
        page_rows: u32,
    },
    /// The next page of the open read.
    NextPage,
    /// One document.
    ReadDocument {
        /// The collection.
        collection: String,
        /// The id within it.
        id: String,
    },
    /// Run operations, stage events, and commit.
    Commit(Request),
    /// Roll back.
    Rollback,
}
