//! Documents: versioned JSON values by collection and id.

use chrono::{DateTime, Utc};

/// A change to a document, or a check of one, as its caller wrote it.
#[derive(Clone, Debug, PartialEq)]
pub struct DocumentCall {
    /// The collection.
    pub collection: String,
    /// The id within it.
    pub id: String,
    /// What to do.
    pub verb: Verb,
    /// What must hold of the document before.
    pub precondition: Option<Precondition>,
}

/// What is done to a document. The texts are JSON.
#[derive(Clone, Debug, PartialEq)]
pub enum Verb {
    /// Store this value.
    Put(String),
    /// Apply this merge patch (RFC 7396).
    Merge(String),
    /// Remove it.
    Delete,
    /// Keep it as it is.
    Check,
}

impl Verb {
    /// The JSON that it carries.
    pub fn json(&self) -> Option<&str> {
        match self {
            Self::Put(json) | Self::Merge(json) => Some(json),
            Self::Delete | Self::Check => None,
        }
    }
}

/// What must hold of a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precondition {
    /// It has this version.
    Version(i64),
    /// It exists, or does not.
    Exists(bool),
}

/// A stored document.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    /// Tenant.
    pub namespace: String,
    /// The collection.
    pub collection: String,
    /// The id within it.
    pub id: String,
    /// Grows with every change, never used twice.
    pub version: i64,
    /// Its JSON.
    pub json: String,
    /// When it was first put.
    pub created_at: DateTime<Utc>,
    /// When it was last changed.
    pub updated_at: DateTime<Utc>,
}
