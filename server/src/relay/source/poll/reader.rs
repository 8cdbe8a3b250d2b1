//! Reads on a connection of its own, so that reading goes on while leases and progress are written.
//!
//! One read at a time, in a task; the session asks, goes on, and takes the answer when it is there. Dropping the reader
//! cuts off what it does.

use std::time::Duration;

use tokio::task::JoinHandle;

use crate::{
    relay::Error,
    store::relay::{
        self as store, Connection,
        fetch::{self, Now, Page, Request},
    },
};

/// No read takes this long unless the database hangs.
const READ_TIMEOUT: Duration = Duration::from_secs(60);

/// The reading side of a session.
pub(super) struct Reader {
    connection: Option<Connection>,
    task: Option<JoinHandle<(Connection, Result<Answer, Error>)>>,
    answer: Option<Result<Answer, Error>>,
}

/// What to read.
pub(super) enum Question {
    /// The present snapshot; numbered.
    Poll(u64),
    /// A page.
    Page(Request),
}

/// What was read.
pub(super) enum Answer {
    /// Poll number and snapshot.
    Poll(u64, Now),
    /// What was asked for, and the page.
    Page(Request, Page),
}

impl Reader {
    pub(super) fn new(connection: Connection) -> Self {
        Self { connection: Some(connection), task: None, answer: None }
    }

    pub(super) fn is_free(&self) -> bool {
        self.connection.is_some() && self.answer.is_none()
    }

    /// Begins a read.
    pub(super) fn ask(&mut self, question: Question) {
        let Some(mut connection) = self.connection.take() else { return };
        let task = tokio::spawn(async move {
            let answer = match tokio::time::timeout(READ_TIMEOUT, read(&mut connection, question)).await {
                Ok(answer) => answer.map_err(Error::from),
                Err(_) => Err(Error::Timeout(READ_TIMEOUT)),
            };
            (connection, answer)
        });
        self.task = Some(task);
    }

    /// Waits until a read is done; for ever when there is none. May be dropped at any point.
    ///
    /// # Panics
    /// When the task did.
    pub(super) async fn done(&mut self) {
        if self.answer.is_some() {
            return;
        }
        let Some(task) = &mut self.task else { return std::future::pending().await };
        let finished = task.await;
        self.task = None;
        match finished {
            Ok((connection, answer)) => {
                self.connection = Some(connection);
                self.answer = Some(answer);
            }
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    /// The answer, when there is one.
    pub(super) fn take(&mut self) -> Option<Result<Answer, Error>> {
        self.answer.take()
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

async fn read(connection: &mut Connection, question: Question) -> Result<Answer, store::Error> {
    match question {
        Question::Poll(number) => Ok(Answer::Poll(number, fetch::now(connection).await?)),
        Question::Page(request) => {
            let page = fetch::page(connection, &request).await?;
            Ok(Answer::Page(request, page))
        }
    }
}
