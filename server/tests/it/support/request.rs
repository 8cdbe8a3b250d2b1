//! Requests, short enough to read in a test.

use outbox_proto::v1::{
    Array, CheckDocument, CommandCall, CommitRequest, DeleteDocument, MergeDocument, NewEvent, Null, Operation,
    Precondition, PutDocument, Value, new_event::Payload, operation, precondition, value::Kind,
};
use uuid::Uuid;

/// A commit with a fresh request id.
pub(crate) fn commit(operations: Vec<Operation>, events: Vec<NewEvent>) -> CommitRequest {
    CommitRequest { request_id: Uuid::now_v7().to_string(), operations, events, ..CommitRequest::default() }
}

pub(crate) fn call<const N: usize>(name: &str, parameters: [(&str, Kind); N]) -> Operation {
    let parameters = parameters.into_iter().map(|(name, kind)| (name.to_owned(), Value { kind: Some(kind) })).collect();
    Operation {
        kind: Some(operation::Kind::Command(CommandCall { name: name.into(), parameters })),
        ..Operation::default()
    }
}

pub(crate) fn add(id: &str, amount: i64) -> Operation {
    call("add", [("id", text(id)), ("amount", Kind::Int(amount))])
}

pub(crate) fn put(id: &str, json: &str, precondition: Option<precondition::Kind>) -> Operation {
    let (collection, id, json) = ("carts".into(), id.into(), json.into());
    let precondition = precondition.map(|kind| Precondition { kind: Some(kind) });
    Operation {
        kind: Some(operation::Kind::PutDocument(PutDocument {
            collection,
            id,
            json,
            precondition,
            ..PutDocument::default()
        })),
        ..Operation::default()
    }
}

pub(crate) fn merge(id: &str, patch: &str, precondition: Option<precondition::Kind>) -> Operation {
    let (collection, id, patch) = ("carts".into(), id.into(), patch.into());
    let precondition = precondition.map(|kind| Precondition { kind: Some(kind) });
    Operation {
        kind: Some(operation::Kind::MergeDocument(MergeDocument {
            collection,
            id,
            patch,
            precondition,
            ..MergeDocument::default()
        })),
        ..Operation::default()
    }
}

pub(crate) fn delete(id: &str, precondition: Option<precondition::Kind>) -> Operation {
    let (collection, id) = ("carts".into(), id.into());
    let precondition = precondition.map(|kind| Precondition { kind: Some(kind) });
    Operation {
        kind: Some(operation::Kind::DeleteDocument(DeleteDocument { collection, id, precondition })),
        ..Operation::default()
    }
}

pub(crate) fn check(id: &str, precondition: precondition::Kind) -> Operation {
    let (collection, id) = ("carts".into(), id.into());
    let precondition = Some(Precondition { kind: Some(precondition) });
    Operation {
        kind: Some(operation::Kind::CheckDocument(CheckDocument { collection, id, precondition })),
        ..Operation::default()
    }
}

pub(crate) fn event(topic: &str, key: &str) -> NewEvent {
    NewEvent {
        topic: topic.into(),
        key: Some(key.as_bytes().to_vec().into()),
        r#type: "test.happened".into(),
        payload: Some(Payload::Text("{}".into())),
        ..NewEvent::default()
    }
}

pub(crate) fn text(text: &str) -> Kind {
    Kind::Text(text.into())
}

pub(crate) fn null() -> Kind {
    Kind::Null(Null::Unspecified.into())
}

pub(crate) fn array(kinds: impl IntoIterator<Item = Kind>) -> Kind {
    Kind::Array(Array {
        elements: kinds.into_iter().map(|kind| Value { kind: Some(kind) }).collect(),
        ..Array::default()
    })
}
