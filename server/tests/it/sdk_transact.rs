//! The SDK's `transact` against a server: the closure is run again as a whole, and its effects happen once.

use std::{
    future::pending,
    panic::AssertUnwindSafe,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use chrono::Utc;
use futures_util::FutureExt as _;
use outbox_harness::{
    eventually,
    proxy::{Cut, Proxy},
};
use outbox_proto::v1::value::Kind;
use outbox_sdk::{
    Client, Command, CommitError, Disposition, Isolation, NewEvent, OpenTransaction, ReadError, TransactError,
};
use sqlx::Executor as _;
use tokio::sync::Notify;
use uuid::Uuid;

use crate::support::{
    outbox::PATIENCE,
    request::{call, commit, event, text},
    server::Server,
};

#[derive(Debug, thiserror::Error)]
enum OrderError {
    #[error("there is not enough left")]
    NotEnough,
    #[error(transparent)]
    Commit(#[from] CommitError),
    #[error(transparent)]
    Read(#[from] ReadError),
}

fn add(amount: i64) -> Command {
    Command::new("add").param("id", "a1").param("amount", amount)
}

async fn balance(tx: &mut OpenTransaction) -> Result<i64, OrderError> {
    Ok(tx.run(Command::new("balance").param("id", "a1")).await?.result().row(0)?.get("balance")?)
}

fn client(server: &Server) -> Client {
    Client::connect(server.endpoint()).expect("the endpoint is right")
}

#[tokio::test]
async fn a_transaction_that_loses_a_conflict_is_decided_anew_and_happens_once() {
    let server = Server::start().await;
    let runs = AtomicUsize::new(0);

    let doubled = client(&server).transact().isolation(Isolation::RepeatableRead).run(async |tx| {
        let before = balance(tx).await?;
        if runs.fetch_add(1, Ordering::Relaxed) == 0 {
            let change = "update accounts set balance = balance + 7 where id = 'a1'";
            server.pool.execute(change).await.expect("somebody else changes it");
        }
        tx.run(add(before)).await?;
        tx.event(NewEvent::new("t", "account.doubled").key("a1"));
        Ok::<_, OrderError>(before * 2)
    });

    let doubled = doubled.await.expect("it commits");
    assert_eq!((doubled.value, runs.load(Ordering::Relaxed)), (Some(214), 2));
    assert_eq!(doubled.committed.disposition(), Disposition::Applied);
    assert_eq!(doubled.committed.event_ids().expect("ids").len(), 1);
    assert_eq!((server.balance("a1").await, server.written().await), (214, (1, 1)));
}

/// The link to the database is cut while the transaction commits: only a new claim finds out that it has.
#[tokio::test]
async fn a_commit_whose_end_was_not_heard_is_settled_and_happens_once() {
    for cut in [Cut::Before, Cut::During, Cut::After] {
        let server = Server::start().await;
        let proxy = Proxy::start(&server.url).await;
        let behind = server.beside(|config| config.database.url.clone_from(&proxy.url)).await;
        let runs = AtomicUsize::new(0);
        let added = client(&behind).transact().run(async |tx| {
            tx.run(add(1)).await?;
            tx.event(NewEvent::new("t", "account.credited").key("a1"));
            if runs.fetch_add(1, Ordering::Relaxed) == 0 {
                proxy.arm("COMMIT", cut);
            }
            Ok::<_, OrderError>(())
        });

        let added = added.await.expect("it is settled");
        assert_eq!(added.committed.event_ids().expect("ids").len(), 1, "{cut:?}");
        assert_eq!((server.balance("a1").await, server.written().await), (101, (1, 1)), "{cut:?}");
    }
}

#[tokio::test]
async fn a_request_id_that_was_committed_gets_the_first_answer_and_runs_nothing() {
    let server = Server::start().await;
    let (client, request_id, runs) = (client(&server), Uuid::now_v7().to_string(), AtomicUsize::new(0));
    let send = async || {
        let transact = client.transact().request_id(request_id.clone()).run(async |tx| {
            runs.fetch_add(1, Ordering::Relaxed);
            tx.run(add(1)).await?;
            tx.event(NewEvent::new("t", "added").key("a1"));
            Ok::<_, CommitError>(())
        });
        transact.await.expect("it is answered")
    };
    let (first, again) = (send().await, send().await);

    assert_eq!((first.value, again.value, runs.load(Ordering::Relaxed)), (Some(()), None, 1));
    assert_eq!(again.committed.disposition(), Disposition::Replayed);
    assert_eq!(again.committed.event_ids(), first.committed.event_ids());
    assert_eq!((server.balance("a1").await, server.written().await), (101, (1, 1)));
}

#[tokio::test]
async fn an_event_is_handled_once_whichever_request_handles_it() {
    let server = Server::start().await;
    let (client, event_id, time) = (client(&server), Uuid::now_v7(), Utc::now());
    let handle = async |isolation| {
        let transact = client.transact().isolation(isolation).consume("mailer", "/shop", event_id, time);
        transact.run(async |tx| tx.run(add(1)).await.map(drop)).await.expect("it is answered")
    };
    assert_eq!(handle(Isolation::ReadCommitted).await.value, Some(()));
    for isolation in [Isolation::ReadCommitted, Isolation::RepeatableRead, Isolation::Serializable] {
        let again = handle(isolation).await;
        assert_eq!((again.value, again.committed.disposition()), (None, Disposition::Duplicate));
    }
    assert_eq!(server.balance("a1").await, 101);
}

#[tokio::test]
async fn an_error_of_the_closure_rolls_back_and_comes_back() {
    let server = Server::start().await;
    let runs = AtomicUsize::new(0);
    let refused = client(&server).transact().run(async |tx| {
        runs.fetch_add(1, Ordering::Relaxed);
        tx.run(add(-10)).await?;
        if balance(tx).await? < 95 { Err(OrderError::NotEnough) } else { Ok(()) }
    });
    assert!(matches!(refused.await, Err(TransactError::Closure(OrderError::NotEnough))));

    let refused = client(&server).transact().run(async |tx| {
        runs.fetch_add(1, Ordering::Relaxed);
        tx.run(Command::new("add").param("id", "nobody").param("amount", 1)).await?;
        Ok::<_, OrderError>(())
    });
    let Err(TransactError::Closure(OrderError::Commit(error))) = refused.await else { panic!("it is refused") };
    assert_eq!((error.reason(), runs.load(Ordering::Relaxed)), (Some("ROW_COUNT_MISMATCH"), 2));
    assert_eq!((server.balance("a1").await, server.written().await), (100, (0, 0)));
}

#[tokio::test]
async fn a_refusal_that_the_closure_passes_over_is_not_committed() {
    let server = Server::start().await;
    let refused = client(&server).transact().run(async |tx| {
        tx.run(add(1)).await?;
        let _ = tx.run(Command::new("add").param("id", "nobody").param("amount", 1)).await;
        Ok::<_, CommitError>(())
    });
    let Err(TransactError::Commit(CommitError::Refused(failure))) = refused.await else { panic!("it is refused") };
    assert_eq!(failure.reason(), Some("ROW_COUNT_MISMATCH"));
    assert_eq!((server.balance("a1").await, server.written().await), (100, (0, 0)));
}

/// Whoever else wants the row gets it: the transaction is gone.
async fn is_rolled_back(server: &Server) {
    let add = || call("add", [("id", text("a1")), ("amount", Kind::Int(1))]);
    let other = async || {
        let mut request = tonic::Request::new(commit(vec![add()], vec![event("t", "a1")]));
        request.set_timeout(Duration::from_secs(1));
        server.outbox().commit(request).await.ok()
    };
    eventually("the row is free", PATIENCE, other).await;
    assert_eq!((server.balance("a1").await, server.written().await), (101, (1, 1)));
}

#[tokio::test]
async fn a_closure_that_panics_leaves_nothing() {
    let server = Server::start().await;
    let running = client(&server).transact().run(async |tx: &mut OpenTransaction| -> Result<(), CommitError> {
        tx.run(add(1)).await?;
        panic!("the closure has a bug");
    });
    let running = async { running.await.map(drop) };
    assert!(AssertUnwindSafe(running).catch_unwind().await.is_err(), "the panic goes on");
    is_rolled_back(&server).await;
}

#[tokio::test]
async fn a_transaction_that_is_dropped_leaves_nothing() {
    let server = Server::start().await;
    let added = Notify::new();
    let running = client(&server).transact().run(async |tx: &mut OpenTransaction| -> Result<(), CommitError> {
        tx.run(add(1)).await?;
        added.notify_one();
        pending().await
    });
    tokio::select! {
        _ = running => panic!("it does not end"),
        () = added.notified() => {}
    }
    is_rolled_back(&server).await;
}

#[tokio::test]
async fn a_transaction_ends_by_its_deadline() {
    let server = Server::start().await;
    let (runs, transact) = (AtomicUsize::new(0), client(&server).transact().deadline(Duration::from_millis(500)));
    let late = transact.run(async |tx: &mut OpenTransaction| -> Result<(), CommitError> {
        runs.fetch_add(1, Ordering::Relaxed);
        tx.run(add(1)).await?;
        pending().await
    });
    let Err(TransactError::Commit(CommitError::Refused(failure))) = late.await else { panic!("nothing was applied") };
    assert_eq!((failure.code(), runs.load(Ordering::Relaxed)), (tonic::Code::DeadlineExceeded, 1));
    is_rolled_back(&server).await;
}

#[tokio::test]
async fn rows_are_read_in_pages_as_the_transaction_sees_them() {
    let server = Server::start().await;
    let read = client(&server).transact().run(async |tx| {
        tx.run(add(1)).await?;
        let (mut page, mut rows) = (tx.read(Command::new("list"), 64).await?, Vec::new());
        loop {
            for row in page.result().rows() {
                rows.push((row.get::<String>("id")?, row.get::<i64>("balance")?));
            }
            if !page.has_more() {
                return Ok::<_, OrderError>(rows);
            }
            page = tx.next_page().await?;
        }
    });
    let rows = read.await.expect("it commits").value.expect("it ran");
    assert_eq!((rows.len(), rows.iter().find(|(id, _)| id == "a1")), (200, Some(&("a1".to_owned(), 101))));
}
