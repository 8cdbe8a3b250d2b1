//! Records for the consumers: events numbered per key, and repeats of recent ones.

use std::collections::HashMap;

use futures_util::future::join_all;
use outbox_harness::{kafka, zipf::Zipf};
use outbox_proto::record::Attributes;
use rand::{RngExt as _, rngs::StdRng};
use rdkafka::{
    message::{Header, OwnedHeaders},
    producer::{FutureProducer, FutureRecord},
};
use uuid::Uuid;

use super::Options;

/// Publishes the events, and repeats of some later on; returns how many records that is.
pub(super) async fn publish(options: &Options, topic: &str, random: &mut StdRng) -> usize {
    let producer: FutureProducer =
        kafka::client().set("enable.idempotence", "true").set("linger.ms", "5").create().expect("a producer");
    let zipf = Zipf::new(options.keys);
    let (mut numbers, mut recent) = (HashMap::<usize, i64>::new(), Vec::<(String, i64, Uuid)>::new());
    let (mut records, mut under_way) = (0, Vec::new());
    let mut fresh = 0;
    while fresh < options.events {
        let repeat = !recent.is_empty() && random.random_range(0..100) < options.repeats;
        let (key, n, id) = if repeat {
            recent[random.random_range(0..recent.len())].clone()
        } else {
            let key = zipf.draw(random);
            let n = numbers.entry(key).or_default();
            *n += 1;
            fresh += 1;
            (format!("key-{key}"), *n, Uuid::now_v7())
        };
        let payload = n.to_string();
        let headers = headers(id);
        let record = FutureRecord::to(topic).key(&key).payload(&payload).headers(headers);
        let sent = producer.send_result(record).map_err(|(error, _)| error).expect("the queue has room");
        under_way.push(sent);
        records += 1;
        if !repeat {
            let at = random.random_range(0..=recent.len().min(999));
            if at == recent.len() { recent.push((key, n, id)) } else { recent[at] = (key, n, id) }
        }
        if under_way.len() == 10_000 {
            delivered(std::mem::take(&mut under_way)).await;
        }
    }
    delivered(under_way).await;
    records
}

async fn delivered(under_way: Vec<rdkafka::producer::DeliveryFuture>) {
    for delivery in join_all(under_way).await {
        delivery.expect("the producer lives").map_err(|(error, _)| error).expect("Kafka takes the record");
    }
}

fn headers(id: Uuid) -> OwnedHeaders {
    let attributes = Attributes {
        id,
        source: "/soak".into(),
        event_type: "counted".into(),
        subject: None,
        time: None,
        content_type: None,
        traceparent: None,
        tracestate: None,
        headers: Vec::new(),
    };
    let mut headers = OwnedHeaders::new();
    attributes.encode(|key, value| {
        headers = std::mem::take(&mut headers).insert(Header { key, value: Some(value) });
    });
    headers
}
