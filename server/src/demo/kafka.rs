//! The demo's own look at Kafka: reads a topic whole, and repeats a record as a relay would.
//!
//! Invariant: what is read is what stands in the log, in offset order; nothing here goes through the SDK.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use outbox_proto::record::Attributes;
use rdkafka::{
    ClientConfig, Message as _, Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer as _},
    error::KafkaError,
    message::{Header, Headers as _, OwnedHeaders, OwnedMessage},
    metadata::MetadataTopic,
    producer::{FutureProducer, FutureRecord},
};
use uuid::Uuid;

use super::Failure;
use crate::config;

const TIMEOUT: Duration = Duration::from_secs(10);
const PARTITIONS: i32 = 4;
/// As many replicas as the broker makes by default.
const REPLICAS: TopicReplication<'_> = TopicReplication::Fixed(-1);

/// A topic and how to get to it.
#[derive(Clone)]
pub(super) struct Topic {
    name: String,
    client: ClientConfig,
}

/// A record of an event as it stands in the log.
#[derive(Clone, Debug)]
pub(super) struct Record {
    pub(super) event: Attributes,
    pub(super) partition: i32,
    pub(super) offset: i64,
    pub(super) key: Vec<u8>,
    pub(super) payload: Vec<u8>,
    /// As they are, in their order.
    pub(super) headers: Vec<(String, Vec<u8>)>,
}

impl Topic {
    pub(super) fn new(name: String, kafka: &config::Kafka) -> Self {
        let mut client = ClientConfig::new();
        client.set("bootstrap.servers", &kafka.bootstrap_servers);
        for (key, value) in &kafka.properties {
            client.set(key, value);
        }
        Self { name, client }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Makes the topic; a broker in memory does that by itself.
    pub(super) async fn create(&self) -> Result<(), Failure> {
        let admin: AdminClient<DefaultClientContext> = self.client.create()?;
        let topic = NewTopic::new(&self.name, PARTITIONS, REPLICAS);
        let made = admin.create_topics([&topic], &within()).await;
        let made = made.map_err(|error| format!("Kafka makes no topic {}: {error}", self.name))?;
        made.into_iter().try_for_each(|made| made.map(drop).map_err(|(topic, code)| format!("{topic}: {code}").into()))
    }

    pub(super) async fn delete(&self) -> Result<(), Failure> {
        let admin: AdminClient<DefaultClientContext> = self.client.create()?;
        admin.delete_topics(&[&self.name], &within()).await?;
        Ok(())
    }

    /// The whole topic, partition by partition, each in offset order.
    pub(super) async fn read(&self) -> Result<Vec<Record>, Failure> {
        let (client, name) = (self.client.clone(), self.name.clone());
        tokio::task::spawn_blocking(move || read(client, &name)).await?
    }

    /// Appends the same record once more to its partition. Returns its new offset.
    pub(super) async fn repeat(&self, record: &Record) -> Result<i64, Failure> {
        let producer: FutureProducer = self.client.create()?;
        let headers = record
            .headers
            .iter()
            .fold(OwnedHeaders::new(), |headers, (key, value)| headers.insert(Header { key, value: Some(value) }));
        let again = FutureRecord::to(&self.name).partition(record.partition).key(&record.key);
        let sent = producer.send(again.payload(&record.payload).headers(headers), TIMEOUT).await;
        Ok(sent.map_err(|(error, _)| error)?.offset)
    }
}

fn within() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(TIMEOUT)).operation_timeout(Some(TIMEOUT))
}

fn read(mut client: ClientConfig, topic: &str) -> Result<Vec<Record>, Failure> {
    // librdkafka wants a group of every consumer, also of one that never joins it.
    client.set("group.id", format!("outboxd-demo-{}", Uuid::now_v7())).set("enable.auto.commit", "false");
    client.set("auto.offset.reset", "earliest").set("fetch.wait.max.ms", "10");
    let consumer: BaseConsumer = client.create()?;
    let metadata = consumer.fetch_metadata(Some(topic), TIMEOUT)?;
    let mut assignment = TopicPartitionList::new();
    // Where each partition that holds anything ends.
    let mut ends = HashMap::new();
    for partition in metadata.topics().iter().flat_map(MetadataTopic::partitions) {
        let (low, high) = consumer.fetch_watermarks(topic, partition.id(), TIMEOUT)?;
        if low < high {
            assignment.add_partition_offset(topic, partition.id(), Offset::Offset(low))?;
            ends.insert(partition.id(), high);
        }
    }
    consumer.assign(&assignment)?;
    let mut records = read_until(&consumer, ends)?;
    records.sort_by_key(|record| (record.partition, record.offset));
    Ok(records)
}

fn read_until(consumer: &BaseConsumer, mut ends: HashMap<i32, i64>) -> Result<Vec<Record>, Failure> {
    let (start, mut records) = (Instant::now(), Vec::new());
    while !ends.is_empty() {
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => {
                let (partition, next) = (message.partition(), message.offset() + 1);
                if ends.get(&partition).is_some_and(|end| next >= *end) {
                    ends.remove(&partition);
                }
                records.push(record(&message.detach())?);
            }
            Some(Err(KafkaError::PartitionEOF(_))) | None => {}
            Some(Err(error)) => return Err(error.into()),
        }
        if start.elapsed() > TIMEOUT {
            return Err(format!("partitions could not be read up to these offsets in {TIMEOUT:?}: {ends:?}").into());
        }
    }
    Ok(records)
}

fn record(message: &OwnedMessage) -> Result<Record, Failure> {
    let headers = message.headers().into_iter().flat_map(|headers| headers.iter());
    let headers: Vec<(String, Vec<u8>)> =
        headers.map(|header| (header.key.to_owned(), header.value.unwrap_or_default().to_owned())).collect();
    Ok(Record {
        event: Attributes::decode(headers.iter().map(|(name, value)| (name.as_str(), Some(value.as_slice()))))?,
        partition: message.partition(),
        offset: message.offset(),
        key: message.key().unwrap_or_default().to_owned(),
        payload: message.payload().unwrap_or_default().to_owned(),
        headers,
    })
}
