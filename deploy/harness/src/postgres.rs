//! A database of its own for each test.

use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection, PgPool, postgres::PgPoolOptions};
use uuid::Uuid;

/// A new, empty database, dropped when this goes out of scope.
pub struct Database {
    /// Its connection URL.
    pub url: String,
    name: String,
}

impl Database {
    /// Makes a database with a unique name on the server of `DATABASE_URL`.
    pub async fn fresh() -> Self {
        let name = format!("outbox_test_{}", Uuid::now_v7().simple());
        admin(format!("create database {name}")).await;
        let server = super::required("DATABASE_URL");
        let (base, _) = server.rsplit_once('/').expect("DATABASE_URL ends in /database");
        Self { url: format!("{base}/{name}"), name }
    }

    /// A connection to it.
    pub async fn connect(&self) -> PgConnection {
        PgConnection::connect(&self.url).await.expect("the test database can be reached")
    }

    /// A pool of up to eight connections to it.
    pub async fn pool(&self) -> PgPool {
        PgPoolOptions::new().max_connections(8).connect(&self.url).await.expect("the test database can be reached")
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let name = self.name.clone();
        // Drop cannot wait, and a test's runtime may be ending: a runtime of its own, on a thread of its own.
        let dropped = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime can be built").block_on(drop_database(&name));
        });
        if dropped.join().is_err() {
            eprintln!("the database {} is left behind", self.name);
        }
    }
}

async fn admin(statement: String) {
    let url = super::required("DATABASE_URL");
    let mut connection = PgConnection::connect(&url).await.expect("the server of DATABASE_URL can be reached");
    connection.execute(AssertSqlSafe(statement)).await.expect("databases can be created and dropped");
}

/// A database in which somebody still streams from a slot is not dropped, not even by force.
async fn drop_database(name: &str) {
    let url = super::required("DATABASE_URL");
    let mut connection = PgConnection::connect(&url).await.expect("the server of DATABASE_URL can be reached");
    let end = format!(
        "select count(pg_terminate_backend(active_pid)) from pg_replication_slots where database = '{name}' and active"
    );
    super::eventually("the database's slots are free", std::time::Duration::from_secs(20), async || {
        let streaming: i64 =
            sqlx::query_scalar(AssertSqlSafe(end.clone())).fetch_one(&mut connection).await.expect("slots can be read");
        (streaming == 0).then_some(())
    })
    .await;
    admin(format!("drop database if exists {name} with (force)")).await;
}
