//! Gap-free sequences per key: in commit order, without a gap, in epochs, and only where they were asked for.

use std::collections::HashMap;

use futures_util::future::join_all;
use outbox_harness::kafka;
use outbox_proto::sequence::{SEQUENCE, Sequence};
use outbox_server::store::{
    relay::{replay, schedule},
    sequence,
};
use rdkafka::message::Message as _;
use sqlx::{Connection as _, Executor as _};

use crate::support::outbox::Outbox;

/// Of each key, in order of position: epoch and number.
async fn numbers(outbox: &Outbox) -> HashMap<String, Vec<(u64, u64)>> {
    let stored: Vec<(Vec<u8>, Option<String>)> = sqlx::query_as(
        "select key, headers ->> 'outbox-sequence' from outbox.events where key is not null order by position",
    )
    .fetch_all(&mut outbox.connect().await)
    .await
    .expect("events can be read");
    let mut numbers = HashMap::<String, Vec<(u64, u64)>>::new();
    for (key, header) in stored {
        let header = header.expect("it has a number");
        let sequence = Sequence::parse(&header).expect("it can be read");
        assert_eq!(sequence.namespace, "default");
        numbers.entry(String::from_utf8_lossy(&key).into()).or_default().push((sequence.epoch, sequence.number));
    }
    numbers
}

fn counted(epoch: u64, numbers: impl IntoIterator<Item = u64>) -> Vec<(u64, u64)> {
    numbers.into_iter().map(|number| (epoch, number)).collect()
}

async fn start(outbox: &Outbox) -> u64 {
    let epoch = sequence::start(&mut outbox.connect().await, &outbox.topic).await.expect("it is started");
    u64::try_from(epoch).expect("epochs are positive")
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_follow_commit_order_without_a_gap_whoever_writes_and_whatever_is_rolled_back() {
    let outbox = Outbox::fresh("numbered", 2).await;
    let epoch = start(&outbox).await;
    assert_eq!(start(&outbox).await, epoch, "again: nothing changes");
    let writers = (0..8).map(|writer| {
        let outbox = &outbox;
        async move {
            let mut connection = outbox.connect().await;
            for n in 0..20 {
                let mut transaction = connection.begin().await.expect("it begins");
                // Two keys in the order of the writer's choice: neither deadlocks nor leaves a gap.
                let emit = "select outbox.emit_many(jsonb_build_array(
                                jsonb_build_object('topic', $1, 'type', 't', 'data', 1, 'key', $2),
                                jsonb_build_object('topic', $1, 'type', 't', 'data', 2, 'key', $3)))";
                let keys = if writer % 2 == 0 { ("a", "b") } else { ("b", "a") };
                let emit = sqlx::query(emit).bind(&outbox.topic).bind(keys.0).bind(keys.1);
                emit.execute(&mut *transaction).await.expect("it is stored");
                match n % 4 {
                    0 => transaction.rollback().await.expect("it rolls back"),
                    _ => transaction.commit().await.expect("it commits"),
                }
            }
        }
    });
    join_all(writers).await;
    let expected = counted(epoch, 1..=8 * 15);
    let found = numbers(&outbox).await;
    assert_eq!((found["a"].as_slice(), found["b"].as_slice()), (expected.as_slice(), expected.as_slice()));

    let relay = outbox.relay();
    outbox.all_settled().await;
    let topic = outbox.topic.clone();
    let records = tokio::task::spawn_blocking(move || kafka::read_topic(&topic)).await.expect("it can be read");
    let mut published: Vec<String> = records
        .iter()
        .filter(|record| record.key() == Some(b"a"))
        .map(|record| kafka::header(record, SEQUENCE).expect("it travels with the record"))
        .collect();
    published.dedup();
    let all: Vec<String> = (1..=8 * 15).map(|number| format!("{epoch}/{number}/default")).collect();
    assert_eq!(published, all);
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_database_begins_a_new_epoch_by_itself() {
    let outbox = Outbox::fresh("restored", 1).await;
    let first = start(&outbox).await;
    outbox.emit_to(&outbox.topic, Some("a"), "1").await;
    outbox.emit_to(&outbox.topic, Some("a"), "2").await;
    let mut found = counted(first, [1, 2]);
    for elsewhere in ["timeline = timeline + 1", "system_identifier = system_identifier - 1"] {
        // What a restored database holds: numbers that were given out in another history, or another cluster.
        let move_away = format!("update outbox.sequenced_topics set {elsewhere}");
        outbox.connect().await.execute(sqlx::AssertSqlSafe(move_away)).await.expect("it can be changed");
        let emit = || outbox.emit_to(&outbox.topic, Some("a"), "n");
        join_all((0..8).map(|_| emit())).await;
        let epoch = numbers(&outbox).await["a"].last().expect("there are events").0;
        assert!(epoch > found.last().expect("there are some").0, "a later one");
        found.extend(counted(epoch, 1..=8));
        assert_eq!(numbers(&outbox).await["a"], found);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_was_not_asked_to_has_no_numbers_and_no_trigger_runs_for_it() {
    let outbox = Outbox::fresh("plain", 1).await;
    let triggers = async || -> i64 {
        let count = "select count(*) from pg_trigger where tgname = 'numbered' and tgrelid = 'outbox.events'::regclass";
        sqlx::query_scalar(count).fetch_one(&mut outbox.connect().await).await.expect("triggers can be counted")
    };
    let numbered = async |topic: &str| -> i64 {
        let count = "select count(*) from outbox.events where topic = $1 and headers ? 'outbox-sequence'";
        sqlx::query_scalar(count).bind(topic).fetch_one(&mut outbox.connect().await).await.expect("they can be counted")
    };
    assert_eq!(triggers().await, 0, "nobody has asked");
    let mut connection = outbox.connect().await;
    sequence::start(&mut connection, "others").await.expect("it is started");
    outbox.emit_to(&outbox.topic, Some("a"), "1").await;
    outbox.emit_to("others", Some("a"), "1").await;
    outbox.emit_to("others", None, "1").await;
    assert_eq!((numbered(&outbox.topic).await, numbered("others").await), (0, 1), "nor has an event without a key");
    let listed = sequence::list(&mut connection).await.expect("they can be listed");
    assert_eq!(listed.iter().map(|one| (one.topic.as_str(), one.keys)).collect::<Vec<_>>(), [("others", 1)]);

    assert!(sequence::stop(&mut connection, "others").await.expect("it is stopped"));
    assert!(!sequence::stop(&mut connection, "others").await.expect("it was stopped before"));
    assert_eq!(triggers().await, 0);
    outbox.emit_to("others", Some("a"), "2").await;
    assert_eq!(numbered("others").await, 1);
    // A partition that is made later numbers, too.
    sequence::start(&mut connection, "others").await.expect("it is started");
    let partition = "select outbox.make_partition('events', '20250102', outbox.uuidv7_floor('2025-01-02 00:00Z')::text,
                                                  outbox.uuidv7_floor('2025-01-03 00:00Z')::text);
                     select outbox.emit('others', 't', '1', 'a', id => outbox.uuidv7_floor('2025-01-02 12:00Z'))";
    connection.execute(partition).await.expect("it is stored");
    assert_eq!(numbered("others").await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_does_not_get_its_lock_says_so_and_holds_nobody_up_for_long() {
    let outbox = Outbox::fresh("busy", 1).await;
    let mut writer = outbox.connect().await;
    let mut transaction = writer.begin().await.expect("it begins");
    let emit = sqlx::query("select outbox.emit($1, 't', '1', 'a')").bind(&outbox.topic);
    emit.execute(&mut *transaction).await.expect("it is stored");
    let change = sequence::start(&mut outbox.connect().await, &outbox.topic).await;
    assert!(matches!(change, Err(outbox_server::store::Error::Conflict)), "{change:?}");
    transaction.commit().await.expect("it commits");
    start(&outbox).await;
}

/// A number says what is before an event in its key's stream, so a delayed event gets one when it enters it, and a copy gets
/// one of its own: a consumer sees neither a gap nor a number twice.
#[tokio::test(flavor = "multi_thread")]
async fn what_comes_later_or_again_is_numbered_by_its_place_in_the_stream() {
    const EVENTS_MAX: i32 = 500;
    const BYTES_MAX: i64 = 8 << 20;
    let outbox = Outbox::fresh("renumbered", 1).await;
    let epoch = start(&outbox).await;
    let mut connection = outbox.connect().await;
    let delayed = "select outbox.emit($1, 'test', '1', 'a', deliver_after => now() + interval '1 hour')";
    let delayed = sqlx::query(delayed).bind(&outbox.topic);
    delayed.execute(&mut connection).await.expect("it is stored");
    let first = outbox.emit_to(&outbox.topic, Some("a"), "1").await;
    assert_eq!(numbers(&outbox).await["a"], counted(epoch, [1]), "what is not due is not in the stream");

    connection.execute("update outbox.scheduled set due_at = now()").await.expect("it can be set");
    let promoted = schedule::promote(&mut connection, None, EVENTS_MAX, BYTES_MAX).await.expect("it can be promoted");
    assert_eq!(promoted.promoted, 1);
    let relay = outbox.relay();
    outbox.all_settled().await;
    let ask = "select outcome from outbox.request_replay('default', 'again', array[$1], null, null, null, null, null,
                                                         null, 1000, 'it was lost', 'anna', 10, 1, false)";
    let outcome: String = sqlx::query_scalar(ask).bind(first).fetch_one(&mut connection).await.expect("it is answered");
    assert_eq!(outcome, "taken");
    assert_eq!(replay::go_on(&mut connection, EVENTS_MAX, BYTES_MAX).await.expect("it goes on").replayed, 1);

    outbox.all_settled().await;
    let topic = outbox.topic.clone();
    let records = tokio::task::spawn_blocking(move || kafka::read_topic(&topic)).await.expect("it can be read");
    let found = |name: &str| records.iter().filter_map(|record| kafka::header(record, name)).collect::<Vec<_>>();
    assert_eq!(found(SEQUENCE), [1, 2, 3].map(|number| format!("{epoch}/{number}/default")));
    let (ids, first) = (found("ce_id"), first.to_string());
    assert_eq!((&ids[0], &ids[2]), (&first, &first), "the copy has the first id");
    assert_ne!(ids[1], first);
    relay.stop().await;
}
