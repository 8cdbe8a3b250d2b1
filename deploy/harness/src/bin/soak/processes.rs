//! The consumer's processes: started, killed, stopped and let go on.

use std::{
    fs::File,
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use clap::ValueEnum as _;
use uuid::Uuid;

use super::Options;

/// The running processes of the consumer.
pub(super) struct Processes {
    options: Options,
    arguments: Vec<String>,
    pub(super) log: PathBuf,
    running: Vec<Child>,
}

impl Processes {
    /// Starts them; `arguments` are what each is told besides its mode.
    pub(super) fn start_all(options: &Options, arguments: Vec<String>) -> Self {
        let log = std::env::temp_dir().join(format!("outbox-soak-{}.log", Uuid::now_v7()));
        let mut processes = Self { options: options.clone(), arguments, log, running: Vec::new() };
        processes.running = (0..options.processes).map(|_| processes.start()).collect();
        processes
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.running.len()
    }

    fn start(&self) -> Child {
        let log = File::options().create(true).append(true).open(&self.log).expect("the log can be opened");
        let mode = self.options.mode.to_possible_value().expect("every mode has a name");
        Command::new(std::env::current_exe().expect("this program has a path"))
            .args(["--mode", mode.get_name(), "--child"])
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("this program can be started again")
    }

    pub(super) fn kill(&mut self, at: usize) {
        self.running[at].kill().expect("the process can be killed");
        let status = self.running[at].wait().expect("the process can be waited for");
        assert!(status.code().is_none(), "it had ended by itself with {status}; see {}", self.log.display());
        self.running[at] = self.start();
    }

    pub(super) fn signal(&self, at: usize, signal: &str) {
        let done = Command::new("kill").args([signal, &self.running[at].id().to_string()]).status();
        assert!(done.expect("kill can be run").success(), "the process cannot be signalled");
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        for child in &mut self.running {
            // Already gone is as good.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
