//! Completes an event: what its caller left out the server fills in.

use chrono::{DateTime, DurationRound as _, TimeDelta, Utc};
use uuid::Uuid;

use crate::model::commit::EventDraft;
use crate::model::event::{NewEvent, TraceContext};

/// The event as it will be stored. `now` is when the server received it.
pub(super) fn complete(draft: EventDraft, source: &str, trace: Option<&TraceContext>, now: DateTime<Utc>) -> NewEvent {
    let content_type = draft.data.is_some().then_some(draft.content_type).flatten();
    let time = draft.time.unwrap_or(now);
    NewEvent {
        id: draft.id.unwrap_or_else(Uuid::now_v7),
        topic: draft.topic,
        key: draft.key,
        source: draft.source.unwrap_or_else(|| source.to_owned()),
        event_type: draft.event_type,
        subject: draft.subject,
        data: draft.data,
        content_type,
        headers: draft.headers,
        // Postgres keeps microseconds; what it would round is dropped here, so that what is stored is what is told.
        time: time.duration_trunc(TimeDelta::microseconds(1)).unwrap_or(time),
        trace: trace.cloned(),
    }
}
