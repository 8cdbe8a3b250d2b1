//! A process that dies between the mark and the commit.
//!
//! The test runs itself again as a child process, told by an environment variable; the child aborts in the handler.

use std::process::{Command, Stdio};

use outbox_sdk::{Event, Handler, HandlerError, Transaction};
use sqlx::PgPool;

use crate::rig::{Effect, Rig, Running, builder, effect, events};

const CHILD: &str = "OUTBOX_CRASH_TEST_CHILD";
const TEST: &str = "crash::trap_9_a_process_killed_between_mark_and_commit_loses_no_event_and_repeats_no_effect";

/// Has its effect and then kills the process, once it has handled as many events.
struct DiesAt(std::sync::atomic::AtomicI64);

impl Handler for DiesAt {
    async fn handle(&self, event: &Event, tx: &mut Transaction) -> Result<(), HandlerError> {
        effect("mailer", event, tx).await?;
        if self.0.fetch_sub(1, std::sync::atomic::Ordering::SeqCst) == 0 {
            std::process::abort();
        }
        Ok(())
    }
}

async fn child(settings: &str) {
    let (url, topic) = settings.split_once(' ').expect("a URL and a topic");
    let pool = PgPool::connect(url).await.unwrap();
    let consumer = builder("mailer", topic, &pool).handler(DiesAt(4.into())).build().unwrap();
    consumer.run(std::future::pending()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_9_a_process_killed_between_mark_and_commit_loses_no_event_and_repeats_no_effect() {
    if let Ok(settings) = std::env::var(CHILD) {
        return child(&settings).await;
    }
    let rig = Rig::new(1).await;
    let published = events(12);
    rig.publish(published.iter().map(|event| (0, event.clone()))).await;

    for killed in 1..=2 {
        let settings = format!("{} {}", rig.database.url, rig.topic);
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", TEST])
            .env(CHILD, settings)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the test can run itself");
        let status = tokio::task::spawn_blocking(|| child.wait_with_output().unwrap().status).await.unwrap();
        assert!(!status.success(), "the child must have died in its handler");
        assert_eq!(rig.effects("mailer").await, (4 * killed, 4 * killed), "four were committed before the fifth died");
    }

    let survivor = Running::start(rig.builder("mailer").handler(Effect("mailer")).build().unwrap());
    rig.until_effects("mailer", 12).await;
    rig.until_committed("mailer", 0, 12).await;
    survivor.shut_down().await.unwrap();
    assert_eq!(rig.effects("mailer").await, (12, 12));
}
