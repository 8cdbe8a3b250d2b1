//! One call of an operator's RPC: decoded, run as every commit is, answered.
//!
//! Not here: what the message means (`request`) and what becomes of the results (`response`).

use std::{
    convert::Infallible,
    sync::Arc,
    task::{Context, Poll},
};

use axum::body::Body;
use futures_util::future::BoxFuture;
use prost_reflect::DynamicMessage;
use tonic::{
    Request, Response, Status,
    codec::CompressionEncoding,
    metadata::{MetadataMap, MetadataValue},
};
use tower::Service;

use super::{codec::Dynamic, path::Path, plan::Rpc};
use crate::{
    api::{
        call::{self, Limits},
        convert, status,
    },
    commit::{self, Committer},
    model::{self, commit::Disposition},
};

/// Metadata that carries the request id, of calls and of answers.
pub(super) const REQUEST_ID: &str = "x-request-id";
/// Metadata that carries the namespace.
pub(super) const NAMESPACE: &str = "x-namespace";
/// Metadata of an answer: how it came about.
const DISPOSITION: &str = "x-outbox-disposition";
/// Metadata of an answer: the events' ids in the order of their declaration, joined by commas; empty for one whose
/// condition did not hold.
const EVENT_IDS: &str = "x-outbox-event-ids";

/// What every call is run with.
pub(in crate::api) struct Caller {
    pub(in crate::api) committer: Committer,
    pub(in crate::api) limits: Limits,
    pub(in crate::api) request_bytes_max: usize,
}

/// The service behind one method's path.
#[derive(Clone)]
pub(super) struct Call {
    rpc: Arc<Rpc>,
    caller: Arc<Caller>,
}

impl Call {
    pub(super) fn new(rpc: Arc<Rpc>, caller: Arc<Caller>) -> Self {
        Self { rpc, caller }
    }

    async fn answer(&self, request: Request<DynamicMessage>) -> Result<Response<DynamicMessage>, Status> {
        match self.rpc.read_only {
            true => self.query(request).await,
            false => self.commit(request).await,
        }
    }

    async fn commit(&self, request: Request<DynamicMessage>) -> Result<Response<DynamicMessage>, Status> {
        let deadline = self.caller.limits.deadline(request.metadata());
        let (trace, metadata, message) = (call::trace(&request), request.metadata().clone(), request.into_inner());
        let request_id = given(self.rpc.request_id.as_ref(), REQUEST_ID, &message, &metadata);
        let request_id = request_id.ok_or_else(|| self.no_request_id())?;
        let namespace = self.namespace(&message, &metadata);
        let request = self.rpc.request(&message).map_err(status::invalid)?;
        let request = model::commit::Request { namespace, request_id: request_id.clone(), trace, ..request };
        let answer = call::commit(&self.caller.committer, request, deadline).await;
        let answer = answer.map_err(|error| self.refused(&error))?;
        let mut response = self.response(&message, &answer.results)?;
        let metadata = response.metadata_mut();
        tell(metadata, REQUEST_ID, &request_id);
        tell(metadata, DISPOSITION, disposition(answer.disposition));
        let event_ids: Vec<String> = answer.event_ids.iter().map(convert::event_id).collect();
        tell(metadata, EVENT_IDS, &event_ids.join(","));
        Ok(response)
    }

    async fn query(&self, request: Request<DynamicMessage>) -> Result<Response<DynamicMessage>, Status> {
        let deadline = self.caller.limits.deadline(request.metadata());
        let (metadata, message) = (request.metadata().clone(), request.into_inner());
        let namespace = self.namespace(&message, &metadata);
        let query = self.rpc.query(&message).map_err(status::invalid)?;
        let result = self.caller.committer.query(&namespace, &query, deadline).await;
        let result = result.map_err(|error| self.refused(&error))?;
        self.response(&message, &[result])
    }

    fn namespace(&self, message: &DynamicMessage, metadata: &MetadataMap) -> String {
        call::namespace(given(self.rpc.namespace.as_ref(), NAMESPACE, message, metadata).unwrap_or_default())
    }

    fn response(
        &self,
        message: &DynamicMessage,
        results: &[model::commit::OperationResult],
    ) -> Result<Response<DynamicMessage>, Status> {
        let response = self.rpc.response(message, results);
        let failed = |found: super::response::Unrepresentable| {
            status::result_unrepresentable(found.operation, &found.description)
        };
        response.map(Response::new).map_err(failed)
    }

    /// A fault of the request is told by the caller's own names.
    fn refused(&self, error: &commit::Error) -> Status {
        match error {
            commit::Error::Invalid(violations) => {
                status::invalid(violations.iter().map(|violation| self.rpc.blame(violation)).collect())
            }
            error => status::commit(error),
        }
    }

    fn no_request_id(&self) -> Status {
        match &self.rpc.request_id {
            Some(path) => status::request_id_missing(&format!("the field `{}`", path.text)),
            None => status::request_id_missing(&format!("the metadata `{REQUEST_ID}`")),
        }
    }
}

impl Service<http::Request<Body>> for Call {
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let call = self.clone();
        Box::pin(async move {
            let mut grpc = tonic::server::Grpc::new(Dynamic(call.rpc.request.clone()))
                .max_decoding_message_size(call.caller.request_bytes_max)
                .accept_compressed(CompressionEncoding::Gzip)
                .accept_compressed(CompressionEncoding::Zstd)
                .send_compressed(CompressionEncoding::Gzip)
                .send_compressed(CompressionEncoding::Zstd);
            let answer = tower::service_fn(|request| {
                let call = call.clone();
                async move { call.answer(request).await }
            });
            Ok(grpc.unary(answer, request).await)
        })
    }
}

/// A text that stands in a field if one is named for it, else in metadata.
fn given(field: Option<&Path>, name: &str, message: &DynamicMessage, metadata: &MetadataMap) -> Option<String> {
    match field {
        Some(path) => path.text_in(message).map(std::borrow::Cow::into_owned),
        None => metadata.get(name)?.to_str().ok().filter(|text| !text.is_empty()).map(str::to_owned),
    }
}

/// Adds to an answer's metadata what can stand there: a request id out of a field may be no ASCII text.
fn tell(metadata: &mut MetadataMap, name: &'static str, text: &str) {
    if let Ok(value) = MetadataValue::try_from(text) {
        metadata.insert(name, value);
    }
}

fn disposition(disposition: Disposition) -> &'static str {
    match disposition {
        Disposition::Applied => "APPLIED",
        Disposition::Replayed => "REPLAYED",
        Disposition::Duplicate => "DUPLICATE",
        Disposition::Validated => "VALIDATED",
    }
}
