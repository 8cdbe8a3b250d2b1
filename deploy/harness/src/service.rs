//! A Postgres or Kafka that its `run` script keeps in a folder: started, stopped, killed, and started again.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};

/// A service and the folder that holds it.
#[derive(Clone, Debug)]
pub struct Service {
    script: PathBuf,
    pid_file: &'static str,
    folder: PathBuf,
}

impl Service {
    /// A Postgres cluster.
    pub fn postgres(folder: PathBuf) -> Self {
        Self { script: script("postgres"), pid_file: "data/postmaster.pid", folder }
    }

    /// A Kafka broker.
    pub fn kafka(folder: PathBuf) -> Self {
        Self { script: script("kafka"), pid_file: "pid", folder }
    }

    /// Where it is kept.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Starts it and waits until it serves; `settings` are for a new one. Returns its address.
    pub fn start(&self, settings: &[&str]) -> String {
        self.run("start", settings)
    }

    /// Stops it in an orderly way.
    pub fn stop(&self) {
        self.run("stop", &[]);
    }

    /// Ends its process with a signal, and waits until it is gone.
    pub fn kill(&self, signal: Signal) {
        let pid = fs::read_to_string(self.folder.join(self.pid_file)).expect("it runs");
        let pid = pid.lines().next().expect("the first line is the process id").trim();
        let number = pid.parse().ok().and_then(Pid::from_raw).expect("a process id is a positive number");
        kill_process(number, signal).expect("it can be signalled");
        while is_running(pid) {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn run(&self, action: &str, settings: &[&str]) -> String {
        let output: Output = Command::new(&self.script)
            .arg(action)
            .arg(&self.folder)
            .args(settings)
            .output()
            .unwrap_or_else(|error| panic!("{} cannot be run: {error}", self.script.display()));
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{} {action} failed: {told}", self.script.display());
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }
}

fn script(service: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(service).join("run")
}

/// A zombie whose parent has not looked yet does not run any more.
fn is_running(pid: &str) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status
        .lines()
        .find_map(|line| line.strip_prefix("State:"))
        .is_some_and(|state| !state.trim().starts_with(['Z', 'X']))
}
