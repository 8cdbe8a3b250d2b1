//! The two ends at which events are received: the SDK's consumer with its Postgres inbox, and a plain Kafka consumer.

use std::{sync::Arc, time::Duration};

use outbox_harness::{kafka, postgres::Database};
use outbox_sdk::{Consumer, Event, Handler, HandlerError, PostgresInbox, Transaction};
use rdkafka::{Message as _, consumer::BaseConsumer};
use tokio::task::JoinHandle;

use super::{PARTITIONS, moments::Moments};

/// How long all of it may take.
const WITHIN: Duration = Duration::from_secs(600);

struct Measure(Arc<Moments>);

impl Handler for Measure {
    async fn handle(&self, event: &Event, _: &mut Transaction) -> Result<(), HandlerError> {
        self.0.received(event.json()?);
        Ok(())
    }
}

/// Receives in a handler until every event has come.
pub(super) async fn in_handler(database: &Database, topic: &str, moments: Arc<Moments>) -> JoinHandle<()> {
    let inbox = PostgresInbox::new(database.pool().await);
    inbox.ensure_schema().await.expect("the inbox can be made");
    let consumer = Consumer::builder("latency")
        .kafka(kafka::bootstrap_servers())
        .property("auto.offset.reset", "earliest")
        .topics([topic])
        .inbox(inbox)
        .handler(Measure(Arc::clone(&moments)))
        .build()
        .expect("a consumer can be built");
    tokio::spawn(async move {
        let all = async move {
            let all = tokio::time::timeout(WITHIN, moments.until_all_received()).await;
            all.expect("every event is handled in time");
        };
        consumer.run(all).await.expect("the consumer ends well");
    })
}

/// Receives from Kafka itself until every event has come.
pub(super) fn in_kafka(topic: &str, moments: Arc<Moments>) -> JoinHandle<()> {
    let consumer: BaseConsumer = kafka::reader(topic, 0..PARTITIONS);
    tokio::task::spawn_blocking(move || {
        let began = std::time::Instant::now();
        while !moments.are_all_received() {
            assert!(began.elapsed() < WITHIN, "not every event came within {WITHIN:?}");
            if let Some(record) = consumer.poll(Duration::from_millis(100)) {
                let record = record.expect("the record can be read");
                let number =
                    std::str::from_utf8(record.payload().unwrap_or_default()).ok().and_then(|n| n.parse().ok());
                moments.received(number.expect("every record has a number"));
            }
        }
    })
}
