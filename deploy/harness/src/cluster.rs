//! A Postgres cluster of a test's own, to be stopped, broken and started again.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use uuid::Uuid;

/// A cluster, stopped and removed when this goes out of scope.
pub struct Cluster {
    /// URL of its `postgres` database, the same after every start.
    pub url: String,
    folder: PathBuf,
}

impl Cluster {
    /// Makes and starts one, with settings such as `wal_writer_delay=10s`.
    pub fn start(settings: &[&str]) -> Self {
        // Directly below the system's folder, which the cluster's own unprivileged user can reach, too.
        let folder = std::env::temp_dir().join(format!("outboxd-cluster-{}", Uuid::now_v7()));
        let mut cluster = Self { url: String::new(), folder };
        cluster.url = cluster.run("start", settings);
        cluster
    }

    /// Stops it in an orderly way.
    pub fn stop(&self) {
        self.run("stop", &[]);
    }

    /// Stops it at once, as a power cut would: what was not flushed is lost.
    pub fn crash(&self) {
        let pid = fs::read_to_string(self.folder.join("data/postmaster.pid")).expect("the cluster runs");
        let pid = pid.lines().next().expect("the first line is the process id");
        // SIGQUIT is Postgres's immediate shutdown.
        let done = Command::new("kill").args(["-QUIT", pid]).status().expect("kill can be run");
        assert!(done.success(), "the cluster cannot be signalled");
        while Path::new("/proc").join(pid).exists() {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }

    /// Starts it again.
    pub fn start_again(&self) {
        assert_eq!(self.run("start", &[]), self.url);
    }

    fn run(&self, action: &str, settings: &[&str]) -> String {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../postgres/run");
        let output: Output = Command::new(&script)
            .arg(action)
            .arg(&self.folder)
            .args(settings)
            .output()
            .unwrap_or_else(|error| panic!("{} cannot be run: {error}", script.display()));
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{action} failed: {told}");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop();
        if let Err(error) = fs::remove_dir_all(&self.folder) {
            eprintln!("{} is left behind: {error}", self.folder.display());
        }
    }
}
