//! gRPC health: whether the API can commit, and, apart from that, whether the relay gets on.
//!
//! The API (service `""` and the services' names) serves while the database answers: commits go on while only Kafka
//! is down. `outboxd.relay` serves while this process relays and reaches both sides. What is held keeps nothing else back,
//! and a source that is not as asked for neither: the log of every process that relays and the numbers tell of them.

use std::time::Duration;

use outbox_proto::v1::{
    command_service_server, event_service_server, outbox_service_server, relay_service_server, state_service_server,
};
use tokio::{sync::watch, task::JoinHandle, time::MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tonic_health::{
    ServingStatus,
    pb::health_server::{Health, HealthServer},
    server::HealthReporter,
};

use crate::{relay, store::event::Reader};

const EVERY: Duration = Duration::from_secs(1);
const RELAY: &str = "outboxd.relay";
const API: [&str; 6] = [
    "",
    outbox_service_server::SERVICE_NAME,
    state_service_server::SERVICE_NAME,
    command_service_server::SERVICE_NAME,
    event_service_server::SERVICE_NAME,
    relay_service_server::SERVICE_NAME,
];

/// Starts to report, until `shutdown`; from then on nothing serves, as before the first look.
pub async fn start(
    reader: Reader,
    relay: Option<watch::Receiver<relay::Status>>,
    shutdown: CancellationToken,
) -> (HealthServer<impl Health>, JoinHandle<()>) {
    let (reporter, server) = tonic_health::server::health_reporter();
    set(&reporter, &API, false).await;
    set(&reporter, &[RELAY], false).await;
    (server, tokio::spawn(report(reporter, reader, relay, shutdown)))
}

async fn report(
    reporter: HealthReporter,
    reader: Reader,
    relay: Option<watch::Receiver<relay::Status>>,
    shutdown: CancellationToken,
) {
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut serving, mut held, mut note) = (None, 0, None);
    while shutdown.run_until_cancelled(ticks.tick()).await.is_some() {
        let reachable = matches!(tokio::time::timeout(EVERY, reader.ping()).await, Ok(Ok(())));
        if serving.replace(reachable) == Some(!reachable) {
            tracing::warn!(reachable, "the database's state has changed");
        }
        set(&reporter, &API, reachable).await;
        let now_held = relay.as_ref().map_or(0, |relay| relay.borrow().held);
        if std::mem::replace(&mut held, now_held) != now_held {
            tracing::warn!(events = now_held, "events are held; see EventService.ListHeld");
        }
        let now_note = relay.as_ref().and_then(|relay| relay.borrow().source_note.clone());
        if note != now_note {
            match &now_note {
                Some(note) => tracing::warn!(note, "the relay's source is not as it was asked for"),
                None => tracing::info!("the note on the relay's source is gone"),
            }
            note = now_note;
        }
        let healthy = relay.as_ref().is_some_and(|relay| relay.borrow().is_healthy());
        set(&reporter, &[RELAY], healthy).await;
    }
    set(&reporter, &API, false).await;
    set(&reporter, &[RELAY], false).await;
}

async fn set(reporter: &HealthReporter, services: &[&str], serves: bool) {
    let status = if serves { ServingStatus::Serving } else { ServingStatus::NotServing };
    for service in services {
        reporter.set_service_status(*service, status).await;
    }
}
