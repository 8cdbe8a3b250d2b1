//! The operator's own RPCs: each one a commit, with its request id, events, conditions, limits and errors.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    time::Duration,
};

use futures_util::future::join_all;
use outbox_proto::v1::{Event, GetCommitRequest, GetEventRequest, ListEventsRequest};
use prost_reflect::DynamicMessage;
use serde_json::{Value, json};
use tonic::{Code, Request, Response};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};
use tower::{Service as _, ServiceExt as _};
use uuid::Uuid;

use crate::support::{
    server::{Server, fault, fields},
    typed::{self, Caller},
};

const BANK: &str = r#"
    syntax = "proto3";
    package test.v1;
    import "google/protobuf/empty.proto";
    import "google/protobuf/wrappers.proto";
    import "outbox/v1/options.proto";

    service Bank {
      rpc Add(AddRequest) returns (Account) {
        option (outbox.v1.rpc) = {
          operations { command: "add" }
          events { topic: "accounts" type: "test.added" key { field: "id" } subject { field: "id" } }
        };
      }
      // The same with everything said, and another name for everything.
      rpc Pay(PayRequest) returns (PayResponse) {
        option (outbox.v1.rpc) = {
          request_id_field: "meta.request_id"
          namespace_field: "meta.tenant"
          operations {
            command: "add"
            parameters { to: "id" from { field: "payment.account" } }
            parameters { to: "amount" from { field: "payment.cents" } }
          }
          operations {
            command: "set_note"
            parameters { to: "id" from { column: "id" operation: 0 } }
            parameters { to: "note" from { text: "paid" } }
          }
          events {
            topic: "payments" type: "test.paid" source: "urn:bank"
            key { column: "id" }
            json {
              members { to: "account.id" from { column: "id" } }
              members { to: "account.balance" from { column: "balance" } }
              members { to: "cents" from { field: "payment.cents" } }
              members { to: "kind" from { text: "payment" } }
            }
          }
          events { topic: "payments" type: "test.closed" key { field: "payment.account" } tombstone {} }
          events { topic: "payments" type: "test.raw" request: REQUEST_PAYLOAD_PROTOBUF }
          response { to: "account.id" from { column: "id" } }
          response { to: "account.balance" from { column: "balance" } }
          response { to: "cents" from { field: "payment.cents" } }
          response { to: "state" from { text: "done" } }
          response { to: "note" from { column: "note" operation: 1 } }
        };
      }
      // Notes an account only if the search for it finds something.
      rpc NoteIfThere(NoteRequest) returns (google.protobuf.Empty) {
        option (outbox.v1.rpc) = {
          operations { command: "find" }
          operations { command: "set_note" only_if { operation: 0 } }
          events { topic: "notes" type: "test.noted" row: 1 only_if { operation: 1 } }
          events { topic: "notes" type: "test.missed" only_if { operation: 0 rows_min: 0 rows_max: 0 } }
        };
      }
      rpc Slow(SlowRequest) returns (google.protobuf.Empty) {
        option (outbox.v1.rpc) = { operations { command: "slow_add" } };
      }
      rpc Balance(BalanceRequest) returns (BalanceResponse) {
        option idempotency_level = NO_SIDE_EFFECTS;
        option (outbox.v1.rpc).operations = { command: "balance" };
      }
      rpc List(google.protobuf.Empty) returns (ListResponse) {
        option idempotency_level = NO_SIDE_EFFECTS;
        option (outbox.v1.rpc) = { operations { command: "list" into: "accounts" } };
      }
      rpc Find(BalanceRequest) returns (FindResponse) {
        option idempotency_level = NO_SIDE_EFFECTS;
        option (outbox.v1.rpc) = { operations { command: "find" into: "account" } };
      }
      rpc NotDeclared(google.protobuf.Empty) returns (google.protobuf.Empty);
    }
    service Elsewhere { rpc Other(google.protobuf.Empty) returns (google.protobuf.Empty); }

    message AddRequest { string id = 1; int64 amount = 2; map<string, string> labels = 3; }
    message Account { string id = 1; int64 balance = 2; }
    message Meta { string request_id = 1; string tenant = 2; }
    message Payment { string account = 1; sint32 cents = 2; }
    message PayRequest { Meta meta = 1; Payment payment = 2; }
    message PayResponse { Account account = 1; sint32 cents = 2; State state = 3; string note = 4; }
    enum State { STATE_UNSPECIFIED = 0; STATE_DONE = 1; }
    message NoteRequest { string id = 1; google.protobuf.StringValue note = 2; }
    message SlowRequest { string id = 1; double seconds = 2; }
    message BalanceRequest { string id = 1; }
    message BalanceResponse { google.protobuf.Int64Value balance = 1; }
    message ListResponse { repeated Account accounts = 1; }
    message FindResponse { Account account = 1; }
"#;

const FIND: &str = "
-- name: find
-- expect: at_most_one
-- access: read_only
select id, balance from accounts where id = :id
";

/// A server with the bank, and its caller.
async fn bank() -> (Server, Caller) {
    bank_with(|_| {}).await
}

async fn bank_with(change: impl FnOnce(&mut outbox_server::config::Config)) -> (Server, Caller) {
    let descriptors = typed::compile("bank.proto", BANK);
    let server = Server::start_with(|config| {
        typed::add(config, "bank.binpb", &descriptors);
        typed::add(config, "find.sql", FIND.as_bytes());
        change(config);
    })
    .await;
    let caller = Caller::new(&descriptors, server.channel.clone());
    (server, caller)
}

fn new_id() -> String {
    Uuid::now_v7().to_string()
}

/// What the metadata of an answer says.
fn told<'a>(answer: &'a Response<Value>, name: &str) -> &'a str {
    answer.metadata().get(name).map_or("", |value| value.to_str().expect("a text"))
}

async fn stored(server: &Server, namespace: &str, id: &str) -> Event {
    let get = GetEventRequest { namespace: namespace.into(), id: id.into() };
    server.events().get_event(get).await.expect("the event is stored").into_inner().event.expect("an event")
}

fn payload(event: &Event) -> Value {
    serde_json::from_slice(event.data.as_deref().expect("a payload")).expect("JSON")
}

#[tokio::test]
async fn a_call_writes_state_and_event_together() {
    let (server, caller) = bank().await;
    let request_id = new_id();
    let labels = json!({"b": "2", "a": "1", "c": "3"});
    let request = json!({"id": "a1", "amount": "5", "labels": labels});
    let answer = caller.call("test.v1.Bank/Add", &request_id, request.clone()).await.expect("it is applied");

    assert_eq!(*answer.get_ref(), json!({"id": "a1", "balance": "105"}));
    assert_eq!(
        (told(&answer, "x-request-id"), told(&answer, "x-outbox-disposition")),
        (request_id.as_str(), "APPLIED")
    );
    let event = stored(&server, "", told(&answer, "x-outbox-event-ids")).await;
    assert_eq!((event.topic.as_str(), event.r#type.as_str(), event.subject.as_str()), ("accounts", "test.added", "a1"));
    assert_eq!((event.key.as_deref(), event.content_type.as_str()), (Some(b"a1".as_slice()), "application/json"));
    assert_eq!(payload(&event), request);
    assert_eq!((server.balance("a1").await, server.written().await), (105, (1, 1)));
    let get = GetCommitRequest { namespace: String::new(), request_id };
    let commit = server.outbox().get_commit(get).await.expect("it is remembered as any commit").into_inner();
    assert_eq!(commit.commit.expect("a commit").event_ids, [event.id]);
}

#[tokio::test]
async fn a_retry_gets_an_equal_response_and_applies_nothing() {
    let (server, caller) = bank().await;
    let request_id = new_id();
    // Maps come in another order with each message that is made, which must not make another request.
    let labels: serde_json::Map<String, Value> = (0..32).map(|n| (format!("label-{n}"), json!("x"))).collect();
    let request = json!({"id": "a1", "amount": "5", "labels": labels});
    let first = caller.call("test.v1.Bank/Add", &request_id, request.clone()).await.expect("it is applied");
    for _ in 0..5 {
        let again = caller.call("test.v1.Bank/Add", &request_id, request.clone()).await.expect("it is answered");
        assert_eq!(again.get_ref(), first.get_ref());
        assert_eq!(told(&again, "x-outbox-disposition"), "REPLAYED");
        assert_eq!(told(&again, "x-outbox-event-ids"), told(&first, "x-outbox-event-ids"));
    }
    let other = caller.call("test.v1.Bank/Add", &request_id, json!({"id": "a1", "amount": "6"})).await;
    assert_eq!(fault(&other.expect_err("another body")).1, "REQUEST_ID_REUSED");
    assert_eq!((server.balance("a1").await, server.written().await), (105, (1, 1)));
}

#[tokio::test]
async fn of_64_calls_with_one_request_id_one_has_an_effect() {
    let (server, caller) = bank().await;
    let request_id = new_id();
    let calls = (0..64).map(|_| caller.call("test.v1.Bank/Add", &request_id, json!({"id": "a1", "amount": "1"})));
    let answers: Vec<_> = join_all(calls).await.into_iter().map(|answer| answer.expect("each is answered")).collect();
    let applied = answers.iter().filter(|answer| told(answer, "x-outbox-disposition") == "APPLIED").count();
    let distinct: HashSet<_> =
        answers.iter().map(|a| (a.get_ref().to_string(), told(a, "x-outbox-event-ids"))).collect();
    assert_eq!((applied, distinct.len()), (1, 1));
    assert_eq!((server.balance("a1").await, server.written().await), (101, (1, 1)));
}

#[tokio::test]
async fn everything_can_be_named_and_taken_from_elsewhere() {
    let (server, caller) = bank().await;
    let meta = json!({"requestId": "pay-ü-1", "tenant": "blue"});
    let request = json!({"meta": meta, "payment": {"account": "a7", "cents": -30}});
    let answer = caller.call("test.v1.Bank/Pay", "", request.clone()).await.expect("it is applied");

    let expected =
        json!({"account": {"id": "a7", "balance": "70"}, "cents": -30, "state": "STATE_DONE", "note": "paid"});
    assert_eq!(*answer.get_ref(), expected);
    let ids: Vec<&str> = told(&answer, "x-outbox-event-ids").split(',').collect();
    let paid = stored(&server, "blue", ids[0]).await;
    assert_eq!((paid.key.as_deref(), paid.source.as_str()), (Some(b"a7".as_slice()), "urn:bank"));
    let paid = payload(&paid);
    assert_eq!(paid, json!({"account": {"id": "a7", "balance": 70}, "cents": -30, "kind": "payment"}));
    let closed = stored(&server, "blue", ids[1]).await;
    assert_eq!((closed.key.as_deref(), closed.data), (Some(b"a7".as_slice()), None));
    let raw = stored(&server, "blue", ids[2]).await;
    assert_eq!((raw.key, raw.content_type.as_str()), (None, "application/protobuf"));
    let sent = caller.message("test.v1.Bank/Pay", request);
    let received =
        DynamicMessage::decode(prost_reflect::ReflectMessage::descriptor(&sent), raw.data.expect("a payload"));
    assert_eq!(received.expect("the same message"), sent);

    let get = GetCommitRequest { namespace: "blue".into(), request_id: "pay-ü-1".into() };
    server.outbox().get_commit(get).await.expect("it is remembered under its own name");
    // What stands in metadata does not count where a field is named.
    let nameless = caller.call("test.v1.Bank/Pay", "metadata", json!({"payment": {"account": "a7", "cents": 1}})).await;
    let nameless = nameless.expect_err("it has no request id");
    assert_eq!((fault(&nameless).0, fault(&nameless).1.as_str()), (Code::InvalidArgument, "REQUEST_ID_MISSING"));
    assert!(nameless.message().contains("`meta.request_id`"), "{nameless:?}");
}

#[tokio::test]
async fn conditions_decide_what_runs_and_what_is_stored() {
    let (server, caller) = bank().await;
    let there = caller.call("test.v1.Bank/NoteIfThere", &new_id(), json!({"id": "a3", "note": "hello"})).await;
    let there = there.expect("it is applied");
    let (noted, missed) = told(&there, "x-outbox-event-ids").split_once(',').expect("two events");
    assert_eq!((payload(&stored(&server, "", noted).await), missed), (json!({"note": "hello"}), ""));

    let request_id = new_id();
    let nobody = json!({"id": "nobody", "note": null});
    let gone = caller.call("test.v1.Bank/NoteIfThere", &request_id, nobody.clone()).await.expect("it is applied");
    let (noted, missed) = told(&gone, "x-outbox-event-ids").split_once(',').expect("two events");
    assert_eq!((noted, payload(&stored(&server, "", missed).await)), ("", json!({"id": "nobody"})));
    let again = caller.call("test.v1.Bank/NoteIfThere", &request_id, nobody).await.expect("it is answered");
    assert_eq!(told(&again, "x-outbox-event-ids"), told(&gone, "x-outbox-event-ids"));
    assert_eq!(server.number("select count(*) from accounts where note = 'hello'").await, 1);
}

#[tokio::test]
async fn what_only_reads_needs_no_request_id_and_leaves_nothing() {
    let (server, caller) = bank().await;
    let balance = caller.call("test.v1.Bank/Balance", "", json!({"id": "a1"})).await.expect("it is answered");
    assert_eq!((balance.get_ref(), told(&balance, "x-outbox-disposition")), (&json!({"balance": "100"}), ""));
    let all = caller.call("test.v1.Bank/List", "", json!({})).await.expect("it is answered");
    assert_eq!(all.get_ref()["accounts"].as_array().map(Vec::len), Some(200));
    assert_eq!(all.get_ref()["accounts"][0], json!({"id": "a0", "balance": "100"}));
    let found = caller.call("test.v1.Bank/Find", "", json!({"id": "a1"})).await.expect("it is answered");
    assert_eq!(*found.get_ref(), json!({"account": {"id": "a1", "balance": "100"}}));
    let none = caller.call("test.v1.Bank/Find", "", json!({"id": "nobody"})).await.expect("it is answered");
    assert_eq!(*none.get_ref(), json!({}));
    let missing = caller.call("test.v1.Bank/Balance", "", json!({"id": "nobody"})).await.expect_err("one is expected");
    assert_eq!(fault(&missing).1, "ROW_COUNT_MISMATCH");
    assert_eq!(server.written().await, (0, 0));
}

#[tokio::test]
async fn a_bad_call_is_refused_by_its_own_fields() {
    let (server, caller) = bank_with(|config| config.commit.event_bytes_max = 300).await;
    let add = |request_id: String, json: Value| {
        let caller = caller.clone();
        async move { caller.call("test.v1.Bank/Add", &request_id, json).await.expect_err("it is refused") }
    };
    let nameless = add(String::new(), json!({"id": "a1"})).await;
    assert_eq!((fault(&nameless).0, fault(&nameless).1.as_str()), (Code::InvalidArgument, "REQUEST_ID_MISSING"));
    assert!(nameless.message().contains("`x-request-id`"), "{nameless:?}");
    let cases = [
        ("x-request-id", "x".repeat(129), json!({"id": "a1"})),
        ("id", new_id(), json!({"id": "a\0b"})),
        ("events[0].data", new_id(), json!({"id": "a1", "labels": {"long": "x".repeat(300)}})),
    ];
    for (field, request_id, json) in cases {
        let refused = add(request_id, json).await;
        assert_eq!(
            (fault(&refused).1.as_str(), fields(&refused)[0].as_str()),
            ("INVALID_REQUEST", field),
            "{refused:?}"
        );
    }
    let nobody = add(new_id(), json!({"id": "nobody", "amount": "1"})).await;
    assert_eq!((fault(&nobody).0, fault(&nobody).1.as_str()), (Code::FailedPrecondition, "ROW_COUNT_MISMATCH"));
    // Although the key and the payload of its events cannot be had either.
    let meta = json!({"requestId": new_id()});
    let nobody = json!({"meta": meta, "payment": {"account": "nobody", "cents": 1}});
    let unpaid = caller.call("test.v1.Bank/Pay", "", nobody).await.expect_err("it is refused");
    assert_eq!(fault(&unpaid).1, "ROW_COUNT_MISMATCH");
    let broke = add(new_id(), json!({"id": "a1", "amount": "-101"})).await;
    assert_eq!(fault(&broke).1, "CHECK_VIOLATION");
    let mut foreign = Request::new(caller.message("test.v1.Bank/Balance", json!({"id": "a1"})));
    foreign.metadata_mut().insert("x-namespace", "x".repeat(65).parse().expect("a metadata value"));
    foreign.metadata_mut().insert("x-request-id", "r".parse().expect("a metadata value"));
    let foreign = caller.send("test.v1.Bank/Add", foreign).await.expect_err("it is refused");
    assert_eq!(fields(&foreign), ["x-namespace"]);
    assert_eq!((server.balance("a1").await, server.written().await), (100, (0, 0)));
}

#[tokio::test]
async fn what_is_no_message_or_too_large_is_told_with_a_reason() {
    let (server, caller) = bank_with(|config| config.grpc.request_bytes_max = 1_024).await;
    let large = json!({"id": "x".repeat(2_000)});
    let large = caller.call("test.v1.Bank/Add", &new_id(), large).await.expect_err("it is refused");
    assert_eq!((fault(&large).0, fault(&large).1.as_str()), (Code::ResourceExhausted, "REQUEST_TOO_LARGE"));

    // The string field 1 with a number in it, with bytes that are not UTF-8, and one that ends too soon.
    for bytes in [&[0x08, 0x01][..], &[0x0a, 0x02, 0xff, 0xfe], &[0x0a, 0x7f, 0x61]] {
        let mut frame = vec![0, 0, 0, 0, u8::try_from(bytes.len()).expect("few")];
        frame.extend_from_slice(bytes);
        let malformed = raw(&server, "test.v1.Bank/Add", frame).await;
        assert_eq!((fault(&malformed).0, fault(&malformed).1.as_str()), (Code::InvalidArgument, "MALFORMED_REQUEST"));
    }
    assert_eq!(server.written().await, (0, 0));
}

/// Sends a body as it is and returns the status of the answer.
async fn raw(server: &Server, method: &str, body: Vec<u8>) -> tonic::Status {
    let mut channel = server.channel.clone();
    let request = http::Request::post(format!("http://{}/{method}", server.address()))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("x-request-id", new_id())
        .body(tonic::body::Body::new(axum::body::Body::from(body)))
        .expect("a request");
    let response = channel.ready().await.expect("the server can be reached").call(request).await.expect("an answer");
    tonic::Status::from_header_map(response.headers()).expect("a status without a body")
}

#[tokio::test]
async fn the_deadline_and_the_caller_end_a_call() {
    let (server, caller) = bank().await;
    let mut request = Request::new(caller.message("test.v1.Bank/Slow", json!({"id": "a1", "seconds": 30})));
    request.metadata_mut().insert("x-request-id", "slow".parse().expect("a metadata value"));
    request.set_timeout(Duration::from_millis(300));
    let late = caller.send("test.v1.Bank/Slow", request).await.expect_err("it takes too long");
    assert!(matches!(late.code(), Code::DeadlineExceeded | Code::Cancelled), "{late:?}");
    server.until_sleeping(false).await;

    let gone = caller.clone();
    let call = tokio::spawn(async move {
        gone.call("test.v1.Bank/Slow", "gone", json!({"id": "a2", "seconds": 1.5})).await.map(Response::into_inner)
    });
    server.until_sleeping(true).await;
    call.abort();
    // As with Commit: what runs already runs to its end, and the retry gets its answer.
    let again = caller.call("test.v1.Bank/Slow", "gone", json!({"id": "a2", "seconds": 1.5})).await;
    assert_eq!(told(&again.expect("it is answered"), "x-outbox-disposition"), "REPLAYED");
    assert_eq!((server.balance("a1").await, server.balance("a2").await), (100, 101));
}

#[tokio::test]
async fn the_events_of_a_call_carry_its_trace() {
    let (server, caller) = bank().await;
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let mut request = Request::new(caller.message("test.v1.Bank/Add", json!({"id": "a1", "amount": "1"})));
    request.metadata_mut().insert("traceparent", parent.parse().expect("a metadata value"));
    request.metadata_mut().insert("x-request-id", "traced".parse().expect("a metadata value"));
    let answer = caller.send("test.v1.Bank/Add", request).await.expect("it is applied");
    let event = stored(&server, "", told(&answer, "x-outbox-event-ids")).await;
    assert!(event.traceparent.starts_with(&parent[..36]), "{event:?}");
}

#[tokio::test]
async fn reflection_shows_what_is_served_and_nothing_else() {
    let (server, caller) = bank().await;
    let services = reflect(&server, MessageRequest::ListServices(String::new())).await;
    let MessageResponse::ListServicesResponse(services) = services else { panic!("a list of services") };
    let services: HashSet<String> = services.service.into_iter().map(|service| service.name).collect();
    for there in
        ["test.v1.Bank", "outbox.v1.OutboxService", "grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection"]
    {
        assert!(services.contains(there), "{there}: {services:?}");
    }
    assert!(!services.contains("test.v1.Elsewhere"), "{services:?}");

    let file = reflect(&server, MessageRequest::FileContainingSymbol("test.v1.Bank.Add".into())).await;
    let MessageResponse::FileDescriptorResponse(file) = file else { panic!("a file") };
    let text = String::from_utf8_lossy(&file.file_descriptor_proto[0]).into_owned();
    assert!(text.contains("bank.proto") && text.contains("test.added"), "the option is kept");
    let options = reflect(&server, MessageRequest::FileByFilename("outbox/v1/options.proto".into())).await;
    assert!(matches!(options, MessageResponse::FileDescriptorResponse(_)));

    let bare = caller.call("test.v1.Bank/NotDeclared", "r", json!({})).await.expect_err("it is not declared");
    assert_eq!(bare.code(), Code::Unimplemented);
}

async fn reflect(server: &Server, ask: MessageRequest) -> MessageResponse {
    let request = ServerReflectionRequest { host: String::new(), message_request: Some(ask) };
    let answers = ServerReflectionClient::new(server.channel.clone());
    let mut answers =
        answers.clone().server_reflection_info(tokio_stream::iter([request])).await.expect("an answer").into_inner();
    answers.message().await.expect("an answer").expect("an answer").message_response.expect("an answer")
}

#[tokio::test]
async fn the_sample_catalog_serves_its_own_rpc() {
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/catalog");
    let read = |name: &str| std::fs::read(deploy.join(name)).expect("the sample is there");
    let descriptors = read("shop.binpb");
    let server = Server::start().await;
    let schema = String::from_utf8(read("schema.psql")).expect("a text");
    sqlx::raw_sql(sqlx::AssertSqlSafe(schema)).execute(&server.pool).await.expect("its tables can be made");
    let shop = server
        .beside(|config| {
            typed::add(config, "shop.binpb", &descriptors);
            typed::add(config, "shop.sql", &read("shop.sql"));
        })
        .await;
    let caller = Caller::new(&descriptors, shop.channel.clone());
    let user = json!({"userId": "user-7"});
    let before = caller.call("shop.v1.Users/Find", "", user.clone()).await.expect("it is answered").into_inner();
    assert_eq!(before["user"]["status"], "USER_STATUS_PENDING");
    let active = caller.call("shop.v1.Users/Activate", &new_id(), user.clone()).await.expect("it is applied");
    let found = caller.call("shop.v1.Users/Find", "", user).await.expect("it is answered").into_inner();
    assert_eq!((&found["user"], &active.get_ref()["status"]), (active.get_ref(), &json!("USER_STATUS_ACTIVE")));
    assert!(active.get_ref()["activatedAt"].is_string());
    let list = ListEventsRequest { topic: "users".into(), ..ListEventsRequest::default() };
    let listed = shop.events().list_events(list).await.expect("a page").into_inner().events;
    assert_eq!((listed.len(), payload(&listed[0])["status"].as_str()), (1, Some("active")));
}

/// The sample's compiled descriptors, held against their source.
#[test]
fn the_samples_descriptors_match_their_source() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let committed: PathBuf = root.join("deploy/catalog/shop.binpb");
    let source = std::fs::read_to_string(root.join("deploy/catalog/shop.proto")).expect("the source is there");
    let compiled = typed::compile("shop.proto", &source);
    if std::env::var_os("UPDATE_GENERATED").is_some() {
        std::fs::write(&committed, &compiled).expect("the file can be written");
    }
    let same = std::fs::read(&committed).ok() == Some(compiled);
    assert!(
        same,
        "shop.binpb has drifted: UPDATE_GENERATED=1 cargo test -p outbox-server --test it -- samples_descriptors"
    );
}
