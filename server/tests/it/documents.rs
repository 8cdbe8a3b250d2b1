//! Documents: changed in commits, held against preconditions, read and listed.

use futures_util::future::join_all;
use outbox_proto::v1::{
    CommitResponse, Disposition, Document, GetDocumentRequest, ListDocumentsRequest, Operation,
    precondition::Kind::{Exists, Version},
    value::Kind,
};
use tonic::{Code, Status};

use crate::support::{
    request::{add, call, check, commit, delete, event, merge, put},
    server::{Server, fault, fields},
};

async fn apply(server: &Server, operations: Vec<Operation>) -> Result<CommitResponse, Status> {
    server.outbox().commit(commit(operations, vec![event("t", "k")])).await.map(tonic::Response::into_inner)
}

async fn read(server: &Server, id: &str) -> Result<Document, Status> {
    let get = GetDocumentRequest { namespace: String::new(), collection: "carts".into(), id: id.into() };
    let found = server.state().get_document(get).await?;
    Ok(found.into_inner().document.expect("an answer has a document"))
}

/// The version in a result's first row.
fn version(answer: &CommitResponse, operation: usize) -> i64 {
    match answer.results[operation].rows[0].values[0].kind {
        Some(Kind::Int(version)) => version,
        ref other => panic!("no version: {other:?}"),
    }
}

#[tokio::test]
async fn a_document_is_put_changed_read_and_deleted() {
    let server = Server::start().await;
    let first = apply(&server, vec![put("c1", r#"{"items": [1], "n": 12345678901234567890.5}"#, None)]).await;
    let first = version(&first.expect("it is put"), 0);
    let stored = read(&server, "c1").await.expect("it is there");
    assert_eq!((stored.version, stored.json.as_str()), (first, r#"{"n": 12345678901234567890.5, "items": [1]}"#));

    let changed = apply(&server, vec![merge("c1", r#"{"n": null, "to": {"a": 1}}"#, Some(Version(first)))]).await;
    let changed = changed.expect("it is changed");
    assert_eq!(changed.results[0].rows[0].values[1].kind, Some(Kind::Json(r#"{"to": {"a": 1}, "items": [1]}"#.into())));
    assert!(version(&changed, 0) > first);
    let after = read(&server, "c1").await.expect("it is there");
    assert_eq!((after.version, after.created_at), (version(&changed, 0), stored.created_at));

    let deleted = apply(&server, vec![delete("c1", Some(Exists(true)))]).await.expect("it is deleted");
    assert_eq!((deleted.results[0].rows_affected, version(&deleted, 0)), (1, after.version));
    let missing = read(&server, "c1").await.expect_err("it is gone");
    assert_eq!((fault(&missing).0, fault(&missing).1.as_str()), (Code::NotFound, "DOCUMENT_NOT_FOUND"));
    let again = apply(&server, vec![delete("c1", None)]).await.expect("nothing to delete is no fault");
    assert_eq!(again.results[0].rows_affected, 0);
    // A version is never used twice, so the old one cannot be taken for the new.
    let anew = apply(&server, vec![put("c1", "1", Some(Exists(false)))]).await.expect("it is put again");
    assert!(version(&anew, 0) > after.version);
}

#[tokio::test]
async fn a_missed_precondition_refuses_the_whole_commit() {
    let server = Server::start().await;
    let put_one = apply(&server, vec![put("c1", "1", None)]).await.expect("it is put");
    let version = version(&put_one, 0);
    let written = server.written().await;
    let conflict = (Code::Aborted, "VERSION_CONFLICT");
    let missing = (Code::FailedPrecondition, "DOCUMENT_MISSING");
    let exists = (Code::FailedPrecondition, "DOCUMENT_EXISTS");
    let cases = [
        (put("c1", "2", Some(Version(version + 1))), conflict),
        (put("c2", "2", Some(Version(version))), conflict),
        (merge("c1", "{}", Some(Version(0))), conflict),
        (delete("c1", Some(Version(version - 1))), conflict),
        (check("c1", Version(version + 1)), conflict),
        (put("c2", "2", Some(Exists(true))), missing),
        (delete("c2", Some(Exists(true))), missing),
        (check("c2", Exists(true)), missing),
        (put("c1", "2", Some(Exists(false))), exists),
        (check("c1", Exists(false)), exists),
    ];
    for (operation, expected) in cases {
        for before in [vec![], vec![add("a1", 1)]] {
            let index = before.len();
            let operations = before.into_iter().chain([operation.clone()]).collect();
            let refused = apply(&server, operations).await.expect_err("the precondition does not hold");
            let (code, reason, metadata) = fault(&refused);
            assert_eq!((code, reason.as_str()), expected, "{operation:?}");
            assert_eq!(metadata["field"], format!("operations[{index}]"));
        }
    }
    assert_eq!((server.written().await, server.balance("a1").await), (written, 100));
    assert_eq!(read(&server, "c1").await.expect("it is there").json, "1");
    let held = apply(&server, vec![check("c1", Version(version)), check("c2", Exists(false)), put("c2", "2", None)]);
    held.await.expect("every precondition holds");
}

#[tokio::test]
async fn of_many_who_put_a_document_that_must_not_exist_one_does() {
    let server = Server::start().await;
    let calls = (0..16).map(|n| {
        let (server, json) = (&server, n.to_string());
        // Every second one only checks that there is none, takes its time, and writes what follows from it.
        let pause = call("slow", [("seconds", Kind::Double(0.2))]);
        let operations = match n % 2 {
            0 => vec![put("c1", &json, Some(Exists(false)))],
            _ => vec![check("c1", Exists(false)), pause, put("c1", &json, None)],
        };
        async move { apply(server, operations).await }
    });
    let answers = join_all(calls).await;
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 1);
    for refused in answers.iter().filter_map(|answer| answer.as_ref().err()) {
        assert_eq!(fault(refused).1, "DOCUMENT_EXISTS");
    }
}

#[tokio::test]
async fn of_many_who_change_one_version_one_does() {
    let server = Server::start().await;
    let first = version(&apply(&server, vec![put("c1", "{}", None)]).await.expect("it is put"), 0);
    let calls = (0..16).map(|n| apply(&server, vec![merge("c1", &format!(r#"{{"n": {n}}}"#), Some(Version(first)))]));
    let answers = join_all(calls).await;
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 1);
}

/// The examples of RFC 7396, appendix A.
#[tokio::test]
async fn a_merge_patch_does_what_the_standard_says() {
    let server = Server::start().await;
    let cases = [
        (r#"{"a":"b"}"#, r#"{"a":"c"}"#, r#"{"a":"c"}"#),
        (r#"{"a":"b"}"#, r#"{"b":"c"}"#, r#"{"a":"b","b":"c"}"#),
        (r#"{"a":"b"}"#, r#"{"a":null}"#, "{}"),
        (r#"{"a":"b","b":"c"}"#, r#"{"a":null}"#, r#"{"b":"c"}"#),
        (r#"{"a":["b"]}"#, r#"{"a":"c"}"#, r#"{"a":"c"}"#),
        (r#"{"a":"c"}"#, r#"{"a":["b"]}"#, r#"{"a":["b"]}"#),
        (r#"{"a":{"b":"c"}}"#, r#"{"a":{"b":"d","c":null}}"#, r#"{"a":{"b":"d"}}"#),
        (r#"{"a":[{"b":"c"}]}"#, r#"{"a":[1]}"#, r#"{"a":[1]}"#),
        (r#"["a","b"]"#, r#"["c","d"]"#, r#"["c","d"]"#),
        (r#"{"a":"b"}"#, r#"["c"]"#, r#"["c"]"#),
        (r#"{"a":"foo"}"#, "null", "null"),
        (r#"{"a":"foo"}"#, r#""bar""#, r#""bar""#),
        (r#"{"e":null}"#, r#"{"a":1}"#, r#"{"e":null,"a":1}"#),
        ("[1,2]", r#"{"a":"b","c":null}"#, r#"{"a":"b"}"#),
        ("{}", r#"{"a":{"bb":{"ccc":null}}}"#, r#"{"a":{"bb":{}}}"#),
    ];
    for (target, patch, expected) in cases {
        apply(&server, vec![put("c1", target, None), merge("c1", patch, None)]).await.expect("it is changed");
        let found: serde_json::Value = json(&read(&server, "c1").await.expect("it is there").json);
        assert_eq!(found, json(expected), "{target} changed by {patch}");
    }
    apply(&server, vec![merge("new", r#"{"a":{"b":null}}"#, None)]).await.expect("it is made of nothing");
    assert_eq!(json(&read(&server, "new").await.expect("it is there").json), json(r#"{"a":{}}"#));
}

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).expect("JSON")
}

#[tokio::test]
async fn a_wrong_document_is_named() {
    let server = Server::start_with(|config| config.commit.document_bytes_max = 100).await;
    let deep = format!("{}1{}", "[".repeat(600), "]".repeat(600));
    let long = format!("\"{}\"", "x".repeat(100));
    let unset = check("c", Exists(true));
    let unset = Operation {
        kind: unset.kind.map(|kind| match kind {
            outbox_proto::v1::operation::Kind::CheckDocument(check) => {
                outbox_proto::v1::operation::Kind::CheckDocument(outbox_proto::v1::CheckDocument {
                    precondition: None,
                    ..check
                })
            }
            other => other,
        }),
        ..unset
    };
    let cases = [
        ("put_document.id", put("", "1", None)),
        ("put_document.id", put(&"x".repeat(513), "1", None)),
        ("merge_document.id", merge("a\0", "1", None)),
        ("put_document.json", put("c", "{", None)),
        ("put_document.json", put("c", "\"\\u0000\"", None)),
        ("put_document.json", put("c", &deep, None)),
        ("put_document.json", put("c", &long, None)),
        ("merge_document.patch", merge("c", "", None)),
        ("check_document.precondition", unset),
    ];
    for (field, operation) in cases {
        let refused = apply(&server, vec![operation]).await.expect_err("it is refused");
        assert_eq!(fields(&refused)[0], format!("operations[0].{field}"), "{refused:?}");
    }
    let half = format!(r#"{{"{}": 1}}"#, "x".repeat(60));
    let grown = vec![put("c", &half, None), merge("c", &half.replace('x', "y"), None)];
    let refused = apply(&server, grown).await.expect_err("together they are too large");
    assert_eq!((fault(&refused).0, fault(&refused).1.as_str()), (Code::FailedPrecondition, "DOCUMENT_TOO_LARGE"));
    assert_eq!(server.written().await, (0, 0));
}

#[tokio::test]
async fn a_document_may_be_512_deep_and_a_patch_100() {
    let server = Server::start().await;
    let deep = |depth| format!("{}1{}", "{\"a\":".repeat(depth), "}".repeat(depth));
    let both = vec![put("c1", &deep(512), None), merge("c1", &deep(100), None), merge("c2", &deep(100), None)];
    apply(&server, both).await.expect("they are changed");
    let refused = apply(&server, vec![merge("c1", &deep(101), None)]).await.expect_err("the patch is too deep");
    assert_eq!(fields(&refused), ["operations[0].merge_document.patch"]);
    apply(&server, vec![put("c1", &deep(512), None)]).await.expect("it is put");
    assert_eq!(read(&server, "c1").await.expect("it is there").json.matches('{').count(), 512);
}

#[tokio::test]
async fn documents_are_listed_in_pages_by_prefix_and_namespace() {
    let server = Server::start().await;
    let ids: Vec<String> = (0..25).map(|n| format!("a{n:02}")).chain(["b1".into(), "é".into()]).collect();
    let puts = ids.iter().map(|id| put(id, "{}", None)).collect();
    let answer = apply(&server, puts).await.expect("they are put");
    assert_eq!(answer.disposition(), Disposition::Applied);

    let list = |id_prefix: &str, namespace: &str| ListDocumentsRequest {
        namespace: namespace.into(),
        collection: "carts".into(),
        id_prefix: id_prefix.into(),
        page_size: 10,
        page_token: String::new(),
    };
    for (prefix, expected) in [("", &ids[..]), ("a", &ids[..25]), ("a1", &ids[10..20]), ("é", &ids[26..]), ("x", &[])]
    {
        let (mut request, mut found) = (list(prefix, ""), Vec::new());
        loop {
            let page = server.state().list_documents(request.clone()).await.expect("a page").into_inner();
            found.extend(page.documents.into_iter().map(|document| document.id));
            if page.next_page_token.is_empty() {
                break;
            }
            request.page_token = page.next_page_token;
        }
        assert_eq!(found, expected, "with prefix {prefix:?}");
    }
    let elsewhere = server.state().list_documents(list("", "other")).await.expect("a page").into_inner();
    assert!(elsewhere.documents.is_empty());
    let first = server.state().list_documents(list("", "")).await.expect("a page").into_inner();
    let wrong = ListDocumentsRequest { page_token: first.next_page_token, ..list("a", "") };
    let refused = server.state().list_documents(wrong).await.expect_err("the token is another list's");
    assert_eq!(fields(&refused), ["page_token"]);
}
