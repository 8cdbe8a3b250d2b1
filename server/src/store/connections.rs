//! Connections for one kind of call: opened when first needed, kept open, one call at a time each.
//!
//! A pool that asks the database whether a connection lives, before and after each use, would cost two round trips a
//! commit; here a dead one is found by using it, and the call tries again. Waiting is first come, first served,
//! bounded in number and by each caller's deadline.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use sqlx::{AssertSqlSafe, Executor as _, PgConnection};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout_at},
};

use crate::store::{
    Error, Failure,
    session::{Connector, timeout_class},
};

/// A statement or a few that may be run twice with one effect.
pub(super) trait Repeatable: Sync {
    /// What it comes to.
    type Answer: Send;

    /// Runs it.
    fn run(&self, connection: &mut PgConnection) -> impl Future<Output = Result<Self::Answer, Failure>> + Send;
}

/// All connections of its kind.
pub(super) struct Connections {
    connector: Connector,
    permits: Arc<Semaphore>,
    idle: Arc<Mutex<Vec<Session>>>,
    waiting: AtomicUsize,
    waiting_max: usize,
}

/// An open connection and the statement timeout it is set to.
struct Session {
    connection: PgConnection,
    timeout: Duration,
}

/// The right to use one connection. Dropping it closes the connection, so that a call that ended in a way nobody
/// looked at leaves nothing half done behind.
pub(super) struct Lease {
    connector: Connector,
    idle: Arc<Mutex<Vec<Session>>>,
    session: Option<Session>,
    _permit: OwnedSemaphorePermit,
}

impl Connections {
    pub(super) fn new(connector: Connector, connections: usize, waiting_max: usize) -> Self {
        Self {
            connector,
            permits: Arc::new(Semaphore::new(connections)),
            idle: Arc::default(),
            waiting: AtomicUsize::new(0),
            waiting_max,
        }
    }

    /// Waits for a connection to be free. Cancelling the wait gives the place up.
    pub(super) async fn acquire(&self, deadline: Instant) -> Result<Lease, Error> {
        let permit = match Arc::clone(&self.permits).try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => self.wait(deadline).await?,
        };
        let session = lock(&self.idle).pop();
        Ok(Lease { connector: self.connector.clone(), idle: Arc::clone(&self.idle), session, _permit: permit })
    }

    /// Runs something; once more when its connection turns out to be lost: an idle one may have died since it was last
    /// used.
    pub(super) async fn run<R: Repeatable>(&self, work: &R, deadline: Instant) -> Result<R::Answer, Error> {
        let mut lease = self.acquire(deadline).await?;
        let mut answer = work.run(lease.ready(deadline).await?).await;
        if let Err(Failure::Lost(_)) = answer {
            lease.discard();
            answer = work.run(lease.ready(deadline).await?).await;
        }
        match answer {
            Err(Failure::Lost(source)) => Err(Error::Unavailable(source)),
            answer => {
                lease.put_back();
                answer.map_err(Failure::into_error)
            }
        }
    }

    async fn wait(&self, deadline: Instant) -> Result<OwnedSemaphorePermit, Error> {
        let _place = Place::take(&self.waiting, self.waiting_max)?;
        match timeout_at(deadline, Arc::clone(&self.permits).acquire_owned()).await {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(closed)) => Err(Error::Internal(closed.into())),
            Err(_) => Err(Error::DeadlineExceeded),
        }
    }
}

impl Lease {
    /// The connection, open and set to give up a statement at the deadline or shortly after.
    pub(super) async fn ready(&mut self, deadline: Instant) -> Result<&mut PgConnection, Error> {
        let remaining = deadline.saturating_duration_since(Instant::now());
        if remaining.is_zero() {
            return Err(Error::DeadlineExceeded);
        }
        let timeout = timeout_class(remaining);
        if self.session.as_ref().is_some_and(|s| s.timeout != timeout) {
            self.set_timeout(timeout).await;
        }
        if self.session.is_none() {
            let connection = timeout_at(deadline, self.connector.connect()).await;
            let connection = connection.map_err(|_| Error::DeadlineExceeded)??;
            self.session = Some(Session { connection, timeout: Duration::ZERO });
            self.set_timeout(timeout).await;
        }
        match &mut self.session {
            Some(session) => Ok(&mut session.connection),
            None => Err(Error::Unavailable("the connection broke as it was opened".into())),
        }
    }

    /// The connection as it is; `None` once it was lost.
    pub(super) fn connection(&mut self) -> Option<&mut PgConnection> {
        self.session.as_mut().map(|session| &mut session.connection)
    }

    /// Sets the statement timeout; a connection that cannot even do this is closed.
    async fn set_timeout(&mut self, timeout: Duration) {
        let Some(session) = &mut self.session else { return };
        let statement = format!("set statement_timeout = {}", timeout.as_millis());
        match session.connection.execute(AssertSqlSafe(statement)).await {
            Ok(_) => session.timeout = timeout,
            Err(error) => {
                tracing::debug!(%error, "an idle connection had died");
                self.session = None;
            }
        }
    }

    /// Gives the connection back to be used again.
    pub(super) fn put_back(mut self) {
        lock(&self.idle).extend(self.session.take());
    }

    /// Closes the connection, which is broken, and every idle one: what broke it has most likely broken them.
    pub(super) fn discard(&mut self) {
        self.session = None;
        lock(&self.idle).clear();
    }
}

fn lock(idle: &Mutex<Vec<Session>>) -> std::sync::MutexGuard<'_, Vec<Session>> {
    idle.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A place in the queue.
struct Place<'a>(&'a AtomicUsize);

impl<'a> Place<'a> {
    fn take(waiting: &'a AtomicUsize, max: usize) -> Result<Self, Error> {
        let place = Self(waiting);
        if waiting.fetch_add(1, Ordering::Relaxed) >= max { Err(Error::QueueFull(max)) } else { Ok(place) }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
