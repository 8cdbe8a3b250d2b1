//! A process that is stopped past its session's timeout, and wakes when another has taken its partitions over.
//!
//! The test runs itself again as a child process, told by an environment variable.

use std::{
    process::{Child, Command, Stdio},
    time::Duration,
};

use outbox_harness::eventually;
use outbox_sdk::{Event, Handler, HandlerError, Transaction};
use sqlx::PgPool;

use crate::rig::{Effect, Rig, Running, SOON, builder, effect, events};

const CHILD: &str = "OUTBOX_LOST_TEST_CHILD";
const TEST: &str = "lost::trap_6_what_is_in_flight_is_dropped_at_once_when_the_assignment_is_lost";
/// Longer than the test waits: a drain would make it fail.
const DRAIN: Duration = Duration::from_secs(120);

/// Has its effect and then never ends.
struct Stuck;

impl Handler for Stuck {
    async fn handle(&self, event: &Event, tx: &mut Transaction) -> Result<(), HandlerError> {
        effect("mailer", event, tx).await?;
        std::future::pending().await
    }
}

async fn child(settings: &str) {
    let (url, topic) = settings.split_once(' ').expect("a URL and a topic");
    let pool = PgPool::connect(url).await.unwrap();
    let consumer = builder("mailer", topic, &pool).drain_budget(DRAIN).handler(Stuck).build().unwrap();
    consumer.run(std::future::pending()).await.unwrap();
}

/// Killed when this goes out of scope.
struct Process(Child);

impl Process {
    fn signal(&self, signal: &str) {
        let done = Command::new("kill").args([signal, &self.0.id().to_string()]).status();
        assert!(done.expect("kill can be run").success(), "the process cannot be signalled");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Already gone is as good.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn until_a_session_is(rig: &Rig, condition: &'static str) {
    let query = format!("select count(*) from pg_stat_activity where datname = current_database() and {condition}");
    eventually(condition, SOON, async || {
        let query = sqlx::query_scalar::<_, i64>(sqlx::AssertSqlSafe(query.as_str()));
        (query.fetch_one(&rig.pool).await.unwrap() > 0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_6_what_is_in_flight_is_dropped_at_once_when_the_assignment_is_lost() {
    if let Ok(settings) = std::env::var(CHILD) {
        return child(&settings).await;
    }
    let rig = Rig::new(1).await;
    rig.publish(events(3).into_iter().map(|event| (0, event))).await;
    let process = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", TEST])
        .env(CHILD, format!("{} {}", rig.database.url, rig.topic))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the test can run itself");
    let process = Process(process);
    until_a_session_is(&rig, "state = 'idle in transaction' and query like 'insert into effects%'").await;

    // It sleeps past its session. Another takes over, and has to wait for the mark that the sleeper holds.
    process.signal("-STOP");
    let other = Running::start(rig.builder("mailer").handler(Effect("mailer")).build().unwrap());
    until_a_session_is(&rig, "wait_event_type = 'Lock'").await;
    assert_eq!(rig.effects("mailer").await, (0, 0));

    process.signal("-CONT");
    rig.until_effects("mailer", 3).await;
    rig.until_committed("mailer", 0, 3).await;
    other.shut_down().await.unwrap();
    assert_eq!(rig.effects("mailer").await, (3, 3));
}
