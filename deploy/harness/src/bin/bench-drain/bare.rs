//! A bare librdkafka loop that sends records out of memory.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use outbox_harness::{
    backlog::{KEYS, PAYLOAD_BYTES},
    kafka,
};
use outbox_proto::record::Attributes;
use rdkafka::{
    ClientContext,
    error::{KafkaError, RDKafkaErrorCode},
    message::{Header, OwnedHeaders},
    producer::{BaseRecord, DeliveryResult, Producer as _, ProducerContext, ThreadedProducer},
};
use uuid::Uuid;

use super::PARTITIONS;

/// Seconds from the first record sent to the last one acknowledged. Blocks.
pub(super) fn send(events: usize) -> f64 {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let topic = runtime.block_on(kafka::fresh_topic("bare", PARTITIONS));
    let acknowledged = Arc::new(AtomicUsize::new(0));
    let producer: ThreadedProducer<Count> = kafka::client()
        .set("acks", "all")
        .set("enable.idempotence", "true")
        .set("enable.gapless.guarantee", "true")
        .set("message.timeout.ms", "0")
        .set("partitioner", "murmur2_random")
        .set("linger.ms", "2")
        .set("batch.num.messages", "10000")
        .create_with_context(Count(Arc::clone(&acknowledged)))
        .expect("a producer can be made");
    let payload = vec![b'x'; PAYLOAD_BYTES];
    let now = chrono::Utc::now();
    let start = Instant::now();
    for n in 0..events {
        let attributes = Attributes {
            id: Uuid::now_v7(),
            source: "bench".into(),
            event_type: "drained".into(),
            subject: None,
            time: Some(now),
            content_type: Some("application/json".into()),
            traceparent: None,
            tracestate: None,
            headers: Vec::new(),
        };
        let mut headers = Some(OwnedHeaders::new());
        attributes.encode(|key, value| {
            headers = headers.take().map(|headers| headers.insert(Header { key, value: Some(value) }));
        });
        let key = (n % KEYS).to_string();
        let mut record = BaseRecord::to(&topic).key(&key).payload(&payload).headers(headers.expect("they are there"));
        while let Err((error, unsent)) = producer.send(record) {
            let full = matches!(error, KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull));
            assert!(full, "a record cannot be sent: {error}");
            record = unsent;
            std::thread::sleep(Duration::from_micros(200));
        }
    }
    producer.flush(Duration::from_secs(120)).expect("every record is acknowledged");
    assert_eq!(acknowledged.load(Ordering::Relaxed), events);
    start.elapsed().as_secs_f64()
}

struct Count(Arc<AtomicUsize>);

impl ClientContext for Count {}

impl ProducerContext for Count {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        assert!(result.is_ok(), "a record failed: {result:?}");
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}
