//! An open interactive transaction, as a closure holds it.
//!
//! Invariant: its life is the stream's; dropping it rolls back at once. After an error nothing more can be done with it, and
//! the error is kept for whoever runs the closure. It deliberately cannot be committed by the closure: returning `Ok` does.

use futures_util::{
    future::FutureExt as _,
    stream::{StreamExt as _, unfold},
};
use outbox_proto::v1::{self, transact_request::Step as Message, transact_response::Step as Reply};
use tokio::sync::mpsc;
use tonic::{Request, Status, Streaming};

use super::{Command, CommitError, Failure, NewEvent, OperationResult, Rpc};

/// One message is under way at a time.
const MESSAGES: usize = 1;

/// An open transaction. Dropping it rolls it back.
#[derive(Debug)]
pub struct OpenTransaction {
    messages: mpsc::Sender<v1::TransactRequest>,
    replies: Streaming<v1::TransactResponse>,
    request_id: String,
    attempt: u32,
    events: Vec<v1::NewEvent>,
    failure: Option<Status>,
}

/// What beginning came to.
pub(super) enum Begun {
    Open(OpenTransaction),
    Answered(v1::CommitResponse),
}

/// What a command returned, or a page of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Returned {
    result: v1::OperationResult,
    more: bool,
}

impl Returned {
    /// Its rows.
    pub fn result(&self) -> OperationResult<'_> {
        OperationResult::new(&self.result)
    }

    /// Of a read: whether there may be further pages.
    pub fn has_more(&self) -> bool {
        self.more
    }
}

impl OpenTransaction {
    pub(super) async fn begin(
        mut rpc: Rpc,
        begin: v1::Begin,
        attempt: u32,
        call: Request<()>,
    ) -> Result<Begun, Status> {
        let (messages, sent) = mpsc::channel(MESSAGES);
        let sent = unfold(sent, |mut sent| async move { sent.recv().await.map(|message| (message, sent)) });
        let request_id = begin.request_id.clone();
        // Queued first: the server need not answer the call before it has the first message.
        let first = v1::TransactRequest { step: Some(Message::Begin(begin)) };
        messages.send(first).await.map_err(|_| lost())?;
        // Boxed, so that the compiler need not look into it to see that futures which hold it are `Send`.
        let replies = rpc.transact(call.map(|()| sent.boxed())).boxed().await?.into_inner();
        let mut open = Self { messages, replies, request_id, attempt, events: Vec::new(), failure: None };
        match open.reply().await? {
            Reply::Begun(_) => Ok(Begun::Open(open)),
            Reply::Committed(answer) => Ok(Begun::Answered(answer)),
            _ => Err(unexpected()),
        }
    }

    /// Runs a command now.
    ///
    /// # Errors
    /// The server's refusal, which ends the transaction: return it.
    pub async fn run(&mut self, command: Command) -> Result<Returned, CommitError> {
        let operation = v1::Operation { kind: Some(command.into_kind()), ..v1::Operation::default() };
        let run = v1::Run { operations: vec![operation], events: Vec::new() };
        match self.step(Message::Run(run)).await? {
            Reply::Ran(v1::Ran { results, .. }) => {
                let result = results.into_iter().next().ok_or_else(|| self.failed(unexpected()))?;
                Ok(Returned { result, more: false })
            }
            _ => Err(self.failed(unexpected())),
        }
    }

    /// Reads the rows of a command that the catalog declares read-only, as the transaction sees them, so many at a time;
    /// [`next_page`](Self::next_page) has the others. Ends an earlier read.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub async fn read(&mut self, command: Command, page_rows: u32) -> Result<Returned, CommitError> {
        let command = Some(command.into_call());
        self.page(Message::Read(v1::Read { command, page_rows })).await
    }

    /// The next page of the read.
    ///
    /// # Errors
    /// As [`run`](Self::run), and when nothing is being read.
    pub async fn next_page(&mut self) -> Result<Returned, CommitError> {
        self.page(Message::NextPage(v1::NextPage {})).await
    }

    /// Adds an event, published if and only if the transaction commits. It is sent with the commit, which names an event
    /// that is not accepted.
    pub fn event(&mut self, event: NewEvent) {
        self.events.push(event.into_message());
    }

    async fn page(&mut self, message: Message) -> Result<Returned, CommitError> {
        match self.step(message).await? {
            Reply::Page(v1::Page { result: Some(result), more }) => Ok(Returned { result, more }),
            _ => Err(self.failed(unexpected())),
        }
    }

    pub(super) async fn commit(mut self) -> Result<v1::CommitResponse, Status> {
        let events = std::mem::take(&mut self.events);
        self.send(Message::Commit(v1::Run { operations: Vec::new(), events })).await;
        match self.reply().await? {
            Reply::Committed(answer) => Ok(answer),
            _ => Err(unexpected()),
        }
    }

    /// Waits until it is rolled back; one whose server is lost is rolled back by that.
    pub(super) async fn roll_back(mut self) {
        self.send(Message::Rollback(v1::Rollback {})).await;
        let _ = self.reply().await;
    }

    /// What ended it.
    pub(super) fn failure(&mut self) -> Option<Status> {
        self.failure.take()
    }

    async fn step(&mut self, message: Message) -> Result<Reply, CommitError> {
        if let Some(status) = self.failure.clone() {
            return Err(self.failed(status));
        }
        self.send(message).await;
        match self.reply().await {
            Ok(reply) => Ok(reply),
            Err(status) => Err(self.failed(status)),
        }
    }

    async fn send(&self, message: Message) {
        // A stream that has ended tells why when it is read.
        let _ = self.messages.send(v1::TransactRequest { step: Some(message) }).await;
    }

    async fn reply(&mut self) -> Result<Reply, Status> {
        self.replies.message().await?.ok_or_else(lost)?.step.ok_or_else(unexpected)
    }

    /// Nothing was applied, whatever it was: only a commit applies anything.
    fn failed(&mut self, status: Status) -> CommitError {
        self.failure = Some(status.clone());
        CommitError::Refused(Failure::new(&self.request_id, self.attempt, status))
    }
}

fn lost() -> Status {
    Status::unavailable("the stream of the transaction has ended")
}

fn unexpected() -> Status {
    Status::internal("the server answered something else: server and SDK do not fit together")
}
