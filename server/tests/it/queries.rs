//! Read-only commands run by themselves, and what the catalog tells of its commands.

use outbox_proto::v1::{
    CommandCall, GetCommandRequest, ListCommandsRequest, Operation, QueryRequest, QueryResponse, operation, value::Kind,
};
use tonic::{Code, Request, Status};

use crate::support::{
    request::{call, text},
    server::{Server, fault, fields},
};

fn query(operation: Operation) -> QueryRequest {
    let command: Option<CommandCall> = operation.kind.map(|kind| match kind {
        operation::Kind::Command(call) => call,
        other => panic!("no command: {other:?}"),
    });
    QueryRequest { namespace: String::new(), command }
}

async fn run(server: &Server, operation: Operation) -> Result<QueryResponse, Status> {
    server.state().query(query(operation)).await.map(tonic::Response::into_inner)
}

#[tokio::test]
async fn a_read_only_command_answers_and_leaves_nothing() {
    let server = Server::start().await;
    let answer = run(&server, call("balance", [("id", text("a1"))])).await.expect("it is answered");
    assert_eq!(answer.result.expect("a result").rows[0].values[0].kind, Some(Kind::Int(100)));
    let all = run(&server, call("list", [])).await.expect("it is answered").result.expect("a result");
    assert_eq!((all.rows_affected, all.rows.len()), (200, 200));
    assert_eq!(server.written().await, (0, 0));
}

#[tokio::test]
async fn a_command_that_may_write_is_no_query() {
    let server = Server::start().await;
    let undeclared = run(&server, call("add", [("id", text("a1")), ("amount", Kind::Int(1))])).await;
    // One that is declared read-only, looks like it, and writes.
    let lying = run(&server, call("sneak", [])).await;
    for refused in [undeclared, lying] {
        let refused = refused.expect_err("it is refused");
        assert_eq!((fault(&refused).0, fault(&refused).1.as_str()), (Code::FailedPrecondition, "NOT_READ_ONLY"));
    }
    assert_eq!(server.number("select sum(balance)::bigint from accounts").await, 200 * 100);
}

#[tokio::test]
async fn a_wrong_query_is_named() {
    let server = Server::start_with(|config| config.commit.result_rows_max = 199).await;
    let unknown = run(&server, call("balanse", [])).await.expect_err("there is none");
    assert_eq!((fault(&unknown).0, fault(&unknown).1.as_str()), (Code::NotFound, "UNKNOWN_COMMAND"));
    assert!(unknown.message().contains("balance"), "{unknown:?}");
    let wrong = run(&server, call("balance", [("id", Kind::Bool(true))])).await.expect_err("a wrong type");
    assert_eq!(fields(&wrong), ["command.parameters[id]"]);
    let missing = run(&server, call("balance", [("id", text("nobody"))])).await.expect_err("there is no row");
    assert_eq!(fault(&missing).1, "ROW_COUNT_MISMATCH");
    let many = run(&server, call("list", [])).await.expect_err("there are too many rows");
    assert_eq!(fault(&many).1, "TOO_MANY_ROWS");
    let empty = server.state().query(QueryRequest::default()).await.expect_err("no command");
    assert_eq!(fields(&empty), ["command"]);
}

#[tokio::test]
async fn queries_have_connections_of_their_own_and_come_back_after_a_loss() {
    let server = Server::start_with(|config| config.database.query_connections = 1).await;
    run(&server, call("balance", [("id", text("a1"))])).await.expect("it is answered");
    let kill = "select count(pg_terminate_backend(pid)) from pg_stat_activity
                where datname = current_database() and application_name = 'outboxd'";
    assert!(server.number(kill).await > 0);
    run(&server, call("balance", [("id", text("a1"))])).await.expect("a dead connection is replaced");
    let mut late = Request::new(query(call("balance", [("id", text("a1"))])));
    late.metadata_mut().insert("grpc-timeout", "0n".parse().expect("a metadata value"));
    let late = server.state().query(late).await.expect_err("its deadline has passed");
    assert!(matches!(late.code(), Code::DeadlineExceeded | Code::Cancelled), "{late:?}");
}

#[tokio::test]
async fn the_catalog_tells_its_commands() {
    let server = Server::start().await;
    let get = |name: &str| GetCommandRequest { name: name.into() };
    let balance = server.commands().get_command(get("balance")).await.expect("it is there").into_inner();
    let balance = balance.command.expect("a command");
    assert_eq!((balance.description.as_str(), balance.read_only), ("What an account holds.", true));
    assert_eq!((balance.rows_min, balance.rows_max), (1, Some(1)));
    assert_eq!((balance.parameters[0].name.as_str(), balance.parameters[0].r#type.as_str()), ("id", "text"));
    assert_eq!((balance.columns[0].name.as_str(), balance.columns[0].r#type.as_str()), ("balance", "int8"));
    for unknown in ["nothing", "put document"] {
        let unknown = server.commands().get_command(get(unknown)).await.expect_err("there is none");
        assert_eq!(fault(&unknown).1, "UNKNOWN_COMMAND");
    }

    let (mut request, mut names) = (ListCommandsRequest { page_size: 5, page_token: String::new() }, Vec::new());
    loop {
        let page = server.commands().list_commands(request.clone()).await.expect("a page").into_inner();
        names.extend(page.commands.into_iter().map(|command| command.name));
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    assert!(names.is_sorted() && names.len() == 11, "{names:?}");
}
