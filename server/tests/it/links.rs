//! References and conditions: what later parts of a commit take from the results of its operations.

use outbox_proto::v1::{
    CommitResponse, Condition, Disposition, GetCommitRequest, GetDocumentRequest, GetEventRequest, JsonTemplate,
    NewEvent, Operation, Reference, Run, new_event::Payload, operation, transact_request::Step as Message, value::Kind,
};
use tonic::{Code, Status};

use crate::support::{
    request::{add, array, call, commit, event, merge, null, put, text},
    server::{Server, fault, fields},
    transaction::{Transaction, begin},
};

/// What a commit carries.
type Content = (Vec<Operation>, Vec<NewEvent>);

fn reference(operation: u32, column: &str) -> Reference {
    Reference { operation, column: column.into(), row: 0 }
}

fn from(operation: u32, column: &str) -> Kind {
    Kind::Reference(reference(operation, column))
}

fn note(id: Kind, note: Kind) -> Operation {
    call("set_note", [("id", id), ("note", note)])
}

/// One that changes a row if the account is there, and expects nothing.
fn touch(id: &str) -> Operation {
    call("slow_add", [("id", text(id)), ("seconds", Kind::Double(0.0))])
}

fn only_if(operation: u32, rows: Option<(i64, i64)>, then: Operation) -> Operation {
    Operation { only_if: Some(condition(operation, rows)), ..then }
}

fn condition(operation: u32, rows: Option<(i64, i64)>) -> Condition {
    Condition { operation, rows_min: rows.map(|rows| rows.0), rows_max: rows.map(|rows| rows.1) }
}

fn built<const N: usize>(template: &str, values: [(&str, Reference); N]) -> NewEvent {
    let values = values.into_iter().map(|(pointer, reference)| (pointer.to_owned(), reference)).collect();
    let payload = Some(Payload::Json(JsonTemplate { template: template.into(), values }));
    NewEvent { payload, key: None, ..event("t", "") }
}

async fn apply(server: &Server, operations: Vec<Operation>, events: Vec<NewEvent>) -> Result<CommitResponse, Status> {
    server.outbox().commit(commit(operations, events)).await.map(tonic::Response::into_inner)
}

async fn stored(server: &Server, id: &str) -> outbox_proto::v1::Event {
    let get = GetEventRequest { namespace: String::new(), id: id.into() };
    server.events().get_event(get).await.expect("it is stored").into_inner().event.expect("an event")
}

#[tokio::test]
async fn parameters_keys_and_payloads_are_taken_from_earlier_results() {
    let server = Server::start().await;
    let operations = vec![add("a1", 5), note(from(0, "id"), from(0, "balance"))];
    let template = r#"{"id": "?", "exact": 12345678901234567890.50, "of": {"balance": null, "notes": [0, 1]}}"#;
    let event = NewEvent {
        key_from: Some(reference(0, "id")),
        ..built(
            template,
            [
                ("/id", reference(0, "id")),
                ("/of/balance", reference(0, "balance")),
                ("/of/notes/1", reference(1, "note")),
            ],
        )
    };
    let request = commit(operations, vec![event]);
    let answer = server.outbox().commit(request.clone()).await.expect("it is applied").into_inner();
    assert_eq!(answer.results[1].rows[0].values[0].kind, Some(text("105")));
    let event = stored(&server, &answer.event_ids[0]).await;
    let expected = r#"{"id": "a1", "exact": 12345678901234567890.50, "of": {"balance": 105, "notes": [0, "105"]}}"#;
    assert_eq!(event.data.as_deref().map(String::from_utf8_lossy), Some(expected.into()));
    assert_eq!((event.key.as_deref(), event.content_type.as_str()), (Some(b"a1".as_slice()), "application/json"));

    let again = server.outbox().commit(request).await.expect("it is answered").into_inner();
    assert_eq!(again, CommitResponse { disposition: Disposition::Replayed.into(), ..answer });
}

#[tokio::test]
async fn nothing_in_a_value_is_taken_for_anything_else() {
    let server = Server::start().await;
    for hostile in
        ["'); drop table accounts; --", r#"","admin":true,"x":""#, "{\"/a\": 1}\\", "$1", ":id", "\u{2028}é🦀"]
    {
        let operations = vec![note(text("a1"), text(hostile)), note(text("a2"), from(0, "note"))];
        let event = built(r#"{"a": "/a", "b": {"operation": 0, "column": "note"}}"#, [("/a", reference(1, "note"))]);
        let answer = apply(&server, operations, vec![event]).await.expect("it is applied");
        assert_eq!(answer.results[1].rows[0].values[0].kind, Some(text(hostile)));
        let data = stored(&server, &answer.event_ids[0]).await.data.expect("a payload");
        let json: serde_json::Value = serde_json::from_slice(&data).expect("JSON");
        assert_eq!(json, serde_json::json!({"a": hostile, "b": {"operation": 0, "column": "note"}}));
    }
    assert_eq!(server.number("select count(*) from accounts").await, 200);
}

#[tokio::test]
async fn what_has_a_condition_that_does_not_hold_is_skipped() {
    let server = Server::start().await;
    for (account, present) in [("a9", true), ("nobody", false)] {
        let before = (server.balance("a1").await, server.balance("a2").await, server.written().await.1);
        let operations = vec![
            touch(account),
            only_if(0, None, add("a1", 1)),
            only_if(0, Some((0, 0)), add("a2", 1)),
            // Its row expectation counts only if it runs.
            only_if(1, None, add("a3", 1)),
            only_if(1, Some((1, i64::MAX)), put("c1", "1", None)),
        ];
        let events = vec![
            NewEvent { only_if: Some(condition(0, None)), ..event("t", "k") },
            NewEvent { only_if: Some(condition(0, Some((0, 0)))), ..event("t", "k") },
            event("t", "k"),
        ];
        let request = commit(operations, events);
        let answer = server.outbox().commit(request.clone()).await.expect("it is applied").into_inner();

        let skipped: Vec<_> = answer.results.iter().map(|result| result.skipped).collect();
        assert_eq!(skipped, [false, !present, present, !present, !present]);
        let stored: Vec<_> = answer.event_ids.iter().map(|id| !id.is_empty()).collect();
        assert_eq!(stored, [present, !present, true]);
        let after = (server.balance("a1").await, server.balance("a2").await, server.written().await.1);
        assert_eq!(after, (before.0 + i64::from(present), before.1 + i64::from(!present), before.2 + 2));

        let replayed = CommitResponse { disposition: Disposition::Replayed.into(), ..answer };
        let get = GetCommitRequest { namespace: String::new(), request_id: request.request_id.clone() };
        let got = server.outbox().get_commit(get).await.expect("it is remembered").into_inner().commit;
        assert_eq!(got.as_ref(), Some(&replayed));
        assert_eq!(server.outbox().commit(request).await.expect("it is answered").into_inner(), replayed);
    }
}

#[tokio::test]
async fn a_wrong_link_is_named_before_anything_runs() {
    let server = Server::start().await;
    let own = |operation: Operation| vec![add("a1", 1), operation];
    let with = |event: NewEvent| (vec![add("a1", 1)], vec![event]);
    let far = Reference { row: 1, ..reference(0, "id") };
    let cases: Vec<(&str, Content)> = vec![
        ("operations[1].command.parameters[note]", (own(note(text("a1"), from(1, "note"))), vec![])),
        ("operations[1].command.parameters[note]", (own(note(text("a1"), from(7, "note"))), vec![])),
        ("operations[1].command.parameters[note]", (own(note(text("a1"), from(0, "nothing"))), vec![])),
        ("operations[1].command.parameters[note]", (own(note(text("a1"), Kind::Reference(far))), vec![])),
        (
            "operations[1].command.parameters[divisor]",
            (vec![call("types", TYPES), call("scale", [("divisor", from(0, "bool"))])], vec![]),
        ),
        (
            "operations[1].command.parameters[other]",
            (own(call("scale", [("divisor", Kind::Int(1)), ("other", from(0, "id"))])), vec![]),
        ),
        ("operations[0].only_if", (vec![only_if(0, None, add("a1", 1))], vec![])),
        ("operations[1].only_if", (own(only_if(0, Some((2, 1)), add("a1", 1))), vec![])),
        ("events[0].only_if", with(NewEvent { only_if: Some(condition(1, None)), ..event("t", "k") })),
        ("events[0].key_from", with(NewEvent { key_from: Some(reference(0, "nothing")), ..built("1", []) })),
        ("events[0].key_from", with(NewEvent { key_from: Some(reference(0, "id")), ..event("t", "k") })),
        ("events[0].json.template", with(built("{", []))),
        ("events[0].json.values[/b]", with(built(r#"{"a": 1}"#, [("/b", reference(0, "id"))]))),
        ("events[0].json.values[/a]", with(built(r#"{"a": 1}"#, [("/a", reference(0, "nothing"))]))),
        (
            "events[0].json.values[/a/b]",
            with(built(r#"{"a": {"b": 1}}"#, [("/a", reference(0, "id")), ("/a/b", reference(0, "id"))])),
        ),
    ];
    for (field, (operations, events)) in cases {
        let refused = apply(&server, operations, events).await.expect_err("it is refused");
        assert_eq!(fields(&refused), [field], "{refused:?}");
    }
    assert_eq!((server.balance("a1").await, server.written().await), (100, (0, 0)));
}

/// Values of the `types` command, of which only the first is looked at.
const TYPES: [(&str, Kind); 20] = [
    ("bool", Kind::Bool(true)),
    ("int2", NULL),
    ("int4", NULL),
    ("int8", NULL),
    ("float4", NULL),
    ("float8", NULL),
    ("numeric", NULL),
    ("text", NULL),
    ("bytea", NULL),
    ("uuid", NULL),
    ("date", NULL),
    ("time", NULL),
    ("timestamp", NULL),
    ("timestamptz", NULL),
    ("interval", NULL),
    ("jsonb", NULL),
    ("mood", NULL),
    ("ints", NULL),
    ("texts", NULL),
    ("moods", NULL),
];
const NULL: Kind = Kind::Null(0);

#[tokio::test]
async fn a_link_that_a_result_breaks_refuses_the_whole_commit() {
    let server = Server::start_with(|config| config.commit.event_bytes_max = 100).await;
    let row = |row| Kind::Reference(Reference { row, ..reference(0, "id") });
    let long = "x".repeat(90);
    let cases = [
        ("operations[1].command.parameters[note]", vec![call("list", []), note(text("a1"), row(200))], vec![]),
        (
            "operations[2].command.parameters[note]",
            vec![touch("nobody"), only_if(0, None, add("a1", 1)), note(text("a1"), from(1, "balance"))],
            vec![],
        ),
        (
            "operations[1].command.parameters[divisor]",
            vec![note(text("a1"), text("no number")), call("scale", [("divisor", from(0, "note"))])],
            vec![],
        ),
        (
            "events[0].data",
            vec![note(text("a1"), text(&long))],
            vec![built("[1, 2]", [("/0", reference(0, "note")), ("/1", reference(0, "note"))])],
        ),
    ];
    for (field, operations, events) in cases {
        let refused = apply(&server, operations, events).await.expect_err("it is refused");
        let (code, reason, metadata) = fault(&refused);
        assert_eq!(
            (code, reason.as_str(), metadata["field"].as_str()),
            (Code::FailedPrecondition, "REFERENCE_FAILED", field,)
        );
    }
    assert_eq!((server.balance("a1").await, server.written().await), (100, (0, 0)));
    assert_eq!(server.number("select count(*) from accounts where note is not null").await, 0);
}

/// A change to a document with values out of earlier results in its JSON.
fn with_values<const N: usize>(mut change: Operation, values: [(&str, Reference); N]) -> Operation {
    let values = values.into_iter().map(|(pointer, reference)| (pointer.to_owned(), reference)).collect();
    match &mut change.kind {
        Some(operation::Kind::PutDocument(put)) => put.values = values,
        Some(operation::Kind::MergeDocument(merge)) => merge.values = values,
        other => panic!("it has no JSON: {other:?}"),
    }
    change
}

/// The `types` command with this array as one of its parameters.
fn types_with<const N: usize>(name: &str, elements: [Kind; N]) -> Operation {
    let elements = array(elements);
    call("types", TYPES.map(|(known, kind)| (known, if known == name { elements.clone() } else { kind })))
}

#[tokio::test]
async fn documents_and_arrays_take_values_from_earlier_results() {
    let server = Server::start().await;
    let cart = with_values(
        put("cart", r#"{"owner": null, "lines": [1, 2], "note": "/owner"}"#, None),
        [("/owner", reference(0, "id")), ("/lines/1", reference(0, "balance"))],
    );
    let patch = with_values(merge("cart", r#"{"version": 0}"#, None), [("/version", reference(1, "version"))]);
    let operations = vec![
        add("a1", 5),
        cart,
        patch,
        types_with("ints", [Kind::Int(1), from(0, "balance"), null()]),
        types_with("texts", [array([text("x")]), array([from(0, "id")])]),
    ];
    let request = commit(operations, vec![]);

    let answer = server.outbox().commit(request.clone()).await.expect("it is applied").into_inner();

    let get = GetDocumentRequest { collection: "carts".into(), id: "cart".into(), ..GetDocumentRequest::default() };
    let document = server.state().get_document(get).await.expect("it is stored").into_inner().document;
    let json: serde_json::Value = serde_json::from_str(&document.expect("a document").json).expect("it is JSON");
    let version = answer.results[1].rows[0].values[0].kind.clone();
    let Some(Kind::Int(version)) = version else { panic!("a version: {version:?}") };
    let expected = serde_json::json!({"owner": "a1", "lines": [1, 105], "note": "/owner", "version": version});
    assert_eq!(json, expected);
    assert_eq!(answer.results[3].rows[0].values[17].kind, Some(array([Kind::Int(1), Kind::Int(105), null()])));
    let nested = array([array([text("x")]), array([text("a1")])]);
    assert_eq!(answer.results[4].rows[0].values[18].kind, Some(nested));

    let again = server.outbox().commit(request.clone()).await.expect("it is answered").into_inner();
    assert_eq!(again.disposition(), Disposition::Replayed);
    let mut other = request;
    other.operations[3] = types_with("ints", [Kind::Int(2), from(0, "balance"), null()]);
    let reused = server.outbox().commit(other).await.expect_err("it is another request");
    assert_eq!(fault(&reused).1, "REQUEST_ID_REUSED");
}

#[tokio::test]
async fn what_documents_and_arrays_refer_to_must_be_there_and_fit() {
    let server = Server::start().await;
    let of = |change| vec![add("a1", 1), change];
    let cart = |values| with_values(put("cart", r#"{"a": 1}"#, None), values);
    for (field, operations) in [
        ("operations[1].put_document.values[/b]", of(cart([("/b", reference(0, "id"))]))),
        ("operations[1].put_document.values[/a]", of(cart([("/a", reference(1, "version"))]))),
        ("operations[1].command.parameters[ints]", of(types_with("ints", [from(0, "nothing")]))),
        ("operations[1].command.parameters[id]", of(call("balance", [("id", array([from(0, "id")]))]))),
    ] {
        let refused = apply(&server, operations, vec![]).await.expect_err("it is refused");
        assert_eq!(fields(&refused), [field], "{refused:?}");
    }
    let wrong = of(types_with("ints", [from(0, "id")]));
    let refused = apply(&server, wrong, vec![]).await.expect_err("`a1` is no number");
    assert_eq!(fault(&refused).1, "REFERENCE_FAILED");
    assert_eq!(fault(&refused).2["field"], "operations[1].command.parameters[ints]");
    assert_eq!((server.balance("a1").await, server.written().await), (100, (0, 0)));
}

#[tokio::test]
async fn where_there_are_no_earlier_operations_references_have_no_place() {
    let server = Server::start().await;
    let operation::Kind::Command(command) = call("balance", [("id", from(0, "id"))]).kind.expect("a kind") else {
        panic!("no command")
    };
    let query = outbox_proto::v1::QueryRequest { namespace: String::new(), command: Some(command) };
    let refused = server.state().query(query).await.expect_err("it is refused");
    assert_eq!(fields(&refused)[0], "command.parameters[id]");
    let mut transaction = Transaction::open(&server, begin()).await;
    let operations = vec![add("a1", 1), only_if(0, None, add("a1", 1))];
    let refused = transaction.step(Message::Run(Run { operations, events: vec![] })).await.expect_err("it is refused");
    assert_eq!(fields(&refused), ["step"]);
    assert_eq!(server.balance("a1").await, 100);
}
