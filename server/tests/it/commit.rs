//! Commit: atomic, once per request id, whatever the network does.

use std::{collections::HashSet, time::Duration};

use futures_util::future::join_all;
use outbox_harness::proxy::{Cut, Proxy};
use outbox_proto::v1::{
    CommitRequest, CommitResponse, Disposition, GetCommitRequest, GetEventRequest, ListEventsRequest, value::Kind,
};
use tonic::{Code, Request};
use uuid::Uuid;

use crate::support::{
    request::{add, array, call, commit, event, null, text},
    server::{Server, fault},
};

#[tokio::test]
async fn state_and_events_are_written_together() {
    let server = Server::start().await;
    let request = commit(vec![add("a1", 5)], vec![event("t", "k"), event("t", "k")]);

    let answer = server.outbox().commit(request).await.expect("the commit is applied").into_inner();

    assert_eq!(answer.disposition(), Disposition::Applied);
    assert_eq!(answer.results[0].rows_affected, 1);
    assert_eq!(answer.results[0].rows[0].values[1].kind, Some(Kind::Int(105)));
    assert_eq!(server.balance("a1").await, 105);
    let get = GetEventRequest { namespace: String::new(), id: answer.event_ids[1].clone() };
    let stored =
        server.events().get_event(get).await.expect("the event is stored").into_inner().event.expect("an event");
    assert_eq!((stored.topic.as_str(), stored.data.as_deref()), ("t", Some(b"{}".as_slice())));
    assert!(!stored.settled);
    assert_eq!(server.written().await, (1, 2));
}

#[tokio::test]
async fn a_failed_operation_leaves_neither_state_nor_events() {
    let server = Server::start().await;
    for operations in [
        vec![add("nobody", 1)],
        vec![add("a1", 1), add("nobody", 1)],
        vec![add("a1", 1), add("a2", -1_000)],
        vec![add("a1", 1), call("scale", [("divisor", Kind::Int(0))])],
    ] {
        let refused = server.outbox().commit(commit(operations, vec![event("t", "k")])).await;
        refused.expect_err("the commit is refused");
    }
    assert_eq!(server.written().await, (0, 0));
    assert_eq!(server.number("select sum(balance)::bigint from accounts").await, 200 * 100);
}

#[tokio::test]
async fn later_operations_see_what_earlier_ones_did() {
    let server = Server::start().await;
    let request = commit(vec![add("a1", 1), add("a1", 1), add("a1", 1)], vec![]);
    let answer = server.outbox().commit(request).await.expect("the commit is applied").into_inner();
    let balances: Vec<_> = answer.results.iter().map(|result| result.rows[0].values[1].kind.clone()).collect();
    assert_eq!(balances, [101, 102, 103].map(|balance| Some(Kind::Int(balance))));
}

#[tokio::test]
async fn a_retry_gets_the_first_answer_and_applies_nothing() {
    let server = Server::start().await;
    for operations in [vec![add("a1", 1)], vec![add("a1", 1), add("a2", 1)], vec![]] {
        let request = commit(operations, vec![event("t", "k")]);
        let before = server.written().await;
        let first = server.outbox().commit(request.clone()).await.expect("it is applied").into_inner();
        let again = server.outbox().commit(request.clone()).await.expect("it is answered").into_inner();

        let replayed = CommitResponse { disposition: Disposition::Replayed.into(), ..first };
        assert_eq!(again, replayed);
        let get = GetCommitRequest { namespace: String::new(), request_id: request.request_id };
        let got = server.outbox().get_commit(get).await.expect("it is remembered").into_inner();
        assert_eq!(got.commit, Some(replayed));
        assert_eq!(server.written().await, (before.0 + 1, before.1 + 1));
    }
    assert_eq!(server.balance("a1").await, 102);
}

#[tokio::test]
async fn a_retried_insert_is_answered_not_refused_as_a_duplicate() {
    let server = Server::start().await;
    let request = commit(vec![call("open", [("id", text("new")), ("balance", Kind::Int(1))])], vec![]);
    server.outbox().commit(request.clone()).await.expect("it is applied");
    let again = server.outbox().commit(request).await.expect("it is answered").into_inner();
    assert_eq!(again.disposition(), Disposition::Replayed);
}

#[tokio::test]
async fn a_request_id_with_another_body_is_refused() {
    let server = Server::start().await;
    let request = commit(vec![add("a1", 1)], vec![]);
    server.outbox().commit(request.clone()).await.expect("it is applied");
    let other = CommitRequest { operations: vec![add("a1", 2)], ..request.clone() };
    let refused = server.outbox().commit(other).await.expect_err("it is refused");
    let (code, reason, _) = fault(&refused);
    assert_eq!((code, reason.as_str()), (Code::FailedPrecondition, "REQUEST_ID_REUSED"));
    let elsewhere = CommitRequest { namespace: "other".into(), ..request };
    let applied = server.outbox().commit(elsewhere).await.expect("another namespace has ids of its own").into_inner();
    assert_eq!(applied.disposition(), Disposition::Applied);
}

#[tokio::test]
async fn a_request_id_from_before_the_window_is_refused() {
    let server = Server::start().await;
    let old = chrono::Utc::now() - chrono::Duration::hours(169);
    let millis = u64::try_from(old.timestamp_millis()).expect("a time of our days");
    let request_id = uuid::Builder::from_unix_timestamp_millis(millis, &[7; 10]).into_uuid().to_string();
    let request = CommitRequest { request_id, ..commit(vec![add("a1", 1)], vec![]) };
    let refused = server.outbox().commit(request).await.expect_err("it is refused");
    assert_eq!(fault(&refused).1, "REQUEST_EXPIRED");
    assert_eq!(server.balance("a1").await, 100);
}

#[tokio::test]
async fn of_64_callers_with_one_request_id_one_applies_it() {
    let server = Server::start().await;
    for operations in [vec![add("a1", 1)], vec![add("a1", 1), add("a2", 1)]] {
        let request = commit(operations, vec![event("t", "k")]);
        let mut client = server.outbox();
        client.commit(commit(vec![add("a3", 1)], vec![])).await.expect("the server is up");

        let calls = (0..64).map(|_| {
            let (mut client, request) = (server.outbox(), request.clone());
            async move { client.commit(request).await.expect("every caller is answered").into_inner() }
        });
        let answers = join_all(calls).await;

        let applied = answers.iter().filter(|a| a.disposition() == Disposition::Applied).count();
        assert_eq!(applied, 1);
        let ids: HashSet<_> = answers.iter().map(|answer| &answer.event_ids).collect();
        assert_eq!(ids.len(), 1);
    }
    assert_eq!(server.balance("a1").await, 102);
}

/// Trap 13: a link lost during COMMIT. The transaction is still running when the server asks what became of it; a
/// bare read would miss it, and the request would be applied a second time.
#[tokio::test]
async fn a_link_lost_while_committing_is_settled_by_claiming_again() {
    const SLOW_COMMIT: &str = "
        create function slowly() returns trigger language plpgsql as 'begin perform pg_sleep(0.5); return null; end';
        create constraint trigger slowly after update on accounts deferrable initially deferred
        for each row execute function slowly()";
    for operations in [1, 2] {
        let server = Server::start().await;
        sqlx::raw_sql(SLOW_COMMIT).execute(&server.pool).await.expect("a slow commit can be made");
        let proxy = Proxy::start(&server.url).await;
        let cut = server.beside(|config| config.database.url.clone_from(&proxy.url)).await;
        let request = commit(vec![add("a1", 1); operations], vec![event("t", "k")]);

        // One operation is one statement, which carries the id; more end in a COMMIT of their own.
        let cut_off = proxy.arm(if operations == 1 { &request.request_id } else { "COMMIT" }, Cut::During);
        let answer = cut.outbox().commit(request.clone()).await.expect("it is settled").into_inner();

        assert!(*cut_off.lock().expect("no holder panics"), "the link was cut");
        assert_eq!(answer.disposition(), Disposition::Replayed, "the lost transaction had committed");
        assert_eq!(answer.results.len(), operations);
        assert_eq!(server.balance("a1").await, 100 + i64::try_from(operations).expect("few"));
        assert_eq!(server.written().await, (1, 1));
    }
}

#[tokio::test]
async fn the_callers_deadline_ends_the_statement() {
    let server = Server::start().await;
    let slow = commit(vec![call("slow_add", [("id", text("a1")), ("seconds", Kind::Double(30.0))])], vec![]);
    let mut request = Request::new(slow);
    request.set_timeout(Duration::from_millis(300));
    let late = server.outbox().commit(request).await.expect_err("it takes too long");
    // CANCELLED is what the client's own timer says when it comes first.
    assert!(matches!(late.code(), Code::DeadlineExceeded | Code::Cancelled), "{late:?}");
    server.until_sleeping(false).await;
    assert_eq!((server.balance("a1").await, server.written().await), (100, (0, 0)));
}

#[tokio::test]
async fn a_deadline_already_past_writes_nothing() {
    let server = Server::start().await;
    let mut request = Request::new(commit(vec![add("a1", 1)], vec![]));
    request.metadata_mut().insert("grpc-timeout", "0n".parse().expect("a metadata value"));
    let late = server.outbox().commit(request).await.expect_err("the deadline has passed");
    assert!(matches!(late.code(), Code::DeadlineExceeded | Code::Cancelled), "{late:?}");
    server.outbox().commit(commit(vec![add("a2", 1)], vec![])).await.expect("the next one is applied");
    assert_eq!(server.balance("a1").await, 100);
}

#[tokio::test]
async fn every_type_goes_both_ways_without_loss() {
    let server = Server::start().await;
    let huge = format!("{}.{}", "9".repeat(200), "1".repeat(200));
    let extremes = [
        ("bool", Kind::Bool(true)),
        ("int2", Kind::Int(-32_768)),
        ("int4", Kind::Int(2_147_483_647)),
        ("int8", Kind::Int(i64::MIN)),
        ("float4", Kind::Double(f64::from(0.1f32))),
        ("float8", Kind::Double(f64::NEG_INFINITY)),
        ("numeric", Kind::Numeric(huge)),
        ("text", text("a'b\"c\\d é 🦀 {x,y} :z")),
        ("bytea", Kind::Bytes(vec![0, 1, 255].into())),
        ("uuid", Kind::Uuid(Uuid::now_v7().to_string())),
        ("date", Kind::Date("infinity".into())),
        ("time", Kind::Time("23:59:59.999999".into())),
        ("timestamp", Kind::Timestamp("-infinity".into())),
        ("timestamptz", Kind::Timestamptz("2026-11-23 01:02:03.000004+00".into())),
        ("interval", Kind::Interval("P1Y2M3DT4H5M6.7S".into())),
        ("jsonb", Kind::Json("{\"n\": 12345678901234567890.5}".into())),
        ("mood", text("so so")),
        ("ints", array([Kind::Int(i64::from(i32::MIN)), null(), Kind::Int(7)])),
        ("texts", array([text("NULL"), text(""), text("a,b\"\\"), null()])),
        ("moods", array([text("glad"), text("so so")])),
    ];
    let answer = server.outbox().commit(commit(vec![call("types", extremes.clone())], vec![])).await;
    let answer = answer.expect("it is applied").into_inner();
    let given: Vec<_> = extremes.iter().map(|(_, kind)| Some(kind.clone())).collect();
    let got: Vec<_> = answer.results[0].rows[0].values.iter().map(|value| value.kind.clone()).collect();
    assert_eq!(got, given);

    let nulls = extremes.map(|(name, _)| (name, null()));
    let answer = server.outbox().commit(commit(vec![call("types", nulls)], vec![])).await.expect("it is applied");
    let all_null = answer.into_inner().results[0].rows[0].values.iter().all(|value| value.kind == Some(null()));
    assert!(all_null);
}

#[tokio::test]
async fn a_schema_change_under_a_prepared_command_goes_unnoticed() {
    let server = Server::start_with(|config| config.database.commit_connections = 1).await;
    server.outbox().commit(commit(vec![add("a1", 1)], vec![])).await.expect("it is applied");
    let alter = "alter table accounts add column extra text default 'x', alter column balance type numeric";
    sqlx::raw_sql(alter).execute(&server.pool).await.expect("the table can be altered");
    server.outbox().commit(commit(vec![add("a1", 1)], vec![])).await.expect("it is applied as before");
}

#[tokio::test]
async fn lists_are_paged_in_order_and_filtered() {
    let server = Server::start().await;
    let events = (0..25).map(|n| event(if n % 5 == 0 { "fives" } else { "others" }, "k")).collect();
    let stored = server.outbox().commit(commit(vec![], events)).await.expect("it is applied").into_inner();

    let mut request = ListEventsRequest { page_size: 10, ..ListEventsRequest::default() };
    let mut listed = Vec::new();
    loop {
        let page = server.events().list_events(request.clone()).await.expect("a page").into_inner();
        listed.extend(page.events.into_iter().map(|event| event.id));
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    assert_eq!(listed, stored.event_ids);
    let fives = ListEventsRequest { topic: "fives".into(), ..ListEventsRequest::default() };
    assert_eq!(server.events().list_events(fives).await.expect("a page").into_inner().events.len(), 5);
}
