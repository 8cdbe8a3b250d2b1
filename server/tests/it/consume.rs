//! `consume`: a consumer's mark, its state and its events in one transaction; one effect for each event.

use futures_util::future::join_all;
use outbox_proto::v1::{
    Begin, CommitRequest, CommitResponse, Consume, Disposition, Isolation, Run, transact_request::Step as Message,
    transact_response::Step as Reply, value::Kind,
};
use outbox_sdk::{Client, Command, testkit::TestEvent};
use prost_types::Timestamp;
use tonic::Code;
use uuid::Uuid;

use crate::support::{
    request::{add, call, commit, event, text},
    server::{CATALOG, Server, fault, fields},
    transaction::{Transaction, begin},
};

fn hours_ago(hours: i64) -> Timestamp {
    Timestamp { seconds: chrono::Utc::now().timestamp() - hours * 3_600, nanos: 0 }
}

/// An event that happened just now, as one consumer sees it.
fn delivery(consumer: &str) -> Consume {
    Consume {
        consumer: consumer.into(),
        source: "/shop".into(),
        event_id: Uuid::now_v7().to_string(),
        event_time: Some(hours_ago(0)),
    }
}

fn handle(consume: &Consume) -> CommitRequest {
    CommitRequest { consume: Some(consume.clone()), ..commit(vec![add("a1", 1)], vec![event("t", "k")]) }
}

async fn send(server: &Server, request: &CommitRequest) -> CommitResponse {
    server.outbox().commit(request.clone()).await.expect("it is answered").into_inner()
}

async fn marks(server: &Server) -> i64 {
    server.number("select count(*) from outbox.marks").await
}

#[tokio::test]
async fn an_event_is_handled_once_and_its_answer_comes_back() {
    let server = Server::start().await;
    for operations in [vec![add("a1", 1)], vec![add("a1", 1), add("a2", 1)], vec![]] {
        let (before, consume) = (server.written().await, delivery("mailer"));
        let request = CommitRequest { operations, ..handle(&consume) };
        let first = send(&server, &request).await;
        assert_eq!(first.disposition(), Disposition::Applied);

        // Another request, even with another body, for the same event.
        let duplicate = CommitResponse { disposition: Disposition::Duplicate.into(), ..first.clone() };
        let again = CommitRequest { operations: vec![add("a1", 50)], ..handle(&consume) };
        let answer = send(&server, &again).await;
        assert_eq!(answer, CommitResponse { request_id: again.request_id, ..duplicate.clone() });
        // The same request again is a retry, not a duplicate.
        let replayed = CommitResponse { disposition: Disposition::Replayed.into(), ..first };
        assert_eq!(send(&server, &request).await, replayed);
        assert_eq!(server.written().await, (before.0 + 1, before.1 + 1));
    }
    assert_eq!((server.balance("a1").await, server.balance("a2").await), (102, 101));
}

#[tokio::test]
async fn a_commit_of_the_sdk_that_answers_an_event_applies_once() {
    let server = Server::start().await;
    let client = Client::connect(server.endpoint()).expect("an endpoint");
    let event = TestEvent::new("user.activated").key("user-7").build();
    for expected in [outbox_sdk::Disposition::Applied, outbox_sdk::Disposition::Duplicate] {
        let add = Command::new("add").param("id", "a1").param("amount", 1_i64);
        let commit = client.commit().consume("scorer", &event).command(add).send().await.expect("it is answered");
        assert_eq!(commit.disposition(), expected);
        assert_eq!(commit.result(0).expect("there is one").rows().len(), 1, "the first answer");
    }
    assert_eq!((server.balance("a1").await, marks(&server).await), (101, 1));
}

#[tokio::test]
async fn each_consumer_source_and_namespace_has_marks_of_its_own() {
    let server = Server::start().await;
    let consume = delivery("mailer");
    let others = [
        handle(&consume),
        handle(&Consume { consumer: "biller".into(), ..consume.clone() }),
        handle(&Consume { source: "/other".into(), ..consume.clone() }),
        handle(&Consume { event_id: Uuid::now_v7().to_string(), ..consume.clone() }),
        CommitRequest { namespace: "other".into(), ..handle(&consume) },
    ];
    for request in &others {
        assert_eq!(send(&server, request).await.disposition(), Disposition::Applied);
    }
    assert_eq!((server.balance("a1").await, marks(&server).await), (105, 5));
}

#[tokio::test]
async fn an_event_that_comes_again_with_another_time_is_the_same_event() {
    let server = Server::start().await;
    let consume = delivery("mailer");
    send(&server, &handle(&consume)).await;
    for hours in [1, 100] {
        let again = handle(&Consume { event_time: Some(hours_ago(hours)), ..consume.clone() });
        assert_eq!(send(&server, &again).await.disposition(), Disposition::Duplicate);
    }
    assert_eq!(server.balance("a1").await, 101);
}

#[tokio::test]
async fn a_handler_that_fails_leaves_no_mark() {
    let server = Server::start().await;
    let consume = delivery("mailer");
    for operations in [vec![add("a1", -1_000)], vec![add("a1", 1), add("a1", -1_000)], vec![add("nobody", 1)]] {
        let failing = CommitRequest { operations, ..handle(&consume) };
        server.outbox().commit(failing).await.expect_err("a check fails");
        assert_eq!((marks(&server).await, server.written().await), (0, (0, 0)));
    }
    let dry = CommitRequest { validate_only: true, ..handle(&consume) };
    assert_eq!(send(&server, &dry).await.disposition(), Disposition::Validated);
    assert_eq!(marks(&server).await, 0);
    assert_eq!(send(&server, &handle(&consume)).await.disposition(), Disposition::Applied);
}

#[tokio::test]
async fn of_64_deliveries_at_once_one_has_an_effect() {
    let server = Server::start_with(|config| config.database.commit_connections = 4).await;
    let other = server.beside(|config| config.database.commit_connections = 4).await;
    for same_request in [true, false] {
        let consume = delivery("mailer");
        // So slow that the deliveries to the two servers are handled at once.
        let slow = call("slow_add", [("id", text("a1")), ("seconds", Kind::Double(0.5))]);
        let request = CommitRequest { operations: vec![slow], ..handle(&consume) };
        let calls = (0..64).map(|n| {
            let mut client = if n % 2 == 0 { server.outbox() } else { other.outbox() };
            let request_id = Uuid::now_v7().to_string();
            let request = if same_request { request.clone() } else { CommitRequest { request_id, ..request.clone() } };
            async move { client.commit(request).await.expect("every caller is answered").into_inner() }
        });
        let answers = join_all(calls).await;
        let count = |disposition| answers.iter().filter(|answer| answer.disposition() == disposition).count();
        let repeats = if same_request { Disposition::Replayed } else { Disposition::Duplicate };
        assert_eq!((count(Disposition::Applied), count(repeats)), (1, 63));
        assert!(answers.iter().all(|answer| answer.event_ids == answers[0].event_ids), "one answer");
    }
    assert_eq!((server.balance("a1").await, server.written().await, marks(&server).await), (102, (2, 2), 2));
}

#[tokio::test]
async fn an_event_older_than_the_window_is_refused_unless_it_is_known() {
    let server = Server::start().await;
    let late = Consume { event_time: Some(hours_ago(100)), ..delivery("mailer") };
    let request = handle(&late);
    send(&server, &request).await;

    // Whose marks count for a day only, and are not dropped: the two have one database.
    let strict = server.beside(|config| {
        config.commit.consume_window_hours = 24;
        config.retention.enabled = false;
    });
    let strict = strict.await;
    assert_eq!(send(&strict, &handle(&late)).await.disposition(), Disposition::Duplicate);
    assert_eq!(send(&strict, &request).await.disposition(), Disposition::Replayed);
    for operations in [vec![add("a1", 1)], vec![add("a1", 1), add("a1", 1)]] {
        let unknown = Consume { event_id: Uuid::now_v7().to_string(), ..late.clone() };
        let refused = CommitRequest { operations, ..handle(&unknown) };
        let refused = strict.outbox().commit(refused).await.expect_err("nobody knows any more");
        assert_eq!((fault(&refused).0, fault(&refused).1.as_str()), (Code::FailedPrecondition, "EVENT_TOO_OLD"));
    }
    let ancient = handle(&Consume { event_time: Some(hours_ago(100_000)), ..delivery("mailer") });
    let refused = server.outbox().commit(ancient).await.expect_err("there is no partition for it");
    assert_eq!(fault(&refused).1, "EVENT_TOO_OLD");
    assert_eq!((server.balance("a1").await, marks(&server).await), (101, 1));
}

#[tokio::test]
async fn a_handled_event_is_answered_although_the_handlers_command_is_gone() {
    let server = Server::start().await;
    let consume = delivery("mailer");
    send(&server, &handle(&consume)).await;
    let other = server.beside_with_catalog(&CATALOG.replace("-- name: add\n", "-- name: added\n")).await;
    assert_eq!(send(&other, &handle(&consume)).await.disposition(), Disposition::Duplicate);
    let refused = other.outbox().commit(handle(&delivery("mailer"))).await.expect_err("a new event cannot be handled");
    assert_eq!(fault(&refused).1, "UNKNOWN_COMMAND");
    assert_eq!(marks(&server).await, 1, "a refused request leaves no mark");
}

#[tokio::test]
async fn a_wrong_consume_is_named() {
    let server = Server::start().await;
    let good = delivery("mailer");
    let cases = [
        ("consume.consumer", Consume { consumer: String::new(), ..good.clone() }),
        ("consume.consumer", Consume { consumer: "c".repeat(129), ..good.clone() }),
        ("consume.source", Consume { source: String::new(), ..good.clone() }),
        ("consume.event_id", Consume { event_id: "no".into(), ..good.clone() }),
        ("consume.event_time", Consume { event_time: None, ..good.clone() }),
        ("consume.event_time", Consume { event_time: Some(hours_ago(-1)), ..good.clone() }),
    ];
    for (field, wrong) in cases {
        let refused = server.outbox().commit(handle(&wrong)).await.expect_err("it is refused");
        assert_eq!(fields(&refused), [field], "{refused:?}");
    }
}

/// The event is marked before anything is read: whoever comes meanwhile waits, and decides nothing of its own.
#[tokio::test]
async fn a_transaction_marks_its_event_when_it_begins() {
    let server = Server::start().await;
    // Another process, so that the database has to keep them apart.
    let other = server.beside(|_| {}).await;
    for isolation in [Isolation::ReadCommitted, Isolation::RepeatableRead, Isolation::Serializable] {
        for commits in [false, true] {
            let (before, consume) = (server.balance("a1").await, delivery("mailer"));
            let begin = || Begin { consume: Some(consume.clone()), isolation: isolation.into(), ..begin() };
            let mut first = Transaction::open(&server, begin()).await;
            first.run(vec![add("a1", 1)], vec![event("t", "k")]).await.expect("it runs");
            let second = async {
                let mut second = Transaction::stream(&other).await.expect("a stream");
                let reply = second.step(Message::Begin(begin())).await;
                (second, reply.expect("it is answered"))
            };
            let end = async {
                // The second one waits in the database for the first one's mark.
                server.until_waiting(1).await;
                if commits {
                    Some(first.commit(Run::default()).await.expect("it commits"))
                } else {
                    drop(first);
                    None
                }
            };
            let ((second, reply), answer) = tokio::join!(second, end);
            match (answer, reply) {
                (Some(answer), Reply::Committed(found)) => {
                    assert_eq!((found.disposition(), found.event_ids), (Disposition::Duplicate, answer.event_ids));
                    assert_eq!(server.balance("a1").await, before + 1);
                }
                (None, Reply::Begun(_)) => {
                    second.commit(Run::default()).await.expect("the mark is its own");
                    let duplicate = send(&server, &handle(&consume)).await;
                    assert_eq!(duplicate.disposition(), Disposition::Duplicate);
                    assert_eq!(server.balance("a1").await, before);
                }
                (answer, reply) => panic!("{isolation:?}, first {answer:?}: {reply:?}"),
            }
        }
    }
}

#[tokio::test]
async fn a_transaction_that_cannot_mark_its_event_does_not_begin() {
    let server = Server::start().await;
    let refused = async |begin| Transaction::begin(&server, begin).await.err().expect("it does not begin");
    let reads = Begin { read_only: true, consume: Some(delivery("mailer")), ..Begin::default() };
    assert_eq!(fields(&refused(reads).await), ["begin.consume"]);
    let nobody = Begin { consume: Some(delivery("")), ..begin() };
    assert_eq!(fields(&refused(nobody).await), ["consume.consumer"]);
    let old = Consume { event_time: Some(hours_ago(24 * 30)), ..delivery("mailer") };
    let old = refused(Begin { consume: Some(old), ..begin() }).await;
    assert_eq!(fault(&old).1, "EVENT_TOO_OLD");
    assert_eq!(marks(&server).await, 0);
}
