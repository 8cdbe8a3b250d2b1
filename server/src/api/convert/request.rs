//! Requests, and every fault of their form.

use std::collections::BTreeMap;

use outbox_proto::v1::{self, operation};
use prost_types::Timestamp;
use uuid::Uuid;

use super::{
    link, time,
    value::{ARRAY_DEPTH_MAX, element_of},
};
use crate::{
    api::call,
    commit::Violation,
    model::{
        commit::{CommandCall, Consume, EventDraft, Operation, Request},
        document::{DocumentCall, Precondition, Verb},
        event::TraceContext,
        link::{Element, EventLinks, Links, OperationLinks},
    },
};

/// A commit's request.
///
/// # Errors
/// Every field that has no meaning in its form.
pub(in crate::api) fn request(
    message: v1::CommitRequest,
    trace: Option<TraceContext>,
) -> Result<Request, Vec<Violation>> {
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
pub(super) fn consume(consume: v1::Consume) -> Result<Consume, Vec<Violation>> {
    let mut faults = Faults::default();
    faults.consume(consume).ok_or(faults.0)
}

/// A query's command.
///
/// # Errors
/// As [`request`].
pub(in crate::api) fn query(command: Option<v1::CommandCall>) -> Result<CommandCall, Vec<Violation>> {
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
        let mut own = OperationLinks { only_if: operation.only_if.map(link::condition), ..OperationLinks::default() };
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
                    let description = format!(
                        "holds arrays nested more than {ARRAY_DEPTH_MAX} deep, or references in one with lower bounds"
                    );
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
        let mut own = EventLinks { only_if: event.only_if.map(link::condition), ..EventLinks::default() };
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
