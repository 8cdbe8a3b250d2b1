//! `pg_recvlogical` on a slot of its own, reading what the relay reads and keeping nothing.

use std::{process::Command, time::Instant};

use outbox_harness::backlog::End;
use sqlx::PgPool;

const SLOT: &str = "bench_recvlogical";
/// As the relay reads.
const OPTIONS: [&str; 3] = ["proto_version=1", "publication_names=outboxd", "binary=true"];

/// Makes the slot: what is committed from now on can be read from it.
pub(super) async fn make_slot(pool: &PgPool) {
    // One of a run that was cut off may be there still.
    let drop = "select count(pg_drop_replication_slot(slot_name)) from pg_replication_slots where slot_name = $1";
    sqlx::query(drop).bind(SLOT).execute(pool).await.expect("a slot can be dropped");
    let make = "select pg_create_logical_replication_slot($1, 'pgoutput')";
    sqlx::query(make).bind(SLOT).execute(pool).await.expect("a slot can be made; wal_level must be logical");
}

/// Seconds from the start of its process until it has read to the end and is gone. Blocks.
pub(super) fn read(url: &str, end: &End) -> f64 {
    let start = Instant::now();
    let mut command = Command::new("pg_recvlogical");
    command.args(["--start", "--no-loop", "--slot", SLOT, "--endpos", &end.flushed_lsn, "--file", "/dev/null"]);
    command.args(["--dbname", url]);
    for option in OPTIONS {
        command.args(["--option", option]);
    }
    let output = command.output().expect("pg_recvlogical is in the PATH; it comes with Postgres's server");
    assert!(output.status.success(), "pg_recvlogical failed: {}", String::from_utf8_lossy(&output.stderr));
    start.elapsed().as_secs_f64()
}
