//! The one way a request becomes a commit: checked against limits and catalog, completed, run.
//!
//! Every form of write goes through here, so that all have the same limits, idempotency and errors. It deliberately
//! knows neither gRPC nor SQL.

mod draft;
pub mod fingerprint;
mod limits;

use std::sync::Arc;

use chrono::Utc;
use tokio::time::Instant;

pub use self::limits::Violation;
use crate::{
    catalog::Catalog,
    config,
    model::commit::{Answer, Request, RequestKey},
    store::{
        self,
        commit::{Commit, Executor, Operation},
    },
};

/// Why a request was not committed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request breaks a limit or a rule, or names what does not exist; every fault that was found.
    #[error("the request is not valid")]
    Invalid(Vec<Violation>),
    /// The catalog has no such command.
    #[error("there is no command {name:?}")]
    UnknownCommand {
        /// Index of the operation.
        operation: usize,
        /// The name in question.
        name: String,
        /// A name that is close to it.
        suggestion: Option<String>,
    },
    /// The request id is a UUIDv7 from before the window: whether it was applied is no longer known.
    #[error("the request id was made before the window of {window_hours} h")]
    RequestExpired {
        /// The window.
        window_hours: u32,
    },
    /// The store's answer.
    #[error(transparent)]
    Store(#[from] store::Error),
}

/// Takes requests.
#[derive(Clone)]
pub struct Committer(Arc<Inner>);

struct Inner {
    catalog: Arc<Catalog>,
    executor: Executor,
    config: config::Commit,
    /// Called after a commit with events.
    committed: Box<dyn Fn() + Send + Sync>,
}

impl Committer {
    /// Makes one; `committed` is called after each commit that stored events.
    pub fn new(
        catalog: Arc<Catalog>,
        executor: Executor,
        config: config::Commit,
        committed: impl Fn() + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(Inner { catalog, executor, config, committed: Box::new(committed) }))
    }

    /// Commits a request, or answers what it was answered before.
    ///
    /// # Errors
    /// See [`Error`].
    ///
    /// # Cancellation
    /// As [`Executor::commit`].
    pub async fn commit(&self, request: Request, deadline: Instant) -> Result<Answer, Error> {
        let inner = &*self.0;
        let commit = inner.prepare(request)?;
        let has_events = !commit.events.is_empty();
        let answer = inner.executor.commit(commit, deadline).await?;
        if has_events {
            (inner.committed)();
        }
        Ok(answer)
    }
}

impl Inner {
    fn prepare(&self, request: Request) -> Result<Commit, Error> {
        let now = Utc::now();
        let violations = limits::check(&request, &self.config, now);
        if !violations.is_empty() {
            return Err(Error::Invalid(violations));
        }
        let key = RequestKey::new(&request.namespace, &request.request_id);
        let window_hours = self.config.request_window_hours;
        if key.made_at.is_some_and(|made_at| made_at < now - chrono::Duration::hours(i64::from(window_hours))) {
            return Err(Error::RequestExpired { window_hours });
        }
        let operations = self.bind(&request)?;
        let fingerprint = fingerprint::of(&request);
        let (source, trace) = (&self.config.default_source, &request.trace);
        let events =
            request.events.into_iter().map(|event| draft::complete(event, source, trace.as_ref(), now)).collect();
        Ok(Commit {
            namespace: request.namespace,
            request_id: request.request_id,
            request_key: key.key,
            fingerprint,
            operations,
            events,
        })
    }

    fn bind(&self, request: &Request) -> Result<Vec<Operation>, Error> {
        let mut operations = Vec::with_capacity(request.operations.len());
        let mut violations = Vec::new();
        for (index, call) in request.operations.iter().enumerate() {
            let Some(command) = self.catalog.get(&call.name) else {
                let suggestion = closest(&call.name, self.catalog.names());
                return Err(Error::UnknownCommand { operation: index, name: call.name.clone(), suggestion });
            };
            match command.bind(&request.namespace, &call.parameters) {
                Ok(arguments) => operations.push(Operation { command: Arc::clone(command), arguments }),
                Err(errors) => violations.extend(errors.into_iter().map(|error| Violation {
                    field: format!("operations[{index}].command.parameters[{}]", error.name()),
                    description: error.to_string(),
                })),
            }
        }
        if violations.is_empty() { Ok(operations) } else { Err(Error::Invalid(violations)) }
    }
}

/// The name most like a wrong one, if any is like it.
fn closest<'a>(wrong: &str, names: impl Iterator<Item = &'a str>) -> Option<String> {
    names
        .map(|name| (strsim::jaro_winkler(wrong, name), name))
        .filter(|(likeness, _)| *likeness > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name.to_owned())
}
