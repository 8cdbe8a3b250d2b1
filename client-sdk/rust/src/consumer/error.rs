//! Why a consumer cannot be built, or stopped.
//!
//! Invariant: an error that stops a consumer names the record at which it stopped, whose offset is not committed.
//! It deliberately has no variant for failures that pass, such as a database that is down: those are retried.

use std::{error::Error, time::Duration};

use outbox_proto::record::DecodeError;
use rdkafka::error::KafkaError;
use uuid::Uuid;

/// Why a consumer cannot be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// The consumer's name is empty or longer than 200 bytes.
    #[error("the consumer's name has {0} bytes, expected 1 to 200")]
    Name(usize),
    /// No topic was named.
    #[error("no topics: name at least one with .topics([…])")]
    NoTopics,
    /// A Kafka property that the consumer sets itself, because its promises rest on it.
    #[error("the Kafka property `{0}` is set by the consumer and cannot be changed")]
    Property(String),
    /// A limit is zero or too large.
    #[error("{name} is {value}, expected {expected}")]
    Limit {
        /// The builder's method.
        name: &'static str,
        /// What was given.
        value: String,
        /// What is accepted.
        expected: &'static str,
    },
    /// Kafka's client library refused the settings.
    #[error("the Kafka client cannot be made from these settings")]
    Kafka(#[source] KafkaError),
}

/// Where a record is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{topic}[{partition}]@{offset}")]
pub struct RecordPlace {
    /// Topic.
    pub topic: String,
    /// Partition.
    pub partition: i32,
    /// Offset.
    pub offset: i64,
}

/// Why a running consumer stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConsumerError {
    /// A record is not an event. Its offset is not committed: the consumer stops here again until the record is gone
    /// or the group's offset is moved past it.
    #[error("the record at {place} is not an event; nothing after it in its partition was handled")]
    Undecodable {
        /// Where it is.
        place: RecordPlace,
        /// What is wrong with it.
        #[source]
        source: DecodeError,
    },
    /// The handler failed as often as `max_attempts` allows. The event's offset is not committed and its effects are
    /// rolled back.
    #[error("event {event_id} at {place} failed {attempts} times; nothing after it in its partition was handled")]
    Exhausted {
        /// Where it is.
        place: RecordPlace,
        /// The event's id.
        event_id: Uuid,
        /// How often it was tried.
        attempts: u32,
        /// The last failure.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// The handler said that the event cannot be handled, or another event had been handled under its source and id,
    /// and there is no dead-letter topic. The event's offset is not committed.
    #[error("event {event_id} at {place} cannot be handled and there is no dead-letter topic; nothing after it was")]
    NoDeadLetters {
        /// Where it is.
        place: RecordPlace,
        /// The event's id.
        event_id: Uuid,
        /// Why it cannot be handled.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// The dead-letter topic does not take a record. Its offset is not committed.
    #[error("the record at {place} cannot be handled ({reason}), and the dead-letter topic refuses it")]
    DeadLetterRefused {
        /// Where it is.
        place: RecordPlace,
        /// Why it cannot be handled.
        reason: String,
        /// Why Kafka does not take it.
        #[source]
        source: Box<KafkaError>,
    },
    /// The handler said that nothing can be handled. The event's offset is not committed.
    #[error("the handler stopped the consumer at event {event_id} at {place}")]
    Fatal {
        /// Where it is.
        place: RecordPlace,
        /// The event's id.
        event_id: Uuid,
        /// What the handler said.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// A topic keeps records for longer than the window, and the consumer was told to refuse that.
    #[error(
        "`{topic}` keeps records for {}, and the window is {window:?}: make the window longer, or accept with \
         Beyond::Warn that older events are not handled", kept.map_or("ever".to_owned(), |kept| format!("{kept:?}"))
    )]
    Window {
        /// The topic.
        topic: String,
        /// How long it is remembered that an event was handled.
        window: Duration,
        /// How long the topic keeps records; `None` is for ever.
        kept: Option<Duration>,
    },
    /// Kafka's client library gave up, or its settings were refused.
    #[error("the Kafka client failed for good")]
    Kafka(#[source] KafkaError),
    /// The consumer's own thread cannot be started or has died.
    #[error("the consumer's polling thread failed: {0}")]
    Thread(String),
}
