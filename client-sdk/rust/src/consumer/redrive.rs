//! Sending records of a dead-letter topic again, to the consumer that could not handle them.
//!
//! Invariants: only that consumer handles what is sent again, for each record keeps its name; a record is passed only
//! when Kafka has acknowledged its copy. A crash repeats some, which the inbox finds to be duplicates.
//!
//! It deliberately keeps no order: what comes again comes after events of the same key that were handled meanwhile.

use std::time::{Duration, Instant};

use outbox_proto::record::{ORIGIN_PREFIX, origin};
use rdkafka::{
    ClientConfig, Message as _, Offset, TopicPartitionList,
    consumer::{BaseConsumer, CommitMode, Consumer as _},
    error::{KafkaError, RDKafkaErrorCode as Code},
    message::{BorrowedMessage, Header, Headers as _, OwnedHeaders},
    producer::{FutureProducer, FutureRecord},
    util::Timeout,
};

use super::dead_letter::producer_config;

/// How long Kafka may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// Between two questions for a group's coordinator.
const PAUSE: Duration = Duration::from_millis(100);

/// Sends dead-lettered records again.
///
/// ```no_run
/// # async fn redrive() -> Result<(), Box<dyn std::error::Error>> {
/// use outbox_sdk::Redrive;
///
/// let sent = Redrive::new("mailer", "mailer-dead-letters").kafka("localhost:9092").run().await?;
/// println!("{sent} records were sent again");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Redrive {
    consumer: String,
    dead_letter_topic: String,
    target: Option<String>,
    properties: Vec<(String, String)>,
}

/// Why records were not sent again. Those that were stay sent; another run goes on behind them.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RedriveError {
    /// Kafka failed.
    #[error("Kafka failed after {sent} records had been sent again")]
    Kafka {
        /// How many were sent.
        sent: u64,
        /// What failed.
        #[source]
        source: KafkaError,
    },
    /// Reading stopped getting on.
    #[error("nothing could be read from Kafka for {PATIENCE:?}, after {0} records had been sent again")]
    Stuck(u64),
}

impl Redrive {
    /// Of the records in this topic, those that this consumer could not handle.
    pub fn new(consumer: impl Into<String>, dead_letter_topic: impl Into<String>) -> Self {
        Self {
            consumer: consumer.into(),
            dead_letter_topic: dead_letter_topic.into(),
            target: None,
            properties: vec![("bootstrap.servers".to_owned(), "localhost:9092".to_owned())],
        }
    }

    /// The Kafka brokers to start from.
    #[must_use]
    pub fn kafka(self, bootstrap_servers: impl Into<String>) -> Self {
        self.property("bootstrap.servers", bootstrap_servers)
    }

    /// Sets a property of librdkafka, such as `security.protocol`.
    #[must_use]
    pub fn property(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.properties.push((name.into(), value.into()));
        self
    }

    /// Sends them to this topic, which the consumer has to consume, instead of the one each came from: then consumers
    /// that do not use this SDK see nothing of it either.
    #[must_use]
    pub fn to(mut self, topic: impl Into<String>) -> Self {
        self.target = Some(topic.into());
        self
    }

    /// Sends what is in the dead-letter topic now and was not sent by an earlier run. Returns how many records.
    ///
    /// Blocks a thread of its own; dropping the future does not stop what has begun.
    ///
    /// # Errors
    /// [`RedriveError`].
    ///
    /// # Panics
    /// Outside a Tokio runtime.
    pub async fn run(self) -> Result<u64, RedriveError> {
        let runtime = tokio::runtime::Handle::current();
        let ended = tokio::task::spawn_blocking(move || {
            let mut sent = 0;
            match self.pass(&runtime, &mut sent) {
                Ok(true) => Ok(sent),
                Ok(false) => Err(RedriveError::Stuck(sent)),
                Err(source) => Err(RedriveError::Kafka { sent, source }),
            }
        });
        ended.await.unwrap_or(Err(RedriveError::Stuck(0)))
    }

    /// False when reading stopped getting on.
    fn pass(&self, runtime: &tokio::runtime::Handle, sent: &mut u64) -> Result<bool, KafkaError> {
        let (reader, producer) = (self.reader()?, self.producer()?);
        let metadata = reader.fetch_metadata(Some(&self.dead_letter_topic), PATIENCE)?;
        let partitions = metadata.topics().first().map_or(&[][..], |topic| topic.partitions());
        for partition in partitions {
            if !self.pass_partition(partition.id(), &reader, &producer, runtime, sent)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn pass_partition(
        &self,
        partition: i32,
        reader: &BaseConsumer,
        producer: &FutureProducer,
        runtime: &tokio::runtime::Handle,
        sent: &mut u64,
    ) -> Result<bool, KafkaError> {
        let (low, end) = reader.fetch_watermarks(&self.dead_letter_topic, partition, PATIENCE)?;
        let mut place = TopicPartitionList::new();
        place.add_partition(&self.dead_letter_topic, partition);
        let known = patiently(|| reader.committed_offsets(place.clone(), PATIENCE))?;
        let known = known.find_partition(&self.dead_letter_topic, partition);
        let mut next = match known.map(|known| known.offset()) {
            Some(Offset::Offset(offset)) => offset.max(low),
            _ => low,
        };
        place.set_partition_offset(&self.dead_letter_topic, partition, Offset::Offset(next))?;
        reader.assign(&place)?;
        let mut heard = Instant::now();
        while next < end {
            match reader.poll(Duration::from_millis(200)) {
                Some(record) => {
                    let record = record?;
                    if let Some((topic, headers)) = self.again(&record) {
                        let mut copy = FutureRecord::<[u8], [u8]>::to(&topic).headers(headers);
                        (copy.key, copy.payload) = (record.key(), record.payload());
                        let delivered = runtime.block_on(producer.send(copy, Timeout::After(PATIENCE)));
                        delivered.map_err(|(error, _)| error)?;
                        *sent += 1;
                    }
                    next = record.offset() + 1;
                    place.set_partition_offset(&self.dead_letter_topic, partition, Offset::Offset(next))?;
                    heard = Instant::now();
                }
                // The last offsets of a partition may hold no record.
                None if reader.position()?.elements().iter().any(|at| at.offset() == Offset::Offset(end)) => break,
                None if heard.elapsed() > PATIENCE => return Ok(false),
                None => {}
            }
        }
        patiently(|| reader.commit(&place, CommitMode::Sync))?;
        Ok(true)
    }

    /// The topic and headers of a record's copy: its own headers, and the consumer's name.
    fn again(&self, record: &BorrowedMessage<'_>) -> Option<(String, OwnedHeaders)> {
        let of = |name: &str| {
            let found = record.headers()?.iter().find(|header| header.key == name)?.value?;
            std::str::from_utf8(found).ok()
        };
        if of(origin::CONSUMER) != Some(&self.consumer) {
            return None;
        }
        let topic = self.target.as_deref().or_else(|| of(origin::TOPIC))?.to_owned();
        let mut headers = OwnedHeaders::new();
        for header in record.headers()?.iter().filter(|header| !header.key.starts_with(ORIGIN_PREFIX)) {
            headers = headers.insert(Header { key: header.key, value: header.value });
        }
        Some((topic, headers.insert(Header { key: origin::CONSUMER, value: Some(&self.consumer) })))
    }

    /// Remembers how far it got as a group of its own.
    fn reader(&self) -> Result<BaseConsumer, KafkaError> {
        let mut config: ClientConfig = self.properties.iter().cloned().collect();
        config
            .set("group.id", format!("outbox-redrive-{}", self.consumer))
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .create()
    }

    fn producer(&self) -> Result<FutureProducer, KafkaError> {
        producer_config(&self.properties).set("message.timeout.ms", PATIENCE.as_millis().to_string()).create()
    }
}

/// Asks again while the group's coordinator is on its way to a broker, as it is when a broker has just started or ended.
fn patiently<T>(ask: impl Fn() -> Result<T, KafkaError>) -> Result<T, KafkaError> {
    let began = Instant::now();
    loop {
        match ask() {
            Err(error) if is_moving(&error) && began.elapsed() < PATIENCE => std::thread::sleep(PAUSE),
            answer => return answer,
        }
    }
}

fn is_moving(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(Code::NotCoordinator | Code::CoordinatorNotAvailable | Code::CoordinatorLoadInProgress)
    )
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn a_coordinator_that_moves_is_asked_again_and_any_other_error_is_told() {
        let asked = Cell::new(0);
        let answer = patiently(|| {
            asked.set(asked.get() + 1);
            match asked.get() {
                1 => Err(KafkaError::OffsetFetch(Code::NotCoordinator)),
                2 => Err(KafkaError::ConsumerCommit(Code::CoordinatorLoadInProgress)),
                _ => Ok(7),
            }
        });
        assert_eq!((answer, asked.get()), (Ok(7), 3));
        let refused = patiently(|| Err::<(), _>(KafkaError::OffsetFetch(Code::GroupAuthorizationFailed)));
        assert_eq!(refused, Err(KafkaError::OffsetFetch(Code::GroupAuthorizationFailed)));
    }
}
