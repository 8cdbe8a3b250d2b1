//! Publishes to Kafka: the only part that knows librdkafka.
//!
//! One idempotent producer at a time, whose thread reports deliveries into a list that the relay empties. Within one
//! producer the log of each partition is a gapless prefix of what was enqueued, so a producer that is abandoned can
//! only leave repeats behind, never a record out of order. It deliberately decides nothing about failed records.

mod fault;
pub mod limits;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
    time::{Duration, Instant},
};

use rdkafka::{
    ClientConfig, ClientContext, Message as _,
    config::RDKafkaLogLevel,
    error::{KafkaError, RDKafkaErrorCode as Code},
    message::{Header, OwnedHeaders},
    producer::{BaseRecord, DeliveryResult, Producer as _, ProducerContext, PurgeConfig, ThreadedProducer},
};
use tokio::sync::Notify;

use self::fault::fault;
use super::{
    Error,
    opening::Openings,
    publisher::{Fault, Place, Publisher, Record, Refusal, Report, Topic},
};

/// How long a topic may be unknown before it counts as missing: a broker that makes topics by itself needs a moment.
const TOPIC_GRACE: Duration = Duration::from_secs(3);
const METADATA_TIMEOUT: Duration = Duration::from_secs(5);
const METADATA_PAUSE: Duration = Duration::from_millis(250);
const PURGE_TIMEOUT: Duration = Duration::from_secs(5);

type Producer = ThreadedProducer<Context>;

/// The Kafka publisher.
pub struct Kafka {
    config: ClientConfig,
    producer: Arc<Producer>,
    shared: Arc<Shared>,
    last_ready: String,
    last_ready_partitions: usize,
    openings: Openings,
    /// Why there is no producer to enqueue to.
    broken: Option<String>,
}

impl Kafka {
    /// Makes the producer. Does not wait for a broker.
    ///
    /// # Errors
    /// [`Error::Producer`] when librdkafka refuses a property.
    pub fn new(properties: &BTreeMap<String, String>) -> Result<Self, Error> {
        let mut config = ClientConfig::new();
        for (name, value) in properties {
            config.set(name, value);
        }
        let shared = Arc::new(Shared::default());
        let producer = producer(&config, &shared).map_err(|e| Error::Producer(e.to_string()))?;
        Ok(Self {
            config,
            producer,
            shared,
            last_ready: String::new(),
            last_ready_partitions: 0,
            openings: Openings::default(),
            broken: None,
        })
    }
}

fn producer(config: &ClientConfig, shared: &Arc<Shared>) -> Result<Arc<Producer>, KafkaError> {
    config.create_with_context(Context(Arc::clone(shared))).map(Arc::new)
}

impl Publisher for Kafka {
    fn topic(&mut self, topic: &str) -> Topic {
        if topic == self.last_ready {
            return Topic::Ready;
        }
        let mut topics = lock(&self.shared.topics);
        match topics.get(topic) {
            Some(Known { topic: Topic::Missing(_), since, .. }) if since.elapsed() > TOPIC_GRACE => {}
            Some(known) => {
                if known.topic == Topic::Ready {
                    topic.clone_into(&mut self.last_ready);
                    self.last_ready_partitions = known.partitions;
                }
                return known.topic.clone();
            }
            None => {}
        }
        topics.insert(topic.to_owned(), Known { topic: Topic::Asking, partitions: 0, since: Instant::now() });
        let (producer, shared, topic) = (Arc::clone(&self.producer), Arc::clone(&self.shared), topic.to_owned());
        tokio::task::spawn_blocking(move || ask(&producer, &shared, &topic));
        Topic::Asking
    }

    fn enqueue(&mut self, record: &Record<'_>, token: usize) -> Result<(), Refusal> {
        if let Some(reason) = &self.broken {
            return Err(Refusal::Publisher(reason.clone()));
        }
        let mut headers = Some(OwnedHeaders::new_with_capacity(10));
        let put = |name: &str, value: &[u8]| {
            headers = headers.take().map(|h| h.insert(Header { key: name, value: Some(value) }));
        };
        let value = record.encode(put).map_err(|e| Refusal::Record(e.to_string()))?;
        let event = record.event;
        if let Some(key) = event.key {
            let partitions = self.last_ready_partitions;
            if !self.openings.admit(event.topic, partitions, key, token) {
                self.openings.take_note(&lock(&self.shared.reports));
                if !self.openings.admit(event.topic, partitions, key, token) {
                    return Err(Refusal::Later);
                }
            }
        }
        let mut base = BaseRecord::with_opaque_to(event.topic, token).timestamp(event.time.timestamp_millis());
        base.payload = value.as_deref();
        base.key = event.key;
        base.headers = headers;
        self.producer.send(base).map_err(|(error, _)| {
            self.openings.not_sent(token);
            match error {
                KafkaError::MessageProduction(Code::QueueFull) => Refusal::Full,
                error => match fault(&error) {
                    Fault::Record(reason) | Fault::Unclear(reason) => Refusal::Record(reason),
                    Fault::Topic(reason) => Refusal::Topic(reason),
                    Fault::Publisher(reason) => Refusal::Publisher(reason),
                },
            }
        })
    }

    fn take(&mut self, reports: &mut Vec<Report>) {
        let first = reports.len();
        reports.append(&mut lock(&self.shared.reports));
        self.openings.take_note(&reports[first..]);
    }

    async fn changed(&self) {
        self.shared.changed.notified().await;
    }

    async fn reset(&mut self) -> Vec<Report> {
        self.last_ready.clear();
        self.openings = Openings::default();
        let closing = Arc::clone(&self.producer);
        // Waits for librdkafka's threads, so it must not run on the runtime's.
        if let Err(error) = tokio::task::spawn_blocking(move || close(&closing)).await {
            tracing::error!(%error, "the old kafka producer could not be closed");
        }
        let old = std::mem::take(&mut self.shared);
        self.shared.heard.store(old.heard.load(Ordering::Relaxed), Ordering::Relaxed);
        match producer(&self.config, &self.shared) {
            Ok(new) => {
                let old = std::mem::replace(&mut self.producer, new);
                tokio::task::spawn_blocking(move || drop(old));
                self.broken = None;
            }
            // The same properties made one before: what is missing is a thread or a file handle.
            Err(error) => self.broken = Some(error.to_string()),
        }
        std::mem::take(&mut *lock(&old.reports))
    }

    fn reachable(&self) -> Option<bool> {
        match self.shared.heard.load(Ordering::Relaxed) {
            0 => None,
            heard => Some(heard == HEARD_UP),
        }
    }
}

impl Drop for Kafka {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::Relaxed);
        self.producer.purge(PurgeConfig::default().queue().inflight());
    }
}

/// Abandons what is enqueued and waits until all of it has been reported.
fn close(producer: &Producer) {
    producer.context().0.closed.store(true, Ordering::Relaxed);
    producer.purge(PurgeConfig::default().queue().inflight());
    // Its own thread reports; this waits for it.
    if let Err(error) = producer.flush(PURGE_TIMEOUT) {
        tracing::warn!(%error, "the old kafka producer did not report everything in time");
    }
}

/// Asks for a topic until there is an answer. Asking makes the topic where the broker is set up so.
fn ask(producer: &Producer, shared: &Shared, topic: &str) {
    let mut unknown_since = None;
    while !shared.closed.load(Ordering::Relaxed) {
        let answer = match producer.client().fetch_metadata(Some(topic), METADATA_TIMEOUT) {
            Ok(metadata) => match metadata.topics().first() {
                Some(topic) => topic.error().map(Code::from).map_or(Ok(topic.partitions().len()), Err),
                None => Err(Code::UnknownTopic),
            },
            // Not the topic's fault: wait for the broker.
            Err(_) => {
                unknown_since = None;
                std::thread::sleep(METADATA_PAUSE);
                continue;
            }
        };
        shared.heard.store(HEARD_UP, Ordering::Relaxed);
        match answer {
            Ok(partitions) => return shared.answer(topic, Topic::Ready, partitions),
            Err(Code::LeaderNotAvailable | Code::UnknownTopicOrPartition | Code::UnknownTopic)
                if unknown_since.get_or_insert_with(Instant::now).elapsed() < TOPIC_GRACE =>
            {
                std::thread::sleep(METADATA_PAUSE);
            }
            Err(code) => return shared.answer(topic, Topic::Missing(code.to_string()), 0),
        }
    }
}

/// What is known of a topic, and since when.
struct Known {
    topic: Topic,
    partitions: usize,
    since: Instant,
}

#[derive(Default)]
struct Shared {
    reports: Mutex<Vec<Report>>,
    topics: Mutex<HashMap<String, Known>>,
    changed: Notify,
    closed: AtomicBool,
    heard: AtomicU8,
}

const HEARD_UP: u8 = 1;
const HEARD_DOWN: u8 = 2;

impl Shared {
    fn answer(&self, name: &str, topic: Topic, partitions: usize) {
        lock(&self.topics).insert(name.to_owned(), Known { topic, partitions, since: Instant::now() });
        self.changed.notify_one();
    }
}

struct Context(Arc<Shared>);

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        match level {
            RDKafkaLogLevel::Debug | RDKafkaLogLevel::Info | RDKafkaLogLevel::Notice => {
                tracing::trace!(facility, message, "librdkafka");
            }
            // Its errors, such as a refused connection, come several times a second; `error` below tells the relay.
            _ => tracing::debug!(facility, message, "librdkafka"),
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        if matches!(error, KafkaError::Global(Code::AllBrokersDown)) {
            self.0.heard.store(HEARD_DOWN, Ordering::Relaxed);
        }
        tracing::debug!(%error, reason, "librdkafka reports an error");
    }
}

impl ProducerContext for Context {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, token: usize) {
        let outcome = match result {
            Ok(record) => {
                self.0.heard.store(HEARD_UP, Ordering::Relaxed);
                Ok(Place { partition: record.partition(), offset: record.offset() })
            }
            Err((error, _)) => Err(fault(error)),
        };
        let mut reports = lock(&self.0.reports);
        reports.push(Report { token, outcome });
        if reports.len() == 1 {
            self.0.changed.notify_one();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
