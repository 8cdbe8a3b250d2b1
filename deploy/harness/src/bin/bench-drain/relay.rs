//! The relay and the backlog that it drains.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use outbox_harness::{
    backlog::{self, End},
    kafka,
    outboxd::Outboxd,
    postgres::Database,
    stream::{self, Source},
};
use sqlx::PgPool;
use uuid::Uuid;

use super::{Options, PARTITIONS, recvlogical};

/// An outbox with a backlog, and nobody at it.
pub(super) struct Outbox {
    pub(super) database: Database,
    pub(super) end: End,
    pool: PgPool,
    server: Outboxd,
    log: PathBuf,
    source: Source,
    events: usize,
}

/// How a drain went.
pub(super) struct Drained {
    /// From the start of the relay's process until progress has passed the last event.
    pub(super) seconds: f64,
    /// Highest resident memory in MiB.
    pub(super) peak_mib: u64,
    /// The same in the first half of the looks, and in the second.
    pub(super) halves_mib: [u64; 2],
}

impl Outbox {
    /// With the source in force, if that is `wal` with a slot for `pg_recvlogical` beside the relay's, and then the backlog.
    pub(super) async fn prepare(options: &Options) -> Self {
        let database = Database::fresh().await;
        let log = std::env::temp_dir().join(format!("outboxd-drain-{}.log", Uuid::now_v7()));
        let server = Outboxd::new(&options.outboxd, &database.url, log.clone());
        let pool = database.pool().await;
        server.migrate();
        if options.source == Source::Wal {
            let running = server.start();
            server.serving().await;
            stream::desire(&pool, options.source.name()).await;
            running.end();
            if !options.alone {
                recvlogical::make_slot(&pool).await;
            }
        }
        let topic = kafka::fresh_topic("drain", PARTITIONS).await;
        let end = backlog::store(&pool, &topic, options.events, options.per_transaction()).await;
        Self { database, end, pool, server, log, source: options.source, events: options.events }
    }

    /// Runs the relay until everything is settled.
    pub(super) async fn drain(&self) -> Drained {
        let within = Duration::from_secs(600 + self.events as u64 / 1_000);
        let mut memory_kib = Vec::new();
        let start = Instant::now();
        let running = self.server.start();
        backlog::settled(&self.pool, self.source, &self.end, within, || memory_kib.push(running.memory_kib())).await;
        let seconds = start.elapsed().as_secs_f64();
        let peak_mib = running.peak_memory_kib() / 1_024;
        running.end();
        std::fs::remove_file(&self.log).expect("the log can be removed");
        let (first, second) = memory_kib.split_at(memory_kib.len() / 2);
        let halves_mib = [first, second].map(|half| half.iter().max().map_or(0, |kib| kib / 1_024));
        Drained { seconds, peak_mib, halves_mib }
    }
}
