//! `EventService`: reading stored events; `held`, `waiting` and `replay` have its other calls.

use chrono::{DateTime, TimeDelta, Utc};
use outbox_proto::v1::{
    CancelReplayRequest, CancelReplayResponse, DiscardRequest, DiscardResponse, GetEventRequest, GetEventResponse,
    ListEventsRequest, ListEventsResponse, ListHeldRequest, ListHeldResponse, ParkRequest, ParkResponse, ReplayRequest,
    ReplayResponse, UnparkRequest, UnparkResponse, WaitPublishedRequest, WaitPublishedResponse,
    event_service_server::EventService,
};
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::{
    call::{self, Limits},
    convert,
    held::HeldCalls,
    page_token,
    replay::ReplayCalls,
    status,
    waiting::Waiting,
};
use crate::{
    commit::Violation,
    model::commit::uuid_floor,
    store::{
        event::{Filter, Reader},
        replay::Replays,
    },
};

const RANGE_DEFAULT: TimeDelta = TimeDelta::hours(1);

pub(super) struct Events {
    reader: Reader,
    held: HeldCalls,
    waiting: Waiting,
    replays: ReplayCalls,
    limits: Limits,
}

impl Events {
    pub(super) fn new(reader: Reader, held: HeldCalls, limits: Limits) -> Self {
        let (waiting, replays) = (Waiting::new(reader.clone()), ReplayCalls::new(Replays::new(&reader)));
        Self { reader, held, waiting, replays, limits }
    }
}

#[tonic::async_trait]
impl EventService for Events {
    async fn get_event(&self, request: Request<GetEventRequest>) -> Result<Response<GetEventResponse>, Status> {
        let deadline = self.limits.deadline(request.metadata());
        let GetEventRequest { namespace, id } = request.into_inner();
        let uuid = Uuid::try_parse(&id).map_err(|_| status::invalid(vec![not_a_uuid("id", &id)]))?;
        let namespace = call::namespace(namespace);
        let found = call::within(deadline, self.reader.event(&namespace, uuid)).await?;
        let event = found.ok_or_else(|| status::event_not_found(&id))?;
        let history = call::within(deadline, self.reader.history(&namespace, uuid)).await?;
        let history = history.into_iter().map(convert::history_step).collect();
        Ok(Response::new(GetEventResponse { event: Some(convert::event(event)), history }))
    }

    async fn list_events(&self, request: Request<ListEventsRequest>) -> Result<Response<ListEventsResponse>, Status> {
        let deadline = self.limits.deadline(request.metadata());
        let request = request.into_inner();
        let digest = page_token::digest(&request);
        let filter = filter(request, digest).map_err(status::invalid)?;
        let mut found = call::within(deadline, self.reader.events(&filter)).await?;
        // One more than asked for was fetched: it is where the next page starts.
        let page = usize::try_from(filter.limit - 1).unwrap_or(usize::MAX);
        let next = found.get(page).map(|listed| listed.event.event.id);
        found.truncate(page);
        Ok(Response::new(ListEventsResponse {
            events: found.into_iter().map(convert::event).collect(),
            next_page_token: next
                .map(|id| page_token::encode(&[id.into_bytes(), filter.before.into_bytes()].concat(), digest))
                .unwrap_or_default(),
        }))
    }

    async fn wait_published(
        &self,
        request: Request<WaitPublishedRequest>,
    ) -> Result<Response<WaitPublishedResponse>, Status> {
        let deadline = self.limits.deadline(request.metadata());
        self.waiting.wait(request.into_inner(), deadline).await.map(Response::new)
    }

    async fn list_held(&self, request: Request<ListHeldRequest>) -> Result<Response<ListHeldResponse>, Status> {
        let deadline = self.limits.deadline(request.metadata());
        self.held.list(request.into_inner(), deadline).await.map(Response::new)
    }

    async fn park(&self, request: Request<ParkRequest>) -> Result<Response<ParkResponse>, Status> {
        let deadline = self.limits.deadline(request.metadata());
        self.held.park(request.into_inner(), deadline).await.map(Response::new)
    }

    async fn unpark(&self, request: Request<UnparkRequest>) -> Result<Response<UnparkResponse>, Status> {
        let deadline = self.limits.deadline(request.metadata());
        self.held.unpark(request.into_inner(), deadline).await.map(Response::new)
    }

    async fn discard(&self, request: Request<DiscardRequest>) -> Result<Response<DiscardResponse>, Status> {
        let deadline = self.limits.deadline(request.metadata());
        self.held.discard(request.into_inner(), deadline).await.map(Response::new)
    }

    async fn replay(&self, request: Request<ReplayRequest>) -> Result<Response<ReplayResponse>, Status> {
        let deadline = self.limits.deadline(request.metadata());
        self.replays.replay(request.into_inner(), deadline).await.map(Response::new)
    }

    async fn cancel_replay(
        &self,
        request: Request<CancelReplayRequest>,
    ) -> Result<Response<CancelReplayResponse>, Status> {
        let deadline = self.limits.deadline(request.metadata());
        self.replays.cancel(request.into_inner(), deadline).await.map(Response::new)
    }
}

fn filter(request: ListEventsRequest, digest: page_token::Digest) -> Result<Filter, Vec<Violation>> {
    let mut faults = Vec::new();
    let now = Utc::now();
    let mut time = |field: &str, given: Option<prost_types::Timestamp>, absent: DateTime<Utc>| match given {
        None => absent,
        Some(given) => convert::time(given).unwrap_or_else(|| {
            faults.push(Violation { field: field.into(), description: "is not a valid timestamp".into() });
            absent
        }),
    };
    let before = time("created_before", request.created_before, now + TimeDelta::minutes(15));
    let from = time("created_from", request.created_from, before.min(now) - RANGE_DEFAULT);
    let page_size = page_token::size(&request);
    let range = page_token::range(&request, digest);
    faults.extend(page_size.as_ref().err().cloned());
    faults.extend(range.as_ref().err().cloned());
    let (Ok(page_size), Ok(range), []) = (page_size, range, faults.as_slice()) else { return Err(faults) };
    let (from, before) = range.unwrap_or((uuid_floor(from), uuid_floor(before)));
    let text = |text: String| (!text.is_empty()).then_some(text);
    Ok(Filter {
        namespace: call::namespace(request.namespace),
        topic: text(request.topic),
        key: request.key.map(Into::into),
        event_type: text(request.r#type),
        from,
        before,
        limit: i64::try_from(page_size).unwrap_or(i64::MAX - 1) + 1,
    })
}

pub(super) fn not_a_uuid(field: &str, given: &str) -> Violation {
    Violation { field: field.into(), description: format!("`{given}` is not a UUID") }
}
