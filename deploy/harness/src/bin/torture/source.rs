//! The relay's source during a run, and the write transaction that is held open beside it.
//!
//! Both go on through crashes of Postgres: what fails is tried again until it is released.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use outbox_harness::stream::desire;
use sqlx::{Connection as _, Executor as _, PgConnection, PgPool};
use tokio::sync::watch;

use crate::Run;

const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How long a write transaction is held while slots are dropped.
const HELD_WITH_DROPS: Duration = Duration::from_secs(3);
/// And while sources change: a slot has to be made between two deaths of the servers, some seconds apart.
const HELD_WITH_SWITCHES: Duration = Duration::from_secs(1);

/// Changes the source until released, and counts.
pub(crate) async fn switch(run: Arc<Run>, pool: PgPool, mut released: watch::Receiver<bool>) -> usize {
    let Some(every) = run.options.switch_every else { return 0 };
    let (mut next, mut switches) = (run.options.source.clone(), 0);
    while tokio::time::timeout(Duration::from_secs(every), released.wait_for(|r| *r)).await.is_err() {
        next = if next == "poll" { "wal".to_owned() } else { "poll".to_owned() };
        desire(&pool, &next).await;
        switches += 1;
    }
    switches
}

/// Holds a write transaction, with its own transaction id, open until released; where slots are made meanwhile, since
/// sources change or slots are dropped, only for a spell at a time, since a slot waits for it.
pub(crate) async fn hold(run: Arc<Run>, mut released: watch::Receiver<bool>) {
    let spell = match (run.options.switch_every, run.options.slot_drops) {
        (Some(every), _) => HELD_WITH_SWITCHES.min(Duration::from_secs(every) / 3),
        (None, 0) => Duration::MAX,
        (None, _) => HELD_WITH_DROPS,
    };
    while !*released.borrow() {
        let Ok(mut holder) = PgConnection::connect(&run.database.url).await else {
            tokio::time::sleep(LOOK_EVERY).await;
            continue;
        };
        if holder.execute("begin; insert into held values (1)").await.is_err() {
            continue;
        }
        // Looks now and then whether it is held still: a crash of Postgres ends it.
        let until = Instant::now().checked_add(spell);
        while until.is_none_or(|until| Instant::now() < until) && holder.execute("select 1").await.is_ok() {
            if tokio::time::timeout(Duration::from_millis(100), released.wait_for(|r| *r)).await.is_ok() {
                return;
            }
        }
        drop(holder);
        if spell < Duration::MAX && tokio::time::timeout(spell, released.wait_for(|r| *r)).await.is_ok() {
            return;
        }
    }
}

/// Drops the slot that is streamed from, if there is one; whether there was.
pub(crate) async fn drop_slot(pool: &PgPool) -> bool {
    const END_READER: &str = "
        select count(pg_terminate_backend(s.active_pid)) from pg_replication_slots s join outbox.stream o on s.slot_name = o.slot
        where s.active";
    const DROP: &str = "
        select count(pg_drop_replication_slot(s.slot_name))
        from pg_replication_slots s join outbox.stream o on s.slot_name = o.slot";
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(10) {
        // The reader comes back at once, so that the slot may be in use again when it is to be dropped.
        if pool.execute(END_READER).await.is_ok()
            && let Ok(dropped) = sqlx::query_scalar::<_, i64>(DROP).fetch_one(pool).await
        {
            return dropped > 0;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    false
}
