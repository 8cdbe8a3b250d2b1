//! Whether this database is the one that its relay progress was written in.
//!
//! Progress is made of transaction ids: in another cluster (a dump restored elsewhere) they mean other transactions.

use sqlx::PgConnection;

/// What the database says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, sqlx::FromRow)]
pub struct Identity {
    /// Whether it is a standby, or still recovering.
    pub standby: bool,
    /// The cluster's identifier.
    pub system_identifier: i64,
    /// The cluster's identifier when the schema was made.
    pub expected_identifier: i64,
    /// The history that the server goes on from; 0 on a standby.
    pub timeline: i64,
    /// The history that progress was written in.
    pub expected_timeline: i64,
    /// How many lanes there are.
    pub lanes: i32,
}

/// Reads it.
///
/// # Errors
/// When the statement fails, as it does before the schema is made.
pub async fn read(connection: &mut PgConnection) -> sqlx::Result<Identity> {
    sqlx::query_as(
        "select pg_is_in_recovery() as standby, c.system_identifier, i.system_identifier as expected_identifier,
                case when pg_is_in_recovery() then 0 else outbox.timeline() end as timeline,
                i.timeline as expected_timeline, i.lanes
         from outbox.identity i, pg_control_system() c",
    )
    .fetch_one(connection)
    .await
}

/// Whether this database holds an outbox at all.
///
/// # Errors
/// When the statement fails.
pub async fn is_there(connection: &mut PgConnection) -> sqlx::Result<bool> {
    sqlx::query_scalar("select to_regclass('outbox.identity') is not null").fetch_one(connection).await
}

/// Accepts the history that the server goes on from now.
///
/// # Errors
/// When the statement fails.
pub async fn adopt_timeline(connection: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::query("update outbox.identity set timeline = outbox.timeline()").execute(connection).await.map(drop)
}
