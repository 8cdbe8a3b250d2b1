//! Metrics in Prometheus's text format, read off the database and this process's relay for each request.
//!
//! Nothing is kept between two requests, so that nothing grows; readings of the database are shared with
//! `RelayService`. When the database does not answer, what this process knows by itself is served all the same.

use std::{sync::atomic::AtomicU64, time::Duration};

use axum::{http::header, response::IntoResponse};
use prometheus_client::{
    encoding::text::encode,
    metrics::{counter::Counter, family::Family, gauge::Gauge as PrometheusGauge},
    registry::Registry,
};
use tokio::sync::watch;

use super::names;
use crate::{
    model::source::Source,
    relay,
    store::numbers::{Gauge, Numbers, inbox::Inbox, source},
};

const READ_TIMEOUT: Duration = Duration::from_secs(5);
const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Where the numbers come from.
#[derive(Clone)]
pub struct Metrics {
    gauge: Gauge,
    relay: Option<watch::Receiver<relay::Status>>,
}

impl Metrics {
    /// Of the database, and of this process's relay if it has one.
    pub fn new(gauge: Gauge, relay: Option<watch::Receiver<relay::Status>>) -> Self {
        Self { gauge, relay }
    }

    /// The page, as it is now.
    pub(super) async fn page(self) -> impl IntoResponse {
        let numbers = match tokio::time::timeout(READ_TIMEOUT, self.gauge.read()).await {
            Ok(Ok(numbers)) => Some(numbers),
            Ok(Err(error)) => {
                tracing::warn!(%error, "metrics are served without the database's numbers");
                None
            }
            Err(_) => None,
        };
        let relay = self.relay.map(|relay| relay.borrow().clone());
        ([(header::CONTENT_TYPE, CONTENT_TYPE)], text(numbers.as_ref(), relay.as_ref()))
    }
}

type Labels = Vec<(&'static str, String)>;
type Value = PrometheusGauge<f64, AtomicU64>;

fn text(numbers: Option<&Numbers>, relay: Option<&relay::Status>) -> String {
    let mut registry = Registry::default();
    if let Some(numbers) = numbers {
        of_database(&mut registry, numbers);
    }
    if let Some(relay) = relay {
        of_process(&mut registry, relay);
    }
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = encode(&mut text, &registry);
    text
}

fn of_database(registry: &mut Registry, numbers: &Numbers) {
    let Numbers { paused, source, unsettled, scheduled, held, inbox, instances, lanes } = numbers;
    let lag = unsettled.lag_ms.unwrap_or_default() as f64 / 1_000.0;
    put(registry, names::LAG_SECONDS, "Age of the oldest unsettled event", lag);
    put(registry, names::UNSETTLED_EVENTS, "Events that are not settled", unsettled.events as f64);
    put(registry, names::UNSETTLED_IS_EXACT, "Whether they were counted", f64::from(unsettled.is_exact));
    put(registry, names::SCHEDULED_EVENTS, "Delayed events that are not due yet", *scheduled as f64);
    put(registry, names::HOLDS, "Events, keys and topics that are waited for", held.holds as f64);
    put(registry, names::PAUSED, "Whether every relay is paused", f64::from(paused.is_some()));
    put(registry, names::INSTANCES, "Relays that run", instances.len() as f64);
    let without_owner = lanes.iter().filter(|lane| lane.owner.is_none()).count();
    put(registry, names::LANES_WITHOUT_OWNER, "Lanes without an owner", without_owner as f64);
    let owned = Family::<Labels, Value>::default();
    for relay in instances {
        let labels = vec![("instance", relay.instance.to_string()), ("host", relay.host.clone())];
        owned.get_or_create(&labels).set(relay.lanes as f64);
    }
    registry.register(names::INSTANCE_LANES, "Lanes that each relay owns", owned);
    of_source(registry, source);
    of_inbox(registry, inbox);

    let by_state = Family::<Labels, Value>::default();
    for (state, events) in [("failed", held.failed), ("parked", held.parked)] {
        by_state.get_or_create(&vec![("state", state.to_owned())]).set(events as f64);
    }
    registry.register(names::HELD_EVENTS, "Held events, each state counted to 10000", by_state);
    let (settled, epochs) = (Family::<Labels, Counter>::default(), Family::<Labels, Value>::default());
    for lane in lanes {
        let label = vec![("lane", lane.lane.to_string())];
        settled.get_or_create(&label).inc_by(u64::try_from(lane.settled).unwrap_or_default());
        epochs.get_or_create(&label).set(lane.epoch as f64);
    }
    registry.register(names::LANE_SETTLED_EVENTS, "Events settled since the outbox was set up", settled);
    registry.register(names::LANE_EPOCH, "Raised each time the lane changes hands", epochs);
}

fn of_source(registry: &mut Registry, state: &source::State) {
    for (name, help, chosen) in [
        (names::SOURCE_IN_FORCE, "Which source is in force", state.in_force),
        (names::SOURCE_DESIRED, "Which source is wanted", state.desired),
    ] {
        let by_source = Family::<Labels, Value>::default();
        for source in Source::ALL {
            by_source.get_or_create(&vec![("source", source.to_string())]).set(f64::from(source == chosen));
        }
        registry.register(name, help, by_source);
    }
    put(registry, names::SOURCE_EPOCH, "Raised whenever a relay takes the source's direction", state.epoch as f64);
    let has_note = f64::from(state.note.is_some());
    put(registry, names::SOURCE_HAS_NOTE, "Whether a note says why the source is not as it was asked for", has_note);
    if let Some(bytes) = state.retained_log_bytes {
        put(registry, names::RETAINED_LOG_BYTES, "Bytes of log that the database keeps for the slot", bytes as f64);
    }
}

fn of_inbox(registry: &mut Registry, inbox: &Inbox) {
    let open = Family::<Labels, Value>::default();
    for (state, claims) in [("leased", inbox.leased), ("run_out", inbox.run_out)] {
        open.get_or_create(&vec![("state", state.to_owned())]).set(claims as f64);
    }
    registry.register(names::OPEN_CLAIMS, "Claims that are not completed, counted to 10000", open);
    put(registry, names::CLAIMS, "Claims that are remembered, estimated", inbox.claims_estimate as f64);
    put(registry, names::MARKS, "Marks that are remembered, estimated", inbox.marks_estimate as f64);
}

fn of_process(registry: &mut Registry, relay: &relay::Status) {
    put(registry, names::LANES_OWNED, "Lanes that this process owns", relay.lanes_owned as f64);
    put(registry, names::IN_FLIGHT_EVENTS, "Events that this process has under way", relay.in_flight as f64);
    put(registry, names::CONNECTED, "Whether its relay has a session with the database", f64::from(relay.connected));
    let reachable = f64::from(relay.kafka_reachable != Some(false));
    put(registry, names::KAFKA_REACHABLE, "Whether a broker was last heard of", reachable);
    let troubles = relay.troubles();
    let by_reason = Family::<Labels, Value>::default();
    for reason in relay::Reason::ALL {
        let is_there = troubles.iter().any(|trouble| trouble.reason == reason);
        by_reason.get_or_create(&vec![("reason", reason.name().to_owned())]).set(f64::from(is_there));
    }
    registry.register(names::TROUBLE, "What troubles this process's relay", by_reason);
}

fn put(registry: &mut Registry, name: &str, help: &str, value: f64) {
    let gauge = Value::default();
    gauge.set(value);
    registry.register(name, help, gauge);
}
