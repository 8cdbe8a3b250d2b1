//! `InboxService`: one holder of a lease, one result, and outcomes that are data.

use std::time::Duration;

use futures_util::future::join_all;
use outbox_harness::{claims::keep_the_contract, eventually};
use outbox_proto::v1::{
    ClaimRequest, CompleteRequest, ExtendRequest, Hold, Lease, ReleaseRequest,
    claim_response::{Completed, Granted, Outcome},
};
use outbox_sdk::{
    Client, EventKey,
    claim::{Claimed, Claims as _, ServerClaims},
};
use prost_types::Timestamp;
use tonic::Code;
use uuid::Uuid;

use crate::support::server::{Server, fault, fields};

fn seconds(seconds: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos: 0 })
}

fn hours_ago(hours: i64) -> Option<Timestamp> {
    Some(Timestamp { seconds: chrono::Utc::now().timestamp() - hours * 3_600, nanos: 0 })
}

/// A claim of an event that happened just now.
fn delivery() -> ClaimRequest {
    ClaimRequest {
        consumer: "mailer".into(),
        source: "/shop".into(),
        event_id: Uuid::now_v7().to_string(),
        event_time: hours_ago(0),
        content_hash: vec![7; 32].into(),
        lease: seconds(60),
        ..ClaimRequest::default()
    }
}

async fn claim(server: &Server, request: &ClaimRequest) -> Outcome {
    let answer = server.inbox().claim(request.clone()).await.expect("it is answered").into_inner();
    answer.outcome.expect("there is an outcome")
}

async fn granted(server: &Server, request: &ClaimRequest) -> (Lease, i32) {
    match claim(server, request).await {
        Outcome::Granted(Granted { lease: Some(lease), attempt }) => (lease, attempt),
        other => panic!("expected the lease, got {other:?}"),
    }
}

async fn complete(server: &Server, lease: &Lease, result: &'static [u8]) -> Hold {
    let request = CompleteRequest { lease: Some(lease.clone()), result: result.into() };
    server.inbox().complete(request).await.expect("it is answered").into_inner().hold()
}

#[tokio::test]
async fn trap_6_the_servers_claims_keep_the_contract_of_every_store() {
    let server = Server::start().await;
    let client = Client::builder(server.endpoint()).namespace("shop").connect().expect("an endpoint");
    keep_the_contract(ServerClaims::new(client)).await;
    let namespaces = server.number("select count(*) from outbox.consumers where namespace <> 'shop'").await;
    assert_eq!(namespaces, 0, "the client's namespace is used");
}

#[tokio::test]
async fn a_claim_whose_answer_was_lost_is_not_in_its_own_way() {
    let server = Server::start().await;
    let request = ClaimRequest { token: Uuid::now_v7().to_string(), ..delivery() };
    let (lease, attempt) = granted(&server, &request).await;
    assert_eq!((lease.token.as_str(), attempt), (request.token.as_str(), 1));
    assert_eq!(granted(&server, &request).await, (lease.clone(), 1), "the same claim again");

    let other = ClaimRequest { token: String::new(), ..request.clone() };
    assert!(matches!(claim(&server, &other).await, Outcome::Held(_)), "another claim waits");
    for _ in 0..2 {
        assert_eq!(complete(&server, &lease, b"sent").await, Hold::Kept);
    }
    assert_eq!(complete(&server, &lease, b"sent twice").await, Hold::Kept);
    match claim(&server, &request).await {
        Outcome::Completed(Completed { result, completed_at: Some(_) }) => assert_eq!(result.as_ref(), b"sent"),
        other => panic!("expected the first result, got {other:?}"),
    }
}

#[tokio::test]
async fn of_claims_at_two_servers_at_once_one_is_granted_whatever_time_the_event_is_said_to_have() {
    let server = Server::start().await;
    let other = server.beside(|_| {}).await;
    // Again and again: the first round opens connections and makes the consumer, which puts the calls in a row.
    for round in 1..=20 {
        let request = delivery();
        let claims = (0..32).map(|n| {
            // Hours that lie in two partitions.
            let request = ClaimRequest { event_time: hours_ago(160 * (n % 2)), ..request.clone() };
            let mut inbox = if n % 4 < 2 { server.inbox() } else { other.inbox() };
            async move { inbox.claim(request).await.expect("it is answered").into_inner().outcome.expect("an outcome") }
        });
        let claims = join_all(claims).await;
        let count = |is: fn(&Outcome) -> bool| claims.iter().filter(|claim| is(claim)).count();
        assert_eq!(count(|claim| matches!(claim, Outcome::Granted(_))), 1, "{claims:?}");
        assert_eq!(count(|claim| matches!(claim, Outcome::Held(_))), 31, "{claims:?}");
        assert_eq!(server.number("select count(*) from outbox.claims").await, round);
    }
}

#[tokio::test]
async fn a_late_complete_is_refused_once_another_has_claimed_the_event() {
    let server = Server::start().await;
    let short = Some(prost_types::Duration { seconds: 0, nanos: 20_000_000 });
    let slow = ClaimRequest { lease: short, ..delivery() };
    let (late, _) = granted(&server, &slow).await;
    let again = ClaimRequest { lease: seconds(60), ..slow.clone() };
    let taken =
        eventually("the lease to run out", Duration::from_secs(30), async || match claim(&server, &again).await {
            Outcome::Granted(Granted { lease, attempt }) => Some((lease.expect("it has a lease"), attempt)),
            _ => None,
        });
    let (lease, attempt) = taken.await;
    assert_eq!(attempt, 2);
    assert_eq!(complete(&server, &late, b"late").await, Hold::Lost);
    let extend = ExtendRequest { lease: Some(late.clone()), duration: seconds(60) };
    assert_eq!(server.inbox().extend(extend).await.expect("it is answered").into_inner().hold(), Hold::Lost);
    let release = ReleaseRequest { lease: Some(late) };
    assert_eq!(server.inbox().release(release).await.expect("it is answered").into_inner().hold(), Hold::Lost);
    assert_eq!(complete(&server, &lease, b"sent").await, Hold::Kept);
}

#[tokio::test]
async fn trap_10_an_event_older_than_the_window_is_not_handled_unless_it_is_known() {
    let server = Server::start().await;
    let late = ClaimRequest { event_time: hours_ago(100), ..delivery() };
    let (lease, _) = granted(&server, &late).await;
    let strict = server.beside(|config| {
        config.inbox.window_hours = 24;
        config.retention.enabled = false;
    });
    let strict = strict.await;
    assert!(matches!(claim(&strict, &late).await, Outcome::Held(_)), "it is known");
    assert_eq!(complete(&strict, &lease, b"sent").await, Hold::Kept);
    assert!(matches!(claim(&strict, &late).await, Outcome::Completed(_)), "it is known");
    for hours in [25, 100, 100_000] {
        let unknown = ClaimRequest { event_time: hours_ago(hours), ..delivery() };
        match claim(&strict, &unknown).await {
            Outcome::TooOld(old) => assert_eq!(old.window_hours, 24),
            other => panic!("nobody knows any more whether it was handled, but: {other:?}"),
        }
    }
    // Without a time an event is as old as its first claim.
    let timeless = ClaimRequest { event_time: None, ..delivery() };
    granted(&strict, &timeless).await;
}

#[tokio::test]
async fn another_event_under_the_same_identity_is_reported() {
    let server = Server::start().await;
    let first = delivery();
    granted(&server, &first).await;
    let other = ClaimRequest { content_hash: vec![8; 32].into(), ..first.clone() };
    assert!(matches!(claim(&server, &other).await, Outcome::Conflict(_)));
    let unknown = ClaimRequest { content_hash: Vec::new().into(), ..first.clone() };
    assert!(matches!(claim(&server, &unknown).await, Outcome::Held(_)), "nothing to compare");
    for others in [
        ClaimRequest { namespace: "other".into(), ..first.clone() },
        ClaimRequest { consumer: "biller".into(), ..first.clone() },
        ClaimRequest { source: "/other".into(), ..first },
    ] {
        granted(&server, &others).await;
    }
}

#[tokio::test]
async fn what_is_not_valid_is_named_and_what_is_too_much_refused() {
    let server = Server::start_with(|config| config.inbox.result_bytes_max = 4).await;
    let good = delivery();
    let day = seconds(86_400);
    let cases = [
        ("consumer", ClaimRequest { consumer: String::new(), ..good.clone() }),
        ("consumer", ClaimRequest { consumer: "c".repeat(129), ..good.clone() }),
        ("source", ClaimRequest { source: "a\0b".into(), ..good.clone() }),
        ("namespace", ClaimRequest { namespace: "n".repeat(65), ..good.clone() }),
        ("event_id", ClaimRequest { event_id: "7".into(), ..good.clone() }),
        ("event_time", ClaimRequest { event_time: hours_ago(-1), ..good.clone() }),
        ("content_hash", ClaimRequest { content_hash: vec![0; 33].into(), ..good.clone() }),
        ("lease", ClaimRequest { lease: None, ..good.clone() }),
        ("lease", ClaimRequest { lease: seconds(-1), ..good.clone() }),
        ("lease", ClaimRequest { lease: day, ..good.clone() }),
        ("token", ClaimRequest { token: "mine".into(), ..good.clone() }),
    ];
    for (field, wrong) in cases {
        let refused = server.inbox().claim(wrong).await.expect_err("it is refused");
        assert_eq!(fault(&refused).0, Code::InvalidArgument);
        assert_eq!(fields(&refused), [field], "{refused:?}");
    }
    let (lease, _) = granted(&server, &good).await;
    let long = CompleteRequest { lease: Some(lease.clone()), result: b"12345"[..].into() };
    let refused = server.inbox().complete(long).await.expect_err("it is too long");
    assert_eq!(fields(&refused), ["result"]);
    let refused = server.inbox().complete(CompleteRequest::default()).await.expect_err("it names no lease");
    assert_eq!(fields(&refused), ["lease"]);
    let nobodys = Lease { token: String::new(), ..lease.clone() };
    let refused = server.inbox().release(ReleaseRequest { lease: Some(nobodys) }).await.expect_err("it has no token");
    assert_eq!(fields(&refused), ["lease.token"]);
    let unknown = Lease { consumer: "nobody".into(), ..lease };
    assert_eq!(complete(&server, &unknown, b"sent").await, Hold::Lost);
}

#[tokio::test]
async fn a_claim_survives_that_its_servers_connections_are_cut() {
    let server = Server::start().await;
    let (first, second) = (delivery(), delivery());
    let (lease, _) = granted(&server, &first).await;
    let cut = "select count(pg_terminate_backend(pid)) from pg_stat_activity
               where datname = current_database() and pid <> pg_backend_pid() and application_name = 'outboxd'";
    assert!(server.number(cut).await > 0);
    granted(&server, &second).await;
    server.number(cut).await;
    assert_eq!(complete(&server, &lease, b"sent").await, Hold::Kept);
}

#[tokio::test]
async fn the_servers_claims_tell_a_consumer_what_stays_and_what_passes() {
    let mut server = Server::start().await;
    let client = Client::builder(server.endpoint()).deadline(Duration::from_secs(5)).connect().expect("an endpoint");
    let claims = ServerClaims::new(client);
    let old = EventKey::new("/shop", Uuid::now_v7()).at(chrono::Utc::now() - chrono::TimeDelta::days(30));
    let lease = Duration::from_secs(30);
    assert_eq!(claims.claim("mailer", &old, lease).await.expect("it is answered"), Claimed::TooOld);
    let refused = claims.claim("mailer", &EventKey::new("", Uuid::now_v7()), lease).await.expect_err("no source");
    assert!(refused.to_string().contains("source"), "{refused}");
    server.stop().await;
    claims.claim("mailer", &EventKey::new("/shop", Uuid::now_v7()), lease).await.expect_err("nobody answers");
}
