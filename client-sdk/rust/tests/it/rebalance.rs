//! Consumers join and leave while events are handled.

use crate::rig::{Effect, Rig, Running, events};

async fn effects_happen_once_each_while_members_come_and_go(strategy: &str) {
    let rig = Rig::new(4).await;
    let start = || {
        let consumer = rig.builder("mailer").property("partition.assignment.strategy", strategy);
        Running::start(consumer.handler(Effect("mailer")).build().unwrap())
    };
    let batch = || events(1_000).into_iter().enumerate().map(|(n, event)| ((n % 4) as i32, event)).collect::<Vec<_>>();
    let first = start();
    rig.publish(batch()).await;
    rig.until_effects("mailer", 100).await;

    // A second member joins in mid-stream.
    let second = start();
    rig.publish(batch()).await;
    second.until("the second to have partitions", |stats| stats.handled > 0).await;
    rig.publish(batch()).await;

    // The first leaves in mid-stream, and the second goes on alone.
    first.shut_down().await.unwrap();
    rig.publish(batch()).await;
    rig.until_effects("mailer", 4_000).await;
    for partition in 0..4 {
        rig.until_committed("mailer", partition, 1_000).await;
    }
    second.shut_down().await.unwrap();
    assert_eq!(rig.effects("mailer").await, (4_000, 4_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cooperative_rebalance_in_mid_stream_loses_and_repeats_nothing() {
    effects_happen_once_each_while_members_come_and_go("cooperative-sticky").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_eager_rebalance_in_mid_stream_loses_and_repeats_nothing() {
    effects_happen_once_each_while_members_come_and_go("range").await;
}
