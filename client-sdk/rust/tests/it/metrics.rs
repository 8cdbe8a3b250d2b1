//! What a consumer tells OpenTelemetry, read by an exporter in memory.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use opentelemetry::{KeyValue, metrics::MeterProvider as _};
use opentelemetry_sdk::metrics::{
    InMemoryMetricExporter, SdkMeterProvider,
    data::{AggregatedMetrics, HistogramDataPoint, Metric, MetricData, ResourceMetrics, ScopeMetrics},
};
use outbox_harness::kafka;
use outbox_sdk::{Event, Handler, HandlerError, Transaction};

use crate::rig::{Rig, Running, effect, event, events, publish_junk};

/// Fails each event once, and the second event for good.
struct Moody(std::sync::Mutex<BTreeSet<uuid::Uuid>>, uuid::Uuid);

impl Handler for Moody {
    async fn handle(&self, event: &Event, tx: &mut Transaction) -> Result<(), HandlerError> {
        if event.id() == self.1 {
            return Err(HandlerError::dead_letter("never"));
        }
        if self.0.lock().unwrap().insert(event.id()) {
            return Err(HandlerError::new("not yet"));
        }
        effect("mailer", event, tx).await
    }
}

/// The metrics of the last export. Each tells everything since the start.
fn last(all: &[ResourceMetrics]) -> impl Iterator<Item = &Metric> {
    all.last().expect("something was exported").scope_metrics().flat_map(ScopeMetrics::metrics)
}

/// By name and error class: the sum of a counter or gauge, or how often a histogram was recorded to.
fn read(exporter: &InMemoryMetricExporter) -> (BTreeMap<(String, String), u64>, BTreeSet<String>) {
    let (mut values, mut keys) = (BTreeMap::new(), BTreeSet::new());
    let all = exporter.get_finished_metrics().unwrap();
    for metric in last(&all) {
        let mut put = |attributes: &mut dyn Iterator<Item = &KeyValue>, value: u64| {
            let mut class = String::new();
            for attribute in attributes {
                keys.insert(attribute.key.to_string());
                if attribute.key.as_str() == "error.type" {
                    class = attribute.value.to_string();
                }
            }
            *values.entry((metric.name().to_owned(), class)).or_default() += value;
        };
        match metric.data() {
            AggregatedMetrics::U64(MetricData::Sum(sum)) => {
                sum.data_points().for_each(|point| put(&mut point.attributes(), point.value()));
            }
            AggregatedMetrics::U64(MetricData::Gauge(gauge)) => {
                gauge.data_points().for_each(|point| put(&mut point.attributes(), point.value()));
            }
            AggregatedMetrics::F64(MetricData::Histogram(histogram)) => {
                histogram.data_points().for_each(|point| put(&mut point.attributes(), point.count()));
            }
            other => panic!("an instrument of another kind: {other:?}"),
        }
    }
    (values, keys)
}

fn exporting() -> (InMemoryMetricExporter, SdkMeterProvider) {
    let exporter = InMemoryMetricExporter::default();
    let provider = SdkMeterProvider::builder().with_periodic_exporter(exporter.clone()).build();
    (exporter, provider)
}

#[tokio::test(flavor = "multi_thread")]
async fn events_attempts_repeats_retries_and_dead_letters_are_counted_by_the_conventions() {
    let rig = Rig::new(1).await;
    let letters = kafka::fresh_topic("letters", 1).await;
    let published = events(3);
    for _ in 0..2 {
        rig.publish(published.iter().map(|event| (0, event.clone()))).await;
    }
    publish_junk(&rig.topic, 0).await;
    let (exporter, provider) = exporting();
    let consumer = rig.builder("mailer").dead_letters(&letters).meter(provider.meter("test"));
    let handler = Moody(std::sync::Mutex::default(), published[1].id);
    let running = Running::start(consumer.handler(handler).build().unwrap());
    rig.until_committed("mailer", 0, 7).await;
    provider.force_flush().unwrap();
    running.shut_down().await.unwrap();

    let (values, keys) = read(&exporter);
    let value = |name: &str, class: &str| values.get(&(name.to_owned(), class.to_owned())).copied();
    // Two events are handled at the second attempt, one goes to the dead letters, twice.
    assert_eq!(value("messaging.client.consumed.messages", ""), Some(2), "{values:?}");
    assert_eq!(value("messaging.client.consumed.messages", "handler"), Some(4), "{values:?}");
    assert_eq!(value("messaging.process.duration", "handler"), Some(4), "{values:?}");
    assert_eq!(value("messaging.process.duration", ""), Some(4), "two that are handled, two repeats: {values:?}");
    assert_eq!(value("outbox.consumer.event.age", ""), Some(2), "{values:?}");
    assert_eq!(value("outbox.consumer.duplicates", ""), Some(2), "{values:?}");
    assert_eq!(value("outbox.consumer.retries", ""), Some(2), "{values:?}");
    assert_eq!(value("outbox.consumer.dead_letters", ""), Some(3), "two events and what is none: {values:?}");
    assert_eq!(value("outbox.consumer.in_flight", ""), Some(0), "{values:?}");
    // Trap 14: nothing whose values grow with events, keys or partitions.
    let few = [
        "error.type",
        "messaging.consumer.group.name",
        "messaging.destination.name",
        "messaging.operation.name",
        "messaging.system",
        "outbox.consumer",
    ];
    assert_eq!(keys.iter().map(String::as_str).collect::<Vec<_>>(), few);
}

/// Seconds that all attempts took together.
fn took(exporter: &InMemoryMetricExporter) -> f64 {
    let all = exporter.get_finished_metrics().unwrap();
    let metrics = last(&all).filter(|metric| metric.name() == "messaging.process.duration");
    let sum = |data: &AggregatedMetrics| match data {
        AggregatedMetrics::F64(MetricData::Histogram(histogram)) => {
            histogram.data_points().map(HistogramDataPoint::sum).sum::<f64>()
        }
        other => panic!("an instrument of another kind: {other:?}"),
    };
    metrics.map(|metric| sum(metric.data())).sum()
}

/// An attempt begins as the one before it ended, unless there was nothing to handle in between.
#[tokio::test(flavor = "multi_thread")]
async fn waiting_for_events_is_no_part_of_what_it_takes_to_handle_them() {
    /// A few of them are within the second for which a worker without work keeps its connection.
    const PAUSE: Duration = Duration::from_millis(200);
    let rig = Rig::new(1).await;
    let (exporter, provider) = exporting();
    let handler = async |event: &Event, tx: &mut Transaction| effect("mailer", event, tx).await;
    let running = Running::start(rig.builder("mailer").meter(provider.meter("test")).handler(handler).build().unwrap());
    rig.publish([(0, event())]).await;
    running.until("the first is handled", |stats| stats.handled == 1).await;
    provider.force_flush().unwrap();
    let (first, began) = (took(&exporter), Instant::now());
    for handled in 2..=4 {
        tokio::time::sleep(PAUSE).await;
        rig.publish([(0, event())]).await;
        running.until("it is handled", |stats| stats.handled == handled).await;
    }
    let all = began.elapsed().as_secs_f64();
    provider.force_flush().unwrap();
    running.shut_down().await.unwrap();
    let took = took(&exporter) - first;
    assert!(took > 0.0 && took < all / 4.0, "{took} s of {all} s");
}
