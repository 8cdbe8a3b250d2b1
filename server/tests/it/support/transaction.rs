//! An interactive transaction, as a caller holds it.

use outbox_proto::v1::{
    Begin, CommitResponse, NewEvent, Operation, Ran, Run, TransactRequest, TransactResponse,
    transact_request::Step as Message, transact_response::Step as Reply,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Status, Streaming};
use uuid::Uuid;

use super::server::Server;

/// An open stream. Dropping it drops the transaction.
pub(crate) struct Transaction {
    pub(crate) messages: mpsc::Sender<TransactRequest>,
    replies: Streaming<TransactResponse>,
}

/// How one begins that can write.
pub(crate) fn begin() -> Begin {
    Begin { request_id: Uuid::now_v7().to_string(), ..Begin::default() }
}

impl Transaction {
    /// A stream on which nothing has been sent.
    pub(crate) async fn stream(server: &Server) -> Result<Self, Status> {
        let (messages, sent) = mpsc::channel(16);
        let replies = server.outbox().transact(Request::new(ReceiverStream::new(sent))).await?.into_inner();
        Ok(Self { messages, replies })
    }

    /// Begins; the reply says whether it is open or answered already.
    pub(crate) async fn begin(server: &Server, begin: Begin) -> Result<(Self, Reply), Status> {
        let mut transaction = Self::stream(server).await?;
        let reply = transaction.step(Message::Begin(begin)).await?;
        Ok((transaction, reply))
    }

    /// Begins one that must be open.
    pub(crate) async fn open(server: &Server, begin: Begin) -> Self {
        match Self::begin(server, begin).await.expect("it begins") {
            (transaction, Reply::Begun(_)) => transaction,
            (_, other) => panic!("it is not open: {other:?}"),
        }
    }

    pub(crate) async fn send(&self, message: Message) {
        // A stream that has ended tells why when it is read.
        let _ = self.messages.send(TransactRequest { step: Some(message) }).await;
    }

    pub(crate) async fn step(&mut self, message: Message) -> Result<Reply, Status> {
        self.send(message).await;
        self.reply().await
    }

    pub(crate) async fn reply(&mut self) -> Result<Reply, Status> {
        let reply = self.replies.message().await?.ok_or_else(|| Status::unknown("the stream has ended"))?;
        Ok(reply.step.expect("a reply has a step"))
    }

    pub(crate) async fn run(&mut self, operations: Vec<Operation>, events: Vec<NewEvent>) -> Result<Ran, Status> {
        match self.step(Message::Run(Run { operations, events })).await? {
            Reply::Ran(ran) => Ok(ran),
            other => panic!("another reply: {other:?}"),
        }
    }

    pub(crate) async fn commit(mut self, last: Run) -> Result<CommitResponse, Status> {
        let answer = match self.step(Message::Commit(last)).await? {
            Reply::Committed(answer) => answer,
            other => panic!("another reply: {other:?}"),
        };
        assert!(self.replies.message().await?.is_none(), "the stream ends after the commit");
        Ok(answer)
    }
}
