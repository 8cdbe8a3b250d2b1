//! `outbox.emit` and `emit_many`: events of services that hold their own transaction.

use std::time::Duration;

use outbox_harness::eventually;
use outbox_harness::postgres::Database;
use outbox_server::store::migrate;
use sqlx::{Connection as _, PgConnection};
use uuid::Uuid;

async fn database() -> (Database, PgConnection) {
    let database = Database::fresh().await;
    let mut connection = database.connect().await;
    migrate::run(&mut connection).await.expect("the migrations apply");
    (database, connection)
}

async fn count(connection: &mut PgConnection, sql: &'static str) -> i64 {
    sqlx::query_scalar(sql).fetch_one(connection).await.expect("the query holds")
}

#[tokio::test]
async fn migrating_again_changes_nothing() {
    let (_database, mut connection) = database().await;
    migrate::run(&mut connection).await.expect("the migrations are applied already");
    assert_eq!(migrate::make_partitions(&mut connection).await.expect("they are there"), 0);
}

#[tokio::test]
async fn an_emitted_event_lives_and_dies_with_its_transaction() {
    let (_database, mut connection) = database().await;
    let emit = "select outbox.emit('users', 'user.activated', '{\"id\": 7}'::jsonb, key => 'user-7')";

    let mut lost = connection.begin().await.unwrap();
    sqlx::query(emit).execute(&mut *lost).await.unwrap();
    lost.rollback().await.unwrap();
    assert_eq!(count(&mut connection, "select count(*) from outbox.events").await, 0);

    let mut kept = connection.begin().await.unwrap();
    let id: Uuid = sqlx::query_scalar(emit).fetch_one(&mut *kept).await.unwrap();
    kept.commit().await.unwrap();
    assert_eq!(id.get_version_num(), 7);
    let stored = "select count(*) from outbox.events where topic = 'users' and convert_from(key, 'UTF8') = 'user-7'
                  and convert_from(data, 'UTF8')::jsonb = '{\"id\": 7}' and content_type = 'application/json'";
    assert_eq!(count(&mut connection, stored).await, 1);
}

#[tokio::test]
async fn emit_many_returns_ids_in_order_and_positions_follow_it() {
    let (_database, mut connection) = database().await;
    let ids: Vec<Uuid> = sqlx::query_scalar(
        "select outbox.emit_many(jsonb_agg(jsonb_build_object('topic', 't', 'type', 'x', 'key', 'k' || n % 5,
                                                              'data', n) order by n))
         from generate_series(1, 100) as n",
    )
    .fetch_all(&mut connection)
    .await
    .unwrap();
    let stored: Vec<Uuid> =
        sqlx::query_scalar("select id from outbox.events order by position").fetch_all(&mut connection).await.unwrap();
    assert_eq!(ids, stored);
    assert_eq!(count(&mut connection, "select count(distinct (lane, key)) from outbox.events").await, 5);
}

/// Trap 17: transactions that name the same keys in different orders. One that waits for the lower slot must not hold
/// the higher one yet, in whatever order it names them: whoever it waits for may want that next.
#[tokio::test]
async fn keys_in_opposite_order_do_not_deadlock() {
    let (database, mut connection) = database().await;
    let (low, high): (String, String) = sqlx::query_as(
        "select keys[1], keys[2] from (
             select array_agg(n::text order by outbox.slot_of('default', 't', convert_to(n::text, 'UTF8'))) as keys
             from generate_series(1, 2) as n) as by_slot",
    )
    .fetch_one(&mut connection)
    .await
    .unwrap();
    let emit = |keys: &[&str]| {
        let events: Vec<_> =
            keys.iter().map(|key| serde_json::json!({"topic": "t", "type": "x", "key": key})).collect();
        sqlx::query("select outbox.emit_many($1)").bind(serde_json::Value::from(events))
    };

    let mut holder = connection.begin().await.unwrap();
    emit(&[&low]).execute(&mut *holder).await.unwrap();
    let mut backward = database.connect().await;
    let pid: i32 = sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut backward).await.unwrap();
    let both = emit(&[&high, &low]);
    let waiting = tokio::spawn(async move { both.execute(&mut backward).await });
    let mut watcher = database.connect().await;
    eventually("the other transaction waits for the holder", Duration::from_secs(10), async || {
        let blocked = sqlx::query_scalar::<_, bool>("select cardinality(pg_blocking_pids($1)) > 0").bind(pid);
        blocked.fetch_one(&mut watcher).await.unwrap().then_some(())
    })
    .await;

    emit(&[&high]).execute(&mut *holder).await.expect("the higher slot is free");
    holder.commit().await.unwrap();
    waiting.await.unwrap().expect("no deadlock");
    assert_eq!(count(&mut watcher, "select count(*) from outbox.events").await, 4);
}

/// P4 at its root: whoever commits first has the lower position, for one key.
#[tokio::test]
async fn positions_of_a_key_follow_commit_order() {
    let (database, mut connection) = database().await;
    let emit = |who: &'static str| format!("select outbox.emit('t', '{who}', 'null'::jsonb, key => 'k')");

    let mut first = connection.begin().await.unwrap();
    // It has its transaction id before the second one, and takes its position after it has committed.
    sqlx::query("select pg_current_xact_id()").execute(&mut *first).await.unwrap();
    let mut other = database.connect().await;
    sqlx::query(sqlx::AssertSqlSafe(emit("second"))).execute(&mut other).await.unwrap();
    sqlx::query(sqlx::AssertSqlSafe(emit("first"))).execute(&mut *first).await.unwrap();
    first.commit().await.unwrap();

    let order: Vec<String> =
        sqlx::query_scalar("select type from outbox.events order by position").fetch_all(&mut other).await.unwrap();
    assert_eq!(order, ["second", "first"]);

    let mut holder = connection.begin().await.unwrap();
    sqlx::query(sqlx::AssertSqlSafe(emit("third"))).execute(&mut *holder).await.unwrap();
    sqlx::query("set lock_timeout = '100ms'").execute(&mut other).await.unwrap();
    let blocked = sqlx::query(sqlx::AssertSqlSafe(emit("fourth"))).execute(&mut other).await;
    assert!(blocked.is_err(), "a position was taken while the key's slot was held");
    let elsewhere = "select outbox.emit('t', 'x', 'null'::jsonb, key => 'another key')";
    sqlx::query(elsewhere).execute(&mut other).await.expect("another key is free");
    sqlx::query("select outbox.emit('t', 'x', 'null'::jsonb)").execute(&mut other).await.expect("no key, no lock");
}
