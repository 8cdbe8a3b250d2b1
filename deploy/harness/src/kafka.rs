//! A topic of its own for each test, and reading all of it back.

use std::{
    ops::Range,
    time::{Duration, Instant},
};

use rdkafka::{
    ClientConfig, Message as _, Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    config::FromClientConfig,
    consumer::{BaseConsumer, Consumer},
    error::{KafkaError, RDKafkaErrorCode as Code},
    message::{Headers as _, OwnedMessage},
};
use uuid::Uuid;

/// The brokers of `KAFKA_BOOTSTRAP_SERVERS`.
pub fn bootstrap_servers() -> String {
    super::required("KAFKA_BOOTSTRAP_SERVERS")
}

/// A client configuration that knows the brokers.
pub fn client() -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", bootstrap_servers());
    config
}

/// Makes a topic with a unique name that starts with `prefix`, and returns the name.
pub async fn fresh_topic(prefix: &str, partitions: i32) -> String {
    let name = format!("{prefix}-{}", Uuid::now_v7().simple());
    create_topic(&name, partitions, &[]).await;
    name
}

/// Makes a topic with the given settings.
pub async fn create_topic(name: &str, partitions: i32, settings: &[(&str, &str)]) {
    make_topic(name, partitions, settings).await.expect("the topic can be created");
}

/// Makes a topic of one partition unless it is there.
pub async fn ensure_topic(name: &str) {
    match make_topic(name, 1, &[]).await {
        Ok(()) | Err(Code::TopicAlreadyExists) => {}
        Err(code) => panic!("the topic cannot be created: {code}"),
    }
}

async fn make_topic(name: &str, partitions: i32, settings: &[(&str, &str)]) -> Result<(), Code> {
    let admin: AdminClient<DefaultClientContext> = client().create().expect("a Kafka admin client can be made");
    let mut topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1));
    for (key, value) in settings {
        topic = topic.set(key, value);
    }
    let made = admin.create_topics([&topic], &AdminOptions::new()).await.expect("Kafka answers");
    made.into_iter().try_for_each(|result| result.map(drop).map_err(|(_, code)| code))
}

/// Takes a topic away with all it holds: what is large is not left behind.
pub async fn delete_topic(name: &str) {
    let admin: AdminClient<DefaultClientContext> = client().create().expect("a Kafka admin client can be made");
    let deleted = admin.delete_topics(&[name], &AdminOptions::new()).await.expect("Kafka answers");
    deleted.into_iter().for_each(|result| drop(result.expect("the topic can be deleted")));
}

/// A plain consumer of some of a topic's partitions, from their beginning on, in no group that lasts.
pub fn reader<C: Consumer + FromClientConfig>(topic: &str, partitions: Range<i32>) -> C {
    let consumer: C = client()
        .set("group.id", format!("reader-{}", Uuid::now_v7()))
        .set("enable.auto.commit", "false")
        // Else one that is slower than its fetches gets none for a second whenever its queue is full.
        .set("fetch.queue.backoff.ms", "20")
        // Else a fetch that waits where nothing is new holds up partitions whose queues were full when it was sent.
        .set("fetch.wait.max.ms", "50")
        .create()
        .expect("a Kafka consumer can be made");
    let mut assignment = TopicPartitionList::new();
    for partition in partitions {
        let from = assignment.add_partition_offset(topic, partition, Offset::Beginning);
        from.expect("the partition can be assigned");
    }
    consumer.assign(&assignment).expect("the partitions can be assigned");
    consumer
}

/// Reads each partition of a topic from its start to the end it has now, partition by partition, in offset order.
/// Blocks; meant for `tokio::task::spawn_blocking` or a test's end.
pub fn read_topic(topic: &str) -> Vec<OwnedMessage> {
    let timeout = Duration::from_secs(30);
    let consumer: BaseConsumer = client()
        .set("group.id", format!("reader-{}", Uuid::now_v7()))
        .set("enable.auto.commit", "false")
        .set("auto.offset.reset", "earliest")
        .create()
        .expect("a Kafka consumer can be made");
    let metadata = consumer.fetch_metadata(Some(topic), timeout).expect("Kafka answers");
    let partitions = metadata.topics().first().map_or(0, |t| t.partitions().len());
    let mut records = Vec::new();
    for partition in 0..i32::try_from(partitions).expect("few partitions") {
        let (low, high) = consumer.fetch_watermarks(topic, partition, timeout).expect("Kafka answers");
        let mut assignment = TopicPartitionList::new();
        assignment.add_partition_offset(topic, partition, Offset::Offset(low)).expect("the partition can be assigned");
        consumer.assign(&assignment).expect("the partition can be assigned");
        let (mut next, start) = (low, Instant::now());
        while next < high {
            assert!(start.elapsed() < 4 * timeout, "{topic}[{partition}] stops at {next}, its end is {high}");
            if let Some(record) = consumer.poll(Duration::from_millis(200)) {
                let record = record.expect("the record can be read");
                next = record.offset() + 1;
                records.push(record.detach());
            }
        }
    }
    records
}

/// The offset that a group has committed in each of a topic's first partitions, 0 where it has none. Blocks.
pub fn committed(group: &str, topic: &str, partitions: i32) -> Vec<i64> {
    let reader: BaseConsumer = client().set("group.id", group).create().expect("a Kafka consumer can be made");
    let mut list = TopicPartitionList::new();
    for partition in 0..partitions {
        list.add_partition(topic, partition);
    }
    let start = Instant::now();
    let committed = loop {
        match reader.committed_offsets(list.clone(), Duration::from_secs(30)) {
            Ok(committed) => break committed,
            // A broker that is new has to make the topic of offsets first.
            Err(error) if is_moving(&error) && start.elapsed() < Duration::from_secs(30) => {
                std::thread::sleep(Duration::from_millis(100));
            }
            Err(error) => panic!("the offsets of {group} cannot be read: {error}"),
        }
    };
    let offset = |offset| if let Offset::Offset(offset) = offset { offset } else { 0 };
    committed.elements().iter().map(|partition| offset(partition.offset())).collect()
}

/// Whether a group's coordinator is on its way to a broker.
fn is_moving(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(Code::NotCoordinator | Code::CoordinatorNotAvailable | Code::CoordinatorLoadInProgress)
    )
}

/// The value of a record's header as text.
pub fn header(record: &OwnedMessage, name: &str) -> Option<String> {
    let headers = record.headers()?;
    let value = headers.iter().find(|h| h.key == name)?.value?;
    Some(String::from_utf8_lossy(value).into_owned())
}
