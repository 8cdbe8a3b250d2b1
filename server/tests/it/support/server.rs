//! A server in this process, on a database and a port of its own.

use std::{collections::HashMap, fs, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use outbox_harness::{eventually, postgres::Database};
use outbox_proto::v1::{
    command_service_client::CommandServiceClient, event_service_client::EventServiceClient,
    inbox_service_client::InboxServiceClient, outbox_service_client::OutboxServiceClient,
    relay_service_client::RelayServiceClient, state_service_client::StateServiceClient,
};
use outbox_server::{app, config::Config};
use sqlx::{Executor as _, PgPool, postgres::PgPoolOptions};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};
use tonic_types::StatusExt as _;
use uuid::Uuid;

/// What users are told of every reason.
const ERRORS: &str = include_str!("../../../../proto/ERRORS.md");

/// Tables of the tests' catalog.
const SCHEMA: &str = "
    create type mood as enum ('glad', 'so so');
    create table accounts (id text primary key, balance bigint not null check (balance >= 0), note text);
    create table transfers (id uuid primary key, account text not null references accounts (id));
    create function sneak() returns int language sql volatile as 'update accounts set balance = 0; select 1';
    insert into accounts select 'a' || n, 100 from generate_series(0, 199) as n;
    analyze accounts;
";

/// Its commands.
pub(crate) const CATALOG: &str = "
-- name: add
-- expect: one
update accounts set balance = balance + :amount where id = :id returning id, balance

-- name: open
insert into accounts (id, balance) values (:id, :balance)

-- name: transfer
-- expect: one
insert into transfers (id, account) values (:id, :account)

-- name: balance
-- expect: one
-- access: read_only
-- What an account holds.
select balance from accounts where id = :id

-- name: sneak
-- access: read_only
select sneak() as one

-- name: list
-- access: read_only
select id, balance from accounts order by id

-- name: set_note
-- expect: one
update accounts set note = :note where id = :id returning note

-- name: slow
select pg_sleep(:seconds), balance from accounts where id = 'a0'

-- name: slow_add
-- Asleep for the row that is changed only: as a condition it may be for every row that is looked at.
update accounts set balance = balance + case when pg_sleep(:seconds) is null then 0 else 1 end where id = :id

-- name: scale
select 10 / :divisor::int as tenth

-- name: types
select :bool::bool as bool, :int2::int2 as int2, :int4::int4 as int4, :int8::int8 as int8, :float4::float4 as float4,
       :float8::float8 as float8, :numeric::numeric as numeric, :text::text as text, :bytea::bytea as bytea,
       :uuid::uuid as uuid, :date::date as date, :time::time as time, :timestamp::timestamp as timestamp,
       :timestamptz::timestamptz as timestamptz, :interval::interval as interval, :jsonb::jsonb as jsonb,
       :mood::mood as mood, :ints::int4[] as ints, :texts::text[] as texts, :moods::mood[] as moods
";

pub(crate) struct Server {
    pub(crate) url: String,
    pub(crate) pool: PgPool,
    pub(crate) channel: Channel,
    address: SocketAddr,
    pub(crate) shutdown: CancellationToken,
    running: Option<JoinHandle<()>>,
    catalog: PathBuf,
    /// Dropped with the last server on it.
    database: Option<Arc<Database>>,
}

impl Server {
    /// A server with the tests' catalog and no relay.
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    /// The same with other settings.
    pub(crate) async fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        let database = Database::fresh().await;
        Self::at(database.url.clone(), Some(Arc::new(database)), change).await
    }

    /// One on an empty database that is not of the tests' own server.
    pub(crate) async fn at(url: String, database: Option<Arc<Database>>, change: impl FnOnce(&mut Config)) -> Self {
        let pool = PgPoolOptions::new().max_connections(8).connect(&url).await.expect("the database can be reached");
        pool.execute(SCHEMA).await.expect("the schema can be made");
        Self::on(url, database, pool, CATALOG, change).await
    }

    /// One more server on the same database.
    pub(crate) async fn beside(&self, change: impl FnOnce(&mut Config)) -> Self {
        Self::on(self.url.clone(), self.database.clone(), self.pool.clone(), CATALOG, change).await
    }

    /// The same with another catalog.
    pub(crate) async fn beside_with_catalog(&self, commands: &str) -> Self {
        Self::on(self.url.clone(), self.database.clone(), self.pool.clone(), commands, |_| {}).await
    }

    async fn on(
        url: String,
        database: Option<Arc<Database>>,
        pool: PgPool,
        commands: &str,
        change: impl FnOnce(&mut Config),
    ) -> Self {
        let catalog = std::env::temp_dir().join(format!("outboxd-catalog-{}", Uuid::now_v7()));
        fs::create_dir(&catalog).expect("a folder can be made");
        fs::write(catalog.join("test.sql"), commands).expect("a file can be written");

        let mut config = Config::default();
        config.database.url.clone_from(&url);
        config.catalog.dir = Some(catalog.clone());
        config.relay.enabled = false;
        change(&mut config);

        let server = app::Server::prepare(config).await.expect("the server can be prepared");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let address = listener.local_addr().expect("the listener has an address");
        let channel = connect(address);
        let shutdown = CancellationToken::new();
        let run = server.run(listener, shutdown.clone());
        let running = tokio::spawn(async move { run.await.expect("the server stops cleanly") });
        Self { url, pool, channel, address, shutdown, running: Some(running), catalog, database }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// A connection of its own: one carries 200 calls at a time.
    pub(crate) fn connect_anew(&self) -> Channel {
        connect(self.address)
    }

    /// Where it listens.
    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn outbox(&self) -> OutboxServiceClient<Channel> {
        OutboxServiceClient::new(self.channel.clone())
    }

    pub(crate) fn state(&self) -> StateServiceClient<Channel> {
        StateServiceClient::new(self.channel.clone())
    }

    pub(crate) fn commands(&self) -> CommandServiceClient<Channel> {
        CommandServiceClient::new(self.channel.clone())
    }

    pub(crate) fn events(&self) -> EventServiceClient<Channel> {
        EventServiceClient::new(self.channel.clone())
    }

    pub(crate) fn inbox(&self) -> InboxServiceClient<Channel> {
        InboxServiceClient::new(self.channel.clone())
    }

    pub(crate) fn relays(&self) -> RelayServiceClient<Channel> {
        RelayServiceClient::new(self.channel.clone())
    }

    /// As SIGTERM would: asks the server to end, and waits until it has.
    pub(crate) async fn stop(&mut self) {
        self.shutdown.cancel();
        self.running.take().expect("it is stopped once").await.expect("the server ends without a panic");
    }

    /// One number from the database.
    pub(crate) async fn number(&self, sql: &'static str) -> i64 {
        sqlx::query_scalar(sql).fetch_one(&self.pool).await.expect("the query holds")
    }

    pub(crate) async fn balance(&self, id: &str) -> i64 {
        let balance = sqlx::query_scalar("select balance from accounts where id = $1").bind(id);
        balance.fetch_one(&self.pool).await.expect("the account is there")
    }

    /// Waits until some statement of a slow command is running, or none is any more.
    pub(crate) async fn until_sleeping(&self, sleeping: bool) {
        let running = "select count(*) from pg_stat_activity where datname = current_database() and state = 'active'
                       and query like '%pg_sleep%' and pid <> pg_backend_pid()";
        let what = if sleeping { "a slow statement to run" } else { "every slow statement to end" };
        eventually(what, Duration::from_secs(5), async || ((self.number(running).await > 0) == sleeping).then_some(()))
            .await;
    }

    /// Waits until so many sessions wait for a lock of another one.
    pub(crate) async fn until_waiting(&self, sessions: i64) {
        let waiting = "select count(*) from pg_stat_activity
                       where datname = current_database() and wait_event_type = 'Lock'";
        let what = format!("{sessions} to wait for locks");
        let check = async || (self.number(waiting).await == sessions).then_some(());
        eventually(&what, Duration::from_secs(20), check).await;
    }

    /// Stored requests and events: what a refused request must not add to.
    pub(crate) async fn written(&self) -> (i64, i64) {
        let requests = self.number("select count(*) from outbox.requests").await;
        (requests, self.number("select count(*) from outbox.events").await)
    }
}

fn connect(address: SocketAddr) -> Channel {
    Endpoint::from_shared(format!("http://{address}")).expect("an endpoint").connect_lazy()
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shutdown.cancel();
        if let Err(error) = fs::remove_dir_all(&self.catalog) {
            eprintln!("{} is left behind: {error}", self.catalog.display());
        }
    }
}

/// Code, reason and metadata of an error.
pub(crate) fn fault(status: &Status) -> (Code, String, HashMap<String, String>) {
    let info = status.get_details_error_info().unwrap_or_else(|| panic!("no ErrorInfo in {status:?}"));
    assert_eq!(info.domain, "outbox.v1");
    let row = ERRORS.lines().find(|line| line.starts_with(&format!("| `{}` |", info.reason)));
    let row = row.unwrap_or_else(|| panic!("the page of errors does not know {}", info.reason));
    let told: Vec<&str> = row.split('|').map(str::trim).collect();
    let code = format!("{:?}", status.code()).to_uppercase();
    assert_eq!(told[2].replace('_', ""), code, "the code of {}", info.reason);
    let has_pause = status.get_details_retry_info().is_some_and(|info| info.retry_delay.is_some());
    assert!(has_pause || told[3] != "same", "{} is to be sent again after a pause, and names none", info.reason);
    assert!(!has_pause || ["same", "settle"].contains(&told[3]), "{} names a pause", info.reason);
    (status.code(), info.reason, info.metadata)
}

/// The fields that an invalid request is blamed for.
pub(crate) fn fields(status: &Status) -> Vec<String> {
    let violations = status.get_details_bad_request().map(|bad| bad.field_violations).unwrap_or_default();
    violations.into_iter().map(|violation| violation.field).collect()
}
