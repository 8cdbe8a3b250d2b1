//! `StateService`: reading documents, and read-only commands.

use outbox_proto::v1::{
    GetDocumentRequest, GetDocumentResponse, ListDocumentsRequest, ListDocumentsResponse, QueryRequest, QueryResponse,
    state_service_server::StateService,
};
use tonic::{Request, Response, Status};

use super::{
    call::{self, Limits},
    convert, page_token, status,
};
use crate::{
    commit::{Committer, Violation},
    store::state::{Filter, State},
};

pub(super) struct Reads {
    committer: Committer,
    state: State,
    limits: Limits,
}

impl Reads {
    pub(super) fn new(committer: Committer, state: State, limits: Limits) -> Self {
        Self { committer, state, limits }
    }
}

#[tonic::async_trait]
impl StateService for Reads {
    async fn get_document(
        &self,
        request: Request<GetDocumentRequest>,
    ) -> Result<Response<GetDocumentResponse>, Status> {
        let deadline = self.limits.deadline(request.metadata());
        let GetDocumentRequest { namespace, collection, id } = request.into_inner();
        let namespace = call::namespace(namespace);
        no_nul(&[("namespace", &namespace), ("collection", &collection), ("id", &id)])?;
        let found = self.state.document(&namespace, &collection, &id, deadline).await;
        let document = found.map_err(|error| status::store(&error))?;
        let document = document.ok_or_else(|| status::document_not_found(&collection, &id))?;
        Ok(Response::new(GetDocumentResponse { document: Some(convert::document(document)) }))
    }

    async fn list_documents(
        &self,
        request: Request<ListDocumentsRequest>,
    ) -> Result<Response<ListDocumentsResponse>, Status> {
        let deadline = self.limits.deadline(request.metadata());
        let request = request.into_inner();
        let digest = page_token::digest(&request);
        let size = page_token::size(&request).map_err(|fault| status::invalid(vec![fault]))?;
        let from = page_token::text(&request, digest).map_err(|fault| status::invalid(vec![fault]))?;
        let ListDocumentsRequest { namespace, collection, id_prefix, .. } = request;
        let namespace = call::namespace(namespace);
        no_nul(&[("namespace", &namespace), ("collection", &collection), ("id_prefix", &id_prefix)])?;
        let limit = i64::try_from(size).unwrap_or(i64::MAX - 1) + 1;
        let filter = Filter { namespace, collection, id_prefix, from, limit };
        let found = self.state.documents(&filter, deadline).await;
        let mut found = found.map_err(|error| status::store(&error))?;
        // One more than asked for was fetched: it is where the next page starts.
        let next_page_token = found.get(size).map(|next| page_token::encode(next.id.as_bytes(), digest));
        found.truncate(size);
        let documents = found.into_iter().map(convert::document).collect();
        Ok(Response::new(ListDocumentsResponse { documents, next_page_token: next_page_token.unwrap_or_default() }))
    }

    async fn query(&self, request: Request<QueryRequest>) -> Result<Response<QueryResponse>, Status> {
        let deadline = self.limits.deadline(request.metadata());
        let QueryRequest { namespace, command } = request.into_inner();
        let namespace = call::namespace(namespace);
        no_nul(&[("namespace", &namespace)])?;
        let call = convert::query(command).map_err(status::invalid)?;
        let result = self.committer.query(&namespace, &call, deadline).await;
        let result = result.map_err(|error| status::commit(&error))?;
        let result = convert::result(result).map_err(|error| status::unreadable(&error))?;
        Ok(Response::new(QueryResponse { result: Some(result) }))
    }
}

/// Refuses texts that Postgres cannot be asked for.
fn no_nul(fields: &[(&str, &str)]) -> Result<(), Status> {
    let faults = fields.iter().filter(|(_, text)| text.contains('\0')).map(|(field, _)| Violation {
        field: (*field).into(),
        description: "contains a NUL character, which Postgres cannot store".into(),
    });
    let faults: Vec<_> = faults.collect();
    if faults.is_empty() { Ok(()) } else { Err(status::invalid(faults)) }
}
