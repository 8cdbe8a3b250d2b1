//! How long it is remembered that an event was handled, and what becomes of events that are older.
//!
//! Invariant: an event that is older than the window is never handled for want of its mark. A repeat carries the time
//! of its event, and the mark is no older than that; marks are kept for the window and a margin. So a repeat either
//! finds its mark or is too old, however far the consumer lags, and marks may expire by their age (trap 10 is to let
//! them expire by age while older events are still handled).
//!
//! It deliberately offers no way to handle older events all the same: a longer window is that.

use std::time::Duration;

use chrono::Utc;
use futures_util::future::BoxFuture;
use rdkafka::{
    ClientConfig,
    admin::{AdminClient, AdminOptions, ConfigEntry, ResourceSpecifier},
    client::DefaultClientContext,
};
use tokio_util::sync::CancellationToken;

use super::{ConsumerError, Event};
use crate::inbox::InboxError;

/// How much longer than the window marks are kept: by so much may the clocks of producer and database differ.
pub(crate) const MARGIN: Duration = Duration::from_secs(3_600);
/// How many marks one statement deletes.
pub(crate) const EXPIRED_MAX: i64 = 5_000;
/// How soon Kafka is asked again for what it did not answer.
const ASKED_EVERY: Duration = Duration::from_secs(5);
const EXPIRE_EVERY_MIN: Duration = Duration::from_secs(1);
const EXPIRE_EVERY_MAX: Duration = Duration::from_secs(600);

/// What to do at start when a topic keeps records for longer than the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beyond {
    /// Stop with [`ConsumerError::Window`].
    Refuse,
    /// Say so in the log: records that are older than the window will be dead-lettered.
    Warn,
}

/// The window of a consumer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    pub(super) length: Duration,
    pub(super) beyond: Beyond,
}

/// Deletes one portion of what has outlived the window, and says how much it was.
pub(super) type Expire = Box<dyn Fn() -> BoxFuture<'static, Result<u64, InboxError>> + Send + Sync>;

/// Whether an event is older than the window.
pub(crate) fn is_too_old(event: &Event, window: Option<Duration>) -> bool {
    let (Some(window), Some(time)) = (window, event.happened_at()) else { return false };
    Utc::now().signed_duration_since(time).to_std().is_ok_and(|age| age > window)
}

/// Compares the window with how long the topics keep their records. Waits for a broker that is away.
pub(super) async fn check(kafka: &ClientConfig, topics: &[String], window: Window) -> Result<(), ConsumerError> {
    let named: Vec<ResourceSpecifier<'_>> =
        topics.iter().filter(|topic| !topic.starts_with('^')).map(|topic| ResourceSpecifier::Topic(topic)).collect();
    if named.len() < topics.len() {
        tracing::warn!(
            "the window is not compared with how long topics keep their records that are given as a pattern"
        );
    }
    if named.is_empty() {
        return Ok(());
    }
    let admin: AdminClient<DefaultClientContext> = kafka.create().map_err(ConsumerError::Kafka)?;
    let options = AdminOptions::new().request_timeout(Some(Duration::from_secs(30)));
    let described = loop {
        match admin.describe_configs(&named, &options).await {
            Ok(described) => break described,
            Err(error) => {
                tracing::warn!(%error, "it is not known yet how long topics keep their records; Kafka is asked again");
                tokio::time::sleep(ASKED_EVERY).await;
            }
        }
    };
    for (topic, config) in topics.iter().filter(|topic| !topic.starts_with('^')).zip(described) {
        let kept = match config {
            Ok(config) => kept(config.get("retention.ms"), config.get("cleanup.policy")),
            Err(error) => {
                tracing::warn!(topic, %error, "it is not known how long the topic keeps its records");
                continue;
            }
        };
        if kept.is_some_and(|kept| kept <= window.length) {
            continue;
        }
        match window.beyond {
            Beyond::Refuse => {
                return Err(ConsumerError::Window { topic: topic.clone(), window: window.length, kept });
            }
            Beyond::Warn => tracing::warn!(
                topic,
                window = ?window.length,
                ?kept,
                "the topic keeps records for longer than the window: older ones will not be handled"
            ),
        }
    }
    Ok(())
}

/// How long a topic keeps its records; `None` is for ever.
fn kept(retention: Option<&ConfigEntry>, cleanup: Option<&ConfigEntry>) -> Option<Duration> {
    let value = |entry: Option<&ConfigEntry>| entry.and_then(|entry| entry.value.clone());
    let deleted = value(cleanup).is_none_or(|policy| policy.contains("delete"));
    let millis = value(retention)?.parse::<u64>().ok()?;
    deleted.then_some(Duration::from_millis(millis))
}

/// Lets marks expire, for as long as the consumer runs.
pub(super) async fn keep_short(expire: Expire, window: Duration, stop: CancellationToken) {
    let every = (window / 10).clamp(EXPIRE_EVERY_MIN, EXPIRE_EVERY_MAX);
    while stop.run_until_cancelled(tokio::time::sleep(every)).await.is_some() {
        loop {
            match expire().await {
                Ok(0) => break,
                Ok(expired) => tracing::debug!(expired, "marks have outlived the window"),
                Err(error) => {
                    tracing::warn!(%error, "marks cannot be deleted; it is tried again");
                    break;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{self, Write},
        sync::{Arc, Mutex},
    };

    use outbox_harness::kafka;

    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl Write for Log {
        fn write(&mut self, part: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("nobody panics with it").write(part)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn topics_given_as_a_pattern_are_said_not_to_be_compared() {
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).finish();
        let _subscribed = tracing::subscriber::set_default(subscriber);
        let topic = format!("kept-{}", uuid::Uuid::now_v7().simple());
        kafka::create_topic(&topic, 1, &[("retention.ms", "86400000")]).await;
        let check = async |topics: &[&str], length| {
            let topics: Vec<String> = topics.iter().map(|topic| (*topic).to_owned()).collect();
            let checked = check(&kafka::client(), &topics, Window { length, beyond: Beyond::Refuse }).await;
            let said = String::from_utf8(std::mem::take(&mut *log.0.lock().expect("nobody panics with it")));
            (checked.is_ok(), said.expect("it is text").contains("given as a pattern"))
        };
        assert_eq!(check(&[&topic], 2 * DAY).await, (true, false));
        assert_eq!(check(&["^kept-.*"], DAY / 2).await, (true, true), "it is not known what the pattern finds");
        assert_eq!(check(&["^kept-.*", &topic], 2 * DAY).await, (true, true));
        assert_eq!(check(&["^kept-.*", &topic], DAY / 2).await, (false, true), "what is named is compared");
    }
}
