//! Completes an event: what its caller left out the server fills in.

use chrono::{DateTime, DurationRound as _, TimeDelta, Utc};
use uuid::{NoContext, Timestamp, Uuid};

use crate::model::commit::EventDraft;
use crate::model::event::{NewEvent, TraceContext};

/// The event as it will be stored. `now` is when the server received it.
pub(super) fn complete(draft: EventDraft, source: &str, trace: Option<&TraceContext>, now: DateTime<Utc>) -> NewEvent {
    let due_at = due_at(&draft, now).map(to_microseconds);
    let content_type = draft.data.is_some().then_some(draft.content_type).flatten();
    NewEvent {
        id: draft.id.unwrap_or_else(|| due_at.map_or_else(Uuid::now_v7, id_of)),
        topic: draft.topic,
        key: draft.key,
        source: draft.source.unwrap_or_else(|| source.to_owned()),
        event_type: draft.event_type,
        subject: draft.subject,
        data: draft.data,
        content_type,
        headers: draft.headers,
        time: to_microseconds(draft.time.unwrap_or(now)),
        trace: trace.cloned(),
        due_at,
    }
}

/// When an event enters the stream that is delayed still.
pub(super) fn due_at(draft: &EventDraft, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
    draft.deliver_after.filter(|due_at| *due_at > now)
}

/// An id of that time: a delayed event is kept, and listed, among those of the time when it is due.
fn id_of(due_at: DateTime<Utc>) -> Uuid {
    let seconds = u64::try_from(due_at.timestamp()).unwrap_or_default();
    Uuid::new_v7(Timestamp::from_unix(NoContext, seconds, due_at.timestamp_subsec_nanos()))
}

/// Postgres keeps microseconds; what it would round is dropped here, so that what is stored is what is told.
fn to_microseconds(time: DateTime<Utc>) -> DateTime<Utc> {
    time.duration_trunc(TimeDelta::microseconds(1)).unwrap_or(time)
}
