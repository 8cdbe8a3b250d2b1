//! The commit path: claims a request id, runs its operations, stores its events and its answer, in one transaction.
//!
//! Invariants: whatever the network does, a request is applied at most once within the window. The claim comes first
//! in the transaction, the answer last; after a lost connection the request is claimed *again*, which waits for the
//! transaction whose end was not heard, and only then looks for its answer. And nothing is refused for what the
//! database says of it before its claim has found it unanswered.
//!
//! `apply` is one attempt; here is what is done about its outcome. Deliberately not here: whether a request may be
//! tried at all (`commit`).

mod answer;
mod apply;
mod linked;
pub(super) mod statement;
pub mod transact;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use sqlx::PgConnection;
use tokio::time::Instant;
use uuid::Uuid;

pub(super) use self::answer::{find, find_handled};
use self::apply::Attempt;
pub use self::statement::Statements;
use super::{
    Error, Failure,
    connections::{Connections, Lease},
    session::Connector,
};
use crate::{
    catalog::Command,
    config,
    model::{
        commit::{Answer, Consume},
        event::NewEvent,
        link::{Element, Links, Reference},
        template::Template,
        value::SqlType,
    },
};

/// The longest pause before a first retry of a conflict; it doubles with each further one.
const CONFLICT_PAUSE: Duration = Duration::from_millis(5);

/// What a request is remembered under, and what its body is recognised by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Tenant.
    pub namespace: String,
    /// Stands for namespace and request id.
    pub request_key: Uuid,
    /// Of the request's body.
    pub fingerprint: [u8; 32],
    /// The event to mark as handled.
    pub consume: Option<Consume>,
}

/// One commit, ready to run.
#[derive(Clone, Debug)]
pub struct Commit {
    /// Its claim.
    pub claim: Claim,
    /// The caller's name for it.
    pub request_id: String,
    /// Business-state changes, in order.
    pub operations: Vec<Operation>,
    /// Events, in order.
    pub events: Vec<NewEvent>,
    /// What in it follows from the results of its operations.
    pub links: Links,
    /// Most bytes of key, payload and headers of the events that follow from results, by index, where it is less than usual.
    pub rooms: BTreeMap<usize, usize>,
    /// Whether to roll back what it did, and only say what it would have done.
    pub validate_only: bool,
}

/// A command with its arguments.
#[derive(Clone, Debug)]
pub struct Operation {
    /// The command.
    pub command: Arc<Command>,
    /// The text of each of its SQL parameters, in order.
    pub arguments: Vec<Option<String>>,
    /// The arguments that earlier results make.
    pub linked: Vec<Linked>,
}

/// An argument that an earlier result makes.
#[derive(Clone, Debug)]
pub struct Linked {
    /// Its index among the arguments.
    pub position: usize,
    /// Path of its field within the operation.
    pub field: String,
    /// The parameter's type.
    pub ty: SqlType,
    /// Where its value comes from.
    pub source: Source,
}

/// Where a linked argument comes from.
#[derive(Clone, Debug)]
pub enum Source {
    /// A value of a result.
    Value(Reference),
    /// An array with such values.
    Array(Vec<Element>),
    /// A document's JSON, nested so deep at most.
    Document(Template, usize),
}

/// Runs commits on connections of its own.
#[derive(Clone)]
pub struct Executor(Arc<Inner>);

struct Inner {
    connections: Connections,
    statements: Arc<Statements>,
    windows: Windows,
    /// Key, payload and headers of one event together.
    event_bytes_max: usize,
    /// How often a commit that was given up for another one is tried again.
    conflict_retries_max: u32,
}

/// How long what was done is remembered.
#[derive(Clone, Copy)]
struct Windows {
    /// Request ids and their answers, from their arrival on.
    request: Duration,
    /// Marks, from their event's time on.
    consume: Duration,
}

impl Windows {
    fn new(commit: &config::Commit) -> Self {
        Self {
            request: Duration::from_secs(u64::from(commit.request_window_hours) * 3_600),
            consume: Duration::from_secs(u64::from(commit.consume_window_hours) * 3_600),
        }
    }
}

impl Executor {
    /// Makes an executor. Connections are opened when they are first needed.
    pub fn new(
        connector: Connector,
        statements: Arc<Statements>,
        database: &config::Database,
        commit: &config::Commit,
    ) -> Self {
        Self(Arc::new(Inner {
            connections: Connections::new(connector, database.commit_connections as usize, commit.queue_max),
            statements,
            windows: Windows::new(commit),
            event_bytes_max: commit.event_bytes_max,
            conflict_retries_max: commit.conflict_retries_max,
        }))
    }

    /// Waits for a connection to be free. Cancelling the wait gives the place up and does nothing.
    ///
    /// # Errors
    /// [`Error::QueueFull`] when too many wait already, [`Error::DeadlineExceeded`].
    pub async fn turn(&self, deadline: Instant) -> Result<Turn, Error> {
        let lease = self.0.connections.acquire(deadline).await?;
        Ok(Turn { inner: Arc::clone(&self.0), lease })
    }
}

/// The right to run one commit.
///
/// Cancellation: a future of its methods that is dropped half-way closes the connection, with the outcome unknown.
/// Run it in a task of its own.
pub struct Turn {
    inner: Arc<Inner>,
    lease: Lease,
}

impl Turn {
    /// Runs a commit, or answers what it was answered before.
    ///
    /// # Errors
    /// [`Error`] says whether and how to try again. Nothing was written, except that after
    /// [`Error::Unavailable`] and [`Error::DeadlineExceeded`] the commit may have been applied: the same request
    /// settles that.
    pub async fn commit(self, commit: &Commit, deadline: Instant) -> Result<Answer, Error> {
        let answer = self.inner.run(self.lease, Attempt::Commit(commit), deadline).await?;
        answer.ok_or_else(|| Error::Internal("a commit has ended without an answer".into()))
    }

    /// The answer of a request, once whoever is running it has ended; `None` when it has none.
    ///
    /// # Errors
    /// As [`Turn::commit`].
    pub async fn settle(self, claim: &Claim, deadline: Instant) -> Result<Option<Answer>, Error> {
        self.inner.run(self.lease, Attempt::Settle(claim), deadline).await
    }
}

impl Inner {
    /// Goes on until the attempt has ended one way or the other: a lost connection only means to claim again, and a
    /// conflict that the transaction was the victim of.
    async fn run(&self, mut lease: Lease, attempt: Attempt<'_>, deadline: Instant) -> Result<Option<Answer>, Error> {
        let (mut lost, mut conflicts) = (false, 0);
        loop {
            let connection = lease.ready(deadline).await?;
            match self.attempt(connection, attempt).await {
                Ok(answer) => {
                    lease.put_back();
                    return Ok(answer);
                }
                Err(Failure::Lost(source)) => {
                    lease.discard();
                    // A second loss in a row is an outage, which the caller should hear of.
                    if lost {
                        return Err(Error::Unavailable(source));
                    }
                    lost = true;
                    tracing::warn!(error = %source, "connection lost during a commit: claiming its request id again");
                }
                Err(Failure::Final(Error::Conflict)) if conflicts < self.conflict_retries_max => {
                    let pause = CONFLICT_PAUSE.saturating_mul(1 << conflicts.min(10)).mul_f64(rand::random::<f64>());
                    if Instant::now() + pause >= deadline {
                        lease.put_back();
                        return Err(Error::Conflict);
                    }
                    conflicts += 1;
                    tracing::debug!(conflicts, ?pause, "a commit was given up for another one: trying it again");
                    tokio::time::sleep(pause).await;
                }
                Err(Failure::Final(error)) => {
                    lease.put_back();
                    return Err(error);
                }
                Err(Failure::Answered | Failure::Handled) => unreachable!("an attempt reads the answer itself"),
            }
        }
    }

    async fn attempt(&self, connection: &mut PgConnection, attempt: Attempt<'_>) -> Result<Option<Answer>, Failure> {
        match attempt {
            Attempt::Commit(commit) => self.apply(connection, commit).await.map(Some),
            Attempt::Settle(claim) => self.settle(connection, claim).await,
        }
    }
}
