//! The fault-injecting publisher: the real one, with its reports held back, chosen records failed, or the whole relay
//! stopped in its tracks.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Condvar, Mutex, MutexGuard},
};

use outbox_harness::eventually;
use outbox_server::{
    config,
    relay::{
        Relay,
        publisher::{Fault, Publisher, Record, Refusal, Report, Topic},
    },
};
use tokio::sync::Notify;
use uuid::Uuid;

use super::outbox::{Outbox, PATIENCE, Running, publisher};

/// Wraps a publisher.
pub(crate) struct Faulty<P> {
    inner: P,
    faults: Faults,
    /// Set by a failed record until the next reset: nothing behind it passes, as with the real one.
    failed: bool,
    reports: Vec<Report>,
    /// As planned when reports were taken last: it does not change while the relay looks from event to event.
    asking: bool,
}

/// What goes wrong; shared with the test.
#[derive(Clone, Default)]
pub(crate) struct Faults(Arc<Shared>);

#[derive(Default)]
struct Shared {
    plan: Mutex<Plan>,
    resumed: Condvar,
    changed: Notify,
}

/// The test's wishes, and what it has seen.
#[derive(Default)]
pub(crate) struct Plan {
    /// Reports are kept back while this is set.
    pub(crate) hold_reports: bool,
    /// Records that fail, each by this fault.
    pub(crate) fail: HashMap<Uuid, Fault>,
    /// Records of which nothing is heard any more.
    pub(crate) swallow: HashSet<Uuid>,
    /// Topics that are not there.
    pub(crate) missing: HashSet<String>,
    /// Whether it is not known yet of any topic that it is there.
    pub(crate) asking: bool,
    /// Whether one is really known.
    pub(crate) known: bool,
    /// Stops the calling thread in front of this record, once.
    pub(crate) pause_before: Option<Uuid>,
    /// The relay dies in front of this record: its task panics.
    pub(crate) die_before: Option<Uuid>,
    /// Whether it stands there.
    pub(crate) paused: bool,
    /// Everything that was handed over.
    pub(crate) enqueued: Vec<Uuid>,
    /// How many were handed over and not yet reported, and the most that ever were.
    pub(crate) unreported: usize,
    pub(crate) unreported_most: usize,
}

impl Faults {
    pub(crate) fn plan(&self) -> MutexGuard<'_, Plan> {
        self.0.plan.lock().expect("no test panics with it")
    }

    /// Changes the plan and lets it be noticed.
    pub(crate) fn change(&self, change: impl FnOnce(&mut Plan)) {
        change(&mut self.plan());
        self.0.resumed.notify_all();
        self.0.changed.notify_one();
    }
}

impl<P: Publisher> Faulty<P> {
    pub(crate) fn new(inner: P, faults: &Faults) -> Self {
        Self { inner, faults: faults.clone(), failed: false, reports: Vec::new(), asking: true }
    }

    fn fail(&mut self, token: usize, fault: Fault) {
        self.failed = true;
        self.reports.push(Report { token, outcome: Err(fault) });
        self.faults.0.changed.notify_one();
    }
}

impl<P: Publisher + Sync> Publisher for Faulty<P> {
    fn topic(&mut self, topic: &str) -> Topic {
        let topic_there = self.inner.topic(topic);
        let mut plan = self.faults.plan();
        plan.known |= topic_there == Topic::Ready;
        match (plan.missing.contains(topic), self.asking) {
            (true, _) => Topic::Missing("it is not there, for the test".into()),
            (false, true) => Topic::Asking,
            (false, false) => topic_there,
        }
    }

    fn enqueue(&mut self, record: &Record<'_>, token: usize) -> Result<(), Refusal> {
        let id = record.event.id;
        let mut plan = self.faults.0.plan.lock().expect("no test panics with it");
        if plan.pause_before == Some(id) {
            plan.paused = true;
            while plan.pause_before == Some(id) {
                plan = self.faults.0.resumed.wait(plan).expect("no test panics with it");
            }
            plan.paused = false;
        }
        let (fault, dies) = (plan.fail.get(&id).cloned(), plan.die_before == Some(id));
        let swallowed = plan.swallow.contains(&id);
        drop(plan);
        assert!(!dies, "the relay dies, for the test");
        match fault {
            _ if self.failed => self.fail(token, Fault::Publisher("a record before it failed".into())),
            Some(fault) => self.fail(token, fault),
            None if swallowed => {}
            None => self.inner.enqueue(record, token)?,
        }
        let mut plan = self.faults.plan();
        plan.enqueued.push(id);
        plan.unreported += 1;
        plan.unreported_most = plan.unreported_most.max(plan.unreported);
        Ok(())
    }

    fn take(&mut self, reports: &mut Vec<Report>) {
        let mut plan = self.faults.plan();
        self.asking = plan.asking;
        if !plan.hold_reports {
            let before = reports.len();
            reports.append(&mut self.reports);
            self.inner.take(reports);
            plan.unreported -= reports.len() - before;
        }
    }

    async fn changed(&self) {
        tokio::select! {
            () = self.inner.changed() => {}
            () = self.faults.0.changed.notified() => {}
        }
    }

    async fn reset(&mut self) -> Vec<Report> {
        self.failed = false;
        let mut reports = std::mem::take(&mut self.reports);
        reports.append(&mut self.inner.reset().await);
        let mut plan = self.faults.plan();
        plan.unreported = 0;
        if plan.hold_reports {
            reports.clear();
        }
        reports
    }

    fn reachable(&self) -> Option<bool> {
        self.inner.reachable()
    }
}

/// Starts a relay whose publisher has these faults.
pub(crate) fn faulty(outbox: &Outbox, faults: &Faults, config: config::Relay) -> Running {
    Running::start(Relay::with_publisher(config, &outbox.database_config(), Faulty::new(publisher(), faults)))
}

/// Starts relays, one after the other, until the event before which they die is held. Returns the last one, and how many
/// have died: fewer than `deaths_max`.
pub(crate) async fn held_after_deaths(
    outbox: &Outbox,
    faults: &Faults,
    config: &config::Relay,
    deadly: Uuid,
    deaths_max: usize,
) -> (Running, usize) {
    for deaths in 0..deaths_max {
        let relay = faulty(outbox, faults, config.clone());
        let held = async || {
            let held = outbox.held().await.iter().any(|(id, _)| *id == deadly);
            (held || relay.has_ended()).then_some(held)
        };
        if eventually("it is held, or the relay has died", PATIENCE, held).await {
            return (relay, deaths);
        }
    }
    panic!("it is not held after {deaths_max} deaths");
}
