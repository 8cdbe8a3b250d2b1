//! The calls of `EventService` about held events.

use outbox_proto::v1::{
    DiscardRequest, DiscardResponse, HeldState, HoldTarget, ListHeldRequest, ListHeldResponse, ParkRequest,
    ParkResponse, UnparkRequest, UnparkResponse, hold_target,
};
use tokio::time::Instant;
use tonic::Status;
use uuid::Uuid;

use super::{call, convert, event, page_token, status};
use crate::{
    commit::Violation,
    config::{self, HeldPolicy},
    store::held::{AT_ONCE_MAX, Changed, Discarded, Filter, Holds, Parked, Target},
};

const TEXT_CHARS_MAX: usize = 1_000;

pub(super) struct HeldCalls {
    holds: Holds,
    policies: config::Relay,
}

impl HeldCalls {
    pub(super) fn new(holds: Holds, policies: config::Relay) -> Self {
        Self { holds, policies }
    }

    pub(super) async fn list(&self, request: ListHeldRequest, deadline: Instant) -> Result<ListHeldResponse, Status> {
        let digest = page_token::digest(&request);
        let filter = filter(request, digest).map_err(status::invalid)?;
        let mut found = call::within(deadline, self.holds.list(&filter)).await?;
        let page = usize::try_from(filter.limit - 1).unwrap_or(usize::MAX);
        let next = found.get(page).map(|held| held.id);
        found.truncate(page);
        Ok(ListHeldResponse {
            events: found.into_iter().map(convert::held).collect(),
            next_page_token: next.map(|id| page_token::encode(id.as_bytes(), digest)).unwrap_or_default(),
        })
    }

    pub(super) async fn park(&self, request: ParkRequest, deadline: Instant) -> Result<ParkResponse, Status> {
        let ParkRequest { target, reason } = request;
        let mut faults = Vec::new();
        check_reason(&reason, &mut faults);
        if let Some(hold_target::Target::Topic(_)) = target.as_ref().and_then(|target| target.target.as_ref()) {
            let description = "cannot be parked: park its keys, or pause the relays".into();
            faults.push(Violation { field: "target.topic".into(), description });
        }
        let (namespace, target) = target_of(target, faults)?;
        match target {
            Target::Topic(_) => {}
            Target::Key { topic, key } => {
                call::within(deadline, self.holds.park_key(&namespace, &topic, &key, &reason)).await?;
            }
            Target::Event(id) => {
                let blocks = |topic: &str| self.policies.held_policy(topic) == HeldPolicy::BlockKey;
                match call::within(deadline, self.holds.park_event(&namespace, id, blocks, &reason)).await? {
                    Parked::Parked => {}
                    Parked::Settled => return Err(status::event_settled(&id.to_string())),
                    Parked::Scheduled(due_at) => return Err(status::event_not_due(&id.to_string(), due_at)),
                    Parked::NotFound => return Err(status::event_not_found(&id.to_string())),
                }
            }
        }
        Ok(ParkResponse {})
    }

    pub(super) async fn unpark(&self, request: UnparkRequest, deadline: Instant) -> Result<UnparkResponse, Status> {
        let UnparkRequest { target, reason } = request;
        let mut faults = Vec::new();
        let reason = (!reason.is_empty()).then_some(reason.as_str());
        if let Some(reason) = reason {
            check_reason(reason, &mut faults);
        }
        let (namespace, target) = target_of(target, faults)?;
        let what = match &target {
            Target::Event(id) => format!("event {id}"),
            Target::Key { topic, .. } => format!("the key of topic {topic}"),
            Target::Topic(topic) => format!("topic {topic}"),
        };
        let unparked = call::within(deadline, self.holds.unpark(&namespace, &target, reason)).await?;
        let Changed { events, more } = unparked.ok_or_else(|| status::not_held(&what))?;
        tracing::info!(namespace, what, events, more, reason, "held events are unparked");
        Ok(UnparkResponse { events, more })
    }

    pub(super) async fn discard(&self, request: DiscardRequest, deadline: Instant) -> Result<DiscardResponse, Status> {
        let DiscardRequest { namespace, event_id, reason, topic } = request;
        let mut faults = Vec::new();
        check_reason(&reason, &mut faults);
        let namespace = call::namespace(namespace);
        if !topic.is_empty() {
            if !event_id.is_empty() {
                let description = "is given beside `event_id`: expected one of them".into();
                faults.push(Violation { field: "topic".into(), description });
            }
            check_topic("topic", &topic, &mut faults);
            return match faults.as_slice() {
                [] => self.discard_topic(&namespace, &topic, &reason, deadline).await,
                _ => Err(status::invalid(faults)),
            };
        }
        let id = Uuid::try_parse(&event_id).map_err(|_| faults.push(event::not_a_uuid("event_id", &event_id)));
        let (Ok(id), true) = (id, faults.is_empty()) else { return Err(status::invalid(faults)) };
        match call::within(deadline, self.holds.discard(&namespace, id, &reason)).await? {
            Discarded::Discarded => {
                tracing::warn!(%event_id, reason, "a held event is discarded");
                Ok(DiscardResponse { events: 1, more: false })
            }
            Discarded::NotHeld => Err(status::not_held(&format!("event {event_id}"))),
            Discarded::Busy => Err(status::hold_draining(&format!("event {event_id}"), ("event_id", &event_id))),
        }
    }

    async fn discard_topic(
        &self,
        namespace: &str,
        topic: &str,
        reason: &str,
        deadline: Instant,
    ) -> Result<DiscardResponse, Status> {
        let what = format!("topic {topic}");
        let discarding = self.holds.discard_topic(namespace, topic, reason, AT_ONCE_MAX);
        let discarded = call::within(deadline, discarding).await?;
        let Changed { events, more } = discarded.ok_or_else(|| status::not_held(&what))?;
        if events == 0 {
            return Err(status::hold_draining(&what, ("topic", topic)));
        }
        tracing::warn!(namespace, topic, events, more, reason, "held events of a topic are discarded");
        Ok(DiscardResponse { events, more })
    }
}

/// What operators say why.
pub(super) fn check_reason(reason: &str, faults: &mut Vec<Violation>) {
    check_text("reason", reason, faults);
}

/// What operators say.
pub(super) fn check_text(field: &str, text: &str, faults: &mut Vec<Violation>) {
    let chars = text.chars().count();
    if !(1..=TEXT_CHARS_MAX).contains(&chars) || text.contains('\0') {
        let description = format!("has {chars} characters; expected 1 to {TEXT_CHARS_MAX}, none of them NUL");
        faults.push(Violation { field: field.into(), description });
    }
}

fn check_topic(field: &str, topic: &str, faults: &mut Vec<Violation>) {
    if topic.is_empty() || topic.contains('\0') {
        faults.push(Violation { field: field.into(), description: "is no topic's name".into() });
    }
}

fn target_of(target: Option<HoldTarget>, mut faults: Vec<Violation>) -> Result<(String, Target), Status> {
    let HoldTarget { namespace, target } = target.unwrap_or_default();
    let target = match target {
        None => {
            faults.push(Violation { field: "target".into(), description: "is empty: expected what is held".into() });
            None
        }
        Some(hold_target::Target::EventId(id)) => {
            let parsed = Uuid::try_parse(&id).ok();
            if parsed.is_none() {
                faults.push(event::not_a_uuid("target.event_id", &id));
            }
            parsed.map(Target::Event)
        }
        Some(hold_target::Target::Key(key)) => {
            check_topic("target.key.topic", &key.topic, &mut faults);
            Some(Target::Key { topic: key.topic, key: key.key.into() })
        }
        Some(hold_target::Target::Topic(topic)) => {
            check_topic("target.topic", &topic, &mut faults);
            Some(Target::Topic(topic))
        }
    };
    match target {
        Some(target) if faults.is_empty() => Ok((call::namespace(namespace), target)),
        _ => Err(status::invalid(faults)),
    }
}

fn filter(request: ListHeldRequest, digest: page_token::Digest) -> Result<Filter, Vec<Violation>> {
    let state = match request.state() {
        HeldState::Unspecified => None,
        HeldState::Failed => Some("failed"),
        HeldState::Behind => Some("behind"),
        HeldState::Parked => Some("parked"),
    };
    let (page_size, from) = match (page_token::size(&request), page_token::id(&request, digest)) {
        (Ok(page_size), Ok(from)) => (page_size, from),
        (page_size, from) => return Err(page_size.err().into_iter().chain(from.err()).collect()),
    };
    Ok(Filter {
        namespace: call::namespace(request.namespace),
        topic: (!request.topic.is_empty()).then_some(request.topic),
        key: request.key.map(Into::into),
        state,
        from,
        limit: i64::try_from(page_size).unwrap_or(i64::MAX - 1) + 1,
    })
}
