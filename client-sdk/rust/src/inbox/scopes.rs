//! The numbers that stand for a consumer and a source in marks and claims, remembered.
//!
//! Scopes are never deleted, so what is remembered stays true. Invariant: memory is bounded, however many sources
//! there are. It deliberately knows no SQL: each store does.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
};

use super::InboxError;

/// Past this many the memory starts anew.
const REMEMBERED_MAX: usize = 10_000;

/// Shared by all clones of a store.
#[derive(Clone, Debug, Default)]
pub(crate) struct Scopes(Arc<RwLock<HashMap<String, HashMap<String, i32>>>>);

impl Scopes {
    pub(crate) fn get(&self, consumer: &str, source: &str) -> Option<i32> {
        let scopes = self.0.read().unwrap_or_else(PoisonError::into_inner);
        scopes.get(consumer)?.get(source).copied()
    }

    /// The number, by `add` if it is not remembered.
    pub(crate) async fn get_or(
        &self,
        consumer: &str,
        source: &str,
        add: impl Future<Output = sqlx::Result<i32>>,
    ) -> Result<i32, InboxError> {
        if let Some(scope) = self.get(consumer, source) {
            return Ok(scope);
        }
        let scope = add.await?;
        self.remember(consumer, source, scope);
        Ok(scope)
    }

    fn remember(&self, consumer: &str, source: &str, scope: i32) {
        let mut scopes = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let sources = scopes.entry(consumer.to_owned()).or_default();
        if sources.len() >= REMEMBERED_MAX {
            sources.clear();
        }
        sources.insert(source.to_owned(), scope);
    }
}
