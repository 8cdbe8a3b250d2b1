//! `CommandService`: what the catalog has.

use std::sync::Arc;

use outbox_proto::v1::{
    GetCommandRequest, GetCommandResponse, ListCommandsRequest, ListCommandsResponse,
    command_service_server::CommandService,
};
use tonic::{Request, Response, Status};

use super::{convert, page_token, status};
use crate::{catalog::Catalog, commit};

pub(super) struct Commands(Arc<Catalog>);

impl Commands {
    pub(super) fn new(catalog: Arc<Catalog>) -> Self {
        Self(catalog)
    }
}

#[tonic::async_trait]
impl CommandService for Commands {
    async fn list_commands(
        &self,
        request: Request<ListCommandsRequest>,
    ) -> Result<Response<ListCommandsResponse>, Status> {
        let request = request.into_inner();
        let digest = page_token::digest(&request);
        let size = page_token::size(&request).map_err(|fault| status::invalid(vec![fault]))?;
        let from = page_token::text(&request, digest).map_err(|fault| status::invalid(vec![fault]))?;
        let mut names = self.0.names().filter(|name| *name >= from.as_str());
        let page: Vec<_> = names.by_ref().take(size).filter_map(|name| self.0.get(name)).collect();
        let next = names.next().map(|name| page_token::encode(name.as_bytes(), digest));
        Ok(Response::new(ListCommandsResponse {
            commands: page.into_iter().map(|command| convert::command(command)).collect(),
            next_page_token: next.unwrap_or_default(),
        }))
    }

    async fn get_command(&self, request: Request<GetCommandRequest>) -> Result<Response<GetCommandResponse>, Status> {
        let GetCommandRequest { name } = request.into_inner();
        match self.0.get(&name) {
            Some(command) => Ok(Response::new(GetCommandResponse { command: Some(convert::command(command)) })),
            None => {
                let suggestion = self.0.suggest(&name).map(str::to_owned);
                Err(status::commit(&commit::Error::UnknownCommand { operation: None, name, suggestion }))
            }
        }
    }
}
