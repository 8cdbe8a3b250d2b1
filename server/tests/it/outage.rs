//! Outages and endings: the database goes away and comes back, and the server is asked to stop.

use std::time::Duration;

use outbox_harness::{cluster::Cluster, eventually};
use outbox_proto::v1::{Disposition, value::Kind};
use tonic::Code;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};
use tonic_types::StatusExt as _;

use crate::support::{
    request::{add, call, commit, event, text},
    server::{Server, fault},
};

async fn health(server: &Server, service: &str) -> ServingStatus {
    let request = HealthCheckRequest { service: service.into() };
    let answer = HealthClient::new(server.channel.clone()).check(request).await.expect("health answers");
    answer.into_inner().status()
}

pub(crate) async fn until_health(server: &Server, service: &str, expected: ServingStatus) {
    let what = format!("the health of {service:?} to become {expected:?}");
    eventually(&what, Duration::from_secs(15), async || (health(server, service).await == expected).then_some(()))
        .await;
}

#[tokio::test]
async fn while_the_database_is_down_calls_are_unavailable_and_after_it_they_go_on() {
    let cluster = Cluster::start(&[]);
    let server = Server::at(cluster.url.clone(), None, |_| {}).await;
    until_health(&server, "outbox.v1.OutboxService", ServingStatus::Serving).await;
    let request = commit(vec![add("a1", 1)], vec![event("t", "k")]);
    server.outbox().commit(request.clone()).await.expect("it is applied");

    for orderly in [true, false] {
        let end = if orderly { Cluster::stop } else { Cluster::crash };
        end(&cluster);
        let down = server.outbox().commit(commit(vec![add("a1", 1)], vec![])).await.expect_err("the database is down");
        let (code, reason, _) = fault(&down);
        assert_eq!((code, reason.as_str()), (Code::Unavailable, "DATABASE_UNAVAILABLE"));
        assert!(down.get_details_retry_info().is_some_and(|retry| retry.retry_delay.is_some()));
        until_health(&server, "", ServingStatus::NotServing).await;

        cluster.start_again();
        let again = server.outbox().commit(request.clone()).await.expect("it is answered").into_inner();
        assert_eq!(again.disposition(), Disposition::Replayed);
        until_health(&server, "", ServingStatus::Serving).await;
    }
    assert_eq!(server.balance("a1").await, 101);
}

#[tokio::test]
async fn a_call_in_progress_is_finished_before_the_server_ends() {
    let mut server = Server::start().await;
    let slow = commit(vec![call("slow_add", [("id", text("a1")), ("seconds", Kind::Double(1.0))])], vec![]);
    let mut client = server.outbox();
    let calling = tokio::spawn(async move { client.commit(slow).await });
    server.until_sleeping(true).await;

    server.stop().await;

    let answer = calling.await.expect("no panic").expect("the call was finished").into_inner();
    assert_eq!(answer.results[0].rows_affected, 1);
    assert_eq!(server.balance("a1").await, 101);
}

#[tokio::test]
async fn the_time_to_drain_is_bounded() {
    let mut server = Server::start_with(|config| config.grpc.drain_ms = 200).await;
    let slow = commit(vec![call("slow_add", [("id", text("a1")), ("seconds", Kind::Double(20.0))])], vec![]);
    let mut client = server.outbox();
    let calling = tokio::spawn(async move { client.commit(slow).await });
    server.until_sleeping(true).await;
    tokio::time::timeout(Duration::from_secs(5), server.stop()).await.expect("the server ends within its bound");
    calling.abort();
}

#[tokio::test]
async fn more_callers_than_may_wait_are_refused() {
    let server = Server::start_with(|config| {
        config.database.commit_connections = 1;
        config.commit.queue_max = 1;
    })
    .await;
    let slow = || commit(vec![call("slow_add", [("id", text("a1")), ("seconds", Kind::Double(1.0))])], vec![]);
    let calls = (0..8).map(|_| {
        let (mut client, request) = (server.outbox(), slow());
        async move { client.commit(request).await }
    });
    let answers = futures_util::future::join_all(calls).await;
    let refused: Vec<_> = answers.iter().filter_map(|answer| answer.as_ref().err()).collect();
    assert_eq!(refused.len(), 6, "one runs, one waits");
    for status in refused {
        assert_eq!((fault(status).0, fault(status).1.as_str()), (Code::ResourceExhausted, "QUEUE_FULL"));
        assert!(status.get_details_retry_info().is_some());
    }
}
