//! `OutboxService`: Commit, Transact and GetCommit.

use outbox_proto::v1::{
    CommitRequest, CommitResponse, GetCommitRequest, GetCommitResponse, TransactRequest, TransactResponse,
    outbox_service_server::OutboxService,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use tracing::Instrument as _;

use super::{
    call::{self, Limits},
    convert, status,
    transact::Streams,
};
use crate::{commit::Committer, model::commit::RequestKey, store::event::Reader};

pub(super) struct Outbox {
    committer: Committer,
    streams: Streams,
    reader: Reader,
    limits: Limits,
}

impl Outbox {
    pub(super) fn new(committer: Committer, streams: Streams, reader: Reader, limits: Limits) -> Self {
        Self { committer, streams, reader, limits }
    }
}

#[tonic::async_trait]
impl OutboxService for Outbox {
    async fn commit(&self, request: Request<CommitRequest>) -> Result<Response<CommitResponse>, Status> {
        let deadline = self.limits.deadline(request.metadata());
        let trace = call::trace(&request);
        let request = convert::request(request.into_inner(), trace).map_err(status::invalid)?;
        let request_id = request.request_id.clone();
        let answer = call::commit(&self.committer, request, deadline).await;
        let answer = answer.map_err(|error| status::commit(&error))?;
        convert::response(request_id, answer).map(Response::new).map_err(|error| status::unreadable(&error))
    }

    type TransactStream = ReceiverStream<Result<TransactResponse, Status>>;

    async fn transact(
        &self,
        request: Request<Streaming<TransactRequest>>,
    ) -> Result<Response<Self::TransactStream>, Status> {
        let deadline = self.streams.deadline(self.limits.deadline(request.metadata()));
        let trace = call::trace(&request);
        let (replies, responses) = mpsc::channel(1);
        let serve = self.streams.clone().serve(request.into_inner(), replies, trace, deadline);
        tokio::spawn(serve.in_current_span());
        Ok(Response::new(ReceiverStream::new(responses)))
    }

    async fn get_commit(&self, request: Request<GetCommitRequest>) -> Result<Response<GetCommitResponse>, Status> {
        let GetCommitRequest { namespace, request_id } = request.into_inner();
        let key = RequestKey::new(&call::namespace(namespace), &request_id);
        let answer = self.reader.answer(key.key).await.map_err(|error| status::store(&error))?;
        let answer = answer.ok_or_else(|| status::commit_not_found(&request_id))?;
        let commit = convert::response(request_id, answer).map_err(|error| status::unreadable(&error))?;
        Ok(Response::new(GetCommitResponse { commit: Some(commit) }))
    }
}
