//! A Postgres cluster of a test's own, to be stopped, broken and started again.

use std::fs;

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
        // Directly below the system's folder, which the cluster's own unprivileged user can reach, too.
        let folder = std::env::temp_dir().join(format!("outboxd-cluster-{}", Uuid::now_v7()));
        let mut cluster = Self { url: String::new(), service: Service::postgres(folder) };
        cluster.url = cluster.service.start(settings);
        cluster
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

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop();
        let folder = self.service.folder();
        if let Err(error) = fs::remove_dir_all(folder) {
            eprintln!("{} is left behind: {error}", folder.display());
        }
    }
}
