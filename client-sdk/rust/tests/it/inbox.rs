//! The inbox by itself: traps 9, 10 and 11.

use outbox_harness::postgres::Database;
use outbox_sdk::{
    EventKey, Inbox as _, InboxError, PostgresInbox, ProcessError, Processed, Transaction,
    inbox::{Content, Mark},
};
use sqlx::{Executor as _, PgPool, Row as _};
use tokio::sync::oneshot;
use uuid::Uuid;

async fn inbox() -> (PostgresInbox, PgPool, Database) {
    let database = Database::fresh().await;
    let pool = database.pool().await;
    let inbox = PostgresInbox::new(pool.clone());
    inbox.ensure_schema().await.expect("the schema can be made");
    sqlx::query("create table effects (event_id uuid)").execute(&pool).await.unwrap();
    (inbox, pool, database)
}

fn key(id: Uuid) -> EventKey<'static> {
    EventKey::new("/shop", id)
}

async fn effect(tx: &mut Transaction, event_id: Uuid) -> Result<(), sqlx::Error> {
    sqlx::query("insert into effects values ($1)").bind(event_id).execute(&mut **tx).await.map(drop)
}

async fn handle(inbox: &PostgresInbox, consumer: &str, key: EventKey<'_>) -> Processed<()> {
    let id = key.id();
    inbox.process(consumer, key, |tx| Box::pin(effect(tx, id))).await.expect("the database is there")
}

async fn count(pool: &PgPool, query: &'static str) -> i64 {
    sqlx::query(query).fetch_one(pool).await.unwrap().get(0)
}

#[tokio::test]
async fn trap_9_a_mark_is_gone_when_its_transaction_is_not_committed() {
    let (inbox, pool, _database) = inbox().await;
    let id = Uuid::now_v7();
    let failed = inbox.process("mailer", key(id), |tx| {
        Box::pin(async move {
            effect(tx, id).await.unwrap();
            Err::<(), _>("the mail server is away")
        })
    });
    assert!(matches!(failed.await, Err(ProcessError::Work("the mail server is away"))));
    let dropped = inbox.process("mailer", key(id), |tx| {
        Box::pin(async move {
            effect(tx, id).await.unwrap();
            std::future::pending::<Result<(), ()>>().await
        })
    });
    assert!(tokio::time::timeout(std::time::Duration::from_millis(100), dropped).await.is_err());

    assert_eq!(handle(&inbox, "mailer", key(id)).await, Processed::Fresh(()));
    assert_eq!(handle(&inbox, "mailer", key(id)).await, Processed::Duplicate);
    assert_eq!(count(&pool, "select count(*) from effects").await, 1);
}

#[tokio::test]
async fn trap_9_two_at_once_have_one_effect() {
    let (inbox, pool, _database) = inbox().await;
    for round in 0..20 {
        let id = Uuid::now_v7();
        let (marked, is_marked) = oneshot::channel();
        let (go, may_go) = oneshot::channel::<()>();
        let first = tokio::spawn({
            let inbox = inbox.clone();
            async move {
                let work = inbox.process("mailer", key(id), |tx| {
                    Box::pin(async move {
                        effect(tx, id).await.unwrap();
                        marked.send(()).unwrap();
                        may_go.await.unwrap();
                        if round % 2 == 0 { Ok(()) } else { Err("it changed its mind") }
                    })
                });
                work.await.is_ok()
            }
        });
        is_marked.await.unwrap();
        let second = tokio::spawn({
            let inbox = inbox.clone();
            async move { handle(&inbox, "mailer", key(id)).await }
        });
        // The second has to wait for the first, not to decide before it has ended.
        outbox_harness::eventually("the second to wait", std::time::Duration::from_secs(30), async || {
            let waiting = "select count(*) from pg_stat_activity where datname = current_database() and \
                           wait_event_type = 'Lock'";
            (count(&pool, waiting).await > 0 || second.is_finished()).then_some(())
        })
        .await;
        go.send(()).unwrap();
        let expected = if first.await.unwrap() { Processed::Duplicate } else { Processed::Fresh(()) };
        assert_eq!(second.await.unwrap(), expected, "round {round}");
    }
    assert_eq!(count(&pool, "select count(*) from effects").await, 20);
    assert_eq!(count(&pool, "select count(distinct event_id) from effects").await, 20);
}

#[tokio::test]
async fn trap_10_each_consumer_and_each_source_has_marks_of_its_own() {
    let (inbox, pool, _database) = inbox().await;
    let id = Uuid::now_v7();
    for (consumer, source) in [("mailer", "/shop"), ("auditor", "/shop"), ("mailer", "/billing")] {
        assert_eq!(handle(&inbox, consumer, EventKey::new(source, id)).await, Processed::Fresh(()));
        assert_eq!(handle(&inbox, consumer, EventKey::new(source, id)).await, Processed::Duplicate);
    }
    assert_eq!(count(&pool, "select count(*) from outbox_inbox.marks").await, 3);
}

#[tokio::test]
async fn trap_11_a_duplicate_is_no_error_and_aborts_nothing() {
    let (inbox, pool, _database) = inbox().await;
    let id = Uuid::now_v7();
    assert_eq!(handle(&inbox, "mailer", key(id)).await, Processed::Fresh(()));
    for _ in 0..20 {
        assert_eq!(handle(&inbox, "mailer", key(id)).await, Processed::Duplicate);
    }
    // No connection was left in an aborted transaction.
    assert_eq!(count(&pool, "select count(*) from pg_stat_activity where state like '%aborted%'").await, 0);
    assert_eq!(handle(&inbox, "mailer", key(Uuid::now_v7())).await, Processed::Fresh(()));
}

/// A batch so large that it is marked as new at first, under a savepoint.
const LARGE: usize = 200;

fn keys(scope: i32, ids: &[Uuid]) -> Vec<(i32, EventKey<'static>)> {
    ids.iter().map(|id| (scope, key(*id).holding(Content::of([id.as_bytes().as_slice()])))).collect()
}

#[tokio::test]
async fn trap_11_a_batch_with_repeats_marks_the_rest_and_aborts_nothing() {
    let (inbox, pool, _database) = inbox().await;
    let scope = inbox.add_scope("mailer", "/shop").await.expect("the database is there");
    let ids: Vec<Uuid> = (0..LARGE).map(|_| Uuid::now_v7()).collect();
    let known = ids[7];
    assert_eq!(handle(&inbox, "mailer", keys(scope, &[known])[0].1).await, Processed::Fresh(()));
    let mut expected = vec![Mark::Fresh; LARGE];
    expected[7] = Mark::Duplicate;
    // The second time without hope, since the first had a repeat.
    for _ in 0..2 {
        let mut tx = pool.begin().await.unwrap();
        assert_eq!(inbox.mark_all(&mut tx, &keys(scope, &ids)).await.expect("the database is there"), expected);
        effect(&mut tx, known).await.expect("the transaction goes on");
        tx.rollback().await.unwrap();
    }
    // With hope again, for this one has seen no repeat: another event under a known id, then the same event twice.
    let other = PostgresInbox::new(pool.clone());
    let mut mixed = keys(scope, &ids);
    mixed[7].1 = key(known).holding(Content::of([b"another".as_slice()]));
    expected[7] = Mark::Conflict;
    let mut tx = pool.begin().await.unwrap();
    assert_eq!(other.mark_all(&mut tx, &mixed).await.expect("the database is there"), expected);
    tx.rollback().await.unwrap();
    mixed[9] = mixed[8];
    expected[9] = Mark::Duplicate;
    let mut tx = pool.begin().await.unwrap();
    assert_eq!(other.mark_all(&mut tx, &mixed).await.expect("the database is there"), expected);
    tx.commit().await.unwrap();
    assert_eq!(count(&pool, "select count(*) from outbox_inbox.marks").await, LARGE as i64 - 1);
}

/// Whoever began the transaction, and as it was begun, it holds the marks; without one there are none.
#[tokio::test]
async fn trap_9_a_large_batch_is_marked_in_the_callers_transaction_or_not_at_all() {
    let (inbox, pool, _database) = inbox().await;
    let scope = inbox.add_scope("mailer", "/shop").await.expect("the database is there");
    let ids: Vec<Uuid> = (0..LARGE).map(|_| Uuid::now_v7()).collect();
    let mut connection = pool.acquire().await.unwrap();
    connection.execute("begin isolation level repeatable read").await.unwrap();
    let marks = inbox.mark_all(&mut connection, &keys(scope, &ids)).await.expect("the database is there");
    assert_eq!(marks, vec![Mark::Fresh; LARGE]);
    connection.execute("rollback").await.unwrap();
    assert!(inbox.mark_all(&mut connection, &keys(scope, &ids)).await.is_err());
    assert_eq!(count(&pool, "select count(*) from outbox_inbox.marks").await, 0);
}

/// Each waits for the other's end, and answers by it, whether it hoped or not.
#[tokio::test]
async fn trap_9_of_two_batches_at_once_one_marks_each_event() {
    let (inbox, pool, _database) = inbox().await;
    let scope = inbox.add_scope("mailer", "/shop").await.expect("the database is there");
    for commits in [true, false] {
        let ids: Vec<Uuid> = (0..LARGE + LARGE / 2).map(|_| Uuid::now_v7()).collect();
        let (early, late) = (keys(scope, &ids[..LARGE]), keys(scope, &ids[LARGE / 2..]));
        let mut first = pool.begin().await.unwrap();
        let marks = inbox.mark_all(&mut first, &early).await.expect("the database is there");
        assert_eq!(marks, vec![Mark::Fresh; LARGE]);
        let hopeful = PostgresInbox::new(pool.clone());
        let second = tokio::spawn({
            let pool = pool.clone();
            async move {
                let mut tx = pool.begin().await.unwrap();
                let marks = hopeful.mark_all(&mut tx, &late).await.expect("the database is there");
                tx.commit().await.unwrap();
                marks
            }
        });
        let waits =
            "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()";
        outbox_harness::eventually("the second waits", std::time::Duration::from_secs(30), async || {
            (count(&pool, waits).await == 1).then_some(())
        })
        .await;
        let repeats = if commits {
            first.commit().await.unwrap();
            LARGE / 2
        } else {
            first.rollback().await.unwrap();
            0
        };
        let marks = second.await.unwrap();
        let expected = |at| if at < repeats { Mark::Duplicate } else { Mark::Fresh };
        assert_eq!(marks, (0..LARGE).map(expected).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn trap_11_an_error_that_is_swallowed_does_not_pass_for_a_commit() {
    let (inbox, pool, _database) = inbox().await;
    let id = Uuid::now_v7();
    let swallowed = inbox.process("mailer", key(id), |tx| {
        Box::pin(async move {
            effect(tx, id).await.unwrap();
            // Postgres gives the transaction up, and answers COMMIT with a rollback that is no error.
            let _ = sqlx::query("insert into nowhere values (1)").execute(&mut **tx).await;
            Ok::<_, ()>(())
        })
    });
    let error = swallowed.await.expect_err("nothing was committed");
    assert!(matches!(error, ProcessError::Commit(_)), "{error:?}");
    assert_eq!(count(&pool, "select count(*) from effects").await, 0);
    assert_eq!(handle(&inbox, "mailer", key(id)).await, Processed::Fresh(()));
}

#[tokio::test]
async fn another_event_under_the_same_id_is_told_apart_from_a_repeat() {
    let (inbox, _pool, _database) = inbox().await;
    let (id, other) = (Uuid::now_v7(), Uuid::now_v7());
    let holding = |id, bytes: &'static [u8]| key(id).holding(Content::of([bytes]));
    assert_eq!(handle(&inbox, "mailer", holding(id, b"activated")).await, Processed::Fresh(()));
    assert_eq!(handle(&inbox, "mailer", holding(id, b"activated")).await, Processed::Duplicate);
    assert_eq!(handle(&inbox, "mailer", holding(id, b"deleted")).await, Processed::Conflict);
    assert_eq!(handle(&inbox, "mailer", key(id)).await, Processed::Duplicate, "its bytes are not known");
    assert_eq!(handle(&inbox, "mailer", key(other)).await, Processed::Fresh(()));
    assert_eq!(handle(&inbox, "mailer", holding(other, b"any")).await, Processed::Duplicate, "nothing to compare");
}

#[tokio::test]
async fn the_schema_can_be_made_by_several_at_once() {
    let database = Database::fresh().await;
    let pool = database.pool().await;
    let inbox = PostgresInbox::new(pool.clone());
    let missing = inbox.process("mailer", key(Uuid::now_v7()), |_| Box::pin(async { Ok::<_, ()>(()) })).await;
    assert!(matches!(missing, Err(ProcessError::Inbox(InboxError::NoSchema(_)))), "{missing:?}");

    let made = futures_util::future::join_all((0..8).map(|_| inbox.ensure_schema())).await;
    assert!(made.iter().all(Result::is_ok), "{made:?}");
    sqlx::query("create table effects (event_id uuid)").execute(&pool).await.unwrap();
    assert_eq!(handle(&inbox, "mailer", key(Uuid::now_v7())).await, Processed::Fresh(()));
}

#[tokio::test]
async fn tables_of_the_first_version_are_upgraded_and_keep_their_marks() {
    let database = Database::fresh().await;
    let pool = database.pool().await;
    sqlx::raw_sql(include_str!("../../inbox/postgres/1.sql")).execute(&pool).await.unwrap();
    let id = Uuid::now_v7();
    let mark =
        "with scope as (insert into outbox_inbox.scopes (consumer, source) values ('mailer', '/shop') returning id)
                insert into outbox_inbox.marks (scope, event_id) select id, $1 from scope";
    sqlx::query(mark).bind(id).execute(&pool).await.unwrap();

    let inbox = PostgresInbox::new(pool.clone());
    inbox.ensure_schema().await.unwrap();
    inbox.ensure_schema().await.unwrap();
    assert_eq!(handle(&inbox, "mailer", key(id)).await, Processed::Duplicate);

    sqlx::query("insert into outbox_inbox.versions (version) values (1000)").execute(&pool).await.unwrap();
    let newer = inbox.ensure_schema().await;
    assert!(matches!(newer, Err(InboxError::NewerSchema { found: 1000, .. })), "{newer:?}");
}
