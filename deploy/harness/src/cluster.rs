//! A Postgres cluster of a test's own, to be stopped, broken and started again.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

use rustix::process::Signal;
use uuid::Uuid;

use super::service::Service;

/// A cluster, stopped and removed when this goes out of scope.
pub struct Cluster {
    /// URL of its `postgres` database, the same after every start.
    pub url: String,
    service: Service,
}

impl Cluster {
    /// Makes and starts one, with settings such as `wal_writer_delay=10s`.
    pub fn start(settings: &[&str]) -> Self {
        let mut cluster = Self { url: String::new(), service: Service::postgres(fresh_folder()) };
        cluster.url = cluster.service.start(settings);
        cluster
    }

    /// Makes and starts a standby of it. From Postgres 17 on it has the failover slots, too, and logical slots wait for
    /// what it has. It is copied while the cluster is stopped for a moment.
    ///
    /// # Panics
    /// When the cluster is not the caller's to copy, or one of them does not start.
    pub fn standby(&self) -> Self {
        let folder = fresh_folder();
        let port = super::outboxd::free_port();
        let (host, own_port) = self.url.rsplit_once('@').and_then(|(_, rest)| rest.split_once(':')).expect("a URL");
        let own_port = own_port.split('/').next().expect("a port");
        let data = self.service.folder().join("data");
        self.stop();
        run("cp", &[Path::new("-a"), self.service.folder(), &folder]);
        let settings = format!(
            "port = {port}\nprimary_conninfo = 'host={host} port={own_port} user=postgres dbname=postgres'\n\
             primary_slot_name = 'standby'\nhot_standby_feedback = on\n"
        );
        let copy = folder.join("data");
        append(&copy.join("postgresql.conf"), &settings);
        if version(&data) >= 17 {
            append(&data.join("postgresql.conf"), "synchronized_standby_slots = 'standby'\n");
            append(&copy.join("postgresql.conf"), "sync_replication_slots = on\n");
        }
        // Copied, so that it belongs to the cluster's own user.
        run("cp", &[Path::new("-p"), &copy.join("PG_VERSION"), &copy.join("standby.signal")]);
        let url = self.url.replace(&format!(":{own_port}/"), &format!(":{port}/"));
        fs::write(folder.join("url"), format!("{url}\n")).expect("the copy's address can be written");
        let standby = Self { url, service: Service::postgres(folder) };
        self.start_again();
        run(
            "psql",
            &[
                Path::new("-qAt"),
                Path::new(&self.url),
                Path::new("-c"),
                Path::new("select pg_create_physical_replication_slot('standby', true)"),
            ],
        );
        standby.start_again();
        standby
    }

    /// Stops it in an orderly way.
    pub fn stop(&self) {
        self.service.stop();
    }

    /// Stops it at once, as a power cut would: what was not flushed is lost.
    pub fn crash(&self) {
        // Postgres's immediate shutdown.
        self.service.kill(Signal::QUIT);
    }

    /// Starts it again.
    pub fn start_again(&self) {
        assert_eq!(self.service.start(&[]), self.url);
    }
}

/// Directly below the system's folder, which the cluster's own unprivileged user can reach, too.
fn fresh_folder() -> PathBuf {
    std::env::temp_dir().join(format!("outboxd-cluster-{}", Uuid::now_v7()))
}

/// The major version of the server that made a cluster.
fn version(data: &Path) -> u32 {
    let version = fs::read_to_string(data.join("PG_VERSION")).expect("it is a cluster");
    version.trim().parse().expect("it is a number")
}

fn append(file: &Path, text: &str) {
    let opened = fs::File::options().append(true).open(file);
    opened.and_then(|mut file| file.write_all(text.as_bytes())).expect("the settings can be written");
}

fn run(program: &str, arguments: &[&Path]) {
    let output = Command::new(program).args(arguments).output().expect("it can be run");
    assert!(output.status.success(), "{program} failed: {}", String::from_utf8_lossy(&output.stderr));
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop();
        let folder = self.service.folder();
        if let Err(error) = fs::remove_dir_all(folder) {
            eprintln!("{} is left behind: {error}", folder.display());
        }
    }
}
