//! `outboxd relay switch` and `outboxd relay adopt`: the command line against servers that run, and what it says of
//! what it cannot do.

use std::{
    fs,
    path::{Path, PathBuf},
};

use outbox_harness::{eventually, outboxd::Outboxd, postgres::Database};
use outbox_server::model::source::Source;
use sqlx::Executor as _;
use uuid::Uuid;

use crate::support::{
    cli::outboxd,
    outbox::{Outbox, PATIENCE},
};

/// A server process on an outbox's database, not started yet, with its log in a folder of its own.
pub(crate) struct Serve {
    pub(crate) process: Outboxd,
    folder: PathBuf,
}

impl Serve {
    pub(crate) fn on(url: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("outboxd-cli-{}", Uuid::now_v7()));
        fs::create_dir(&folder).expect("a folder can be made");
        let process = Outboxd::new(Path::new(env!("CARGO_BIN_EXE_outboxd")), url, folder.join("log"));
        Self { process: process.set("relay.lease_ttl_ms", "1500"), folder }
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.process.log).expect("the log can be read")
    }
}

impl Drop for Serve {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.folder) {
            eprintln!("{} is left behind: {error}", self.folder.display());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn switch_has_a_running_server_change_its_source_and_waits_until_it_has() {
    let outbox = Outbox::fresh("cli-switch", 1).await;
    let serve = Serve::on(&outbox.url);
    let server = serve.process.start();
    serve.process.serving().await;
    outbox.emit(20, 5).await;

    for source in [Source::Wal, Source::Poll] {
        let said = outboxd(&outbox.url, &["relay", "switch", source.name()]).await;
        said.assert_done(&[&format!("the source in force is `{source}`")]);
        assert_eq!(outbox.stream().await.source, source);
        outbox.emit(20, 5).await;
        outbox.all_settled().await;
        // Again: it is so already.
        outboxd(&outbox.url, &["relay", "switch", source.name(), "--wait-s", "0"]).await.assert_done(&["in force is"]);
    }

    assert_eq!(outbox.assert_all_published_in_order().await, 0);
    server.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn switch_tells_what_it_waits_for_when_no_server_takes_it_up() {
    let outbox = Outbox::fresh("cli-alone", 1).await;
    let said = outboxd(&outbox.url, &["relay", "switch", "wal", "--wait-s", "1"]).await;
    said.assert_refused(&[
        "`wal` is not in force after 1 s",
        "no server with a relay has taken it up; is one running?",
    ]);
    assert_eq!(outbox.stream().await.desired, Source::Wal, "it stays asked for");

    let asked = outboxd(&outbox.url, &["relay", "switch", "wal", "--wait-s", "0"]).await;
    asked.assert_done(&["`wal` is asked for; `poll` is in force until the relay has changed"]);
    outboxd(&outbox.url, &["relay", "switch", "poll"]).await.assert_done(&["the source in force is `poll`"]);
    assert_eq!(outbox.stream().await.desired, Source::Poll);
}

#[tokio::test(flavor = "multi_thread")]
async fn switch_ends_when_another_source_is_asked_for_meanwhile() {
    let outbox = Outbox::fresh("cli-crossed", 1).await;
    let url = outbox.url.clone();
    let waiting = tokio::spawn(async move { outboxd(&url, &["relay", "switch", "wal", "--wait-s", "60"]).await });
    let asked = async || (outbox.stream().await.desired == Source::Wal).then_some(());
    eventually("`wal` is asked for", PATIENCE, asked).await;
    outbox.desire(Source::Poll).await;

    let said = waiting.await.expect("it does not panic");
    said.assert_refused(&["`wal` is not in force: `poll` was asked for meanwhile"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_about_relays_refuse_what_they_cannot_take_and_say_what_to_do() {
    let empty = Database::fresh().await;
    let refusals: [(&[&str], &[&str]); 6] = [
        (&["switch", "log"], &["invalid value 'log'", "poll", "wal"]),
        (&["switch"], &["<SOURCE>"]),
        (&["switch", "wal", "--wait-s", "soon"], &["invalid value 'soon'", "--wait-s"]),
        (&["adopt", "now"], &["unexpected argument 'now'"]),
        (&["switch", "poll"], &["holds no outbox", "`outboxd migrate`"]),
        (&["adopt"], &["holds no outbox", "`outboxd migrate`"]),
    ];
    for (arguments, words) in refusals {
        outboxd(&empty.url, &[&["relay"], arguments].concat()).await.assert_refused(words);
    }
    // Nobody listens there.
    for arguments in [["relay", "switch", "wal"].as_slice(), &["relay", "adopt"]] {
        let said = outboxd("postgres://postgres@127.0.0.1:1/postgres", arguments).await;
        said.assert_refused(&["outboxd: ", "refused"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn adopt_has_a_server_publish_again_after_a_change_of_timeline() {
    let outbox = Outbox::fresh("cli-adopt", 1).await;
    let mut connection = outbox.connect().await;
    connection.execute("update outbox.identity set timeline = timeline + 1").await.expect("it is changed");
    outbox.emit(5, 1).await;
    let serve = Serve::on(&outbox.url);
    let server = serve.process.start();
    serve.process.serving().await;
    let told = async || serve.log().contains("run `outboxd relay adopt`").then_some(());
    eventually("the server's log says what to do", PATIENCE, told).await;
    assert_eq!(outbox.unsettled().await, 5);
    drop(server);

    let said = outboxd(&outbox.url, &["relay", "adopt"]).await;
    said.assert_done(&["relay progress is trusted on timeline ", "start the servers again"]);
    let server = serve.process.start();
    outbox.all_settled().await;
    outboxd(&outbox.url, &["relay", "adopt"]).await.assert_done(&["already; nothing is changed"]);
    server.end();
}

/// Progress is made of transaction ids, which mean others in another cluster.
#[tokio::test(flavor = "multi_thread")]
async fn adopt_refuses_another_cluster() {
    let outbox = Outbox::fresh("cli-cluster", 1).await;
    let change = "update outbox.identity set system_identifier = 7, timeline = 1000";
    outbox.connect().await.execute(change).await.expect("it is changed");

    outboxd(&outbox.url, &["relay", "adopt"])
        .await
        .assert_refused(&["set up in cluster 7", "restore progress by hand"]);
    let timeline: i64 = sqlx::query_scalar("select timeline from outbox.identity")
        .fetch_one(&mut outbox.connect().await)
        .await
        .expect("it can be read");
    assert_eq!(timeline, 1_000, "nothing is changed");
}
