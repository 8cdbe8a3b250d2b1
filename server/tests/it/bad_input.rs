//! Bad input: each a typed error that names the field, and nothing written.

use outbox_proto::v1::{
    CommitRequest, GetCommitRequest, GetEventRequest, ListEventsRequest, NewEvent, Operation, new_event::Payload,
    outbox_service_server, value::Kind,
};
use tonic::{Code, Status};
use uuid::Uuid;

use crate::support::{
    request::{add, call, commit, event, text},
    server::{Server, fault, fields},
};

async fn refused(server: &Server, request: CommitRequest) -> Status {
    let refused = server.outbox().commit(request).await.expect_err("the request is refused");
    assert_eq!(server.written().await, (0, 0), "something was written in spite of {refused:?}");
    refused
}

#[tokio::test]
async fn a_wrong_operation_is_named() {
    let server = Server::start().await;
    let set_note = |parameters| vec![call("set_note", parameters)];
    let cases: Vec<(&str, Vec<Operation>, Code, &str)> = vec![
        ("unknown command", vec![call("ad", [])], Code::NotFound, "UNKNOWN_COMMAND"),
        ("empty operation", vec![Operation::default()], Code::InvalidArgument, "INVALID_REQUEST"),
        ("missing parameter", vec![call("add", [("id", text("a1"))])], Code::InvalidArgument, "INVALID_REQUEST"),
        (
            "unknown parameter",
            set_note([("id", text("a1")), ("notes", text("x"))]),
            Code::InvalidArgument,
            "INVALID_REQUEST",
        ),
        (
            "wrong type",
            vec![call("add", [("id", text("a1")), ("amount", Kind::Bool(true))])],
            Code::InvalidArgument,
            "INVALID_REQUEST",
        ),
        (
            "bad UUID",
            vec![call("transfer", [("id", Kind::Uuid("no".into())), ("account", text("a1"))])],
            Code::InvalidArgument,
            "INVALID_REQUEST",
        ),
        (
            "NUL in text",
            set_note([("id", text("a1")), ("note", text("a\0b"))]),
            Code::InvalidArgument,
            "INVALID_REQUEST",
        ),
        ("no row", vec![add("nobody", 1)], Code::FailedPrecondition, "ROW_COUNT_MISMATCH"),
        ("check", vec![add("a1", -101)], Code::FailedPrecondition, "CHECK_VIOLATION"),
        (
            "foreign key",
            vec![call("transfer", [("id", Kind::Uuid(Uuid::now_v7().to_string())), ("account", text("nobody"))])],
            Code::FailedPrecondition,
            "FOREIGN_KEY_VIOLATION",
        ),
        (
            "unique",
            vec![call("open", [("id", text("a1")), ("balance", Kind::Int(1))])],
            Code::AlreadyExists,
            "UNIQUE_VIOLATION",
        ),
        ("division by zero", vec![call("scale", [("divisor", Kind::Int(0))])], Code::InvalidArgument, "INVALID_VALUE"),
    ];
    for (what, operations, code, reason) in cases {
        for before in [vec![], vec![add("a7", 1)]] {
            let index = before.len();
            let operations = before.into_iter().chain(operations.clone()).collect();
            let status = refused(&server, commit(operations, vec![event("t", "k")])).await;
            let (got, got_reason, metadata) = fault(&status);
            assert_eq!((got, got_reason.as_str()), (code, reason), "{what}: {status:?}");
            let field = metadata.get("field").cloned().or_else(|| fields(&status).first().cloned());
            let field = field.unwrap_or_else(|| panic!("{what}: no field in {status:?}"));
            assert!(field.starts_with(&format!("operations[{index}]")), "{what}: {field}");
        }
    }
    assert_eq!(server.number("select sum(balance)::bigint from accounts").await, 200 * 100);
}

#[tokio::test]
async fn the_databases_own_words_are_not_told() {
    let server = Server::start().await;
    let status = refused(&server, commit(vec![add("a1", -101)], vec![])).await;
    assert!(!status.message().contains("Failing row"), "{status:?}");
    assert_eq!(fault(&status).2["constraint"], "accounts_balance_check");
}

#[tokio::test]
async fn a_wrong_event_is_named() {
    let server = Server::start().await;
    let good = event("t", "k");
    let cases = [
        ("topic", NewEvent { topic: String::new(), ..good.clone() }),
        ("topic", NewEvent { topic: "white space".into(), ..good.clone() }),
        ("topic", NewEvent { topic: "x".repeat(250), ..good.clone() }),
        ("type", NewEvent { r#type: String::new(), ..good.clone() }),
        ("subject", NewEvent { subject: "a\0b".into(), ..good.clone() }),
        ("id", NewEvent { id: "no uuid".into(), ..good.clone() }),
        ("id", NewEvent { id: "7f2c1f5e-3c1d-4e5a-9b77-0123456789ab".into(), ..good.clone() }),
        ("id", NewEvent { id: "01800000-0000-7000-8000-000000000000".into(), ..good.clone() }),
        ("data", NewEvent { payload: Some(Payload::Data(vec![0; 921_601].into())), ..good.clone() }),
        ("headers[ce_id]", NewEvent { headers: [("ce_id".to_owned(), "x".to_owned())].into(), ..good.clone() }),
        ("time", NewEvent { time: Some(prost_types::Timestamp { seconds: i64::MAX, nanos: 0 }), ..good.clone() }),
    ];
    for (field, wrong) in cases {
        let status = refused(&server, commit(vec![add("a1", 1)], vec![good.clone(), wrong])).await;
        assert_eq!((fault(&status).0, fault(&status).1.as_str()), (Code::InvalidArgument, "INVALID_REQUEST"));
        assert_eq!(fields(&status), [format!("events[1].{field}")], "{status:?}");
    }
    assert_eq!(server.balance("a1").await, 100);
}

#[tokio::test]
async fn a_request_beyond_a_limit_is_named() {
    let server = Server::start().await;
    let many_events = commit(vec![], vec![event("t", "k"); 10_001]);
    let many_operations = commit(vec![add("a1", 1); 101], vec![]);
    let cases = [
        ("events", many_events),
        ("operations", many_operations),
        ("operations", commit(vec![], vec![])),
        ("request_id", CommitRequest { request_id: String::new(), ..commit(vec![add("a1", 1)], vec![]) }),
        ("request_id", CommitRequest { request_id: "é".repeat(129), ..commit(vec![add("a1", 1)], vec![]) }),
        ("request_id", CommitRequest { request_id: "a\0".into(), ..commit(vec![add("a1", 1)], vec![]) }),
        ("namespace", CommitRequest { namespace: "n".repeat(65), ..commit(vec![add("a1", 1)], vec![]) }),
    ];
    for (field, request) in cases {
        let status = refused(&server, request).await;
        assert_eq!(fields(&status), [field], "{status:?}");
    }
    let most = CommitRequest { request_id: "é".repeat(128), ..commit(vec![], vec![event("t", "k"); 10_000]) };
    server.outbox().commit(most).await.expect("a request at the limits is applied");
}

#[tokio::test]
async fn an_operation_may_not_return_too_many_rows() {
    let server = Server::start_with(|config| config.commit.result_rows_max = 199).await;
    for operations in [vec![call("list", [])], vec![call("list", []), call("list", [])]] {
        let (code, reason, metadata) = fault(&refused(&server, commit(operations, vec![])).await);
        assert_eq!((code, reason.as_str()), (Code::FailedPrecondition, "TOO_MANY_ROWS"));
        assert_eq!(metadata["max"], "199");
    }
}

#[tokio::test]
async fn an_event_id_is_used_once() {
    let server = Server::start().await;
    let known = NewEvent { id: Uuid::now_v7().to_string(), ..event("t", "k") };
    server.outbox().commit(commit(vec![], vec![known.clone()])).await.expect("it is applied");
    let again = server.outbox().commit(commit(vec![add("a1", 1)], vec![known])).await.expect_err("it is refused");
    assert_eq!((fault(&again).0, fault(&again).1.as_str()), (Code::AlreadyExists, "EVENT_ID_EXISTS"));
    assert_eq!((server.balance("a1").await, server.written().await), (100, (1, 1)));
}

#[tokio::test]
async fn what_cannot_be_decoded_gets_a_typed_error() {
    let server = Server::start().await;
    // Field 2, `request_id`, of two bytes that are not UTF-8; then no protobuf at all.
    for (bytes, told) in [(&[0x12, 2, 0xff, 0xfe][..], "request_id"), (&[0xff; 8][..], "")] {
        let status = raw(&server, bytes.to_vec()).await;
        let (code, reason, _) = fault(&status);
        assert_eq!((code, reason.as_str()), (Code::InvalidArgument, "MALFORMED_REQUEST"));
        assert!(status.message().contains(told), "{status:?}");
    }
    let status = raw(&server, vec![0; (16 << 20) + 1]).await;
    assert_eq!((fault(&status).0, fault(&status).1.as_str()), (Code::ResourceExhausted, "REQUEST_TOO_LARGE"));
}

/// Calls Commit with these bytes for a message.
async fn raw(server: &Server, bytes: Vec<u8>) -> Status {
    let mut client = tonic::client::Grpc::new(server.channel.clone());
    client.ready().await.expect("the server is up");
    let path = format!("/{}/Commit", outbox_service_server::SERVICE_NAME);
    let path = path.parse().expect("a path");
    client.unary(tonic::Request::new(bytes), path, Raw).await.expect_err("it cannot be decoded")
}

/// Sends bytes as they are.
#[derive(Clone, Copy)]
struct Raw;

impl tonic::codec::Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = ();
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl tonic::codec::Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, to: &mut tonic::codec::EncodeBuf<'_>) -> Result<(), Status> {
        bytes::BufMut::put_slice(to, &item);
        Ok(())
    }
}

impl tonic::codec::Decoder for Raw {
    type Item = ();
    type Error = Status;

    fn decode(&mut self, _: &mut tonic::codec::DecodeBuf<'_>) -> Result<Option<()>, Status> {
        Ok(None)
    }
}

#[tokio::test]
async fn reads_name_what_is_wrong_or_missing() {
    let server = Server::start().await;
    let get = |id: &str| GetEventRequest { namespace: String::new(), id: id.into() };
    let wrong = server.events().get_event(get("no")).await.expect_err("no UUID");
    assert_eq!(fields(&wrong), ["id"]);
    let missing = server.events().get_event(get(&Uuid::now_v7().to_string())).await.expect_err("no event");
    assert_eq!((fault(&missing).0, fault(&missing).1.as_str()), (Code::NotFound, "EVENT_NOT_FOUND"));
    let get = GetCommitRequest { namespace: String::new(), request_id: "never".into() };
    let missing = server.outbox().get_commit(get).await.expect_err("no commit");
    assert_eq!((fault(&missing).0, fault(&missing).1.as_str()), (Code::NotFound, "COMMIT_NOT_FOUND"));
    let list = ListEventsRequest { page_size: 1_001, page_token: "junk".into(), ..ListEventsRequest::default() };
    let wrong = server.events().list_events(list).await.expect_err("a wrong list");
    assert_eq!(fields(&wrong), ["page_size", "page_token"]);
}
