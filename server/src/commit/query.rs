//! A read-only command run by itself: the same catalog, binding and errors as in a commit, and nothing remembered.

use tokio::time::Instant;

use super::{Committer, Error, operation};
use crate::model::commit::{CommandCall, OperationResult};

impl Committer {
    /// Runs a command that the catalog declares read-only.
    ///
    /// # Errors
    /// [`Error::NotReadOnly`] when it is not; otherwise as an operation of a commit.
    pub async fn query(
        &self,
        namespace: &str,
        call: &CommandCall,
        deadline: Instant,
    ) -> Result<OperationResult, Error> {
        let operation = operation::read(&self.0.catalog, namespace, call)?;
        Ok(self.0.state.query(&operation, deadline).await?)
    }
}
