//! Declarations of RPCs that are refused at the start, each with file, method and field.

use std::{fs, path::PathBuf};

use outbox_harness::postgres::Database;
use outbox_server::{
    api::typed::{Error, Rpcs},
    catalog::Catalog,
    config,
};
use prost::Message as _;
use prost_types::FileDescriptorSet;
use sqlx::Executor as _;

use crate::support::{cli::outboxd, outbox::PATIENCE, typed};

const SCHEMA: &str = "
    create table users (id uuid primary key, name text, born date, score int8, ratio float8, tags text[],
                        seen timestamptz, kept interval, facts jsonb, photo bytea, active bool)";

const COMMANDS: &str = "
-- name: put
-- expect: one
insert into users (id, name, score) values (:id, :name, :score) returning id, name, score

-- name: get
-- expect: at_most_one
-- access: read_only
select * from users where id = :id

-- name: all
-- access: read_only
select id, name from users

-- name: touch
update users set seen = now()
";

const MESSAGES: &str = "
    message Put { string id = 1; string name = 2; int64 score = 3; }
    message Id { string id = 1; }
    message User { string id = 1; string name = 2; int64 score = 3; }
    message Users { repeated User users = 1; }
    message Maybe { User user = 1; }
    message Maps { string id = 1; string name = 2; int64 score = 3; map<string, string> labels = 4; }
";

/// A folder with a catalog and these descriptor sets, removed in the end.
struct Folder(PathBuf);

impl Folder {
    fn new(sets: &[(&str, Vec<u8>)]) -> Self {
        let path = std::env::temp_dir().join(format!("outboxd-rpcs-{}", uuid::Uuid::now_v7()));
        fs::create_dir(&path).expect("a folder can be made");
        fs::write(path.join("a.sql"), COMMANDS).expect("a file can be written");
        for (name, bytes) in sets {
            fs::write(path.join(name), bytes).expect("a file can be written");
        }
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

async fn catalog() -> (Database, Catalog) {
    let database = Database::fresh().await;
    let mut connection = database.connect().await;
    connection.execute(SCHEMA).await.expect("the schema can be made");
    let folder = Folder::new(&[]);
    let catalog = Catalog::load(&folder.0, &mut connection).await.expect("the catalog holds");
    (database, catalog)
}

fn load(catalog: &Catalog, sets: &[(&str, Vec<u8>)]) -> Result<Rpcs, Error> {
    Rpcs::load(&Folder::new(sets).0, catalog, &config::Commit::default())
}

/// What is wrong with these sets, without their folder.
fn problems(catalog: &Catalog, sets: &[(&str, Vec<u8>)]) -> Vec<String> {
    match load(catalog, sets) {
        Err(Error::Declared(problems)) => problems
            .into_iter()
            .map(|problem| {
                let file = problem.file.file_name().expect("a file").into();
                outbox_server::api::typed::Problem { file, ..problem }.to_string()
            })
            .collect(),
        Err(error) => panic!("no problem of a declaration: {error}"),
        Ok(_) => panic!("it passes"),
    }
}

/// A file with one method.
fn file(signature: &str, option: &str, messages: &str) -> Vec<u8> {
    let proto = format!(
        r#"syntax = "proto3"; package t.v1;
           import "google/protobuf/timestamp.proto"; import "google/protobuf/duration.proto";
           import "google/protobuf/struct.proto"; import "google/protobuf/empty.proto";
           import "google/protobuf/wrappers.proto"; import "outbox/v1/options.proto";
           service S {{ rpc M{signature} {{ {option} }} }} {MESSAGES} {messages}"#
    );
    typed::compile("t.proto", &proto)
}

fn rpc(signature: &str, declaration: &str) -> Vec<u8> {
    file(signature, &format!("option (outbox.v1.rpc) = {{ {declaration} }};"), "")
}

/// And a server does not start with one.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_a_wrong_declaration_ends_and_says_what_is_wrong() {
    let (database, _) = catalog().await;
    let wrong = rpc("(Put) returns (User)", r#"operations { command: "putt" }"#);
    let folder = Folder::new(&[("shop.binpb", wrong)]);
    let dir = format!("catalog.dir={}", folder.0.display());
    let serve = ["serve", "--listen", "127.0.0.1:0", "--set", "relay.enabled=false", "--set", &dir];
    let said = tokio::time::timeout(PATIENCE, outboxd(&database.url, &serve)).await.expect("it ends");
    said.assert_refused(&["shop.binpb", "t.v1.S/M", "there is no command \"putt\"; did you mean \"put\"?"]);
}

#[tokio::test]
async fn every_fault_of_a_declaration_is_told_with_its_place() {
    let (_database, catalog) = catalog().await;
    let put = r#"operations { command: "put" }"#;
    let event = |rest: &str| format!(r#"{put} events {{ topic: "t" type: "x" {rest} }}"#);
    let cases: Vec<(&str, String, &str)> = vec![
        ("(stream Put) returns (User)", put.into(), "t.v1.S/M: is a streaming method"),
        ("(Put) returns (stream User)", put.into(), "t.v1.S/M: is a streaming method"),
        (
            "(Put) returns (User)",
            r#"operations { command: "putt" }"#.into(),
            "operations[0].command: there is no command \"putt\"; did you mean \"put\"?",
        ),
        ("(Id) returns (User)", put.into(), "operations[0].parameters[name]: nothing gives it a value: t.v1.Id has no field"),
        (
            "(Put) returns (User)",
            r#"operations { command: "put" parameters { to: "nam" from { field: "name" } } }"#.into(),
            "operations[0].parameters[nam]: the command has no such parameter; did you mean `name`?",
        ),
        (
            "(Put) returns (User)",
            r#"operations { command: "put" parameters { to: "name" from { field: "nome" } } }"#.into(),
            "operations[0].parameters[name]: t.v1.Put has no field `nome`; did you mean `name`?",
        ),
        (
            "(Put) returns (User)",
            r#"operations { command: "put" parameters { to: "name" } }"#.into(),
            "operations[0].parameters[name]: has no value: say `field`, `column` or `text`",
        ),
        (
            "(Put) returns (User)",
            r#"operations { command: "put" parameters { to: "name" from { field: "id.x" } } }"#.into(),
            "operations[0].parameters[name]: t.v1.Put.id is no message that a path can go through",
        ),
        (
            "(Put) returns (User)",
            r#"operations { command: "put" parameters { to: "name" from { field: "score" } } }"#.into(),
            "operations[0].parameters[name]: `score` is int64, which cannot be a parameter of type text, but of int2",
        ),
        (
            "(Put) returns (User)",
            r#"operations { command: "put" parameters { to: "score" from { text: "many" } } }"#.into(),
            "operations[0].parameters[score]: the text is not a valid int8",
        ),
        (
            "(Put) returns (User)",
            r#"operations { command: "put" parameters { to: "name" from { column: "id" } } } events { topic: "t" type: "x" }"#
                .into(),
            "operations[0].command.parameters[name]: refers to operation 0, which is no earlier one",
        ),
        (
            "(Put) returns (User)",
            r#"operations { command: "put" only_if { operation: 0 } }"#.into(),
            "operations[0].only_if: is about operation 0, which is no earlier one",
        ),
        ("(Put) returns (Users)", put.into(), "t.v1.Users.users: nothing fills this field of the response"),
        (
            "(Put) returns (User)",
            format!(r#"{put} response {{ to: "name" from {{ column: "nome" }} }}"#),
            "response[name]: operation 0 returns no column \"nome\", but id, name, score",
        ),
        (
            "(Put) returns (User)",
            format!(r#"{put} response {{ to: "name" from {{ field: "score" }} }}"#),
            "response[name]: `score` is int64, which string cannot take",
        ),
        (
            "(Put) returns (User)",
            format!(r#"{put} response {{ to: "score" from {{ text: "many" }} }}"#),
            "response[score]: the text is not a valid int8",
        ),
        (
            "(Put) returns (User)",
            format!(r#"{put} response {{ to: "name" from {{ text: "a" }} }} response {{ to: "name" from {{ text: "b" }} }}"#),
            "response[name]: is filled by something else already",
        ),
        (
            "(google.protobuf.Empty) returns (User)",
            r#"operations { command: "all" } response { to: "score" from { text: "1" } }"#.into(),
            "t.v1.User.id: operation 0 may return more rows than one; declare `-- expect: one`",
        ),
        (
            "(google.protobuf.Empty) returns (Maybe)",
            r#"operations { command: "all" into: "user" }"#.into(),
            "operations[0].into: takes one row, and the command may return more",
        ),
        (
            "(Put) returns (User)",
            r#"operations { command: "put" into: "name" }"#.into(),
            "operations[0].into: `name` is string; rows go into messages",
        ),
        ("(Put) returns (User)", event("key { field: \"nome\" }"), "events[0].key: t.v1.Put has no field `nome`"),
        ("(Put) returns (User)", event("key { column: \"nome\" }"), "events[0].key_from: refers to column \"nome\""),
        ("(Put) returns (User)", event("subject { column: \"id\" }"), "events[0].subject: is a column"),
        ("(Put) returns (User)", event("subject { field: \"score\" }"), "events[0].subject: `score` is int64"),
        ("(Put) returns (User)", event("row: 1"), "events[0].payload: is about operation 1, which is not there"),
        (
            "(Put) returns (User)",
            event(r#"json { members { to: "a" from { text: "1" } } members { to: "a.b" from { text: "2" } } }"#),
            "events[0].payload.members[a.b]: stands where another member does",
        ),
        (
            "(Put) returns (User)",
            event(r#"json { members { to: "a" from { column: "nome" } } }"#),
            "events[0].json.values[/a]: refers to column \"nome\"",
        ),
        ("(Maps) returns (User)", event("request: REQUEST_PAYLOAD_PROTOBUF"), "events[0].payload: t.v1.Maps.labels is a map"),
        (
            "(Put) returns (User)",
            format!(r#"{put} events {{ topic: "white space" type: "x" }}"#),
            "events[0].topic: is not a Kafka topic name",
        ),
        ("(Put) returns (User)", format!(r#"{put} events {{ topic: "t" }}"#), "events[0].type: is required"),
        (
            "(Put) returns (User)",
            put.to_owned() + &r#"events { topic: "t" type: "x" }"#.repeat(65),
            "events: are 65; at most 64 are allowed",
        ),
        ("(Maps) returns (User)", put.into(), "t.v1.Maps.labels: nothing uses this field of the request"),
        ("(Put) returns (User)", format!(r#"{put} request_id_field: "ids""#), "request_id_field: t.v1.Put has no field `ids`"),
        ("(Put) returns (User)", format!(r#"{put} request_id_field: "score""#), "request_id_field: `score` is int64"),
        ("(Put) returns (User)", format!(r#"{put} namespace_field: "score""#), "namespace_field: `score` is int64"),
        (
            "(google.protobuf.Empty) returns (google.protobuf.Empty)",
            String::new(),
            "t.v1.S/M: operations: the request has neither operations nor events",
        ),
    ];
    for (signature, declaration, expected) in cases {
        let found = problems(&catalog, &[("t.binpb", rpc(signature, &declaration))]);
        let all = found.iter().all(|problem| problem.starts_with("t.binpb: t.v1.S/M: "));
        assert!(all && found.iter().any(|problem| problem.contains(expected)), "{declaration}\n{expected}\n{found:#?}");
    }
}

#[tokio::test]
async fn what_declares_no_side_effects_only_reads() {
    let (_database, catalog) = catalog().await;
    for (signature, declaration, expected) in [
        ("(Put) returns (User)", r#"operations { command: "put" }"#, "idempotency_level: is NO_SIDE_EFFECTS"),
        (
            "(Id) returns (google.protobuf.Empty)",
            r#"operations { command: "get" } events { topic: "t" type: "x" }"#,
            "idempotency_level: is NO_SIDE_EFFECTS",
        ),
        (
            "(Id) returns (google.protobuf.Empty)",
            r#"operations { command: "get" } operations { command: "get" }"#,
            "idempotency_level: is NO_SIDE_EFFECTS",
        ),
        (
            "(Id) returns (google.protobuf.Empty)",
            r#"operations { command: "get" } request_id_field: "id""#,
            "request_id_field: is of no use",
        ),
    ] {
        let option =
            format!("option idempotency_level = NO_SIDE_EFFECTS; option (outbox.v1.rpc) = {{ {declaration} }};");
        let found = problems(&catalog, &[("t.binpb", file(signature, &option, ""))]);
        assert!(found.iter().any(|problem| problem.contains(expected)), "{declaration}: {found:#?}");
    }
}

#[tokio::test]
async fn types_that_do_not_go_together_are_named_with_those_that_do() {
    let (_database, catalog) = catalog().await;
    // The field's type, the column, and what is said of it; nothing: they go together.
    for (ty, column, expected) in [
        ("string", "born", None),
        ("string", "facts", None),
        (
            "string",
            "score",
            Some("column \"score\" is int8, which a field of type string cannot hold, but numeric, text"),
        ),
        ("int32", "score", Some("is int8, which a field of type int32 cannot hold, but int2, int4")),
        ("uint32", "score", None),
        ("double", "score", Some("is int8, which a field of type double cannot hold")),
        ("float", "ratio", Some("is float8, which a field of type float cannot hold, but float4")),
        ("repeated string", "tags", None),
        ("repeated int64", "tags", Some("is text[], which a field of type repeated int64 cannot hold, but int2[]")),
        ("string", "tags", Some("is text[], which a field of type string cannot hold")),
        ("google.protobuf.Timestamp", "seen", None),
        (
            "google.protobuf.Timestamp",
            "born",
            Some("is date, which a field of type google.protobuf.Timestamp cannot hold"),
        ),
        ("google.protobuf.Duration", "kept", None),
        ("google.protobuf.Struct", "facts", None),
        ("google.protobuf.Struct", "name", Some("is text, which a field of type google.protobuf.Struct cannot hold")),
        ("google.protobuf.BoolValue", "active", None),
        (
            "google.protobuf.BoolValue",
            "photo",
            Some("is bytea, which a field of type google.protobuf.BoolValue cannot hold"),
        ),
        ("bytes", "photo", None),
        ("map<string, string>", "facts", Some("is a map; only as part of a message can it be used")),
    ] {
        let messages = format!("message One {{ {ty} {column} = 1; }}");
        let option = r#"option (outbox.v1.rpc) = { operations { command: "get" } };"#;
        let set = [("t.binpb", file("(Id) returns (One)", option, &messages))];
        match expected {
            None => drop(load(&catalog, &set).unwrap_or_else(|error| panic!("{ty} {column}: {error}"))),
            Some(expected) => {
                let found = problems(&catalog, &set);
                assert!(found[0].starts_with("t.binpb: t.v1.S/M: t.v1.One."), "{found:#?}");
                assert!(found[0].contains(expected), "{ty} {column}\n{expected}\n{found:#?}");
            }
        }
    }
}

#[tokio::test]
async fn all_faults_of_all_files_are_told_at_once() {
    let (_database, catalog) = catalog().await;
    let wrong = rpc("(Id) returns (User)", r#"operations { command: "put" } events { topic: "" type: "" }"#);
    let sets = [
        ("1.binpb", wrong.clone()),
        ("2.binpb", b"no protobuf".to_vec()),
        ("3.binpb", typed::compile("bare.proto", "syntax = \"proto3\"; package bare; service S {}")),
        ("4.binpb", wrong),
        (
            "5.binpb",
            typed::compile(
                "own.proto",
                r#"syntax = "proto3"; package outbox.v2; import "outbox/v1/options.proto";
                   service S { rpc M(E) returns (E) { option (outbox.v1.rpc).operations = { command: "touch" }; } }
                   message E {}"#,
            ),
        ),
    ];
    let found = problems(&catalog, &sets);
    for expected in [
        "1.binpb: t.v1.S/M: operations[0].parameters[name]: nothing gives it a value",
        "1.binpb: t.v1.S/M: operations[0].parameters[score]: nothing gives it a value",
        "2.binpb: is no whole descriptor set: ",
        "3.binpb: has no method with the option (outbox.v1.rpc)",
        "4.binpb: t.v1.S: is served from ",
        "5.binpb: outbox.v2.S: is in a package of the server's own",
    ] {
        assert!(found.iter().any(|problem| problem.starts_with(expected)), "{expected}\n{found:#?}");
    }
}

/// Editions are the newest way to write a file; what reads descriptors here does not know them.
#[tokio::test]
async fn a_syntax_that_is_not_known_is_told_with_its_file() {
    let (_database, catalog) = catalog().await;
    let set = rpc("(Put) returns (User)", r#"operations { command: "put" }"#);
    for syntax in ["editions", ""] {
        let mut changed = FileDescriptorSet::decode(&*set).expect("a descriptor set");
        changed.file[0].syntax = Some(syntax.into());
        let expected = format!("t.binpb: has a file of syntax {syntax:?}, {:?};", changed.file[0].name());
        let found = problems(&catalog, &[("t.binpb", changed.encode_to_vec())]);
        assert!(found.len() == 1 && found[0].starts_with(&expected), "{expected}\n{found:?}");
    }
}

#[tokio::test]
async fn an_option_of_a_newer_server_is_not_half_understood() {
    let (_database, catalog) = catalog().await;
    let set = rpc("(Put) returns (User)", r#"operations { command: "put" }"#);
    load(&catalog, &[("t.binpb", set)]).expect("it holds");
    // The same option, declared by a file that knows one field more.
    let newer = r#"syntax = "proto3"; package t.v1; import "google/protobuf/descriptor.proto";
        extend google.protobuf.MethodOptions { Rpc rpc = 57411; }
        message Rpc { repeated Operation operations = 1; }
        message Operation { string command = 1; string later = 99; }
        service S { rpc M(Put) returns (User) { option (rpc) = { operations { command: "put" later: "x" } }; } }
        message Put { string id = 1; string name = 2; int64 score = 3; }
        message User { string id = 1; string name = 2; int64 score = 3; }"#;
    let found = problems(&catalog, &[("t.binpb", typed::compile("t.proto", newer))]);
    assert!(
        found[0].contains("a field that this server does not know (number 99 of outbox.v1.TypedOperation)"),
        "{found:?}"
    );
}
