//! gRPC health, by the standard protocol, which tells of each name whether it serves and no more; `readiness` says why.
//!
//! The API (service `""` and the services' names) serves while commits can be made. `outboxd.relay` serves while this
//! process relays and publishes; `outboxd.relay.source` while its source is as it was asked for, with the slot that it
//! needs; `outboxd.relay.holds` while nothing is held in its lanes.

use outbox_proto::v1::{
    command_service_server, event_service_server, inbox_service_server, outbox_service_server, relay_service_server,
    state_service_server,
};
use tokio::{sync::watch, task::JoinHandle};
use tonic_health::{
    ServingStatus,
    pb::health_server::{Health, HealthServer},
    server::HealthReporter,
};

use super::readiness::Readiness;
use crate::relay::Reason;

const API: [&str; 7] = [
    "",
    outbox_service_server::SERVICE_NAME,
    state_service_server::SERVICE_NAME,
    command_service_server::SERVICE_NAME,
    event_service_server::SERVICE_NAME,
    relay_service_server::SERVICE_NAME,
    inbox_service_server::SERVICE_NAME,
];
const RELAY: &str = "outboxd.relay";
const SOURCE: &str = "outboxd.relay.source";
const HOLDS: &str = "outboxd.relay.holds";

/// Starts to report, for as long as readiness is told.
pub async fn start(readiness: watch::Receiver<Readiness>) -> (HealthServer<impl Health>, JoinHandle<()>) {
    let (reporter, server) = tonic_health::server::health_reporter();
    report(&reporter, &Readiness::default()).await;
    (server, tokio::spawn(follow(reporter, readiness)))
}

async fn follow(reporter: HealthReporter, mut readiness: watch::Receiver<Readiness>) {
    while readiness.changed().await.is_ok() {
        let now = readiness.borrow_and_update().clone();
        report(&reporter, &now).await;
    }
}

async fn report(reporter: &HealthReporter, readiness: &Readiness) {
    let of_relay = [
        (RELAY, readiness.relay_gets_on()),
        (SOURCE, readiness.is_free_of(Reason::SourceNotAsAsked)),
        (HOLDS, readiness.is_free_of(Reason::Held)),
    ];
    for (service, serves) in API.map(|service| (service, readiness.ready)).into_iter().chain(of_relay) {
        let status = if serves { ServingStatus::Serving } else { ServingStatus::NotServing };
        reporter.set_service_status(service, status).await;
    }
}
