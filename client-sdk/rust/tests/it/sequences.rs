//! Gaps, repeats and new epochs in the sequences of keys are reported, and nothing else is done about them.

use std::sync::{Arc, Mutex};

use outbox_proto::{record::Attributes, sequence::SEQUENCE};
use outbox_sdk::{Irregularity, IrregularityKind as Kind};

use crate::rig::{Effect, Rig, Running, event};

fn numbered(epoch: u64, number: u64) -> Attributes {
    let headers = vec![(SEQUENCE.to_owned(), format!("{epoch}/{number}/default").into_bytes())];
    Attributes { headers, ..event() }
}

#[tokio::test(flavor = "multi_thread")]
async fn gaps_repeats_and_new_epochs_are_reported_and_every_event_is_handled() {
    let rig = Rig::new(1).await;
    let events = [numbered(5, 1), numbered(5, 2), numbered(5, 5), numbered(5, 4), numbered(6, 1), event()];
    rig.publish_keyed("a", &events).await;
    rig.publish_keyed("b", &[numbered(6, 9)]).await;
    let found = Arc::new(Mutex::new(Vec::<Irregularity>::new()));
    let report = Arc::clone(&found);
    let consumer = rig.builder("mailer").concurrency(4).sequences(100, move |irregularity| {
        report.lock().unwrap().push(irregularity.clone());
        // A report that fails does no harm.
        assert!(irregularity.kind != Kind::Repeat, "on purpose");
    });
    let running = Running::start(consumer.handler(Effect("mailer")).build().unwrap());
    rig.until_effects("mailer", 7).await;
    let stats = running.stats();
    running.shut_down().await.unwrap();

    assert_eq!(rig.effects("mailer").await, (7, 7), "numbers decide nothing");
    let found = found.lock().unwrap();
    let told: Vec<_> = found.iter().map(|one| (one.place.offset, one.epoch, one.number, one.kind)).collect();
    assert_eq!(
        told,
        [(2, 5, 5, Kind::Gap { missing: 2 }), (3, 5, 4, Kind::Repeat), (4, 6, 1, Kind::Epoch { before: 5 })]
    );
    assert!(found.iter().all(|one| (one.key.as_slice(), one.namespace.as_str()) == (b"a", "default")));
    assert_eq!((stats.sequence_missing, stats.sequence_repeats, stats.sequence_epochs), (2, 1, 1));
}
