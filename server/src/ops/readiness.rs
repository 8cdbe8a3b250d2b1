//! Readiness: whether commits can be made, and what troubles this process's relay, each trouble with its reason.
//!
//! Looked at once a second and told to whoever watches: the log here, gRPC health, and the operators' HTTP endpoint.
//! Being ready is a matter of the database alone: commits go on while Kafka is down, or the relay stands still.

use std::time::Duration;

use serde::Serialize;
use tokio::{sync::watch, task::JoinHandle, time::MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::{
    relay::{self, Trouble},
    store::event::Reader,
};

const EVERY: Duration = Duration::from_secs(1);

/// How this process is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Readiness {
    /// Whether the database answers, so that commits can be made; false while the process starts and ends.
    pub ready: bool,
    /// Its relay; `None` when it has none.
    pub relay: Option<Relaying>,
}

/// How its relay is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Relaying {
    /// Whether it publishes, as far as it knows.
    pub gets_on: bool,
    /// What troubles it, the worst first.
    pub troubles: Vec<Trouble>,
}

impl Readiness {
    /// Whether the relay is there and gets on.
    pub fn relay_gets_on(&self) -> bool {
        self.relay.as_ref().is_some_and(|relay| relay.gets_on)
    }

    /// Whether a relay is there that this does not trouble.
    pub fn is_free_of(&self, reason: relay::Reason) -> bool {
        self.relay.as_ref().is_some_and(|relay| relay.troubles.iter().all(|trouble| trouble.reason != reason))
    }
}

/// Starts to look, until `shutdown`; from then on nothing is ready, as before the first look.
pub fn start(
    reader: Reader,
    relay: Option<watch::Receiver<relay::Status>>,
    shutdown: CancellationToken,
) -> (watch::Receiver<Readiness>, JoinHandle<()>) {
    let (told, readiness) = watch::channel(Readiness::default());
    (readiness, tokio::spawn(look(told, reader, relay, shutdown)))
}

async fn look(
    told: watch::Sender<Readiness>,
    reader: Reader,
    relay: Option<watch::Receiver<relay::Status>>,
    shutdown: CancellationToken,
) {
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut first = true;
    while shutdown.run_until_cancelled(ticks.tick()).await.is_some() {
        let ready = matches!(tokio::time::timeout(EVERY, reader.ping()).await, Ok(Ok(())));
        let relay = relay.as_ref().map(|relay| {
            let status = relay.borrow();
            Relaying { gets_on: status.is_healthy(), troubles: status.troubles() }
        });
        let now = Readiness { ready, relay };
        log(&told.borrow(), &now, std::mem::take(&mut first));
        told.send_if_modified(|before| {
            let changed = *before != now;
            *before = now;
            changed
        });
    }
    told.send_replace(Readiness::default());
}

/// Logs what has changed.
fn log(before: &Readiness, now: &Readiness, is_first: bool) {
    if before.ready != now.ready && !is_first {
        tracing::warn!(reachable = now.ready, "the database's state has changed");
    }
    let troubles = |readiness: &Readiness| readiness.relay.clone().unwrap_or_default().troubles;
    let (before, now) = (troubles(before), troubles(now));
    for Trouble { reason, detail, .. } in now.iter().filter(|trouble| !before.contains(trouble)) {
        tracing::warn!(reason = reason.name(), detail, "the relay is in trouble");
    }
    for gone in before.iter().filter(|gone| now.iter().all(|trouble| trouble.reason != gone.reason)) {
        tracing::info!(reason = gone.reason.name(), "a trouble of the relay is over");
    }
}
