//! The database goes away and comes back, and the way to it breaks.

use std::{sync::Arc, time::Duration};

use outbox_harness::proxy::{Cut, Proxy};
use outbox_sdk::PostgresInbox;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
};

use crate::rig::{Effect, Rig, Running, builder, event, events};

/// Stands between the consumer and its database, and can be cut: open connections break, new ones are refused.
struct Cable {
    port: u16,
    connected: Arc<watch::Sender<bool>>,
}

impl Cable {
    async fn to(host: String, port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let cable = Self { port: listener.local_addr().unwrap().port(), connected: Arc::new(watch::Sender::new(true)) };
        let connected = cable.connected.clone();
        tokio::spawn(async move {
            loop {
                let (mut near, _) = listener.accept().await.unwrap();
                let mut state = connected.subscribe();
                if !*state.borrow_and_update() {
                    continue;
                }
                let mut far = TcpStream::connect((host.as_str(), port)).await.unwrap();
                tokio::spawn(async move {
                    tokio::select! {
                        _ = copy_bidirectional(&mut near, &mut far) => {}
                        _ = state.wait_for(|connected| !connected) => {}
                    }
                });
            }
        });
        cable
    }

    fn set(&self, connected: bool) {
        self.connected.send_replace(connected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_outage_loses_nothing_and_needs_no_restart() {
    let rig = Rig::new(2).await;
    let direct: PgConnectOptions = rig.database.url.parse().unwrap();
    let cable = Cable::to(direct.get_host().to_owned(), direct.get_port()).await;
    let options = direct.host("127.0.0.1").port(cable.port);
    let through = PgPoolOptions::new().acquire_timeout(Duration::from_secs(1)).connect_lazy_with(options);
    let consumer = builder("mailer", &rig.topic, &through).max_attempts(2).handler(Effect("mailer")).build().unwrap();

    let running = Running::start(consumer);
    rig.publish(events(200).into_iter().enumerate().map(|(n, event)| ((n % 2) as i32, event))).await;
    rig.until_effects("mailer", 10).await;
    cable.set(false);
    let before = running.stats().retries;
    running.until("several attempts to fail", |stats| stats.retries >= before + 6).await;
    rig.publish(events(100).into_iter().map(|event| (1, event))).await;
    assert!(PostgresInbox::new(through.clone()).ensure_schema().await.is_err(), "the database is away");
    cable.set(true);

    rig.until_effects("mailer", 300).await;
    rig.until_committed("mailer", 0, 100).await;
    rig.until_committed("mailer", 1, 200).await;
    assert_eq!(rig.effects("mailer").await, (300, 300));
    running.shut_down().await.unwrap();
}

/// Its outcome is not known to the consumer, which tries the event again.
#[tokio::test(flavor = "multi_thread")]
async fn trap_9_after_a_commit_without_an_answer_the_mark_tells_whether_there_was_an_effect() {
    let rig = Rig::new(1).await;
    let proxy = Proxy::start(&rig.database.url).await;
    let through = PgPoolOptions::new().connect_lazy(&proxy.url).unwrap();
    let running = Running::start(builder("mailer", &rig.topic, &through).handler(Effect("mailer")).build().unwrap());
    let mut committed = 0;
    for (cut, events) in [Cut::Before, Cut::During, Cut::After].into_iter().zip(1..) {
        let is_cut = proxy.arm("commit; begin", cut);
        rig.publish([(0, event())]).await;
        running.until("the event to be settled", |stats| stats.handled + stats.duplicates == events).await;
        assert!(*is_cut.lock().unwrap(), "{cut:?}");
        committed += u64::from(cut != Cut::Before);
        let stats = running.stats();
        assert_eq!((stats.retries, stats.duplicates), (events, committed), "{cut:?}");
        assert_eq!(rig.effects("mailer").await, (events as i64, events as i64), "{cut:?}");
    }
    running.shut_down().await.unwrap();
}
