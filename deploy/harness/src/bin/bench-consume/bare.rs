//! Bare librdkafka loops: what reading costs at least, and reading with the batch mode's write but no deduplication.

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use outbox_harness::kafka;
use rdkafka::{
    Message as _,
    message::{BorrowedMessage, Headers as _},
};
use sqlx::{Connection as _, PgConnection};
use uuid::Uuid;

use super::{INSERT, PARTITIONS};

/// One reader per partition, each on its own thread; `each` is called with every record. The rate over all of them, from
/// the first record of any on.
fn read_all<R>(topic: &str, events: usize, reader: impl Fn() -> R + Sync) -> f64
where
    R: FnMut(Option<&BorrowedMessage<'_>>),
{
    let (read, began) = (AtomicUsize::new(0), OnceLock::new());
    std::thread::scope(|scope| {
        for partition in 0..PARTITIONS {
            let (read, began, reader) = (&read, &began, &reader);
            scope.spawn(move || {
                let consumer = kafka::reader(topic, partition..partition + 1);
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
pub(super) fn read(topic: &str, events: usize) -> f64 {
    read_all(topic, events, || |_: Option<&BorrowedMessage<'_>>| {})
}

/// What is read is written in transactions of `batch` records, or of fewer when none follows.
pub(super) fn write(runtime: &tokio::runtime::Handle, topic: &str, events: usize, batch: usize) -> f64 {
    let database = runtime.block_on(super::ledger());
    read_all(topic, events, || {
        let mut connection = runtime.block_on(database.connect());
        let (mut ids, mut payloads) = (Vec::<Uuid>::new(), Vec::<Vec<u8>>::new());
        move |record: Option<&BorrowedMessage<'_>>| {
            if let Some(record) = record {
                let headers = record.headers().expect("it has headers");
                let id = headers.iter().find(|header| header.key == "ce_id").and_then(|header| header.value);
                let id = std::str::from_utf8(id.expect("it has an id")).expect("it is text");
                ids.push(Uuid::try_parse(id).expect("it is a UUID"));
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
