//! The largest record that each topic takes, as its brokers say: learned in the background, for topics that are asked for.
//!
//! Asking never waits: what is not known yet, or cannot be learned, is `None`. What was learned stays until it is learned
//! anew. A topic that is set lower meanwhile refuses records itself, and their events are held. Deliberately not here:
//! what a record's size is.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use rdkafka::{
    ClientConfig,
    admin::{AdminClient, AdminOptions, OwnedResourceSpecifier, ResourceSpecifier},
    client::DefaultClientContext,
};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::lock;
use crate::{config, relay::properties};

/// Topics that are remembered; of more, nothing is known.
const TOPICS_MAX: usize = 10_000;
/// Topics of one request.
const TOPICS_PER_REQUEST: usize = 500;
const LEARN_EVERY: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_secs(1);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
const PROPERTY: &str = "max.message.bytes";
/// What librdkafka sends at most unless it is told otherwise, and the property that tells it.
const PRODUCER_DEFAULT: usize = 1_000_000;
const PRODUCER_PROPERTY: &str = "message.max.bytes";

/// The limits. Clones share them.
#[derive(Clone)]
pub struct TopicLimits {
    shared: Arc<Shared>,
    config: ClientConfig,
    /// Of the producer, whatever the topic takes.
    own: usize,
}

#[derive(Default)]
struct Shared {
    known: Mutex<HashMap<String, Option<usize>>>,
    asked: Notify,
}

impl TopicLimits {
    /// Knows nothing yet, and learns while [`learn`](Self::learn) runs.
    pub fn new(kafka: &config::Kafka) -> Self {
        let mut config = ClientConfig::new();
        for (name, value) in properties::client(kafka) {
            config.set(name, value);
        }
        let own = kafka.properties.get(PRODUCER_PROPERTY).and_then(|value| value.parse().ok());
        Self { shared: Arc::default(), config, own: own.unwrap_or(PRODUCER_DEFAULT) }
    }

    /// Bytes of the largest record that a topic takes, if that is known.
    pub fn of(&self, topic: &str) -> Option<usize> {
        let mut known = lock(&self.shared.known);
        match known.get(topic) {
            Some(limit) => limit.map(|limit| limit.min(self.own)),
            None => {
                if known.len() < TOPICS_MAX {
                    known.insert(topic.to_owned(), None);
                    self.shared.asked.notify_one();
                }
                None
            }
        }
    }

    /// Learns the limits of topics that are asked for, and all anew now and then, until `shutdown`.
    pub async fn learn(self, shutdown: CancellationToken) {
        let admin: AdminClient<DefaultClientContext> = match self.config.create() {
            Ok(admin) => admin,
            Err(error) => return tracing::warn!(%error, "the limits of topics cannot be learned"),
        };
        let mut ticks = tokio::time::interval(LEARN_EVERY);
        let learning = async {
            loop {
                let is_due = tokio::select! {
                    _ = ticks.tick() => true,
                    () = self.shared.asked.notified() => false,
                };
                let topics = self.to_learn(is_due);
                for topics in topics.chunks(TOPICS_PER_REQUEST) {
                    self.learn_once(&admin, topics).await;
                }
                // Topics that are new come together.
                tokio::time::sleep(PAUSE).await;
            }
        };
        shutdown.run_until_cancelled(learning).await;
    }

    /// The topics that are to be learned: those of which nothing is known, or all.
    fn to_learn(&self, all: bool) -> Vec<String> {
        let known = lock(&self.shared.known);
        known.iter().filter(|(_, limit)| all || limit.is_none()).map(|(topic, _)| topic.clone()).collect()
    }

    async fn learn_once(&self, admin: &AdminClient<DefaultClientContext>, topics: &[String]) {
        let resources: Vec<_> = topics.iter().map(|topic| ResourceSpecifier::Topic(topic)).collect();
        let options = AdminOptions::new().request_timeout(Some(REQUEST_TIMEOUT));
        let described = match admin.describe_configs(&resources, &options).await {
            Ok(described) => described,
            Err(error) => return tracing::debug!(%error, "the limits of topics were not learned"),
        };
        let mut known = lock(&self.shared.known);
        // A topic that is not there has none, and may have one the next time.
        for resource in described.into_iter().flatten() {
            let limit = resource.get(PROPERTY).and_then(|entry| entry.value.as_deref()?.parse().ok());
            if let (OwnedResourceSpecifier::Topic(topic), Some(limit)) = (&resource.specifier, limit) {
                known.insert(topic.clone(), Some(limit));
            }
        }
    }
}
