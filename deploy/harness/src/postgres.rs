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
        let statement = format!("drop database if exists {} with (force)", self.name);
        // Drop cannot wait, and a test's runtime may be ending: a runtime of its own, on a thread of its own.
        let dropped = std::thread::spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime can be built").block_on(admin(statement));
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
