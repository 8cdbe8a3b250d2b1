//! Bare librdkafka loops: what reading costs at least, and reading with the batch mode's write but no deduplication.

use std::{
    ops::Range,
    sync::{
        OnceLock,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use outbox_harness::kafka;
use rdkafka::{
    Message as _,
    consumer::{BaseConsumer, StreamConsumer},
    message::{BorrowedMessage, Headers as _},
};
use sqlx::{Connection as _, PgConnection};
use uuid::Uuid;

use super::{INSERT, PARTITIONS};

/// How many loops read the topic.
#[derive(Clone, Copy)]
pub(super) enum Loops {
    /// One, over all partitions: a consumer as it is usually written.
    One,
    /// One for each partition, each with a client and a thread of its own: as fast as it can be done.
    PerPartition,
}

impl Loops {
    fn partitions(self) -> impl Iterator<Item = Range<i32>> {
        let each = match self {
            Self::One => PARTITIONS as usize,
            Self::PerPartition => 1,
        };
        (0..PARTITIONS).step_by(each).map(move |first| first..first + each as i32)
    }
}

/// Each loop on its own thread; `reader` makes what is called with every record. The rate over all of them, from the first
/// record of any on.
fn read_all<R>(topic: &str, events: usize, loops: Loops, reader: impl Fn() -> R + Sync) -> f64
where
    R: FnMut(Option<&BorrowedMessage<'_>>),
{
    let (read, began) = (AtomicUsize::new(0), OnceLock::new());
    std::thread::scope(|scope| {
        for partitions in loops.partitions() {
            let (read, began, reader) = (&read, &began, &reader);
            scope.spawn(move || {
                let consumer: BaseConsumer = kafka::reader(topic, partitions);
                let mut each = reader();
                while read.load(Relaxed) < events {
                    match consumer.poll(Duration::from_millis(10)) {
                        Some(record) => {
                            began.get_or_init(Instant::now);
                            each(Some(&record.expect("the record can be read")));
                            read.fetch_add(1, Relaxed);
                        }
                        None => each(None),
                    }
                }
                each(None);
            });
        }
    });
    events as f64 / began.get().expect("something was read").elapsed().as_secs_f64()
}

/// Only counts.
pub(super) fn read(topic: &str, events: usize, loops: Loops) -> f64 {
    read_all(topic, events, loops, || |_: Option<&BorrowedMessage<'_>>| {})
}

/// Only counts, in a task that awaits each record, as services on Tokio read Kafka.
pub(super) async fn read_stream(topic: String, events: usize) -> f64 {
    let consumer: StreamConsumer = kafka::reader(&topic, 0..PARTITIONS);
    let mut began = None;
    for _ in 0..events {
        consumer.recv().await.expect("the record can be read");
        began.get_or_insert_with(Instant::now);
    }
    events as f64 / began.expect("something was read").elapsed().as_secs_f64()
}

/// Reads the id of each event, without which nothing can be deduplicated.
pub(super) fn read_ids(topic: &str, events: usize, loops: Loops) -> f64 {
    read_all(topic, events, loops, || {
        |record: Option<&BorrowedMessage<'_>>| {
            std::hint::black_box(record.map(id));
        }
    })
}

fn id(record: &BorrowedMessage<'_>) -> Uuid {
    let headers = record.headers().expect("it has headers");
    let id = headers.iter().find(|header| header.key == "ce_id").and_then(|header| header.value);
    let id = std::str::from_utf8(id.expect("it has an id")).expect("it is text");
    Uuid::try_parse(id).expect("it is a UUID")
}

/// What is read is written in transactions of `batch` records, or of fewer when none follows.
pub(super) fn write(runtime: &tokio::runtime::Handle, topic: &str, events: usize, loops: Loops, batch: usize) -> f64 {
    let database = runtime.block_on(super::ledger());
    read_all(topic, events, loops, || {
        let mut connection = runtime.block_on(database.connect());
        let (mut ids, mut payloads) = (Vec::<Uuid>::new(), Vec::<Vec<u8>>::new());
        move |record: Option<&BorrowedMessage<'_>>| {
            if let Some(record) = record {
                ids.push(id(record));
                payloads.push(record.payload().unwrap_or_default().to_vec());
            }
            if ids.len() >= batch || (record.is_none() && !ids.is_empty()) {
                runtime.block_on(insert(&mut connection, &ids, &payloads));
                ids.clear();
                payloads.clear();
            }
        }
    })
}

async fn insert(connection: &mut PgConnection, ids: &[Uuid], payloads: &[Vec<u8>]) {
    let mut transaction = connection.begin().await.expect("it begins");
    let insert = sqlx::query(INSERT).bind(ids).bind(payloads).execute(&mut *transaction).await;
    insert.expect("it can be written");
    transaction.commit().await.expect("it commits");
}
