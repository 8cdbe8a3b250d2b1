//! Trap 16, and what a crash of Postgres does: on a cluster of the tests' own, which is cut off without a checkpoint.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use outbox_harness::{eventually, kafka};
use outbox_server::{config, relay::Relay};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use uuid::Uuid;

use crate::support::{
    faulty::{Faults, Faulty},
    outbox::{Outbox, PATIENCE, Running, publisher},
};

/// A Postgres cluster whose commits wait for nothing, and whose log is written out only every ten seconds.
struct Cluster {
    folder: PathBuf,
    bin: PathBuf,
    port: u16,
}

impl Cluster {
    fn start() -> Self {
        let folder = std::env::temp_dir().join(format!("outbox-cluster-{}", Uuid::now_v7().simple()));
        std::fs::create_dir(&folder).expect("a folder can be made");
        let port =
            std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port is free").port();
        let cluster = Self { folder, bin: bin(), port };
        if is_root() {
            assert!(Command::new("chown").arg("postgres").arg(&cluster.folder).status().expect("chown runs").success());
        }
        let data = cluster.data();
        cluster.run("initdb", &["-D", &data, "-U", "postgres", "-A", "trust", "--no-sync"]);
        let settings = format!(
            "port = {port}\nlisten_addresses = '127.0.0.1'\nunix_socket_directories = ''\nsynchronous_commit = off\n\
             wal_writer_delay = 10s\nfsync = on\nautovacuum = off\nbgwriter_lru_maxpages = 0\n"
        );
        let conf = Path::new(&data).join("postgresql.conf");
        let text = std::fs::read_to_string(&conf).expect("the settings can be read") + &settings;
        std::fs::write(&conf, text).expect("the settings can be written");
        cluster.serve();
        cluster
    }

    fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres", self.port)
    }

    fn data(&self) -> String {
        self.folder.join("data").display().to_string()
    }

    fn serve(&self) {
        let (data, log) = (self.data(), self.folder.join("log").display().to_string());
        self.run("pg_ctl", &["-D", &data, "-l", &log, "-w", "start"]);
    }

    /// As a power cut, for what was not flushed.
    fn cut_off(&self) {
        self.run("pg_ctl", &["-D", &self.data(), "-m", "immediate", "stop"]);
    }

    fn run(&self, program: &str, arguments: &[&str]) {
        let program = self.bin.join(program);
        // Postgres refuses to run as root.
        let mut command = if is_root() {
            let mut command = Command::new("setpriv");
            command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]).arg(&program);
            command
        } else {
            Command::new(&program)
        };
        let command = command.args(arguments).current_dir("/").stdout(std::process::Stdio::null());
        let status = command.stderr(std::process::Stdio::null()).status().expect("it can be started");
        assert!(status.success(), "{} {arguments:?}: {status}", program.display());
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let running = self.folder.join("data/postmaster.pid").exists();
        if running && !std::thread::panicking() {
            self.cut_off();
        } else if running {
            let stop = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.cut_off()));
            let _ = stop;
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn is_root() -> bool {
    let id = Command::new("id").arg("-u").output().expect("id runs");
    id.stdout.trim_ascii() == b"0"
}

/// `PG_BIN`, or the newest of Debian's, or where `pg_ctl` is.
fn bin() -> PathBuf {
    if let Some(bin) = std::env::var_os("PG_BIN") {
        return bin.into();
    }
    let debian = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let newest = debian.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()).max();
    if let Some(version) = newest {
        return format!("/usr/lib/postgresql/{version}/bin").into();
    }
    let path = std::env::var_os("PATH").expect("there is a PATH");
    let found = std::env::split_paths(&path).find(|folder| folder.join("pg_ctl").exists());
    found.expect("Postgres is installed; set PG_BIN to the folder of its programs")
}

/// A caller commits without waiting for the flush; the relay publishes the event, and the database is cut off before
/// the relay has written anything more. What is in Kafka must be in the database, too.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_is_not_flushed_yet_is_not_published() {
    let cluster = Cluster::start();
    let topic = kafka::fresh_topic("flush", 1).await;
    let outbox = Outbox::at(cluster.url(), topic).await;
    // Neither the lease's own renewals nor progress flush by chance.
    let config = config::Relay { lease_ttl_ms: 120_000, ..Outbox::relay_config() };
    let faults = Faults::default();
    faults.change(|plan| plan.hold_reports = true);
    let publisher = Faulty::new(publisher(), &faults);
    let mut relay = Running::start(Relay::with_publisher(config, &outbox.database_config(), publisher));
    relay.until("it owns its lanes", |s| s.lanes_owned == 64).await;

    let id: Uuid = sqlx::query_scalar("select outbox.emit($1, 'test', '1', 'key')")
        .bind(&outbox.topic)
        .fetch_one(&mut outbox.connect().await)
        .await
        .expect("the event is stored");
    let arrived = async || outbox.published().await.counts().contains_key(&id).then_some(());
    eventually("the event is in kafka", PATIENCE, arrived).await;
    cluster.cut_off();
    cluster.serve();

    let stored = outbox.stored().await;
    assert!(stored.iter().any(|(stored, _)| *stored == id), "it is published, and gone from the database");
    relay.crash().await;
}

/// The other half: what the crash took away gives its transaction ids and positions to others, which must be
/// published although the relay had seen those before.
#[tokio::test(flavor = "multi_thread")]
async fn what_follows_a_crash_under_the_same_ids_is_published() {
    let cluster = Cluster::start();
    let topic = kafka::fresh_topic("reissued", 1).await;
    let outbox = Outbox::at(cluster.url(), topic).await;
    let mut relay = outbox.relay();
    relay.until("it owns its lanes", |s| s.lanes_owned == 64).await;

    for _ in 0..5 {
        // Rolled back, so that nothing flushes them: the relay's snapshots pass over their ids.
        let mut writer = outbox.connect().await;
        for _ in 0..50 {
            let mut transaction = writer.begin().await.expect("it begins");
            let emit = format!("select outbox.emit('{}', 'test', '1', 'key')", outbox.topic);
            transaction.execute(AssertSqlSafe(emit)).await.expect("it is stored");
            transaction.rollback().await.expect("it rolls back");
        }
        outbox.emit(10, 1).await;
        cluster.cut_off();
        cluster.serve();
        outbox.emit(10, 1).await;
        durable(&outbox).await;
        outbox.all_settled().await;
        // A lost event may have been given to Kafka only if it was durable: then it is stored.
        outbox.assert_all_published_in_order().await;
    }
    relay.stop().await;
}

async fn durable(outbox: &Outbox) {
    let mut connection: PgConnection = outbox.connect().await;
    let flush = "set synchronous_commit = on; select pg_logical_emit_message(true, 'test', '')";
    connection.execute(flush).await.expect("it is flushed");
}
