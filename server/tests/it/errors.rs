//! Reasons of errors that no other test provokes, and that none is left out.

use std::{fs, path::Path};

use outbox_proto::v1::{NewEvent, value::Kind};
use tonic::Code;
use uuid::Uuid;

use crate::support::{
    request::{add, call, commit, event, null, text},
    server::{Server, fault},
};

#[tokio::test]
async fn a_column_that_must_not_be_null_is_named() {
    let server = Server::start().await;
    let open = call("open", [("id", text("new")), ("balance", null())]);
    let refused = server.outbox().commit(commit(vec![open], vec![])).await.expect_err("it is refused");
    let (code, reason, metadata) = fault(&refused);
    assert_eq!((code, reason.as_str()), (Code::FailedPrecondition, "NOT_NULL_VIOLATION"));
    assert_eq!(metadata["constraint"], "balance");
}

#[tokio::test]
async fn the_operators_own_exception_refuses_without_its_words() {
    let server = Server::start().await;
    let rule = "create function refuse() returns trigger language plpgsql as $$ begin raise 'secret words'; end $$;
                create trigger refuse before update on accounts for each row execute function refuse()";
    sqlx::raw_sql(rule).execute(&server.pool).await.expect("a rule can be made");
    let refused = server.outbox().commit(commit(vec![add("a1", 1)], vec![])).await.expect_err("it is refused");
    assert_eq!((fault(&refused).0, fault(&refused).1.as_str()), (Code::FailedPrecondition, "REJECTED"));
    assert!(!refused.message().contains("secret"), "{refused:?}");
}

#[tokio::test]
async fn an_event_id_for_which_there_is_no_partition_is_refused() {
    let server = Server::start().await;
    let drop = "do $$ declare name regclass; begin
                for name in select inhrelid::regclass from pg_inherits where inhparent = 'outbox.events'::regclass loop
                    execute 'drop table ' || name; end loop; end $$";
    sqlx::raw_sql(drop).execute(&server.pool).await.expect("partitions can be dropped");
    let named = NewEvent { id: Uuid::now_v7().to_string(), ..event("t", "k") };
    let refused = server.outbox().commit(commit(vec![], vec![named])).await.expect_err("there is no place for it");
    assert_eq!((fault(&refused).0, fault(&refused).1.as_str()), (Code::InvalidArgument, "EVENT_ID_OUT_OF_RANGE"));
}

#[tokio::test]
async fn the_servers_own_deadline_is_told_with_a_reason() {
    let server = Server::start_with(|config| config.grpc.deadline_max_ms = 300).await;
    let slow = call("slow_add", [("id", text("a1")), ("seconds", Kind::Double(30.0))]);
    let late = server.outbox().commit(commit(vec![slow], vec![])).await.expect_err("it takes too long");
    assert_eq!((fault(&late).0, fault(&late).1.as_str()), (Code::DeadlineExceeded, "DEADLINE_EXCEEDED"));
}

#[test]
fn every_reason_of_the_page_is_provoked_by_some_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let tests = fs::read_dir(root.join("tests/it")).expect("the tests can be read").filter_map(|entry| {
        let path = entry.expect("the entry can be read").path();
        path.is_file().then(|| fs::read_to_string(path).expect("the test can be read"))
    });
    let tests: Vec<String> = tests.collect();
    let page = fs::read_to_string(root.join("../proto/ERRORS.md")).expect("the page can be read");
    let reasons = page.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`').map(|(reason, _)| reason));
    let missing: Vec<&str> =
        reasons.filter(|reason| !tests.iter().any(|test| test.contains(&format!("\"{reason}\"")))).collect();
    assert!(missing.is_empty(), "{missing:?}");
}
