//! A consumer's OpenTelemetry metrics.
//!
//! Names and attributes follow OpenTelemetry's semantic conventions, "Messaging metrics", where they have one; the others
//! begin with `outbox.consumer.`. Invariant: no attribute has values that grow with events, keys or partitions (trap
//! 14). Without a meter provider of the application's nothing is recorded.
//!
//! It deliberately counts nothing a second time: what [`Stats`](super::Stats) knows is observed there.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use opentelemetry::{
    KeyValue, StringValue, global,
    metrics::{Counter, Histogram, Meter},
};

use super::{
    Event,
    lap::Lap,
    stats::{Counters, Stats},
};

/// The conventions' advice for durations in seconds.
const DURATIONS: [f64; 14] = [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];
/// Events may wait for long.
const AGES: [f64; 14] = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 600.0, 3_600.0, 86_400.0];

pub(super) struct Metrics {
    consumed: Counter<u64>,
    duration: Histogram<f64>,
    age: Histogram<f64>,
    of_consumer: [KeyValue; 4],
}

/// What is told of a topic's events, whatever becomes of them. Cheap to clone.
pub(super) type Labels = Arc<[KeyValue]>;

impl Metrics {
    /// Makes the instruments; those of what is counted live as long as the counters do.
    pub(super) fn new(meter: Option<Meter>, consumer: &str, group: &str, counters: &Arc<Counters>) -> Self {
        let meter = meter.unwrap_or_else(|| global::meter("outbox-sdk"));
        let name = KeyValue::new("outbox.consumer", shared(consumer));
        let group = KeyValue::new("messaging.consumer.group.name", shared(group));
        observe(&meter, &[name.clone(), group.clone()], counters);
        let system = KeyValue::new("messaging.system", "kafka");
        Self {
            consumed: meter
                .u64_counter("messaging.client.consumed.messages")
                .with_unit("{message}")
                .with_description("Events given to the handler")
                .build(),
            duration: meter
                .f64_histogram("messaging.process.duration")
                .with_unit("s")
                .with_description("Time that an attempt to handle events takes, mark and commit included")
                .with_boundaries(DURATIONS.to_vec())
                .build(),
            age: meter
                .f64_histogram("outbox.consumer.event.age")
                .with_unit("s")
                .with_description("Time from an event, by its own time, to its effects")
                .with_boundaries(AGES.to_vec())
                .build(),
            of_consumer: [system, KeyValue::new("messaging.operation.name", "process"), name, group],
        }
    }

    /// An attempt has succeeded. `handled` is how many of the events the handler was given.
    pub(super) fn succeeded(&self, labels: &Labels, events: &[&Event], handled: u64, began: &Lap, ended: &Lap) {
        self.duration.record(ended.since(began).as_secs_f64(), labels);
        if handled == 0 {
            return;
        }
        self.consumed.add(handled, labels);
        for time in events.iter().filter_map(|event| event.happened_at()) {
            self.age.record(ended.age(time), labels);
        }
    }

    /// An attempt has failed; `error` is the class of its failure.
    pub(super) fn failed(&self, labels: &Labels, events: &[&Event], took: Duration, error: &'static str) {
        let error = KeyValue::new("error.type", error);
        let labels: Vec<KeyValue> = labels.iter().cloned().chain([error]).collect();
        self.duration.record(took.as_secs_f64(), &labels);
        self.consumed.add(events.len() as u64, &labels);
    }

    pub(super) fn labels(&self, topic: &str) -> Labels {
        let destination = KeyValue::new("messaging.destination.name", shared(topic));
        self.of_consumer.iter().cloned().chain([destination]).collect()
    }
}

/// Name, unit, description and value of what is only ever added to.
type Observed = (&'static str, &'static str, &'static str, fn(&Stats) -> u64);

const COUNTED: [Observed; 8] = [
    ("outbox.consumer.duplicates", "{event}", "Repeats that were found handled", |stats| stats.duplicates),
    ("outbox.consumer.retries", "{attempt}", "Failed attempts that are followed by another", |stats| stats.retries),
    ("outbox.consumer.dead_letters", "{record}", "Records put into the dead-letter topic", |stats| stats.dead_lettered),
    ("outbox.consumer.conflicts", "{event}", "Events under the source and id of another", |stats| stats.conflicts),
    ("outbox.consumer.discarded", "{record}", "Results of partitions that were taken away", |stats| stats.discarded),
    ("outbox.consumer.sequence.missing", "{event}", "Events missing in sequences", |stats| stats.sequence_missing),
    ("outbox.consumer.sequence.repeats", "{event}", "Repeats in sequences", |stats| stats.sequence_repeats),
    ("outbox.consumer.sequence.epochs", "{epoch}", "New epochs of sequences", |stats| stats.sequence_epochs),
];

fn observe(meter: &Meter, attributes: &[KeyValue], counters: &Arc<Counters>) {
    let read = |counters: &Weak<Counters>| counters.upgrade().map(|counters| counters.reader().read());
    for (name, unit, description, value) in COUNTED {
        let (counters, attributes) = (Arc::downgrade(counters), attributes.to_vec());
        let counter = meter.u64_observable_counter(name).with_unit(unit).with_description(description);
        let observed = counter.with_callback(move |observer| {
            if let Some(stats) = read(&counters) {
                observer.observe(value(&stats), &attributes);
            }
        });
        // The meter keeps it.
        let _ = observed.build();
    }
    let (counters, attributes) = (Arc::downgrade(counters), attributes.to_vec());
    let gauge = meter.u64_observable_gauge("outbox.consumer.in_flight").with_unit("{record}");
    let gauge = gauge.with_description("Records read and not settled").with_callback(move |observer| {
        if let Some(stats) = read(&counters) {
            observer.observe(stats.queued, &attributes);
        }
    });
    let _ = gauge.build();
}

fn shared(text: &str) -> StringValue {
    StringValue::from(Arc::<str>::from(text))
}
