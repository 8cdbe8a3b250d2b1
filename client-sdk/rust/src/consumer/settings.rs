//! What a consumer is told, held against what can work before anything connects.
//!
//! It deliberately lets librdkafka's own properties through, but for those the consumer's promises rest on.

use std::time::Duration;

use opentelemetry::metrics::Meter;

use super::{BuildError, lanes::Bound, retention::Window, sequence::Watch};
use crate::backoff::Backoff;

const NAME_BYTES_MAX: usize = 200;
/// Set by the consumer itself: offsets are committed only after the effects are, and only by this consumer's rules.
const OWN_PROPERTIES: [&str; 4] = ["enable.auto.commit", "enable.auto.offset.store", "bootstrap.servers", "group.id"];
/// librdkafka's default.
const MAX_POLL_INTERVAL: Duration = Duration::from_secs(300);
/// librdkafka would begin a new group at the end of its topics, and prefetch up to 64 MiB of each partition. It has one
/// fetch at a time under way with each broker, without the partitions whose queues are full at that moment: where nothing
/// is new for the others, those would get nothing for as long as it waits, half a second.
const DEFAULTS: [(&str, &str); 6] = [
    ("auto.offset.reset", "earliest"),
    ("queued.max.messages.kbytes", "4096"),
    ("fetch.queue.backoff.ms", "20"),
    ("fetch.wait.max.ms", "50"),
    ("enable.auto.commit", "false"),
    ("enable.auto.offset.store", "false"),
];

pub(super) struct Settings {
    pub(super) name: String,
    pub(super) group: Option<String>,
    pub(super) bootstrap_servers: String,
    pub(super) properties: Vec<(String, String)>,
    pub(super) topics: Vec<String>,
    pub(super) concurrency: usize,
    pub(super) bound: Bound,
    pub(super) backoff: Backoff,
    pub(super) attempts_max: Option<u32>,
    pub(super) dead_letter_topic: Option<String>,
    pub(super) window: Option<Window>,
    pub(super) watch: Option<Watch>,
    pub(super) meter: Option<Meter>,
    pub(super) commit_interval: Duration,
    pub(super) drain_budget: Duration,
}

impl Settings {
    pub(super) fn new(name: String) -> Self {
        Self {
            name,
            group: None,
            bootstrap_servers: "localhost:9092".to_owned(),
            properties: Vec::new(),
            topics: Vec::new(),
            concurrency: 1,
            bound: Bound { records: 500, bytes: 16 << 20 },
            backoff: Backoff { base: Duration::from_millis(100), ceiling: Duration::from_secs(30) },
            attempts_max: None,
            dead_letter_topic: None,
            window: None,
            watch: None,
            meter: None,
            commit_interval: Duration::from_secs(1),
            drain_budget: Duration::from_secs(10),
        }
    }

    /// Checks everything that can be checked without connecting.
    pub(super) fn check(&self, batch_max: usize) -> Result<(), BuildError> {
        if self.name.is_empty() || self.name.len() > NAME_BYTES_MAX {
            return Err(BuildError::Name(self.name.len()));
        }
        if self.topics.is_empty() {
            return Err(BuildError::NoTopics);
        }
        let limit = |name, good: bool, value: String, expected| {
            if good { Ok(()) } else { Err(BuildError::Limit { name, value, expected }) }
        };
        let (bound, backoff) = (self.bound, self.backoff);
        let within = (1..=1_000_000).contains(&bound.records) && bound.bytes > 0;
        limit("partition_bound", within, format!("{bound:?}"), "1 to 1,000,000 records and at least one byte")?;
        let workers = (1..=1_000).contains(&self.concurrency);
        limit("concurrency", workers, self.concurrency.to_string(), "1 to 1,000")?;
        limit("events_max", (1..=10_000).contains(&batch_max), batch_max.to_string(), "1 to 10,000 events")?;
        let window = self.window.map(|window| window.length);
        let some = window.is_none_or(|window| !window.is_zero());
        limit("window", some, format!("{window:?}"), "above zero")?;
        let keys = self.watch.as_ref().map_or(1, Watch::keys_max);
        limit("sequences", (1..=100_000_000).contains(&keys), keys.to_string(), "1 to 100,000,000 keys")?;
        limit("max_attempts", self.attempts_max != Some(0), "0".to_owned(), "at least 1")?;
        let ordered = !backoff.base.is_zero() && backoff.base <= backoff.ceiling;
        limit("retry_backoff", ordered, format!("{backoff:?}"), "a base above zero and up to the ceiling")?;
        let often = !self.commit_interval.is_zero() && self.commit_interval <= Duration::from_secs(60);
        limit("commit_interval", often, format!("{:?}", self.commit_interval), "above zero and up to 60 s")?;
        let poll = self.properties.iter().rev().find(|(name, _)| name == "max.poll.interval.ms");
        let poll = poll.and_then(|(_, ms)| ms.parse().ok()).map_or(MAX_POLL_INTERVAL, Duration::from_millis);
        let short = self.drain_budget < poll / 2;
        limit("drain_budget", short, format!("{:?}", self.drain_budget), "less than half of max.poll.interval.ms")
    }

    /// The properties of the consumer's Kafka client, and of the producer of its dead letters.
    pub(super) fn kafka(&self) -> Result<Vec<(String, String)>, BuildError> {
        let own = self.properties.iter().find(|(name, _)| OWN_PROPERTIES.contains(&name.as_str()));
        if let Some((name, _)) = own {
            return Err(BuildError::Property(name.clone()));
        }
        let mut kafka: Vec<(String, String)> = DEFAULTS.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let mut set = |name: &str, value: &str| kafka.push((name.to_owned(), value.to_owned()));
        let consumer_protocol = ("group.protocol".to_owned(), "consumer".to_owned());
        if !self.properties.contains(&consumer_protocol) {
            set("partition.assignment.strategy", "cooperative-sticky");
        }
        set("bootstrap.servers", &self.bootstrap_servers);
        set("group.id", self.group.as_deref().unwrap_or(&self.name));
        kafka.extend(self.properties.iter().cloned());
        Ok(kafka)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of a property that is named twice, the client takes the last.
    fn property(settings: &Settings, name: &str) -> Option<String> {
        let kafka = settings.kafka().expect("nothing is wrong with them");
        kafka.into_iter().rev().find(|(found, _)| found == name).map(|(_, value)| value)
    }

    #[test]
    fn properties_of_the_applications_own_outrank_the_defaults() {
        let mut settings = Settings::new("mailer".to_owned());
        let wait = |settings: &Settings| property(settings, "fetch.wait.max.ms");
        assert_eq!(wait(&settings).as_deref(), Some("50"), "else full queues wait for partitions without news");
        settings.properties.push(("fetch.wait.max.ms".to_owned(), "7".to_owned()));
        assert_eq!(wait(&settings).as_deref(), Some("7"));
        assert_eq!(property(&settings, "group.id").as_deref(), Some("mailer"));
        settings.properties.push(("enable.auto.commit".to_owned(), "true".to_owned()));
        assert!(matches!(settings.kafka(), Err(BuildError::Property(name)) if name == "enable.auto.commit"));
    }
}
