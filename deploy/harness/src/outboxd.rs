//! A real `outboxd serve` in a process of its own: started, watched, killed.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use tonic::transport::{Channel, Endpoint};

/// How to start it.
#[derive(Clone, Debug)]
pub struct Outboxd {
    /// The executable.
    pub executable: PathBuf,
    /// Address to listen on.
    pub listen: String,
    /// `key=value` settings.
    pub settings: Vec<(String, String)>,
    /// What it gives as its host, where it is asked whose lanes are whose.
    pub host: Option<String>,
    /// File that its log is appended to.
    pub log: PathBuf,
}

/// A running one, killed when this goes out of scope.
pub struct Running {
    child: Child,
}

impl Outboxd {
    /// One on a free port of this machine.
    pub fn new(executable: &Path, database_url: &str, log: PathBuf) -> Self {
        let settings =
            [("database.url", database_url), ("kafka.bootstrap_servers", &super::kafka::bootstrap_servers())];
        Self {
            executable: executable.to_owned(),
            listen: format!("127.0.0.1:{}", free_port()),
            settings: settings.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
            host: None,
            log,
        }
    }

    /// Adds a setting.
    #[must_use]
    pub fn set(mut self, key: &str, value: &str) -> Self {
        self.settings.push((key.to_owned(), value.to_owned()));
        self
    }

    /// Has it give a host of its own.
    #[must_use]
    pub fn on_host(mut self, host: &str) -> Self {
        self.host = Some(host.to_owned());
        self
    }

    /// Starts the process, without waiting for it to serve.
    pub fn start(&self) -> Running {
        let log = File::options().create(true).append(true).open(&self.log).expect("the log can be opened");
        let mut command = Command::new(&self.executable);
        command.arg("serve").arg("--listen").arg(&self.listen);
        for (key, value) in &self.settings {
            command.arg("--set").arg(format!("{key}={value}"));
        }
        command.envs(self.host.iter().map(|host| ("HOSTNAME", host)));
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("the log can be shared"))
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("{} cannot be started: {error}", self.executable.display()));
        Running { child }
    }

    /// Applies the migrations, without starting it.
    ///
    /// # Panics
    /// When one fails.
    pub fn migrate(&self) {
        let (_, url) = self.settings.iter().find(|(key, _)| key == "database.url").expect("it has a database");
        let migrated = Command::new(&self.executable).args(["migrate", "--database-url", url]).output();
        let migrated =
            migrated.unwrap_or_else(|error| panic!("{} cannot be started: {error}", self.executable.display()));
        assert!(migrated.status.success(), "the migrations fail: {}", String::from_utf8_lossy(&migrated.stderr));
    }

    /// A channel to it, which connects when it is used.
    pub fn channel(&self) -> Channel {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.listen)).expect("the address is one");
        endpoint.connect_timeout(Duration::from_secs(1)).connect_lazy()
    }

    /// Waits until the port is open.
    pub async fn serving(&self) {
        super::eventually(&format!("outboxd at {} to serve", self.listen), Duration::from_secs(60), async || {
            tokio::net::TcpStream::connect(&self.listen).await.ok()
        })
        .await;
    }
}

impl Running {
    /// SIGKILL: no word of goodbye.
    pub fn kill(&mut self) {
        self.child.kill().expect("the process can be killed");
        self.child.wait().expect("the process can be waited for");
    }

    /// SIGSTOP: it stands still, with everything it holds.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    /// SIGCONT: it goes on as if nothing had been.
    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    /// SIGTERM, and waits until the process has ended.
    ///
    /// # Panics
    /// When it ends with an error.
    pub fn end(mut self) {
        self.signal(Signal::TERM);
        let status = self.child.wait().expect("the process can be waited for");
        assert!(status.success(), "outboxd ended with {status}");
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("the process can be signalled");
    }

    /// User and system time that it has used so far.
    pub fn cpu(&self) -> Duration {
        const TICKS_PER_SECOND: u64 = 100;
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).expect("the process is there");
        // proc(5): the second field is the name in parentheses; user and system time are the 14th and 15th.
        let (_, fields) = stat.rsplit_once(')').expect("a name in parentheses");
        let ticks: u64 = fields.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
        Duration::from_millis(ticks * 1_000 / TICKS_PER_SECOND)
    }

    /// Highest resident memory so far, in KiB.
    pub fn peak_memory_kib(&self) -> u64 {
        self.status_kib("VmHWM:")
    }

    /// Resident memory now, in KiB.
    pub fn memory_kib(&self) -> u64 {
        self.status_kib("VmRSS:")
    }

    fn status_kib(&self, field: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("the process is there");
        let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("Linux tells it of every process");
        line.trim().trim_end_matches(" kB").trim().parse().expect("a number of KiB")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Already gone is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port that is free now.
pub fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
    listener.local_addr().expect("the listener has an address").port()
}
