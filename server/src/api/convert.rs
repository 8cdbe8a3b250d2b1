//! Messages to the domain's types and back.

mod link;
mod transact;

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use chrono::{DateTime, Utc};
use outbox_proto::v1::{self, operation, value::Kind};
use prost_types::Timestamp;
use uuid::Uuid;

pub(super) use self::link::condition;
pub(super) use self::transact::{begin, done, empty_step, step};
use super::call;
use crate::{
    catalog::{Column, Command, Parameter},
    commit::Violation,
    model::{
        commit::{Answer, CommandCall, Consume, Disposition, EventDraft, Operation, OperationResult, Request},
        delivery::Delivered,
        document::{Document, DocumentCall, Precondition, Verb},
        event::{EventState, Step, TraceContext},
        link::{Element, EventLinks, Links, OperationLinks},
        value::{SqlType, Value, ValueError},
    },
    store::{event::Listed, held::Held},
};

/// Deepest nesting of arrays; Postgres allows six dimensions.
const ARRAY_DEPTH_MAX: usize = 6;

/// A commit's request.
///
/// # Errors
/// Every field that has no meaning in its form.
pub(super) fn request(message: v1::CommitRequest, trace: Option<TraceContext>) -> Result<Request, Vec<Violation>> {
    let mut faults = Faults::default();
    let mut links = Links::default();
    let operations = message.operations.into_iter().enumerate();
    let operations = operations.filter_map(|(index, o)| faults.operation(index, o, &mut links)).collect();
    let events = message.events.into_iter().enumerate();
    let events = events.map(|(index, event)| faults.event(index, event, &mut links)).collect();
    let consume = message.consume.and_then(|consume| faults.consume(consume));
    if !faults.0.is_empty() {
        return Err(faults.0);
    }
    let v1::CommitRequest { namespace, request_id, validate_only, .. } = message;
    let namespace = call::namespace(namespace);
    Ok(Request { namespace, request_id, operations, events, links, consume, validate_only, trace })
}

/// The event that a request handles.
///
/// # Errors
/// As [`request`].
fn consume(consume: v1::Consume) -> Result<Consume, Vec<Violation>> {
    let mut faults = Faults::default();
    faults.consume(consume).ok_or(faults.0)
}

/// A query's command.
///
/// # Errors
/// As [`request`].
pub(super) fn query(command: Option<v1::CommandCall>) -> Result<CommandCall, Vec<Violation>> {
    let mut faults = Faults::default();
    let mut links = OperationLinks::default();
    let call = command.map(|call| faults.call("command", call, &mut links));
    for name in links.parameters.keys().chain(links.arrays.keys()) {
        faults.add(format!("command.parameters[{name}]"), "has a reference, but there is no earlier operation");
    }
    if call.is_none() {
        faults.add("command".into(), "is required");
    }
    match (call, faults.0) {
        (Some(call), faults) if faults.is_empty() => Ok(call),
        (_, faults) => Err(faults),
    }
}

#[derive(Default)]
struct Faults(Vec<Violation>);

impl Faults {
    fn add(&mut self, field: String, description: impl Into<String>) {
        self.0.push(Violation { field, description: description.into() });
    }

    /// `None` when it is empty, which is a fault.
    fn operation(&mut self, index: usize, operation: v1::Operation, links: &mut Links) -> Option<Operation> {
        let field = format!("operations[{index}]");
        let mut own = OperationLinks { only_if: operation.only_if.map(condition), ..OperationLinks::default() };
        let converted = self.kind(&field, operation.kind, &mut own);
        if own != OperationLinks::default() {
            links.operations.insert(index, own);
        }
        converted
    }

    fn kind(&mut self, field: &str, kind: Option<operation::Kind>, links: &mut OperationLinks) -> Option<Operation> {
        use operation::Kind;
        let (collection, id, verb, precondition) = match kind {
            Some(Kind::Command(call)) => {
                return Some(Operation::Command(self.call(&format!("{field}.command"), call, links)));
            }
            Some(Kind::PutDocument(put)) => {
                links.document = link::document(&put.json, put.values);
                (put.collection, put.id, Verb::Put(put.json), put.precondition)
            }
            Some(Kind::MergeDocument(merge)) => {
                links.document = link::document(&merge.patch, merge.values);
                (merge.collection, merge.id, Verb::Merge(merge.patch), merge.precondition)
            }
            Some(Kind::DeleteDocument(delete)) => (delete.collection, delete.id, Verb::Delete, delete.precondition),
            Some(Kind::CheckDocument(check)) => (check.collection, check.id, Verb::Check, check.precondition),
            None => {
                self.add(field.to_owned(), "is empty: expected a command or a change to a document");
                return None;
            }
        };
        let precondition = precondition.and_then(|precondition| precondition.kind).map(|kind| match kind {
            v1::precondition::Kind::Version(version) => Precondition::Version(version),
            v1::precondition::Kind::Exists(exists) => Precondition::Exists(exists),
        });
        Some(Operation::Document(DocumentCall { collection, id, verb, precondition }))
    }

    /// References go beside the values.
    fn call(&mut self, field: &str, call: v1::CommandCall, links: &mut OperationLinks) -> CommandCall {
        let mut parameters = BTreeMap::new();
        for (name, value) in call.parameters {
            match element_of(value, 0) {
                Some(Element::Value(value)) => drop(parameters.insert(name, value)),
                Some(Element::Reference(reference)) => drop(links.parameters.insert(name, reference)),
                Some(Element::Array(elements)) => drop(links.arrays.insert(name, elements)),
                None => {
                    let description = format!("holds arrays nested more than {ARRAY_DEPTH_MAX} deep");
                    self.add(format!("{field}.parameters[{name}]"), description);
                }
            }
        }
        CommandCall { name: call.name, parameters }
    }

    fn consume(&mut self, consume: v1::Consume) -> Option<Consume> {
        let event_id = Uuid::try_parse(&consume.event_id).ok();
        if event_id.is_none() {
            self.add("consume.event_id".into(), format!("`{}` is not a UUID", consume.event_id));
        }
        let event_time = consume.event_time.and_then(time);
        if event_time.is_none() {
            self.add("consume.event_time".into(), "is required, and a valid timestamp: the event's own time");
        }
        Some(Consume {
            consumer: consume.consumer,
            source: consume.source,
            event_id: event_id?,
            event_time: event_time?,
        })
    }

    fn event(&mut self, index: usize, event: v1::NewEvent, links: &mut Links) -> EventDraft {
        let mut own = EventLinks { only_if: event.only_if.map(condition), ..EventLinks::default() };
        own.key = event.key_from.map(link::reference);
        if own.key.is_some() && event.key.is_some() {
            self.add(format!("events[{index}].key_from"), "stands beside `key`; give one of them");
        }
        let text = |text: String| (!text.is_empty()).then_some(text);
        let id = text(event.id).and_then(|id| {
            let parsed = Uuid::try_parse(&id).ok();
            if parsed.is_none() {
                self.add(format!("events[{index}].id"), format!("`{id}` is not a UUID"));
            }
            parsed
        });
        let mut moment = |field: &str, moment: Option<Timestamp>| {
            let time = moment.map(time);
            if time == Some(None) {
                self.add(format!("events[{index}].{field}"), "is not a valid timestamp");
            }
            time.flatten()
        };
        let (time, deliver_after) = (moment("time", event.time), moment("deliver_after", event.deliver_after));
        let (data, media_type) = match event.payload {
            None => (None, None),
            Some(v1::new_event::Payload::Data(data)) => (Some(data.into()), Some("application/octet-stream")),
            Some(v1::new_event::Payload::Json(json)) => {
                let template = link::template(json);
                let bytes = template.json.clone().into_bytes();
                own.data = Some(template);
                (Some(bytes), Some("application/json"))
            }
            Some(v1::new_event::Payload::Text(text)) => (Some(text.into_bytes()), Some("application/json")),
        };
        if own != EventLinks::default() {
            links.events.insert(index, own);
        }
        EventDraft {
            id,
            topic: event.topic,
            key: event.key.map(Into::into),
            source: text(event.source),
            event_type: event.r#type,
            subject: text(event.subject),
            data,
            content_type: text(event.content_type).or(media_type.map(Into::into)),
            headers: event.headers.into_iter().collect(),
            time,
            deliver_after,
        }
    }
}

/// A value, with references in it or not; `None` when it is nested too deep.
fn element_of(message: v1::Value, depth: usize) -> Option<Element> {
    match message.kind {
        Some(Kind::Reference(reference)) => Some(Element::Reference(link::reference(reference))),
        Some(Kind::Array(array)) if array.elements.iter().any(refers) => {
            let elements = array.elements.into_iter().map(|element| element_of(element, depth + 1));
            (depth < ARRAY_DEPTH_MAX).then(|| elements.collect::<Option<_>>().map(Element::Array))?
        }
        kind => value_of(v1::Value { kind }, depth).map(Element::Value),
    }
}

/// Whether there is a reference in it. Messages are decoded to a limited depth only.
fn refers(value: &v1::Value) -> bool {
    match &value.kind {
        Some(Kind::Reference(_)) => true,
        Some(Kind::Array(array)) => array.elements.iter().any(refers),
        _ => false,
    }
}

fn value_of(message: v1::Value, depth: usize) -> Option<Value> {
    Some(match message.kind {
        None | Some(Kind::Null(_)) => Value::Null,
        Some(Kind::Bool(v)) => Value::Bool(v),
        Some(Kind::Int(v)) => Value::Int(v),
        Some(Kind::Double(v)) => Value::Double(v),
        Some(Kind::Text(v)) => Value::Text(v),
        Some(Kind::Bytes(v)) => Value::Bytes(v.into()),
        Some(Kind::Numeric(v)) => Value::Numeric(v),
        Some(Kind::Uuid(v)) => Value::Uuid(v),
        Some(Kind::Date(v)) => Value::Date(v),
        Some(Kind::Time(v)) => Value::Time(v),
        Some(Kind::Timestamp(v)) => Value::Timestamp(v),
        Some(Kind::Timestamptz(v)) => Value::Timestamptz(v),
        Some(Kind::Interval(v)) => Value::Interval(v),
        Some(Kind::Json(v)) => Value::Json(v),
        Some(Kind::Reference(_)) => return None,
        Some(Kind::Array(_)) if depth == ARRAY_DEPTH_MAX => return None,
        Some(Kind::Array(array)) => {
            let elements = array.elements.into_iter().map(|element| value_of(element, depth + 1));
            array_from(array.lower_bounds, elements.collect::<Option<_>>()?)
        }
    })
}

fn value(value: Value) -> v1::Value {
    let kind = match value {
        Value::Null => Kind::Null(v1::Null::Unspecified.into()),
        Value::Bool(v) => Kind::Bool(v),
        Value::Int(v) => Kind::Int(v),
        Value::Double(v) => Kind::Double(v),
        Value::Text(v) => Kind::Text(v),
        Value::Bytes(v) => Kind::Bytes(v.into()),
        Value::Numeric(v) => Kind::Numeric(v),
        Value::Uuid(v) => Kind::Uuid(v),
        Value::Date(v) => Kind::Date(v),
        Value::Time(v) => Kind::Time(v),
        Value::Timestamp(v) => Kind::Timestamp(v),
        Value::Timestamptz(v) => Kind::Timestamptz(v),
        Value::Interval(v) => Kind::Interval(v),
        Value::Json(v) => Kind::Json(v),
        Value::Array(elements) => array(Vec::new(), elements),
        Value::ArrayFrom { lower_bounds, elements } => array(lower_bounds, elements),
    };
    v1::Value { kind: Some(kind) }
}

fn array(lower_bounds: Vec<i32>, elements: Vec<Value>) -> Kind {
    Kind::Array(v1::Array { elements: elements.into_iter().map(value).collect(), lower_bounds })
}

/// Bounds that say what goes without saying are none.
fn array_from(lower_bounds: Vec<i32>, elements: Vec<Value>) -> Value {
    if lower_bounds.iter().all(|lower| *lower == 1) {
        Value::Array(elements)
    } else {
        Value::ArrayFrom { lower_bounds, elements }
    }
}

/// A commit's answer.
///
/// # Errors
/// When a stored value does not fit its stored type.
pub(super) fn response(request_id: String, answer: Answer) -> Result<v1::CommitResponse, ValueError> {
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
fn event_id(id: &Uuid) -> String {
    if id.is_nil() { String::new() } else { id.to_string() }
}

/// What one operation did.
///
/// # Errors
/// As [`response`].
pub(super) fn result(result: OperationResult) -> Result<v1::OperationResult, ValueError> {
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
pub(super) fn document(document: Document) -> v1::Document {
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
pub(super) fn command(command: &Command) -> v1::Command {
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
pub(super) fn event(listed: Listed) -> v1::Event {
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
pub(super) fn state(state: EventState) -> v1::EventState {
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
pub(super) fn history_step(step: Step) -> v1::EventStep {
    v1::EventStep {
        state: state(step.state).into(),
        time: Some(timestamp(step.time)),
        place: step.place.map(place),
        reason: step.reason.unwrap_or_default(),
        requested_by: step.requested_by.unwrap_or_default(),
    }
}

/// Where a record is.
pub(super) fn place(delivered: Delivered) -> v1::Place {
    let Delivered { topic, partition, offset, .. } = delivered;
    v1::Place { topic, partition, offset }
}

/// A held event.
pub(super) fn held(held: Held) -> v1::HeldEvent {
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

/// A moment, if it is one that Postgres and RFC 3339 can hold: years 1 to 9999.
pub(super) fn time(timestamp: Timestamp) -> Option<DateTime<Utc>> {
    let nanos = u32::try_from(timestamp.nanos).ok().filter(|nanos| *nanos < 1_000_000_000)?;
    let range = -62_135_596_800..=253_402_300_799;
    range.contains(&timestamp.seconds).then(|| DateTime::from_timestamp(timestamp.seconds, nanos))?
}

pub(super) fn timestamp(time: DateTime<Utc>) -> Timestamp {
    Timestamp { seconds: time.timestamp(), nanos: i32::try_from(time.timestamp_subsec_nanos()).unwrap_or_default() }
}
