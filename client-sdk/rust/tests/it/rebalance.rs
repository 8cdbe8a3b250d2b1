//! Consumers join and leave while events are handled.

use outbox_harness::eventually;

use crate::rig::{Effect, Rig, Running, SOON, events};

async fn effects_happen_once_each_while_members_come_and_go(property: &str, value: &str) {
    let rig = Rig::new(4).await;
    let start = || {
        // With its own protocol the broker decides on these two as well, and a client that sets them is refused.
        let builder = if property == "group.protocol" { rig.lasting("mailer") } else { rig.builder("mailer") };
        let consumer = builder.property(property, value).concurrency(2).handler(Effect("mailer"));
        Running::start(consumer.build().unwrap())
    };
    let batch = || events(40).into_iter().enumerate().map(|(n, event)| ((n % 4) as i32, event)).collect::<Vec<_>>();
    let first = start();
    rig.publish(batch()).await;
    rig.until_effects("mailer", 40).await;

    // A second member joins in mid-stream.
    let second = start();
    let mut rounds = 1;
    eventually("the second to have partitions", SOON, async || {
        rig.publish(batch()).await;
        rounds += 1;
        (second.stats().handled > 0).then_some(())
    })
    .await;

    // The first leaves in mid-stream, and the second goes on alone.
    rig.publish(events(2_000).into_iter().enumerate().map(|(n, event)| ((n % 4) as i32, event))).await;
    first.shut_down().await.unwrap();
    let all = rounds * 40 + 2_000;
    rig.until_effects("mailer", all).await;
    for partition in 0..4 {
        rig.until_committed("mailer", partition, all / 4).await;
    }
    second.shut_down().await.unwrap();
    assert_eq!(rig.effects("mailer").await, (all, all));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cooperative_rebalance_in_mid_stream_loses_and_repeats_nothing() {
    effects_happen_once_each_while_members_come_and_go("partition.assignment.strategy", "cooperative-sticky").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_eager_rebalance_in_mid_stream_loses_and_repeats_nothing() {
    effects_happen_once_each_while_members_come_and_go("partition.assignment.strategy", "range").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebalance_that_the_broker_decides_loses_and_repeats_nothing() {
    effects_happen_once_each_while_members_come_and_go("group.protocol", "consumer").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_static_member_that_comes_back_finds_its_partitions_where_they_were() {
    let rig = Rig::new(2).await;
    let start = |instance: &str| {
        Running::start(rig.builder("mailer").static_member(instance).handler(Effect("mailer")).build().unwrap())
    };
    let (one, other) = (start("one"), start("other"));
    let mut sent = 0;
    // Until both have a partition: the first may have had both at first.
    eventually("both to handle events", SOON, async || {
        rig.publish(events(2).into_iter().enumerate().map(|(n, event)| (n as i32, event))).await;
        sent += 2;
        (one.stats().handled > 0 && other.stats().handled > 0).then_some(())
    })
    .await;
    rig.until_effects("mailer", sent).await;

    // It leaves without a word and comes back: the other is given nothing meanwhile.
    let before = other.stats().handled;
    one.kill().await;
    rig.publish(events(20).into_iter().enumerate().map(|(n, event)| ((n % 2) as i32, event))).await;
    let back = start("one");
    rig.until_effects("mailer", sent + 20).await;
    assert_eq!((back.stats().handled, other.stats().handled - before), (10, 10));
    back.shut_down().await.unwrap();
    other.shut_down().await.unwrap();
    assert_eq!(rig.effects("mailer").await, (sent + 20, sent + 20));
}
