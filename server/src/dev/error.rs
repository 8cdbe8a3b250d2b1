//! What can go wrong around the server in `dev` and `demo`, each with what to do about it.

use std::{io, net::SocketAddr, path::PathBuf};

/// Why the private Postgres, the broker or the folder is not to be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file, folder or program that is needed.
    #[error("{} cannot be used", .0.display())]
    Io(PathBuf, #[source] io::Error),
    /// No Postgres is installed.
    #[error(
        "no Postgres found in {0} (needed: initdb, pg_ctl and postgres, version 15 or newer). Install it, as by \
         `apt-get install postgresql`, or name its folder with --postgres-bin"
    )]
    NoPostgres(String),
    /// Root cannot run Postgres.
    #[error("Postgres does not run as root, and there is neither a user `postgres` nor `nobody` to run it as")]
    NoAccount,
    /// A folder is somebody else's.
    #[error("{} is not a folder of the user that is to run Postgres: remove it, or choose another with --data", .0.display())]
    Foreign(PathBuf),
    /// A folder is closed to the user that needs it.
    #[error(
        "{} cannot be entered by the user that is to run Postgres: choose a folder with --data, or set TMPDIR to one, \
         that every user can get to", .0.display()
    )]
    Unreachable(PathBuf),
    /// Two on one folder.
    #[error(
        "{} is in use by another `outboxd dev`{}: stop that one, or choose another folder with --data", folder.display(),
        .pid.as_ref().map_or(String::new(), |pid| format!(" (process {pid})"))
    )]
    Busy {
        /// The data folder.
        folder: PathBuf,
        /// Who holds it, as far as known.
        pid: Option<String>,
    },
    /// The server's address.
    #[error("{address} cannot be listened on: stop what uses it, or choose another with --listen")]
    Listen {
        /// What was asked for.
        address: String,
        /// What the system says.
        source: io::Error,
    },
    /// One of Postgres's programs failed.
    #[error("{program} failed:\n{output}")]
    Program {
        /// Its name.
        program: &'static str,
        /// The end of what it said.
        output: String,
    },
    /// Postgres started and cannot be used.
    #[error("the private Postgres on port {port} cannot be used; its log is {}", log.display())]
    Postgres {
        /// Its port.
        port: u16,
        /// Its log.
        log: PathBuf,
        /// What failed.
        #[source]
        source: sqlx::Error,
    },
    /// The sample's tables.
    #[error("{} cannot be run", .0.display())]
    Schema(PathBuf, #[source] sqlx::Error),
    /// The in-process broker.
    #[error("the in-process broker cannot be started: {0}")]
    Broker(String),
    /// The server does not come up.
    #[error("the server does not answer on {0}")]
    NotServing(SocketAddr),
    /// An option that makes no sense here.
    #[error("{0}")]
    Usage(&'static str),
}
