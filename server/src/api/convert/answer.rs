//! What callers are answered: results, documents, commands, events and where they went.

use std::collections::HashMap;

use bytes::Bytes;
use outbox_proto::v1;
use uuid::Uuid;

use super::{timestamp, value::value};
use crate::{
    catalog::{Column, Command, Parameter},
    model::{
        commit::{Answer, Disposition, OperationResult},
        delivery::Delivered,
        document::Document,
        event::{EventState, Step},
        value::{SqlType, Value, ValueError},
    },
    store::{event::Listed, held::Held},
};

/// A commit's answer.
///
/// # Errors
/// When a stored value does not fit its stored type.
pub(in crate::api) fn response(request_id: String, answer: Answer) -> Result<v1::CommitResponse, ValueError> {
    let disposition = match answer.disposition {
        Disposition::Applied => v1::Disposition::Applied,
        Disposition::Replayed => v1::Disposition::Replayed,
        Disposition::Duplicate => v1::Disposition::Duplicate,
        Disposition::Validated => v1::Disposition::Validated,
    };
    let committed_at = (answer.disposition != Disposition::Validated).then(|| timestamp(answer.committed_at));
    Ok(v1::CommitResponse {
        request_id,
        disposition: disposition.into(),
        results: answer.results.into_iter().map(result).collect::<Result<_, _>>()?,
        event_ids: answer.event_ids.iter().map(event_id).collect(),
        committed_at,
    })
}

/// Nil stands for an event whose condition did not hold.
pub(in crate::api) fn event_id(id: &Uuid) -> String {
    if id.is_nil() { String::new() } else { id.to_string() }
}

/// What one operation did.
///
/// # Errors
/// As [`response`].
pub(in crate::api) fn result(result: OperationResult) -> Result<v1::OperationResult, ValueError> {
    let types: Vec<SqlType> = result.columns.iter().map(|(_, ty)| SqlType::from_name(ty)).collect();
    let row = |row: Vec<Option<String>>| {
        let values = row.iter().zip(&types).map(|(text, ty)| Value::from_sql_text(text.as_deref(), ty).map(value));
        Ok(v1::Row { values: values.collect::<Result<_, ValueError>>()? })
    };
    Ok(v1::OperationResult {
        rows_affected: result.rows_affected,
        skipped: result.skipped,
        rows: result.rows.into_iter().map(row).collect::<Result<_, ValueError>>()?,
        columns: result.columns.into_iter().map(|(name, r#type)| v1::Column { name, r#type }).collect(),
    })
}

/// A stored document.
pub(in crate::api) fn document(document: Document) -> v1::Document {
    v1::Document {
        namespace: document.namespace,
        collection: document.collection,
        id: document.id,
        version: document.version,
        json: document.json,
        created_at: Some(timestamp(document.created_at)),
        updated_at: Some(timestamp(document.updated_at)),
    }
}

/// A command of the catalog.
pub(in crate::api) fn command(command: &Command) -> v1::Command {
    let parameter = |p: &Parameter| v1::Parameter { name: p.name.clone(), r#type: p.ty.to_string() };
    let column = |c: &Column| v1::Column { name: c.name.clone(), r#type: c.ty.to_string() };
    v1::Command {
        name: command.name.clone(),
        description: command.description.clone(),
        parameters: command.parameters.iter().map(parameter).collect(),
        columns: command.columns.iter().map(column).collect(),
        rows_min: command.expect.min,
        rows_max: (command.expect.max < i64::MAX).then_some(command.expect.max),
        read_only: command.read_only,
    }
}

/// A stored event.
pub(in crate::api) fn event(listed: Listed) -> v1::Event {
    let stored = listed.event;
    let event = stored.event;
    v1::Event {
        id: event.id.to_string(),
        namespace: stored.namespace,
        topic: event.topic,
        key: event.key.map(Bytes::from),
        source: event.source,
        r#type: event.event_type,
        subject: event.subject.unwrap_or_default(),
        data: event.data.map(Bytes::from),
        content_type: event.content_type.unwrap_or_default(),
        headers: event.headers.into_iter().collect::<HashMap<_, _>>(),
        time: Some(timestamp(event.time)),
        traceparent: event.trace.map(|trace| trace.parent).unwrap_or_default(),
        lane: u32::try_from(stored.lane).unwrap_or_default(),
        position: stored.position,
        settled: !matches!(listed.state, EventState::Scheduled | EventState::Pending),
        state: state(listed.state).into(),
        deliver_after: event.due_at.map(timestamp),
    }
}

/// Where an event is on its way.
pub(in crate::api) fn state(state: EventState) -> v1::EventState {
    match state {
        EventState::Scheduled => v1::EventState::Scheduled,
        EventState::Pending => v1::EventState::Pending,
        EventState::Published => v1::EventState::Published,
        EventState::Held => v1::EventState::Held,
        EventState::Discarded => v1::EventState::Discarded,
        EventState::Replayed => v1::EventState::Replayed,
    }
}

/// A step of an event's history.
pub(in crate::api) fn history_step(step: Step) -> v1::EventStep {
    v1::EventStep {
        state: state(step.state).into(),
        time: Some(timestamp(step.time)),
        place: step.place.map(place),
        reason: step.reason.unwrap_or_default(),
        requested_by: step.requested_by.unwrap_or_default(),
    }
}

/// Where a record is.
pub(in crate::api) fn place(delivered: Delivered) -> v1::Place {
    let Delivered { topic, partition, offset, .. } = delivered;
    v1::Place { topic, partition, offset }
}

/// A held event.
pub(in crate::api) fn held(held: Held) -> v1::HeldEvent {
    let state = match held.state.as_str() {
        "failed" => v1::HeldState::Failed,
        "parked" => v1::HeldState::Parked,
        _ => v1::HeldState::Behind,
    };
    let kind = match held.kind.as_str() {
        "event" => v1::HoldKind::Event,
        "key" => v1::HoldKind::Key,
        _ => v1::HoldKind::Topic,
    };
    v1::HeldEvent {
        id: held.id.to_string(),
        namespace: held.namespace,
        topic: held.topic,
        key: held.key.map(Bytes::from),
        r#type: held.event_type,
        lane: u32::try_from(held.lane).unwrap_or_default(),
        position: held.position,
        state: state.into(),
        kind: kind.into(),
        reason: held.reason,
        cause_id: held.cause.map(|id| id.to_string()).unwrap_or_default(),
        attempts: held.attempts,
        held_at: Some(timestamp(held.held_at)),
        first_failed_at: held.first_failed_at.map(timestamp),
        last_failed_at: held.last_failed_at.map(timestamp),
        retry_at: held.retry_at.map(timestamp),
    }
}
