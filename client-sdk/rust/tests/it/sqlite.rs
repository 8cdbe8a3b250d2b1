//! The inbox and claims on SQLite.

use std::time::Duration;

use outbox_harness::claims::{forget_what_is_old, keep_the_contract};
use outbox_sdk::{
    Event, EventKey, Handler, HandlerError, Inbox as _, InboxError, Processed, SqliteInbox, Transaction,
    claim::SqliteClaims,
};
use sqlx::{
    Sqlite, SqlitePool,
    sqlite::{SqliteConnectOptions, SqlitePoolOptions},
};
use uuid::Uuid;

use crate::rig::{Rig, Running, events, unstored};

/// A database in a file of its own, removed at the end.
struct File(std::path::PathBuf);

impl File {
    async fn fresh() -> (Self, SqlitePool) {
        let (file, pool) = Self::empty().await;
        SqliteInbox::new(pool.clone()).ensure_schema().await.unwrap();
        SqliteInbox::new(pool.clone()).ensure_schema().await.unwrap();
        sqlx::query("create table effects (event_id blob not null)").execute(&pool).await.unwrap();
        (file, pool)
    }

    async fn empty() -> (Self, SqlitePool) {
        let file = Self(std::env::temp_dir().join(format!("outbox-sdk-{}.sqlite", Uuid::now_v7())));
        let options = SqliteConnectOptions::new().filename(&file.0).create_if_missing(true);
        let options = options.busy_timeout(Duration::from_secs(30));
        (file, SqlitePoolOptions::new().max_connections(4).connect_with(options).await.unwrap())
    }
}

impl Drop for File {
    fn drop(&mut self) {
        for suffix in ["", "-wal", "-shm", "-journal"] {
            let _ = std::fs::remove_file(format!("{}{suffix}", self.0.display()));
        }
    }
}

async fn effects(pool: &SqlitePool) -> (i64, i64) {
    sqlx::query_as("select count(distinct event_id), count(*) from effects").fetch_one(pool).await.unwrap()
}

async fn effect(tx: &mut Transaction<Sqlite>, id: Uuid) -> Result<(), sqlx::Error> {
    sqlx::query("insert into effects values (?)").bind(id).execute(&mut **tx).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_9_on_sqlite_mark_and_effects_are_in_one_transaction() {
    let (_file, pool) = File::fresh().await;
    let inbox = SqliteInbox::new(pool.clone());
    let (id, key) = (Uuid::now_v7(), EventKey::named("/shop", "evt_1"));
    let failed = inbox.process("mailer", key, |tx| {
        Box::pin(async move {
            effect(tx, id).await.unwrap();
            Err::<(), _>("the mail server is away")
        })
    });
    assert!(failed.await.is_err());

    // Many at once: the lock is taken when a transaction begins, so they wait instead of failing.
    let all = (0..16).map(|_| inbox.process("mailer", key, |tx| Box::pin(effect(tx, id))));
    let all = futures_util::future::join_all(all).await;
    let fresh = all.iter().filter(|one| matches!(one, Ok(Processed::Fresh(())))).count();
    let repeats = all.iter().filter(|one| matches!(one, Ok(Processed::Duplicate))).count();
    assert_eq!((fresh, repeats), (1, 15), "{all:?}");
    assert_eq!(effects(&pool).await, (1, 1));
}

#[tokio::test]
async fn trap_6_claims_on_sqlite_keep_the_contract() {
    let (_file, pool) = File::fresh().await;
    let claims = SqliteClaims::new(pool);
    claims.ensure_schema().await.unwrap();
    keep_the_contract(claims).await;
}

#[tokio::test]
async fn claims_on_sqlite_are_forgotten_by_age() {
    let (_file, pool) = File::fresh().await;
    let claims = SqliteClaims::new(pool);
    claims.ensure_schema().await.unwrap();
    forget_what_is_old(claims).await;
}

/// As the SDK that knew no other version left them.
#[tokio::test]
async fn tables_of_the_first_version_are_upgraded_and_keep_their_marks() {
    let (_file, pool) = File::empty().await;
    sqlx::raw_sql(include_str!("../../inbox/sqlite/1.sql")).execute(&pool).await.unwrap();
    let id = Uuid::now_v7();
    let first = "create table outbox_inbox_versions (version integer primary key, applied_at integer not null);
                 insert into outbox_inbox_versions values (1, 0);
                 insert into outbox_inbox_scopes (id, consumer, source) values (1, 'mailer', '/shop');
                 create table effects (event_id blob not null)";
    sqlx::raw_sql(first).execute(&pool).await.unwrap();
    let mark = "insert into outbox_inbox_marks (scope, event_id, marked_at) values (1, ?, 0)";
    sqlx::query(mark).bind(id).execute(&pool).await.unwrap();

    let inbox = SqliteInbox::new(pool.clone());
    inbox.ensure_schema().await.unwrap();
    inbox.ensure_schema().await.unwrap();
    let versions = sqlx::query_scalar::<_, i64>("select version from outbox_inbox_versions order by version");
    assert_eq!(versions.fetch_all(&pool).await.unwrap(), [1, 2]);
    let again = inbox.process("mailer", EventKey::new("/shop", id), |tx| Box::pin(effect(tx, id))).await;
    assert!(matches!(again, Ok(Processed::Duplicate)), "{again:?}");
    forget_what_is_old(SqliteClaims::new(pool.clone())).await;

    sqlx::query("insert into outbox_inbox_versions values (1000, 0)").execute(&pool).await.unwrap();
    let newer = inbox.ensure_schema().await;
    assert!(matches!(newer, Err(InboxError::NewerSchema { found: 1000, known: 2 })), "{newer:?}");
}

struct Effect;

impl Handler<Sqlite> for Effect {
    async fn handle(&self, event: &Event, tx: &mut Transaction<Sqlite>) -> Result<(), HandlerError> {
        Ok(effect(tx, event.id()).await?)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_on_sqlite_has_each_effect_once() {
    let (rig, (_file, pool)) = (Rig::new(2).await, File::fresh().await);
    let published = events(50);
    for partition in [0, 1, 0] {
        rig.publish(published.iter().map(|event| (partition, event.clone()))).await;
    }
    let consumer = unstored("mailer", &rig.topic).inbox(SqliteInbox::new(pool.clone())).concurrency(2).handler(Effect);
    let running = Running::start(consumer.build().unwrap());
    rig.until_committed("mailer", 0, 100).await;
    rig.until_committed("mailer", 1, 50).await;
    running.shut_down().await.unwrap();
    assert_eq!(effects(&pool).await, (50, 50));
}
