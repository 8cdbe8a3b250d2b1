//! Transact: a stream whose life is its transaction's.
//!
//! One response to each message, in order. Whatever ends the stream before its commit (the caller's going, an error, a
//! time limit) rolls back at once. A statement that nobody waits for any more loses its connection.

use std::time::Duration;

use outbox_proto::v1::{
    self, CommitResponse, TransactRequest, TransactResponse, transact_request::Step as Message,
    transact_response::Step as Reply,
};
use tokio::{sync::mpsc, time::Instant};
use tonic::{Status, Streaming};

use super::{convert, status};
use crate::{
    commit::{Committer, transact},
    config,
    model::{commit::Answer, event::TraceContext, transact::Step},
    store,
};

/// Where responses go. A caller who does not read is waited for, within the stream's time.
pub(super) type Replies = mpsc::Sender<Result<TransactResponse, Status>>;

/// What every stream has.
#[derive(Clone)]
pub(super) struct Streams {
    committer: Committer,
    idle: Duration,
    total: Duration,
    rows_max: u64,
}

impl Streams {
    pub(super) fn new(committer: Committer, config: &config::Transact, rows_max: u64) -> Self {
        let (idle, total) = (Duration::from_millis(config.idle_ms), Duration::from_millis(config.total_ms));
        Self { committer, idle, total, rows_max }
    }

    /// When a stream must have ended whose call has this deadline.
    pub(super) fn deadline(&self, call: Instant) -> Instant {
        call.min(Instant::now() + self.total)
    }

    /// Serves one stream until it ends.
    pub(super) async fn serve(
        self,
        messages: Streaming<TransactRequest>,
        replies: Replies,
        trace: Option<TraceContext>,
        deadline: Instant,
    ) {
        let mut stream = Stream { streams: self, messages, open: None, deadline };
        let ended = tokio::select! {
            biased;
            () = replies.closed() => Ok(()),
            () = tokio::time::sleep_until(deadline) => Err(status::store(&store::Error::DeadlineExceeded)),
            ended = stream.talk(&replies, trace) => ended,
        };
        if let Some(open) = stream.open.take() {
            open.end().await;
        }
        if let Err(status) = ended {
            // A caller who is gone needs no error.
            let _ = replies.send(Err(status)).await;
        }
    }
}

struct Stream {
    streams: Streams,
    messages: Streaming<TransactRequest>,
    open: Option<Box<transact::Transaction>>,
    deadline: Instant,
}

impl Stream {
    async fn talk(&mut self, replies: &Replies, trace: Option<TraceContext>) -> Result<(), Status> {
        let Some(first) = self.next().await? else { return Ok(()) };
        let begin = convert::begin(first).map_err(status::invalid)?;
        let request_id = begin.request_id.clone().unwrap_or_default();
        let begun = self.streams.committer.begin(begin, trace, self.deadline).await;
        match begun.map_err(|error| status::commit(&error))? {
            transact::Begun::Open(open) => self.open = Some(open),
            transact::Begun::Answered(answer) => {
                return reply(replies, Reply::Committed(committed(request_id, answer)?)).await;
            }
        }
        reply(replies, Reply::Begun(v1::Begun {})).await?;
        while let Some(message) = self.next().await? {
            let step = convert::step(message, self.streams.rows_max).map_err(status::invalid)?;
            let done = match step {
                Step::Rollback => {
                    if let Some(open) = self.open.take() {
                        open.end().await;
                    }
                    return reply(replies, Reply::RolledBack(v1::RolledBack {})).await;
                }
                Step::Commit(last) => {
                    let Some(open) = self.open.take() else { return Ok(()) };
                    let answer = open.commit(last).await.map_err(|error| status::commit(&error))?;
                    return reply(replies, Reply::Committed(committed(request_id, answer)?)).await;
                }
                step => {
                    let Some(open) = &mut self.open else { return Ok(()) };
                    open.step(step).await.map_err(|error| status::commit(&error))?
                }
            };
            reply(replies, convert::done(done).map_err(|error| status::unreadable(&error))?).await?;
        }
        Ok(())
    }

    /// The next message, waited for no longer than a caller may be idle; `None` when there is no more.
    async fn next(&mut self) -> Result<Option<Message>, Status> {
        let message = tokio::time::timeout(self.streams.idle, self.messages.message()).await;
        let message = message.map_err(|_| status::transaction_idle(self.streams.idle))??;
        match message {
            None => Ok(None),
            Some(TransactRequest { step: Some(step) }) => Ok(Some(step)),
            Some(_) => Err(status::invalid(vec![convert::empty_step()])),
        }
    }
}

fn committed(request_id: String, answer: Answer) -> Result<CommitResponse, Status> {
    convert::response(request_id, answer).map_err(|error| status::unreadable(&error))
}

async fn reply(replies: &Replies, step: Reply) -> Result<(), Status> {
    // A caller who is gone ends the stream by that.
    let _ = replies.send(Ok(TransactResponse { step: Some(step) })).await;
    Ok(())
}
