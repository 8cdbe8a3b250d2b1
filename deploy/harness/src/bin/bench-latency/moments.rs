//! When each event was called for, committed and received, by one monotonic clock.

use std::{
    sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    time::Instant,
};

use outbox_harness::figures::quantile;
use tokio::sync::Notify;

/// The moments of a run's events, by number.
pub(super) struct Moments {
    began: Instant,
    events: Vec<Event>,
    received: AtomicUsize,
    all_received: Notify,
}

/// Microseconds since the run began; 0 while it has not happened.
#[derive(Default)]
struct Event {
    called: AtomicU64,
    committed: AtomicU64,
    received: AtomicU64,
}

/// Which share of the events took at most how many milliseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Latency {
    pub(super) p50: f64,
    pub(super) p90: f64,
    pub(super) p99: f64,
}

impl Moments {
    pub(super) fn new(events: usize) -> Self {
        Self {
            began: Instant::now(),
            events: (0..events).map(|_| Event::default()).collect(),
            received: AtomicUsize::new(0),
            all_received: Notify::new(),
        }
    }

    pub(super) fn called(&self, event: usize) {
        self.events[event].called.store(self.now(), Relaxed);
    }

    /// The commit's answer has come.
    pub(super) fn committed(&self, event: usize) {
        self.events[event].committed.store(self.now(), Relaxed);
    }

    /// Only the first time counts.
    pub(super) fn received(&self, event: usize) {
        let first = self.events[event].received.compare_exchange(0, self.now(), Relaxed, Relaxed).is_ok();
        if first && self.received.fetch_add(1, Relaxed) + 1 == self.events.len() {
            self.all_received.notify_one();
        }
    }

    pub(super) fn are_all_received(&self) -> bool {
        self.received.load(Relaxed) == self.events.len()
    }

    pub(super) async fn until_all_received(&self) {
        self.all_received.notified().await;
    }

    /// From the call, and from the commit's answer, without the first events. An event that was received before the
    /// answer took no time from there.
    pub(super) fn latencies(&self, warm_up: usize) -> [Latency; 2] {
        let since = |from: fn(&Event) -> &AtomicU64| {
            let took = self.events[warm_up..].iter().map(|event| {
                let micros = event.received.load(Relaxed).saturating_sub(from(event).load(Relaxed));
                micros as f64 / 1_000.0
            });
            let took: Vec<f64> = took.collect();
            let at = |share| quantile(took.iter().copied(), share);
            Latency { p50: at(0.5), p90: at(0.9), p99: at(0.99) }
        };
        [since(|event| &event.called), since(|event| &event.committed)]
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_micros()).expect("a short run")
    }
}
