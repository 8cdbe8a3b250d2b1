//! The inbox by itself: traps 9, 10 and 11.

use outbox_harness::postgres::Database;
use outbox_sdk::{Begun, InboxError, PostgresInbox, Transaction};
use sqlx::{PgPool, Row as _};
use uuid::Uuid;

async fn inbox() -> (PostgresInbox, PgPool, Database) {
    let database = Database::fresh().await;
    let pool = database.pool().await;
    let inbox = PostgresInbox::new(pool.clone());
    inbox.ensure_schema().await.expect("the schema can be made");
    sqlx::query("create table effects (event_id uuid)").execute(&pool).await.unwrap();
    (inbox, pool, database)
}

fn fresh(begun: Begun) -> Transaction {
    match begun {
        Begun::Fresh(tx) => tx,
        Begun::Duplicate => panic!("it was taken for a duplicate"),
    }
}

async fn effect(tx: &mut Transaction, event_id: Uuid) {
    sqlx::query("insert into effects values ($1)").bind(event_id).execute(&mut **tx).await.unwrap();
}

async fn count(pool: &PgPool, query: &'static str) -> i64 {
    sqlx::query(query).fetch_one(pool).await.unwrap().get(0)
}

#[tokio::test]
async fn trap_9_a_mark_is_gone_when_its_transaction_is_not_committed() {
    let (inbox, pool, _database) = inbox().await;
    let id = Uuid::now_v7();
    drop(fresh(inbox.begin("mailer", "/shop", id).await.unwrap()));
    fresh(inbox.begin("mailer", "/shop", id).await.unwrap()).rollback().await.unwrap();

    let mut tx = fresh(inbox.begin("mailer", "/shop", id).await.unwrap());
    effect(&mut tx, id).await;
    tx.commit().await.unwrap();

    assert!(matches!(inbox.begin("mailer", "/shop", id).await.unwrap(), Begun::Duplicate));
    assert_eq!(count(&pool, "select count(*) from effects").await, 1);
}

#[tokio::test]
async fn trap_9_two_at_once_have_one_effect() {
    let (inbox, pool, _database) = inbox().await;
    for round in 0..20 {
        let id = Uuid::now_v7();
        let mut first = fresh(inbox.begin("mailer", "/shop", id).await.unwrap());
        let second = tokio::spawn({
            let inbox = inbox.clone();
            async move { inbox.begin("mailer", "/shop", id).await }
        });
        // The second has to wait for the first, not to decide before it has ended.
        outbox_harness::eventually("the second to wait", std::time::Duration::from_secs(30), async || {
            let waiting = "select count(*) from pg_stat_activity where datname = current_database() and \
                           wait_event_type = 'Lock'";
            (count(&pool, waiting).await > 0 || second.is_finished()).then_some(())
        })
        .await;
        effect(&mut first, id).await;
        if round % 2 == 0 {
            first.commit().await.unwrap();
            assert!(matches!(second.await.unwrap().unwrap(), Begun::Duplicate), "round {round}");
        } else {
            first.rollback().await.unwrap();
            let mut tx = fresh(second.await.unwrap().unwrap());
            effect(&mut tx, id).await;
            tx.commit().await.unwrap();
        }
    }
    assert_eq!(count(&pool, "select count(*) from effects").await, 20);
    assert_eq!(count(&pool, "select count(distinct event_id) from effects").await, 20);
}

#[tokio::test]
async fn trap_10_each_consumer_and_each_source_has_marks_of_its_own() {
    let (inbox, pool, _database) = inbox().await;
    let id = Uuid::now_v7();
    for (consumer, source) in [("mailer", "/shop"), ("auditor", "/shop"), ("mailer", "/billing")] {
        fresh(inbox.begin(consumer, source, id).await.unwrap()).commit().await.unwrap();
        assert!(matches!(inbox.begin(consumer, source, id).await.unwrap(), Begun::Duplicate));
    }
    assert_eq!(count(&pool, "select count(*) from outbox_inbox.marks").await, 3);
}

#[tokio::test]
async fn trap_11_a_duplicate_is_no_error_and_aborts_nothing() {
    let (inbox, pool, _database) = inbox().await;
    let id = Uuid::now_v7();
    fresh(inbox.begin("mailer", "/shop", id).await.unwrap()).commit().await.unwrap();
    for _ in 0..20 {
        assert!(matches!(inbox.begin("mailer", "/shop", id).await, Ok(Begun::Duplicate)));
    }
    // No connection was left in an aborted transaction.
    assert_eq!(count(&pool, "select count(*) from pg_stat_activity where state like '%aborted%'").await, 0);
    drop(fresh(inbox.begin("mailer", "/shop", Uuid::now_v7()).await.unwrap()));
}

#[tokio::test]
async fn the_schema_can_be_made_by_several_at_once() {
    let database = Database::fresh().await;
    let pool = database.pool().await;
    let inbox = PostgresInbox::new(pool.clone());
    let missing = inbox.begin("mailer", "/shop", Uuid::now_v7()).await;
    assert!(matches!(missing, Err(InboxError::NoSchema(_))), "{missing:?}");

    let made = futures_util::future::join_all((0..8).map(|_| inbox.ensure_schema())).await;
    assert!(made.iter().all(Result::is_ok), "{made:?}");
    drop(fresh(inbox.begin("mailer", "/shop", Uuid::now_v7()).await.unwrap()));
}
