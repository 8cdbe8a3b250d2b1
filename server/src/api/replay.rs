//! The calls of `EventService` about replays.

use outbox_proto::v1::{
    CancelReplayRequest, CancelReplayResponse, EventFilter, ReplayProgress, ReplayRequest, ReplayResponse, ReplayState,
    replay_request,
};
use tokio::time::Instant;
use tonic::Status;
use uuid::Uuid;

use super::{call, convert, event, held, status};
use crate::{
    commit::Violation,
    model::commit::uuid_floor,
    store::replay::{
        EVENTS_MAX, Filter, IDS_MAX, Outcome, RATE_DEFAULT, RATE_MAX, RUNNING_MAX, Replay, Replays, Request, Selection,
    },
};

const REQUEST_ID_CHARS_MAX: usize = 128;
/// What consumers have to expect.
const ORDER_WARNING: &str = "replayed events keep their order among themselves, but follow newer events of their keys: \
     whoever does not deduplicate by event id, or on seeing the header `outbox-replay` handles them anew, sees old state \
     after new";

pub(super) struct ReplayCalls {
    replays: Replays,
}

impl ReplayCalls {
    pub(super) fn new(replays: Replays) -> Self {
        Self { replays }
    }

    pub(super) async fn replay(&self, message: ReplayRequest, deadline: Instant) -> Result<ReplayResponse, Status> {
        let request = request(message).map_err(status::invalid)?;
        let outcome = call::within(deadline, self.replays.request(&request)).await?;
        let progress = match outcome {
            Outcome::Taken(replay) => progress(*replay),
            Outcome::Counted(matched) => ReplayProgress { matched, ..ReplayProgress::default() },
            Outcome::Reused => return Err(status::request_id_reused()),
            Outcome::Missing(id) => return Err(status::event_not_found(&id.to_string())),
            Outcome::Unpublished(id) => return Err(status::event_not_published(&id.to_string())),
            Outcome::TooLarge => return Err(status::replay_too_large(EVENTS_MAX)),
            Outcome::TooMany => return Err(status::too_many_replays(RUNNING_MAX)),
        };
        if !request.dry_run {
            let Request { request_id, reason, requested_by, .. } = &request;
            tracing::warn!(request_id, requested_by, reason, matched = progress.matched, "a replay is asked for");
        }
        let mut warnings = vec![ORDER_WARNING.to_owned()];
        if let Selection::Filter(filter) = &request.selection
            && let Some(kept_from) = call::within(deadline, self.replays.kept_from()).await?
            && filter.from < uuid_floor(kept_from)
        {
            let kept_from = kept_from.to_rfc3339();
            warnings.push(format!("events from before {kept_from} are not kept any more: none of them is replayed"));
        }
        Ok(ReplayResponse { progress: Some(progress), warnings })
    }

    pub(super) async fn cancel(
        &self,
        message: CancelReplayRequest,
        deadline: Instant,
    ) -> Result<CancelReplayResponse, Status> {
        let namespace = call::namespace(message.namespace);
        let found = call::within(deadline, self.replays.cancel(&namespace, &message.request_id)).await?;
        let replay = found.ok_or_else(|| status::replay_not_found(&message.request_id))?;
        Ok(CancelReplayResponse { progress: Some(progress(replay)) })
    }
}

fn progress(replay: Replay) -> ReplayProgress {
    let state = match replay.state.as_str() {
        "running" => ReplayState::Running,
        "done" => ReplayState::Done,
        _ => ReplayState::Cancelled,
    };
    ReplayProgress {
        id: replay.replay.to_string(),
        state: state.into(),
        matched: replay.matched,
        replayed: replay.replayed,
        events_per_second: replay.events_per_second.cast_unsigned(),
        reason: replay.reason,
        requested_by: replay.requested_by,
        created_at: Some(convert::timestamp(replay.created_at)),
        ended_at: replay.ended_at.map(convert::timestamp),
    }
}

fn request(message: ReplayRequest) -> Result<Request, Vec<Violation>> {
    let mut faults = Vec::new();
    let mut check = |field: &str, holds: bool, description: String| {
        if !holds {
            faults.push(Violation { field: field.into(), description });
        }
    };
    let chars = message.request_id.chars().count();
    let is_named = (1..=REQUEST_ID_CHARS_MAX).contains(&chars) || message.dry_run && chars == 0;
    let description = format!("has {chars} characters; expected 1 to {REQUEST_ID_CHARS_MAX}, a UUID at best");
    check("request_id", is_named && !message.request_id.contains('\0'), description);
    let rate = if message.events_per_second == 0 { RATE_DEFAULT } else { message.events_per_second };
    let description = format!("is {rate}; expected 1 to {RATE_MAX}, or 0 for {RATE_DEFAULT}");
    check("events_per_second", rate <= RATE_MAX, description);
    held::check_text("reason", &message.reason, &mut faults);
    held::check_text("requested_by", &message.requested_by, &mut faults);
    let selection = match message.selection {
        None => {
            Err(vec![Violation { field: "selection".into(), description: "is empty: expected ids or a filter".into() }])
        }
        Some(replay_request::Selection::Ids(ids)) => ids_of(&ids.ids),
        Some(replay_request::Selection::Filter(filter)) => filter_of(filter),
    };
    match selection {
        Ok(selection) if faults.is_empty() => Ok(Request {
            namespace: call::namespace(message.namespace),
            request_id: message.request_id,
            selection,
            events_per_second: rate,
            reason: message.reason,
            requested_by: message.requested_by,
            dry_run: message.dry_run,
        }),
        selection => Err(faults.into_iter().chain(selection.err().into_iter().flatten()).collect()),
    }
}

fn ids_of(given: &[String]) -> Result<Selection, Vec<Violation>> {
    if !(1..=IDS_MAX).contains(&given.len()) {
        let description = format!("has {} ids; expected 1 to {IDS_MAX}", given.len());
        return Err(vec![Violation { field: "ids.ids".into(), description }]);
    }
    let (mut ids, mut faults) = (Vec::new(), Vec::new());
    for (index, id) in given.iter().enumerate() {
        match Uuid::try_parse(id) {
            Ok(id) => ids.push(id),
            Err(_) => faults.push(event::not_a_uuid(&format!("ids.ids[{index}]"), id)),
        }
    }
    if faults.is_empty() { Ok(Selection::of_ids(ids)) } else { Err(faults) }
}

fn filter_of(filter: EventFilter) -> Result<Selection, Vec<Violation>> {
    let mut faults = Vec::new();
    let mut bound = |field: &str, given: Option<prost_types::Timestamp>| match given.and_then(convert::time) {
        Some(time) => uuid_floor(time),
        None => {
            let description = "is required, and a valid timestamp".into();
            faults.push(Violation { field: format!("filter.{field}"), description });
            Uuid::nil()
        }
    };
    let (from, before) = (bound("created_from", filter.created_from), bound("created_before", filter.created_before));
    if faults.is_empty() && from >= before {
        let description = "is not after `created_from`".into();
        faults.push(Violation { field: "filter.created_before".into(), description });
    }
    let text = |text: String| (!text.is_empty()).then_some(text);
    let (topic, key, event_type, source) =
        (text(filter.topic), filter.key.map(Into::into), text(filter.r#type), text(filter.source));
    for (field, text) in [("topic", &topic), ("type", &event_type), ("source", &source)] {
        if text.as_ref().is_some_and(|text| text.contains('\0')) {
            faults.push(Violation { field: format!("filter.{field}"), description: "contains a NUL character".into() });
        }
    }
    let filter = Filter { from, before, topic, key, event_type, source };
    if faults.is_empty() { Ok(Selection::Filter(filter)) } else { Err(faults) }
}
