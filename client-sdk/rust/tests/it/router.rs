//! Several handlers by event type.

use outbox_harness::kafka::{fresh_topic, header, read_topic};
use outbox_proto::record::Attributes;
use outbox_sdk::{Event, HandlerError, Router, Transaction, json, protobuf};
use prost_types::Duration;

use crate::rig::{Rig, Running, effect, event};

#[derive(serde::Deserialize)]
struct Order {
    total: u32,
}

async fn activated(event: &Event, tx: &mut Transaction) -> Result<(), HandlerError> {
    effect("activated", event, tx).await
}

async fn placed(event: &Event, order: Order, tx: &mut Transaction) -> Result<(), HandlerError> {
    assert_eq!(order.total, 7);
    effect("placed", event, tx).await
}

async fn waited(event: &Event, time: Duration, tx: &mut Transaction) -> Result<(), HandlerError> {
    assert_eq!(time.seconds, 7);
    effect("waited", event, tx).await
}

#[tokio::test(flavor = "multi_thread")]
async fn each_event_goes_to_the_handler_of_its_type_and_what_fits_none_to_the_dead_letter_topic() {
    let (rig, letters) = (Rig::new(1).await, fresh_topic("letters", 1).await);
    let of = |event_type: &str| Attributes { event_type: event_type.into(), ..event() };
    let records = [
        ("user.activated", "{}"),
        ("order.placed", r#"{"total": 7}"#),
        ("order.placed", r#"{"total": "seven"}"#),
        // Field 1, the number 7; and no message at all.
        ("order.waited", "\x08\x07"),
        ("order.waited", "{}"),
        ("order.cancelled", "{}"),
    ];
    rig.publish_records(records.map(|(event_type, payload)| (0, None, of(event_type), payload))).await;

    let router = Router::new()
        .on("user.activated", activated)
        .on("order.placed", json(placed))
        .on("order.waited", protobuf(waited));
    let running = Running::start(rig.builder("shop").dead_letters(&letters).handler(router).build().unwrap());
    rig.until_committed("shop", 0, 6).await;
    running.shut_down().await.unwrap();

    for handled in ["activated", "placed", "waited"] {
        assert_eq!(rig.effects(handled).await, (1, 1), "{handled}");
    }
    let put = read_topic(&letters);
    let reasons: Vec<String> = put.iter().filter_map(|record| header(record, "outbox-origin-reason")).collect();
    assert_eq!(reasons.len(), 3);
    assert!(reasons[0].contains("cannot be read as the JSON of"), "{reasons:?}");
    assert!(reasons[1].contains("cannot be read as the Protobuf message"), "{reasons:?}");
    assert!(reasons[2].contains("no handler for the type `order.cancelled`"), "{reasons:?}");
    assert_eq!(header(&put[0], "outbox-origin-attempts").as_deref(), Some("1"), "nothing is gained by another");
}
