//! The client against a small server that answers as each test says: retries, deadlines, errors, results.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use outbox_proto::v1::{
    self, CommitRequest, CommitResponse, GetCommitRequest, GetCommitResponse,
    outbox_service_server::{OutboxService, OutboxServiceServer},
    value::Kind,
};
use outbox_sdk::{Client, Command, CommitError, Disposition, IntoValue, NewEvent, ReadError, TransactError};
use tokio::{
    io::AsyncReadExt as _,
    net::{TcpListener, TcpSocket, TcpStream},
    time::timeout,
};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Code, Request, Response, Status, metadata::MetadataMap};
use tonic_types::{ErrorDetails, StatusExt as _};
use uuid::Uuid;

/// What the server received, and how it answers the attempt of this number, counted from 0.
#[derive(Clone)]
pub(crate) struct Server {
    pub(crate) received: Arc<Mutex<Vec<(MetadataMap, CommitRequest)>>>,
    answer: Arc<Answers>,
}

type Answers = dyn Fn(usize, &CommitRequest) -> Answer + Send + Sync;

pub(crate) enum Answer {
    Now(Result<CommitResponse, Status>),
    Never,
}

#[tonic::async_trait]
impl OutboxService for Server {
    async fn commit(&self, request: Request<CommitRequest>) -> Result<Response<CommitResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        let attempt = {
            let mut received = self.received.lock().unwrap();
            received.push((metadata, request.clone()));
            received.len() - 1
        };
        match (self.answer)(attempt, &request) {
            Answer::Now(answer) => answer.map(Response::new),
            Answer::Never => std::future::pending().await,
        }
    }

    type TransactStream = tokio_stream::Empty<Result<v1::TransactResponse, Status>>;

    async fn transact(
        &self,
        _: Request<tonic::Streaming<v1::TransactRequest>>,
    ) -> Result<Response<Self::TransactStream>, Status> {
        Err(Status::unimplemented("the client calls no transactions"))
    }

    async fn get_commit(&self, request: Request<GetCommitRequest>) -> Result<Response<GetCommitResponse>, Status> {
        let request = request.into_inner();
        if request.request_id == "known" && request.namespace == "shop" {
            let commit = CommitResponse { disposition: v1::Disposition::Replayed.into(), ..applied("known") };
            return Ok(Response::new(GetCommitResponse { commit: Some(commit) }));
        }
        let details = ErrorDetails::with_error_info("COMMIT_NOT_FOUND", v1::ERROR_DOMAIN, HashMap::new());
        Err(Status::with_error_details(Code::NotFound, "no such commit", details))
    }
}

impl Server {
    pub(crate) async fn start(
        answer: impl Fn(usize, &CommitRequest) -> Answer + Send + Sync + 'static,
    ) -> (Self, Client) {
        let server = Self { received: Arc::default(), answer: Arc::new(answer) };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serve = tonic::transport::Server::builder()
            .add_service(OutboxServiceServer::new(server.clone()))
            .serve_with_incoming(TcpListenerStream::new(listener));
        tokio::spawn(serve);
        (server, client(address))
    }

    fn requests(&self) -> Vec<CommitRequest> {
        self.received.lock().unwrap().iter().map(|(_, request)| request.clone()).collect()
    }
}

fn client(address: SocketAddr) -> Client {
    Client::connect(format!("http://{address}")).expect("a good endpoint")
}

pub(crate) fn applied(request_id: &str) -> CommitResponse {
    CommitResponse {
        request_id: request_id.to_owned(),
        disposition: v1::Disposition::Applied.into(),
        ..Default::default()
    }
}

fn apply(request: &CommitRequest) -> Answer {
    Answer::Now(Ok(applied(&request.request_id)))
}

#[tokio::test]
async fn every_attempt_carries_the_same_request() {
    let (server, client) = Server::start(|attempt, request| match attempt {
        0..3 => Answer::Now(Err(Status::unavailable("draining"))),
        _ => apply(request),
    })
    .await;

    let event = NewEvent::new("users", "user.activated").key("user-7").json(&serde_json::json!({"id": 7})).unwrap();
    let command = Command::new("activate_user").param("user_id", "user-7");
    let committed = client.commit().namespace("shop").command(command).event(event).send().await.unwrap();

    let requests = server.requests();
    assert_eq!(requests.len(), 4);
    assert!(requests.iter().all(|request| *request == requests[0]), "the attempts differ: {requests:#?}");
    assert_eq!(Uuid::try_parse(&requests[0].request_id).unwrap().get_version_num(), 7);
    assert_eq!((committed.request_id(), committed.disposition()), (&*requests[0].request_id, Disposition::Applied));
    assert_eq!((requests[0].namespace.as_str(), requests[0].events[0].key.as_deref()), ("shop", Some(&b"user-7"[..])));
}

#[tokio::test]
async fn two_commits_are_two_requests_and_a_clone_is_the_same_one() {
    let (server, client) = Server::start(|_, request| apply(request)).await;
    let commit = client.commit();
    commit.clone().send().await.unwrap();
    commit.send().await.unwrap();
    client.commit().send().await.unwrap();
    client.commit().request_id("order-17").send().await.unwrap();
    let ids: Vec<String> = server.requests().into_iter().map(|request| request.request_id).collect();
    assert_eq!(ids[0], ids[1]);
    assert_ne!(ids[1], ids[2]);
    assert_eq!(ids[3], "order-17");
}

#[tokio::test]
async fn the_deadline_bounds_all_attempts_and_each_is_told_what_remains() {
    let deadline = Duration::from_millis(600);
    let (server, client) = Server::start(|attempt, _| match attempt {
        0 => Answer::Now(Err(Status::unavailable("draining"))),
        _ => Answer::Never,
    })
    .await;

    let start = Instant::now();
    let error = client.commit().request_id("r-1").deadline(deadline).send().await.expect_err("nobody answers");

    assert!(start.elapsed() >= deadline && start.elapsed() < deadline * 4, "{:?}", start.elapsed());
    assert!(matches!(error, CommitError::Unknown(_)), "{error:?}");
    assert_eq!((error.request_id(), error.failure().code()), ("r-1", Code::DeadlineExceeded));
    assert!(error.outcome_is_unknown() && error.to_string().contains("r-1"), "{error}");
    let received = server.received.lock().unwrap();
    let timeouts: Vec<u64> = received.iter().map(|(metadata, _)| micros(metadata)).collect();
    assert_eq!(timeouts.len(), 2);
    assert!(timeouts[0] <= 600_000 && timeouts[1] < timeouts[0], "{timeouts:?}");
}

fn micros(metadata: &MetadataMap) -> u64 {
    let text = metadata.get("grpc-timeout").expect("every attempt has a deadline").to_str().unwrap();
    let (number, unit) = text.split_at(text.len() - 1);
    let number: u64 = number.parse().unwrap();
    match unit {
        "n" => number / 1000,
        "u" => number,
        "m" => number * 1000,
        _ => number * 1_000_000,
    }
}

#[tokio::test]
async fn a_refusal_is_returned_at_once_with_its_reason_and_fields() {
    let (server, client) = Server::start(|_, _| {
        let mut details = ErrorDetails::with_error_info(
            "INVALID_REQUEST",
            v1::ERROR_DOMAIN,
            HashMap::from([("limit".to_owned(), "249".to_owned())]),
        );
        details.add_bad_request_violation("events[0].topic", "must not be empty");
        Answer::Now(Err(Status::with_error_details(Code::InvalidArgument, "the request is invalid", details)))
    })
    .await;

    let error = client.commit().event(NewEvent::new("", "t")).send().await.expect_err("it is invalid");

    let CommitError::Refused(refusal) = &error else { panic!("{error:?}") };
    assert_eq!((refusal.code(), refusal.reason()), (Code::InvalidArgument, Some("INVALID_REQUEST")));
    assert_eq!(refusal.metadata()["limit"], "249");
    assert_eq!(refusal.violations()[0].field, "events[0].topic");
    assert!(error.to_string().contains("events[0].topic: must not be empty"), "{error}");
    assert_eq!((server.requests().len(), refusal.attempts()), (1, 1));
}

#[tokio::test]
async fn what_the_server_asks_to_be_tried_later_is_tried_after_its_delay() {
    let delay = Duration::from_millis(300);
    let (server, client) = Server::start(move |attempt, request| match attempt {
        0 => {
            let details = ErrorDetails::with_retry_info(Some(delay));
            Answer::Now(Err(Status::with_error_details(Code::ResourceExhausted, "backlog", details)))
        }
        _ => apply(request),
    })
    .await;

    let start = Instant::now();
    client.commit().send().await.unwrap();
    assert!(start.elapsed() >= delay, "{:?}", start.elapsed());
    assert_eq!(server.requests().len(), 2);

    // Past the deadline there is no point in waiting, and nothing was applied.
    let (_, client) = Server::start(move |_, _| {
        let details = ErrorDetails::with_retry_info(Some(Duration::from_secs(3600)));
        Answer::Now(Err(Status::with_error_details(Code::ResourceExhausted, "quota", details)))
    })
    .await;
    let error = client.commit().send().await.expect_err("it is over quota");
    let CommitError::Refused(refusal) = error else { panic!("{error:?}") };
    assert_eq!(refusal.retry_after(), Some(Duration::from_secs(3600)));
}

#[tokio::test]
async fn a_refusal_after_a_lost_answer_leaves_the_outcome_unknown_unless_it_settles_it() {
    let refused = |code| {
        move |attempt: usize, _: &CommitRequest| {
            Answer::Now(Err(if attempt == 0 { Status::unavailable("gone") } else { Status::new(code, "no") }))
        }
    };
    let (_, client) = Server::start(refused(Code::PermissionDenied)).await;
    assert!(matches!(client.commit().send().await, Err(CommitError::Unknown(_))));
    let (_, client) = Server::start(refused(Code::FailedPrecondition)).await;
    assert!(matches!(client.commit().send().await, Err(CommitError::Refused(_))));
}

#[tokio::test]
async fn a_server_that_is_not_there_yet_is_waited_for_and_one_that_never_comes_is_unreachable() {
    // Bound, so that nobody else gets the port, but not listening yet.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let client = client(socket.local_addr().unwrap());
    let error = client.commit().deadline(Duration::from_secs(1)).send().await.expect_err("nobody listens");
    assert!(matches!(error, CommitError::Unreachable(_)), "{error:?}");

    // The connection breaks under the first attempts; then a server comes.
    let listener = socket.listen(16).unwrap();
    let sending = tokio::spawn(client.commit().send());
    for _ in 0..2 {
        let (mut connection, _) = listener.accept().await.unwrap();
        connection.read_exact(&mut [0; 24]).await.unwrap();
    }
    let service = Server { received: Arc::default(), answer: Arc::new(|_, request| apply(request)) };
    let serve = tonic::transport::Server::builder()
        .add_service(OutboxServiceServer::new(service))
        .serve_with_incoming(TcpListenerStream::new(listener));
    tokio::spawn(serve);
    sending.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_connection_that_is_not_made_in_time_leaves_no_doubt() {
    // A queue of connections that nobody accepts: once it is full, further ones hang.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut queued = Vec::new();
    while let Ok(connection) = timeout(Duration::from_secs(1), TcpStream::connect(address)).await {
        queued.push(connection.unwrap());
        assert!(queued.len() < 64, "the queue never fills");
    }
    let error = client(address).commit().deadline(Duration::from_secs(1)).send().await.expect_err("it hangs");
    assert!(matches!(error, CommitError::Unreachable(_)), "{error:?}");
    assert_eq!(error.failure().attempts(), 1);
    let transact = client(address).transact().deadline(Duration::from_secs(1));
    let error = transact.run(async |_| Ok::<_, CommitError>(())).await.expect_err("it hangs");
    assert!(matches!(error, TransactError::Commit(CommitError::Unreachable(_))), "{error:?}");

    // A message that was sent is in doubt, although nobody reads it.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = client(silent.local_addr().unwrap());
    let error = client.commit().deadline(Duration::from_secs(1)).send().await.expect_err("nobody answers");
    assert!(matches!(error, CommitError::Unknown(_)), "{error:?}");
    // That of a transaction only begins it.
    let transact = client.transact().deadline(Duration::from_secs(1));
    let error = transact.run(async |_| Ok::<_, CommitError>(())).await.expect_err("nobody answers");
    assert!(matches!(error, TransactError::Commit(CommitError::Refused(_))), "{error:?}");
}

#[tokio::test]
async fn a_client_whose_runtime_has_ended_reaches_nobody() {
    let orphan = std::thread::spawn(|| {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async { client("127.0.0.1:1".parse().unwrap()) })
    });
    let orphan = orphan.join().unwrap();
    let error = orphan.commit().deadline(Duration::from_secs(5)).send().await.expect_err("nothing carries it");
    assert!(matches!(error, CommitError::Unreachable(_)), "{error:?}");
    let transact = orphan.transact().deadline(Duration::from_secs(5));
    let error = transact.run(async |_| Ok::<_, CommitError>(())).await.expect_err("nothing carries it");
    assert!(matches!(error, TransactError::Commit(CommitError::Unreachable(_))), "{error:?}");
}

#[tokio::test]
async fn results_are_read_by_name_and_type() {
    let (_, client) = Server::start(|_, request| {
        let column = |name: &str, sql: &str| v1::Column { name: name.into(), r#type: sql.into() };
        let time = v1::Value { kind: Some(Kind::Timestamptz("2024-02-29 12:00:00.5+00".into())) };
        let values = vec!["user-7".into_value(), time, None::<String>.into_value()];
        let columns = vec![column("id", "text"), column("at", "timestamptz"), column("note", "text")];
        let result = v1::OperationResult { rows_affected: 1, columns, rows: vec![v1::Row { values }], skipped: false };
        let event_ids = vec![Uuid::nil().to_string()];
        Answer::Now(Ok(CommitResponse { results: vec![result], event_ids, ..applied(&request.request_id) }))
    })
    .await;

    let committed = client.commit().send().await.unwrap();

    let result = committed.result(0).unwrap();
    assert_eq!((result.rows_affected(), result.rows().len()), (1, 1));
    let row = result.row(0).unwrap();
    assert_eq!(row.get::<String>("id").unwrap(), "user-7");
    assert_eq!(row.get::<chrono::DateTime<chrono::Utc>>("at").unwrap().timestamp_millis(), 1_709_208_000_500);
    assert_eq!(row.get::<Option<String>>("note").unwrap(), None);
    assert_eq!(committed.event_ids().unwrap(), [Uuid::nil()]);
    let wrong = row.get::<i64>("id").expect_err("it is text").to_string();
    assert_eq!(wrong, "column `id` of SQL type text: it is text, which cannot be read as i64");
    assert!(matches!(row.get::<i64>("nope"), Err(ReadError::NoColumn { .. })));
    assert!(matches!(committed.result(1), Err(ReadError::NoResult { index: 1, count: 1 })));
}

#[tokio::test]
async fn an_earlier_commit_is_found_or_not() {
    let (_, client) = Server::start(|_, request| apply(request)).await;
    let found = client.get_commit("shop", "known").await.unwrap().expect("it is known");
    assert_eq!(found.disposition(), Disposition::Replayed);
    assert_eq!(client.get_commit("shop", "other").await.unwrap(), None);
}

#[tokio::test]
async fn an_endpoint_that_is_none_is_refused() {
    for endpoint in ["", "localhost:7411", "ftp://localhost", "http://"] {
        assert!(Client::connect(endpoint).is_err(), "{endpoint:?}");
    }
}
