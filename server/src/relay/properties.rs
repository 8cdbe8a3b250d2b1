//! The librdkafka properties of the relay's producer.
//!
//! Those that delivery and order rest on are fixed; the operator may set any other. It deliberately does not check
//! that librdkafka knows them: making the producer does.

use std::collections::BTreeMap;

use super::Error;
use crate::config;

/// What delivery and order rest on.
const FIXED: &[(&str, &str)] = &[
    ("acks", "all"),
    ("enable.idempotence", "true"),
    // A failed record stops the producer: none behind it can pass.
    ("enable.gapless.guarantee", "true"),
    // A record never expires by itself: a later one of its key would take its place.
    ("message.timeout.ms", "0"),
    // As Java clients place keys.
    ("partitioner", "murmur2_random"),
];

/// Other names of fixed properties, and those that are set elsewhere.
const REFUSED: &[(&str, &str)] = &[
    ("request.required.acks", "it is `all`"),
    ("delivery.timeout.ms", "a record never expires by itself"),
    ("queuing.strategy", "records are sent in the order they are enqueued"),
    ("retries", "a record is retried until it is acknowledged or rejected"),
    ("message.send.max.retries", "a record is retried until it is acknowledged or rejected"),
    ("transactional.id", "the relay's producer is idempotent, not transactional"),
    ("delivery.report.only.error", "the relay needs every report"),
    ("bootstrap.servers", "set `kafka.bootstrap_servers`"),
    ("metadata.broker.list", "set `kafka.bootstrap_servers`"),
    ("queue.buffering.max.messages", "set `relay.in_flight_events_max`"),
    ("queue.buffering.max.kbytes", "set `relay.in_flight_bytes_max`"),
];

/// What the operator may change.
const DEFAULTS: &[(&str, &str)] = &[
    ("client.id", "outboxd-relay"),
    ("linger.ms", "2"),
    ("batch.num.messages", "10000"),
    ("reconnect.backoff.max.ms", "1000"),
    // A broker that restarts closes its connections; that is no news.
    ("log.connection.close", "false"),
];

/// The properties of a client that only asks.
pub(super) fn client(kafka: &config::Kafka) -> BTreeMap<String, String> {
    let mut all = kafka.properties.clone();
    all.insert("bootstrap.servers".into(), kafka.bootstrap_servers.clone());
    all.entry("client.id".into()).or_insert_with(|| "outboxd-limits".into());
    all.entry("log.connection.close".into()).or_insert_with(|| "false".into());
    all
}

/// All properties of the producer.
///
/// # Errors
/// [`Error::Property`] when the operator sets one that is fixed.
pub(super) fn all(relay: &config::Relay, kafka: &config::Kafka) -> Result<BTreeMap<String, String>, Error> {
    let fixed = FIXED.iter().map(|(name, value)| (*name, format!("it is `{value}`")));
    let refused = REFUSED.iter().map(|(name, reason)| (*name, (*reason).to_owned()));
    for (name, reason) in fixed.chain(refused) {
        if let Some(name) = given(&kafka.properties, name) {
            return Err(Error::Property { name, reason });
        }
    }
    // The relay bounds what is in flight; the producer's own queue needs room for that and for what it keeps besides.
    let kbytes = (relay.in_flight_bytes_max / 512 + 4096).min(2_097_151);
    let mut all: BTreeMap<String, String> =
        DEFAULTS.iter().chain(FIXED).map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    all.extend(kafka.properties.clone());
    all.insert("bootstrap.servers".into(), kafka.bootstrap_servers.clone());
    all.insert("queue.buffering.max.messages".into(), (relay.in_flight_events_max + 1_000).to_string());
    all.insert("queue.buffering.max.kbytes".into(), kbytes.to_string());
    Ok(all)
}

/// The name under which a property is set, if it is: librdkafka takes those of topics with `topic.` before it, too.
fn given(properties: &BTreeMap<String, String>, name: &str) -> Option<String> {
    [name.to_owned(), format!("topic.{name}")].into_iter().find(|name| properties.contains_key(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(name: &str, value: &str) -> Result<BTreeMap<String, String>, Error> {
        let mut kafka = config::Kafka::default();
        kafka.properties.insert(name.into(), value.into());
        all(&config::Relay::default(), &kafka)
    }

    #[test]
    fn what_delivery_rests_on_cannot_be_overridden() {
        for (name, _) in FIXED.iter().chain(REFUSED) {
            for name in [(*name).to_owned(), format!("topic.{name}")] {
                let refused = with(&name, "1").expect_err("it is refused").to_string();
                assert!(refused.contains(&format!("kafka.properties.{name} ")), "{refused}");
            }
        }
    }

    #[test]
    fn the_operator_may_set_the_rest() {
        let all = with("linger.ms", "20").expect("it may be set");
        assert_eq!((all["linger.ms"].as_str(), all["acks"].as_str()), ("20", "all"));
    }
}
