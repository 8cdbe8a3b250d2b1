//! `outboxd demo` and `outboxd dev` as a user runs them. They bring their own Postgres and broker.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use outbox_sdk::{Client, Disposition, NewEvent};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const OUTBOXD: &str = env!("CARGO_BIN_EXE_outboxd");

/// A folder that is removed in the end.
struct Folder(PathBuf);

impl Folder {
    fn fresh() -> Self {
        Self(std::env::temp_dir().join(format!("outboxd-it-{}", uuid::Uuid::now_v7())))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

/// `outboxd dev` and the address it serves on.
struct Dev {
    child: Child,
    grpc: String,
}

impl Dev {
    fn start(data: &Path) -> Self {
        let mut child = command("dev", data).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let grpc = lines.find_map(|line| Some(line.trim().strip_prefix("gRPC")?.trim().to_owned()));
        let grpc = grpc.expect("dev says where it serves");
        // All it prints must find a reader.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, grpc }
    }

    /// Asks it to end; returns whether it ended well.
    fn terminate(&mut self) -> bool {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        self.child.wait().unwrap().success()
    }

    async fn commit(&self, request_id: &str) -> Disposition {
        let client = Client::connect(format!("http://{}", self.grpc)).unwrap();
        let event = NewEvent::new("users", "user.activated").key("user-7");
        client.commit().request_id(request_id).event(event).send().await.unwrap().disposition()
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        if self.child.try_wait().unwrap().is_none() {
            self.terminate();
        }
    }
}

fn command(name: &str, data: &Path) -> Command {
    let mut command = Command::new(OUTBOXD);
    command.args([name, "--listen", "127.0.0.1:0", "--data"]).arg(data);
    command
}

/// The processes that name the folder among their arguments.
fn processes_of(folder: &Path) -> Vec<String> {
    let all = fs::read_dir("/proc").unwrap().filter_map(|entry| fs::read(entry.ok()?.path().join("cmdline")).ok());
    let all = all.map(|line| String::from_utf8_lossy(&line).replace('\0', " "));
    all.filter(|line| line.contains(folder.to_str().unwrap())).collect()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn the_demo_holds_every_check_and_leaves_nothing_behind() {
    let folder = Folder::fresh();
    let output = command("demo", &folder.0).arg("--json").output().unwrap();
    let steps: Vec<Value> = String::from_utf8(output.stdout.clone())
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let failed: Vec<_> = steps.iter().filter(|step| step["ok"] != true).collect();
    assert!(output.status.success() && failed.is_empty(), "{failed:#?} {}", stderr(&output));
    let names: Vec<_> = steps.iter().filter_map(|step| step["step"].as_str()).collect();
    let story = [
        "start", "commit", "rows", "kafka", "consumer", "repeat", "retry", "typed", "trace", "crash", "verify", "stop",
        "summary",
    ];
    assert_eq!(names, story);
    assert_eq!(processes_of(&folder.0), [""; 0]);
}

#[tokio::test]
async fn a_killed_dev_leaves_a_database_that_the_next_one_takes_over() {
    let folder = Folder::fresh();
    let mut killed = Dev::start(&folder.0);
    assert_eq!(killed.commit("one").await, Disposition::Applied);
    killed.child.kill().unwrap();
    killed.child.wait().unwrap();
    let orphans = processes_of(&folder.0);
    assert!(!orphans.is_empty(), "Postgres outlives a killed dev, or there is nothing to take over");

    let mut next = Dev::start(&folder.0);
    assert_eq!(next.commit("one").await, Disposition::Replayed);
    assert!(next.terminate());
    // Not dev's child, so that dev has waited for the removal of its pid file, which comes a moment before its end.
    let gone = async || processes_of(&folder.0).is_empty().then_some(());
    outbox_harness::eventually("Postgres to be gone", Duration::from_secs(10), gone).await;
}

#[test]
fn a_second_dev_on_one_folder_and_a_missing_postgres_are_told() {
    let folder = Folder::fresh();
    let missing = command("dev", &folder.0).arg("--postgres-bin").arg("/does/not/exist").output().unwrap();
    assert!(
        !missing.status.success() && stderr(&missing).contains("apt-get install postgresql"),
        "{}",
        stderr(&missing)
    );

    let mut first = Dev::start(&folder.0);
    let second = command("dev", &folder.0).output().unwrap();
    assert!(first.terminate());
    assert!(!second.status.success() && stderr(&second).contains("in use by another"), "{}", stderr(&second));
}
