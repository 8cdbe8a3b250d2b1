//! The one way a request becomes a commit: checked against limits and catalog, completed, run.
//!
//! Every form of write goes through here, so that all have the same limits, idempotency and errors. Invariant: what
//! depends on the clock, the configuration or the catalog refuses only a request that has not been answered, since
//! each may have changed after an earlier attempt was applied. It deliberately knows neither gRPC nor SQL.

mod draft;
pub mod fingerprint;
mod flight;
mod limits;
mod links;
mod operation;
mod query;
mod records;
pub mod shape;
pub mod transact;

use std::sync::Arc;

use chrono::{DateTime, Utc};
use tokio::time::Instant;

use tracing::Instrument as _;

use self::flight::{Boarding, Flight, Flights, Outcome, Passenger};
pub use self::limits::{ATTRIBUTE_BYTES_MAX, CONSUMER_BYTES_MAX, NAMESPACE_BYTES_MAX, Violation};
use self::records::Records;
use crate::{
    catalog::Catalog,
    config,
    model::commit::{Answer, Disposition, Request, RequestKey},
    store::{
        self,
        commit::{Claim, Commit, Executor, Operation, Turn, transact::Transactions},
        state::State,
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
        /// Index of the operation, in a commit.
        operation: Option<usize>,
        /// The name in question.
        name: String,
        /// A name that is close to it.
        suggestion: Option<String>,
    },
    /// The command may change what it reads, so it is no query.
    #[error("the command {name:?} is not declared read-only")]
    NotReadOnly {
        /// Its name.
        name: String,
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
    transactions: Transactions,
    state: State,
    config: config::Commit,
    transact: config::Transact,
    records: Records,
    flights: Arc<Flights>,
    /// Called after a commit with events.
    committed: Box<dyn Fn() + Send + Sync>,
}

/// What is to be done about a request.
enum Plan {
    /// To run it.
    Commit(Commit),
    /// To refuse it, unless it turns out to have been answered.
    Refuse(Claim, Error),
}

impl Committer {
    /// Makes one; `record_bytes_max` tells the largest record that a topic takes, if that is known, and `committed` is called
    /// after each commit that stored events.
    pub fn new(
        catalog: Arc<Catalog>,
        executor: Executor,
        transactions: Transactions,
        state: State,
        config: &config::Config,
        record_bytes_max: impl Fn(&str) -> Option<usize> + Send + Sync + 'static,
        committed: impl Fn() + Send + Sync + 'static,
    ) -> Self {
        let records = Records::new(config, record_bytes_max);
        let (config, transact) = (config.commit.clone(), config.transact.clone());
        let flights = Flights::new(config.queue_max);
        Self(Arc::new(Inner {
            catalog,
            executor,
            transactions,
            state,
            config,
            transact,
            records,
            flights,
            committed: Box::new(committed),
        }))
    }

    /// Commits a request, or answers what it was answered before.
    ///
    /// # Errors
    /// See [`Error`]; shared by everyone who sent the request while it was under way.
    ///
    /// # Cancellation
    /// Dropping the future before a connection is free does nothing; after that the commit runs to its end.
    pub async fn commit(&self, request: Request, deadline: Instant) -> Outcome {
        let plan = self.0.plan(request)?;
        let Claim { namespace, request_key, fingerprint, consume } = plan.claim();
        let key = consume.as_ref().map_or(*request_key, |consume| consume.key(namespace));
        let passenger = Passenger { request_key: *request_key, fingerprint: *fingerprint, consumes: consume.is_some() };
        if plan.is_dry() {
            return self.lead(None, plan, deadline).await;
        }
        loop {
            match self.0.flights.board(key, passenger).map_err(Error::from)? {
                Boarding::Lead(flight) => return self.lead(Some(flight), plan, deadline).await,
                Boarding::Follow(follower) => {
                    if let Some(outcome) = follower.outcome(deadline).await {
                        return outcome;
                    }
                }
            }
        }
    }

    async fn lead(&self, flight: Option<Flight>, plan: Plan, deadline: Instant) -> Outcome {
        let turn = self.0.executor.turn(deadline).await.map_err(Error::from)?;
        let inner = Arc::clone(&self.0);
        let run = async move {
            let outcome = inner.run(turn, plan, deadline).await.map_err(Arc::new);
            if let Some(flight) = flight {
                flight.land(outcome.clone());
            }
            outcome
        };
        match tokio::spawn(run.in_current_span()).await {
            Ok(outcome) => outcome,
            Err(panic) => Err(Arc::new(store::Error::Internal(panic.into()).into())),
        }
    }
}

impl Plan {
    fn claim(&self) -> &Claim {
        match self {
            Self::Commit(commit) => &commit.claim,
            Self::Refuse(claim, _) => claim,
        }
    }

    /// Whether its outcome is no answer for others that have its request id.
    fn is_dry(&self) -> bool {
        matches!(self, Self::Commit(commit) if commit.validate_only)
    }
}

impl Inner {
    async fn run(&self, turn: Turn, plan: Plan, deadline: Instant) -> Result<Answer, Error> {
        match plan {
            Plan::Commit(commit) => {
                let answer = turn.commit(&commit, deadline).await?;
                if answer.disposition == Disposition::Applied && !commit.events.is_empty() {
                    (self.committed)();
                }
                Ok(answer)
            }
            Plan::Refuse(claim, refusal) => turn.settle(&claim, deadline).await?.ok_or(refusal),
        }
    }

    /// Checks a request. An error is a refusal that holds at any time; one that does not is part of the plan.
    fn plan(&self, request: Request) -> Result<Plan, Error> {
        let now = Utc::now();
        let faults = limits::check(&request, &self.config, &self.records, now);
        if faults.lasting {
            return Err(Error::Invalid(faults.found));
        }
        let key = RequestKey::new(&request.namespace, &request.request_id);
        let claim = Claim {
            namespace: request.namespace.clone(),
            request_key: key.key,
            fingerprint: fingerprint::of(&request),
            consume: request.consume.clone(),
        };
        let operations = match faults.found.as_slice() {
            [] => self.prepare(&request, key, now),
            _ => Err(Error::Invalid(faults.found)),
        };
        Ok(match operations {
            Ok(operations) => Plan::Commit(self.complete(request, claim, operations, now)),
            Err(refusal) => Plan::Refuse(claim, refusal),
        })
    }

    /// Whether a request id is too old for a request that has no answer.
    fn expired(&self, key: RequestKey, now: DateTime<Utc>) -> Option<Error> {
        let window_hours = self.config.request_window_hours;
        let window = chrono::Duration::hours(i64::from(window_hours));
        key.made_at.filter(|made_at| *made_at < now - window).map(|_| Error::RequestExpired { window_hours })
    }

    fn prepare(&self, request: &Request, key: RequestKey, now: DateTime<Utc>) -> Result<Vec<Operation>, Error> {
        if let Some(expired) = self.expired(key, now) {
            return Err(expired);
        }
        let operations =
            operation::bind(&self.catalog, &self.config, &request.namespace, &request.operations, &request.links)?;
        let faults = links::check(&request.links, &operations);
        if faults.is_empty() { Ok(operations) } else { Err(Error::Invalid(faults)) }
    }

    fn complete(&self, mut request: Request, claim: Claim, operations: Vec<Operation>, now: DateTime<Utc>) -> Commit {
        let (source, trace) = (&self.config.default_source, request.trace.clone());
        let linked = |index: &usize| request.links.events.contains_key(index);
        let rooms = (0..request.events.len()).filter(linked);
        let rooms = rooms.filter_map(|index| Some((index, self.records.room(&request.events[index])?))).collect();
        let events = std::mem::take(&mut request.events)
            .into_iter()
            .map(|event| draft::complete(event, source, trace.as_ref(), now))
            .collect();
        let Request { request_id, links, validate_only, .. } = request;
        Commit { claim, request_id, operations, events, links, rooms, validate_only }
    }
}
