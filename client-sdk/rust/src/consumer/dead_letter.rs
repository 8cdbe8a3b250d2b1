//! The dead-letter topic: where records go that cannot be handled, so that those behind them can.
//!
//! Invariant: a record is reported as put there only when Kafka has acknowledged it on all in-sync replicas. Its key,
//! payload and headers stay as they were, byte for byte; headers with its origin are added.
//!
//! It deliberately does not create the topic, and does not read it: [`Redrive`](super::Redrive) does.

use std::time::Duration;

use outbox_proto::record::{ORIGIN_PREFIX, origin};
use rdkafka::{
    ClientConfig,
    error::{KafkaError, RDKafkaErrorCode},
    message::{Header, OwnedHeaders},
    producer::{FutureProducer, FutureRecord, Producer as _},
    util::Timeout,
};

use super::record::Record;

/// How long Kafka may take to acknowledge a record before that counts as a failure.
const ACKNOWLEDGED_WITHIN: &str = "30000";

pub(super) struct DeadLetters {
    topic: String,
    producer: FutureProducer,
}

/// Why a record goes there.
pub(super) struct Reason<'a> {
    pub(super) consumer: &'a str,
    pub(super) text: &'a str,
    pub(super) attempts: u32,
}

impl DeadLetters {
    /// `kafka` is the consumer's configuration; what concerns only consumers is left out.
    pub(super) fn new(topic: String, kafka: &[(String, String)]) -> Result<Self, KafkaError> {
        let mut config = producer_config(kafka);
        config.set("message.timeout.ms", ACKNOWLEDGED_WITHIN);
        Ok(Self { topic, producer: config.create()? })
    }

    /// Puts a record there, and waits until Kafka has it.
    pub(super) async fn put(&self, record: &Record, reason: &Reason<'_>) -> Result<(), KafkaError> {
        let headers = headers(record, reason);
        let mut letter = FutureRecord::<[u8], [u8]>::to(&self.topic).headers(headers);
        letter.key = record.key();
        letter.payload = record.payload();
        match self.producer.send(letter, Timeout::After(Duration::from_secs(10))).await {
            Ok(_) => Ok(()),
            Err((error, _)) => Err(error),
        }
    }

    /// Whether trying again cannot help.
    pub(super) fn is_refused(error: &KafkaError) -> bool {
        matches!(
            error.rdkafka_error_code(),
            Some(
                RDKafkaErrorCode::MessageSizeTooLarge
                    | RDKafkaErrorCode::InvalidMessageSize
                    | RDKafkaErrorCode::TopicAuthorizationFailed
                    | RDKafkaErrorCode::InvalidTopic
            )
        )
    }
}

impl Drop for DeadLetters {
    fn drop(&mut self) {
        // What was not acknowledged was not reported either.
        self.producer.purge(rdkafka::producer::PurgeConfig::default().queue().inflight());
    }
}

/// A producer's configuration from a consumer's: idempotent, acknowledged by all in-sync replicas.
pub(super) fn producer_config(kafka: &[(String, String)]) -> ClientConfig {
    const CONSUMER_ONLY: [&str; 14] = [
        "auto.",
        "fetch.",
        "queued.",
        "group.",
        "session.timeout",
        "heartbeat.",
        "max.poll",
        "partition.assignment",
        "isolation.level",
        "enable.partition.eof",
        "check.crcs",
        "enable.auto",
        "max.partition.fetch",
        "client.rack",
    ];
    let mut config = ClientConfig::new();
    for (name, value) in kafka {
        if !CONSUMER_ONLY.iter().any(|prefix| name.starts_with(prefix)) {
            config.set(name, value);
        }
    }
    config.set("enable.idempotence", "true").set("acks", "all").set("partitioner", "murmur2_random");
    config
}

fn headers(record: &Record, reason: &Reason<'_>) -> OwnedHeaders {
    // Those of an earlier stay in a dead-letter topic make way for the new ones.
    let mut headers = OwnedHeaders::new();
    for (key, value) in record.headers().filter(|(name, _)| !name.starts_with(ORIGIN_PREFIX)) {
        headers = headers.insert(Header { key, value });
    }
    let (partition, offset) = (record.partition().to_string(), record.offset().to_string());
    let attempts = reason.attempts.to_string();
    let added = [
        (origin::TOPIC, record.topic()),
        (origin::PARTITION, &partition),
        (origin::OFFSET, &offset),
        (origin::CONSUMER, reason.consumer),
        (origin::REASON, reason.text),
        (origin::ATTEMPTS, &attempts),
    ];
    for (key, value) in added {
        headers = headers.insert(Header { key, value: Some(value) });
    }
    headers
}
