//! A read-only command run by itself: the same catalog, binding and errors as in a commit, and nothing remembered.

use std::sync::Arc;

use tokio::time::Instant;

use super::{Committer, Error, operation};
use crate::{
    model::commit::{CommandCall, OperationResult},
    store::commit::Operation,
};

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
        let command = operation::find(&self.0.catalog, call, None)?;
        if !command.read_only {
            return Err(Error::NotReadOnly { name: call.name.clone() });
        }
        let arguments = command.bind(namespace, &call.parameters);
        let arguments = arguments.map_err(|errors| Error::Invalid(operation::faults("command", errors).collect()))?;
        let operation = Operation { command: Arc::clone(command), arguments };
        Ok(self.0.state.query(&operation, deadline).await?)
    }
}
