//! What makes two requests the same, and what does not.

use super::*;
use crate::model::event::TraceContext;

fn request() -> Request {
    let parameters = [("id".to_owned(), Value::Int(7))].into();
    Request {
        request_id: "r".into(),
        operations: vec![Operation::Command(CommandCall { name: "activate".into(), parameters })],
        events: vec![EventDraft { topic: "users".into(), event_type: "t".into(), ..EventDraft::default() }],
        ..Request::default()
    }
}

fn call(request: &mut Request) -> &mut CommandCall {
    match &mut request.operations[0] {
        Operation::Command(call) => call,
        Operation::Document(_) => panic!("a command"),
    }
}

fn document(verb: Verb, precondition: Option<Precondition>) -> Operation {
    Operation::Document(DocumentCall { collection: "c".into(), id: "i".into(), verb, precondition })
}

fn reference() -> Reference {
    Reference { operation: 0, column: "id".into(), row: 0 }
}

fn of_array(element: Element) -> OperationLinks {
    OperationLinks { arrays: [("a".to_owned(), vec![element])].into(), ..OperationLinks::default() }
}

fn of_document(json: &str) -> OperationLinks {
    let document = Some(Template { json: json.into(), ..Template::default() });
    OperationLinks { document, ..OperationLinks::default() }
}

fn consume() -> Consume {
    let event_time = chrono::DateTime::UNIX_EPOCH;
    Consume { consumer: "c".into(), source: "s".into(), event_id: uuid::Uuid::nil(), event_time }
}

#[test]
fn every_part_of_a_request_counts() {
    let change = |change: fn(&mut Request)| {
        let mut changed = request();
        change(&mut changed);
        of(&changed)
    };
    let prints = [
        of(&request()),
        change(|r| call(r).name.push('x')),
        change(|r| drop(call(r).parameters.insert("id".into(), Value::Text("7".into())))),
        change(|r| drop(call(r).parameters.insert("id".into(), Value::Int(8)))),
        change(|r| drop(call(r).parameters.insert("id2".into(), Value::Null))),
        change(|r| r.operations = vec![document(Verb::Check, Some(Precondition::Exists(true)))]),
        change(|r| r.operations = vec![document(Verb::Check, Some(Precondition::Exists(false)))]),
        change(|r| r.operations = vec![document(Verb::Check, Some(Precondition::Version(1)))]),
        change(|r| r.operations = vec![document(Verb::Delete, None)]),
        change(|r| r.operations = vec![document(Verb::Put("1".into()), None)]),
        change(|r| r.operations = vec![document(Verb::Merge("1".into()), None)]),
        change(|r| r.operations.clear()),
        change(|r| r.events.clear()),
        change(|r| r.events[0].key = Some(vec![])),
        change(|r| r.events[0].data = Some(vec![])),
        change(|r| r.events[0].subject = Some(String::new())),
        change(|r| r.events[0].topic.push('x')),
        change(|r| drop(r.links.operations.insert(0, OperationLinks::default()))),
        change(|r| drop(r.links.operations.insert(0, of_array(Element::Value(Value::Int(1)))))),
        change(|r| drop(r.links.operations.insert(0, of_array(Element::Reference(reference()))))),
        change(|r| drop(r.links.operations.insert(0, of_document("1")))),
        change(|r| drop(r.links.operations.insert(0, of_document("2")))),
        change(|r| drop(r.links.events.insert(0, EventLinks::default()))),
        change(|r| drop(r.links.events.insert(0, EventLinks { key: Some(reference()), ..EventLinks::default() }))),
        change(|r| r.consume = Some(consume())),
        change(|r| r.consume = Some(Consume { consumer: "d".into(), ..consume() })),
        change(|r| r.consume = Some(Consume { event_id: uuid::Uuid::max(), ..consume() })),
        change(|r| drop(r.events[0].headers.insert("a".into(), "b".into()))),
        change(|r| r.events[0].deliver_after = Some(chrono::DateTime::UNIX_EPOCH)),
        change(|r| r.events[0].deliver_after = Some(chrono::DateTime::<chrono::Utc>::MAX_UTC)),
    ];
    let distinct: std::collections::HashSet<_> = prints.iter().collect();
    assert_eq!(distinct.len(), prints.len());
}

#[test]
fn the_trace_does_not_count() {
    let traced = Request { trace: Some(TraceContext { parent: "p".into(), state: None }), ..request() };
    assert_eq!(of(&traced), of(&request()));
}
