//! What a retry meets: changed clocks and catalogs, others with the same id, conflicts, links that are cut.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use outbox_harness::{
    ambiguous::{self, Plan},
    proxy::Proxy,
};
use outbox_proto::v1::{CommitRequest, CommitResponse, Disposition, NewEvent, value::Kind};
use tonic::Code;
use tonic_types::StatusExt as _;
use uuid::Uuid;

use crate::support::{
    request::{add, call, commit, event, text},
    server::{CATALOG, Server, fault},
};

fn slow_add(id: &str, seconds: f64) -> outbox_proto::v1::Operation {
    call("slow_add", [("id", text(id)), ("seconds", Kind::Double(seconds))])
}

/// The answer to the same request from another server, which must be the first one.
async fn replayed(other: &Server, request: &CommitRequest, first: &CommitResponse) {
    let again = other.outbox().commit(request.clone()).await.expect("it is answered").into_inner();
    assert_eq!(again, CommitResponse { disposition: Disposition::Replayed.into(), ..first.clone() });
}

#[tokio::test]
async fn a_retry_is_answered_although_its_event_id_has_left_the_clock_window() {
    let server = Server::start().await;
    let named = NewEvent { id: Uuid::now_v7().to_string(), ..event("t", "k") };
    let request = commit(vec![add("a1", 1)], vec![named.clone()]);
    let first = server.outbox().commit(request.clone()).await.expect("it is applied").into_inner();

    // Whose window is so small that the id has left it.
    let later = server.beside(|config| config.commit.event_id_clock_window_ms = 1).await;
    replayed(&later, &request, &first).await;

    let fresh = commit(vec![add("a1", 1)], vec![named]);
    let refused = later.outbox().commit(fresh).await.expect_err("the id is too old for a new request");
    assert_eq!(fault(&refused).1, "INVALID_REQUEST");
    assert_eq!(server.balance("a1").await, 101);
}

#[tokio::test]
async fn a_retry_is_answered_although_its_command_has_changed_or_is_gone() {
    let server = Server::start().await;
    let requests = [
        commit(vec![add("a1", 1)], vec![event("t", "k")]),
        commit(vec![add("a1", 1), add("a1", 1)], vec![event("t", "k")]),
    ];
    let mut firsts = Vec::new();
    for request in &requests {
        firsts.push(server.outbox().commit(request.clone()).await.expect("it is applied").into_inner());
    }
    let without = CATALOG.replace("-- name: add\n", "-- name: added\n");
    let changed = CATALOG.replace(":amount where id = :id", ":sum where id = :id");
    for catalog in [without, changed] {
        let other = server.beside_with_catalog(&catalog).await;
        for (request, first) in requests.iter().zip(&firsts) {
            replayed(&other, request, first).await;
            let fresh = CommitRequest { request_id: Uuid::now_v7().to_string(), ..request.clone() };
            other.outbox().commit(fresh).await.expect_err("a new request is refused");
        }
    }
    assert_eq!(server.balance("a1").await, 103);
}

#[tokio::test]
async fn a_retry_is_answered_although_its_table_is_gone() {
    let server = Server::start().await;
    let request = commit(vec![add("a1", 1)], vec![]);
    let first = server.outbox().commit(request.clone()).await.expect("it is applied").into_inner();
    sqlx::raw_sql("alter table accounts rename to gone").execute(&server.pool).await.expect("it can be renamed");
    replayed(&server, &request, &first).await;
    let refused = server.outbox().commit(commit(vec![add("a1", 1)], vec![])).await.expect_err("there is no table");
    assert_eq!(fault(&refused).1, "INTERNAL");
}

#[tokio::test]
async fn a_retry_that_would_be_refused_waits_for_the_attempt_under_way() {
    let server = Server::start().await;
    let other = server.beside_with_catalog(&CATALOG.replace("-- name: slow_add\n", "-- name: gone\n")).await;
    // Whoever locks the row says how long the attempt lasts.
    let mut lock = server.pool.begin().await.expect("a transaction");
    sqlx::query("select from accounts where id = 'a1' for update").execute(&mut *lock).await.expect("it is locked");
    let request = commit(vec![slow_add("a1", 0.0)], vec![]);
    let send = |server: &Server| {
        let (mut client, request) = (server.outbox(), request.clone());
        tokio::spawn(async move { client.commit(request).await })
    };
    let first = send(&server);
    server.until_waiting(1).await;
    let again = send(&other);
    server.until_waiting(2).await;
    lock.rollback().await.expect("it is unlocked");
    let again = again.await.expect("no panic").expect("it waits, and is answered").into_inner();
    assert_eq!(again.disposition(), Disposition::Replayed);
    first.await.expect("no panic").expect("it is applied");
}

#[tokio::test]
async fn a_storm_of_one_request_holds_one_connection() {
    let server = Server::start_with(|config| {
        config.database.commit_connections = 2;
        config.commit.queue_max = 63;
    })
    .await;
    let request = commit(vec![slow_add("a1", 3.0)], vec![event("t", "k")]);
    let storm = (0..64).map(|_| {
        let (mut client, request) = (server.outbox(), request.clone());
        tokio::spawn(async move { client.commit(request).await.expect("every caller is answered").into_inner() })
    });
    let storm: Vec<_> = storm.collect();
    server.until_sleeping(true).await;

    server.outbox().commit(commit(vec![add("a2", 1)], vec![])).await.expect("others get a connection");
    assert_eq!(server.balance("a1").await, 100, "another request had to wait for the storm");

    let answers: Vec<_> = join_all(storm).await.into_iter().map(|answer| answer.expect("no panic")).collect();
    let applied: Vec<_> = answers.iter().filter(|answer| answer.disposition() == Disposition::Applied).collect();
    assert_eq!(applied.len(), 1);
    let replay = CommitResponse { disposition: Disposition::Replayed.into(), ..applied[0].clone() };
    assert_eq!(answers.iter().filter(|answer| **answer == replay).count(), 63);
    assert_eq!(server.balance("a1").await, 101);
}

#[tokio::test]
async fn a_follower_with_another_body_is_refused_and_one_with_more_time_goes_on() {
    let server = Server::start().await;
    let request = commit(vec![slow_add("a1", 1.5)], vec![]);
    let send = |request: CommitRequest, timeout: Duration| {
        let mut client = server.outbox();
        let mut request = tonic::Request::new(request);
        request.set_timeout(timeout);
        tokio::spawn(async move { client.commit(request).await })
    };
    let short = send(request.clone(), Duration::from_secs(1));
    server.until_sleeping(true).await;
    let long = send(request.clone(), Duration::from_secs(20));
    short.await.expect("no panic").expect_err("its deadline passes");
    let applied = long.await.expect("no panic").expect("it has time enough").into_inner();
    assert_eq!(applied.disposition(), Disposition::Applied);

    let slow = commit(vec![slow_add("a2", 1.5)], vec![]);
    let first = send(slow.clone(), Duration::from_secs(20));
    server.until_sleeping(true).await;
    let other = CommitRequest { operations: vec![add("a2", 5)], ..slow };
    let refused = server.outbox().commit(other).await.expect_err("the id is another's");
    assert_eq!(fault(&refused).1, "REQUEST_ID_REUSED");
    first.await.expect("no panic").expect("it is applied");
    assert_eq!(server.balance("a2").await, 101);
}

#[tokio::test]
async fn the_victim_of_a_deadlock_is_tried_again_by_the_server() {
    let server = Server::start().await;
    let stubborn = server.beside(|config| config.commit.conflict_retries_max = 0).await;
    // The first is asleep with its first row locked when the second locks the other, so they cross.
    let crossing = async |answering: &Server, one: &str, two: &str| {
        let send = |operations| {
            let mut client = answering.outbox();
            tokio::spawn(async move { client.commit(commit(operations, vec![])).await })
        };
        let first = send(vec![add(one, 1), slow_add("a9", 1.0), add(two, 1)]);
        server.until_sleeping(true).await;
        let second = send(vec![add(two, 1), add(one, 1)]);
        join_all([first, second]).await
    };
    for answer in crossing(&server, "a1", "a2").await {
        let answer = answer.expect("no panic").expect("both are applied in the end").into_inner();
        assert_eq!(answer.disposition(), Disposition::Applied);
    }
    assert_eq!((server.balance("a1").await, server.balance("a2").await), (102, 102));

    let answers = crossing(&stubborn, "a3", "a4").await;
    let refused: Vec<_> =
        answers.iter().filter_map(|answer| answer.as_ref().expect("no panic").as_ref().err()).collect();
    assert_eq!(refused.len(), 1, "without retries one of them is told");
    assert_eq!((fault(refused[0]).0, fault(refused[0]).1.as_str()), (Code::Aborted, "CONFLICT"));
    assert!(refused[0].get_details_retry_info().is_some());
}

/// A conflict of serialization is tried again as a deadlock is, for as long as the deadline allows.
#[tokio::test]
async fn a_conflict_that_passes_is_tried_again_and_one_that_stays_is_told_in_time() {
    let server = Server::start_with(|config| config.commit.conflict_retries_max = 100).await;
    // Numbers of a sequence outlive the transactions that are rolled back.
    let rule = "create sequence tries;
                create function conflict() returns trigger language plpgsql as $$ begin
                    if new.id = 'a2' or nextval('tries') <= 2 then raise 'conflict' using errcode = '40001'; end if;
                    return new;
                end $$;
                create trigger conflict before update on accounts for each row execute function conflict()";
    sqlx::raw_sql(rule).execute(&server.pool).await.expect("a rule can be made");

    let answer = server.outbox().commit(commit(vec![add("a1", 1)], vec![event("t", "k")])).await;
    assert_eq!(answer.expect("it is applied in the end").into_inner().disposition(), Disposition::Applied);
    assert_eq!((server.balance("a1").await, server.written().await), (101, (1, 1)));

    let began = Instant::now();
    let mut request = tonic::Request::new(commit(vec![add("a2", 1)], vec![event("t", "k")]));
    request.set_timeout(Duration::from_secs(1));
    let refused = server.outbox().commit(request).await.expect_err("it stays");
    assert!(began.elapsed() < Duration::from_secs(1), "it is told before the caller gives up");
    assert_eq!((fault(&refused).0, fault(&refused).1.as_str()), (Code::Aborted, "CONFLICT"));
    assert_eq!((server.balance("a2").await, server.written().await), (100, (1, 1)));
}

#[tokio::test]
async fn validation_tells_what_would_be_and_writes_nothing() {
    let server = Server::start().await;
    for operations in [vec![add("a1", 1)], vec![add("a1", 1), add("a1", 1)]] {
        let balance = server.balance("a1").await;
        let before = server.written().await;
        let request = commit(operations, vec![event("t", "k")]);
        let dry = CommitRequest { validate_only: true, ..request.clone() };

        let told = server.outbox().commit(dry.clone()).await.expect("it is valid").into_inner();
        assert_eq!((told.disposition(), told.committed_at), (Disposition::Validated, None));
        assert_eq!((server.balance("a1").await, server.written().await), (balance, before));

        let applied = server.outbox().commit(request).await.expect("the id is not used up").into_inner();
        assert_eq!(applied.disposition(), Disposition::Applied);
        assert_eq!(applied.results, told.results);
        let told = server.outbox().commit(dry).await.expect("it is answered").into_inner();
        assert_eq!(told, CommitResponse { disposition: Disposition::Replayed.into(), ..applied });
    }
    let wrong = CommitRequest { validate_only: true, ..commit(vec![add("a1", -1_000)], vec![]) };
    let refused = server.outbox().commit(wrong).await.expect_err("a check would fail");
    assert_eq!(fault(&refused).1, "CHECK_VIOLATION");
}

#[tokio::test]
async fn links_cut_before_during_and_after_the_commit_apply_each_request_once() {
    let server = Server::start().await;
    let proxy = Proxy::start(&server.url).await;
    let cut = server.beside(|config| config.database.url.clone_from(&proxy.url)).await;
    let plan = Plan { requests: 300, callers: 8, cut_percent: 40, seed: 7 };
    let operations = |n: usize| vec![add(&format!("a{}", n % 50), 1); 1 + n % 2];
    let report = ambiguous::run(plan, &proxy, cut.channel.clone(), operations).await;
    assert!(report.cuts.iter().all(|cuts| *cuts > 20), "{report:?}");
    assert!(report.settled_by_replay > 20, "{report:?}");
    assert_eq!(server.number("select sum(balance)::bigint from accounts").await, 200 * 100 + 300 + 150);
    assert_eq!(server.written().await, (300, 300));
}
