//! A private Postgres cluster in a folder of its own.
//!
//! ```text
//! HOME/data/      the cluster        HOME/log        what the server says
//! HOME/password   of its superuser   HOME/port       where it listened last
//! ```
//!
//! Invariants: it listens on 127.0.0.1 only and asks for the password; a server that a killed process left running in
//! this home is found and taken over, never started twice. It deliberately holds the little SQL of its own that
//! setting a database up takes; everything else is in `store` and in the catalog.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection, postgres::PgConnectOptions};
use tokio::process::{Child, Command};

use super::{Error, account::Account, binaries::Binaries};

const USER: &str = "outboxd";
const MAINTENANCE: &str = "postgres";
const START_TIMEOUT: Duration = Duration::from_secs(60);
const STOP_TIMEOUT_SECONDS: &str = "30";
/// How much of a log is worth showing.
const TAIL_LINES: usize = 15;
const SETTINGS: [&str; 6] = [
    "listen_addresses=127.0.0.1",
    "unix_socket_directories=",
    "wal_level=logical",
    // A replication slot that nobody reads must not fill a developer's disk.
    "max_slot_wal_keep_size=1GB",
    "logging_collector=off",
    "log_destination=stderr",
];

/// A running server.
pub struct Postgres {
    home: PathBuf,
    binaries: Binaries,
    account: Account,
    port: u16,
    password: String,
    /// The server process, unless it was taken over.
    child: Option<Child>,
}

impl Postgres {
    /// Starts the cluster in `home`, which it makes first if need be, or takes over the one that runs there.
    ///
    /// Cancellation: what was started is killed, which Postgres recovers from at its next start.
    ///
    /// # Errors
    /// [`Error`], with the end of the log where Postgres itself gave up.
    pub async fn start(home: &Path, binaries: Option<&Path>, account: Account) -> Result<Self, Error> {
        account.make_private_folder(home)?;
        if !account.can_enter(home) {
            return Err(Error::Unreachable(home.to_owned()));
        }
        let made_by = fs::read_to_string(home.join("data/PG_VERSION")).ok().and_then(|major| major.trim().parse().ok());
        let binaries = Binaries::find(binaries, made_by)?;
        let mut postgres =
            Self { home: home.to_owned(), binaries, account, port: 0, password: String::new(), child: None };
        if made_by.is_none() {
            postgres.init().await?;
        }
        postgres.password = read(&home.join("password"))?;
        if !postgres.take_over().await {
            postgres.launch().await?;
        }
        Ok(postgres)
    }

    /// Whether the server was running before.
    pub fn is_taken_over(&self) -> bool {
        self.child.is_none()
    }

    /// The connection URL of one of its databases, password included.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://{USER}:{}@127.0.0.1:{}/{database}", self.password, self.port)
    }

    /// Makes the database unless it is there, and runs `schema`, which is in `file`, in it.
    ///
    /// # Errors
    /// [`Error::Postgres`], [`Error::Schema`].
    pub async fn set_up(&self, database: &str, file: &Path, schema: String) -> Result<(), Error> {
        let broken = |source| Error::Postgres { port: self.port, log: self.log(), source };
        let mut maintenance = self.connect(MAINTENANCE).await.map_err(broken)?;
        let found = sqlx::query("select from pg_database where datname = $1").bind(database);
        if found.fetch_optional(&mut maintenance).await.map_err(broken)?.is_none() {
            maintenance.execute(AssertSqlSafe(format!("create database {database}"))).await.map_err(broken)?;
        }
        let mut connection = self.connect(database).await.map_err(broken)?;
        connection.execute("set client_min_messages = warning").await.map_err(broken)?;
        let run = sqlx::raw_sql(AssertSqlSafe(schema)).execute(&mut connection).await;
        run.map_err(|error| Error::Schema(file.to_owned(), error))?;
        Ok(())
    }

    /// Stops the server and waits for its end.
    ///
    /// # Errors
    /// [`Error::Program`] when it does not end.
    pub async fn stop(mut self) -> Result<(), Error> {
        let mut stop = self.pg_ctl("stop");
        stop.args(["-m", "fast", "-w", "-t", STOP_TIMEOUT_SECONDS]);
        let stopped = run("pg_ctl stop", stop).await;
        if let Some(mut child) = self.child.take() {
            if stopped.is_err() {
                child.start_kill().map_err(|error| Error::Io("postgres".into(), error))?;
            }
            child.wait().await.map_err(|error| Error::Io("postgres".into(), error))?;
            return Ok(());
        }
        stopped
    }

    fn log(&self) -> PathBuf {
        self.home.join("log")
    }

    fn data(&self) -> PathBuf {
        self.home.join("data")
    }

    /// Makes the cluster. Aside first, so that one that was cut short does not count.
    async fn init(&self) -> Result<(), Error> {
        let (password, aside) = (self.home.join("password"), self.home.join("data.new"));
        let failed = |path: &Path, error| Error::Io(path.to_owned(), error);
        write(&password, &random_password().map_err(|error| failed(Path::new("/dev/urandom"), error))?)?;
        self.account.own(&password, 0o600)?;
        if aside.exists() {
            fs::remove_dir_all(&aside).map_err(|error| failed(&aside, error))?;
        }
        let mut initdb = self.account.command(&self.binaries.program("initdb"));
        initdb.args(["--auth=scram-sha-256", "--encoding=UTF8", "--no-locale", "--no-sync", "--username", USER]);
        initdb.arg("--pwfile").arg(&password).arg("--pgdata").arg(&aside);
        run("initdb", initdb.into()).await?;
        fs::rename(&aside, self.data()).map_err(|error| failed(&aside, error))
    }

    /// Whether a server runs in this home already and is ours.
    async fn take_over(&mut self) -> bool {
        let mut status = self.pg_ctl("status");
        let runs = status.stdout(Stdio::null()).stderr(Stdio::null()).status().await;
        if !runs.is_ok_and(|status| status.success()) {
            return false;
        }
        // The fourth line of this file is the port (Postgres, miscadmin.h: LOCK_FILE_LINE_PORT).
        let pid_file = fs::read_to_string(self.data().join("postmaster.pid")).unwrap_or_default();
        let Some(port) = pid_file.lines().nth(3).and_then(|port| port.trim().parse().ok()) else { return false };
        self.port = port;
        let Ok(mut connection) = self.connect(MAINTENANCE).await else { return false };
        let folder: Result<String, _> =
            sqlx::query_scalar("select current_setting('data_directory')").fetch_one(&mut connection).await;
        folder.is_ok_and(|folder| Path::new(&folder) == self.data())
    }

    async fn launch(&mut self) -> Result<(), Error> {
        let port_file = self.home.join("port");
        let kept = fs::read_to_string(&port_file).ok().and_then(|port| port.trim().parse().ok());
        self.port = choose_port(kept).map_err(|error| Error::Io(port_file.clone(), error))?;
        write(&port_file, &self.port.to_string())?;
        let log = File::create(self.log()).map_err(|error| Error::Io(self.log(), error))?;
        let mut postgres = self.account.command(&self.binaries.program("postgres"));
        postgres.arg("-D").arg(self.data()).arg("-p").arg(self.port.to_string());
        postgres.args(SETTINGS.iter().flat_map(|setting| ["-c", setting]));
        postgres.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let child = Command::from(postgres).kill_on_drop(true).spawn();
        let mut child = child.map_err(|error| Error::Io(self.binaries.program("postgres"), error))?;
        let started = self.answers(&mut child).await;
        self.child = Some(child);
        started
    }

    /// Waits until the server answers, or gives up.
    async fn answers(&self, child: &mut Child) -> Result<(), Error> {
        let start = Instant::now();
        loop {
            let source = match self.connect(MAINTENANCE).await {
                Ok(_) => return Ok(()),
                Err(error) => error,
            };
            if child.try_wait().is_ok_and(|status| status.is_some()) {
                let said = fs::read_to_string(self.log()).unwrap_or_default();
                return Err(Error::Program { program: "postgres", output: tail(&said) });
            }
            if start.elapsed() > START_TIMEOUT {
                return Err(Error::Postgres { port: self.port, log: self.log(), source });
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn connect(&self, database: &str) -> Result<PgConnection, sqlx::Error> {
        let options = PgConnectOptions::new_without_pgpass().host("127.0.0.1").port(self.port);
        let options = options.username(USER).password(&self.password).database(database);
        PgConnection::connect_with(&options).await
    }

    fn pg_ctl(&self, what: &str) -> Command {
        let mut command = self.account.command(&self.binaries.program("pg_ctl"));
        command.arg(what).arg("-D").arg(self.data());
        command.into()
    }
}

/// Runs a program to its end.
async fn run(program: &'static str, mut command: Command) -> Result<(), Error> {
    let ended = command.stdin(Stdio::null()).kill_on_drop(true).output().await;
    let ended = ended.map_err(|error| Error::Io(program.into(), error))?;
    if ended.status.success() {
        return Ok(());
    }
    let said = [ended.stdout, ended.stderr].concat();
    Err(Error::Program { program, output: tail(&String::from_utf8_lossy(&said)) })
}

/// The kept port if it is free, else any free one. Somebody may take it before Postgres does, which then says so.
fn choose_port(kept: Option<u16>) -> io::Result<u16> {
    let bind = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).and_then(|listener| listener.local_addr());
    let address = match kept.map(bind) {
        Some(Ok(address)) => address,
        _ => bind(0)?,
    };
    Ok(address.port())
}

fn random_password() -> io::Result<String> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(hex::encode(bytes))
}

/// The last lines of a log.
pub(crate) fn tail(text: &str) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}

fn read(path: &Path) -> Result<String, Error> {
    fs::read_to_string(path).map_err(|error| Error::Io(path.to_owned(), error))
}

fn write(path: &Path, text: &str) -> Result<(), Error> {
    fs::write(path, text).map_err(|error| Error::Io(path.to_owned(), error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kept_port_is_used_again_unless_it_is_taken() {
        let free = choose_port(None).expect("a port is free");
        assert_eq!(choose_port(Some(free)).expect("a port is free"), free);
        let holder = TcpListener::bind((Ipv4Addr::LOCALHOST, free)).expect("the port is free");
        assert_ne!(choose_port(Some(free)).expect("a port is free"), free);
        drop(holder);
    }

    #[test]
    fn the_tail_is_the_last_lines() {
        let text = (0..20).map(|n| format!("{n}\n")).collect::<String>();
        assert!(tail(&text).starts_with("5\n6") && tail(&text).ends_with("19"));
        assert_eq!(tail("one"), "one");
    }
}
