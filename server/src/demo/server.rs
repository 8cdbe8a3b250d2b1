//! `outboxd serve` as a process of its own, so that it can be killed for real.
//!
//! Invariant: no process outlives its [`Server`]: dropping one kills it.

use std::{
    fs::{File, OpenOptions},
    io::Write as _,
    os::unix::{fs::OpenOptionsExt as _, process::ExitStatusExt as _},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};

use super::Failure;
use crate::{config::Config, dev};

const SIGKILL: i32 = 9;
const STOPS_WITHIN: Duration = Duration::from_secs(20);

/// A running server.
pub(super) struct Server {
    child: Child,
    folder: PathBuf,
}

impl Server {
    /// Starts this same program with `config`, which it gets as a file in `folder`; returns once it serves.
    pub(super) async fn start(config: &Config, folder: &Path) -> Result<Self, Failure> {
        let file = folder.join("outboxd.toml");
        // It holds the database's password.
        let mut written = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&file)?;
        written.write_all(toml::to_string(config)?.as_bytes())?;
        let log = File::options().create(true).append(true).open(folder.join("server.log"))?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("serve").arg("--config").arg(&file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        // The file says it all. A group of its own: a terminal's Ctrl-C is for the demo, which then ends this one.
        let ours = std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"OUTBOXD_"));
        for (name, _) in ours {
            command.env_remove(name);
        }
        let child = command.process_group(0).kill_on_drop(true).spawn()?;
        let mut server = Self { child, folder: folder.to_owned() };
        let listen = config.grpc.listen.parse()?;
        tokio::select! {
            serving = dev::wait_until_serving(listen) => serving?,
            ended = server.child.wait() => {
                let said = std::fs::read_to_string(folder.join("server.log")).unwrap_or_default();
                return Err(format!("the server ended at once ({}):\n{}", ended?, dev::tail(&said)).into());
            }
        }
        Ok(server)
    }

    /// Its process id.
    pub(super) fn pid(&self) -> u32 {
        self.child.id().unwrap_or_default()
    }

    /// Kills it with SIGKILL. Returns whether that was what ended it.
    pub(super) async fn kill(&mut self) -> Result<bool, Failure> {
        self.child.start_kill()?;
        Ok(self.child.wait().await?.signal() == Some(SIGKILL))
    }

    /// Asks it to stop, with SIGTERM, and waits for its end.
    pub(super) async fn stop(&mut self) -> Result<ExitStatus, Failure> {
        // Not by the program `kill`: a minimal system has none.
        let pid = self.child.id().and_then(|pid| Pid::from_raw(pid.try_into().ok()?)).ok_or("the server has ended")?;
        kill_process(pid, Signal::TERM)?;
        match tokio::time::timeout(STOPS_WITHIN, self.child.wait()).await {
            Ok(ended) => Ok(ended?),
            Err(_) => {
                let log = self.folder.join("server.log");
                Err(format!("the server did not stop within {STOPS_WITHIN:?}; its log is {}", log.display()).into())
            }
        }
    }
}
