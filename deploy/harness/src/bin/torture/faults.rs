//! The faults of a run: which, when, and whether they landed in mid-work.
//!
//! Kinds are drawn and moments spread over the commits by the seed. One fault at a time: the next one waits until what
//! was hit works again, and the callers do not run ahead of it. It deliberately does not judge the outcome: `verdict` does.

use std::{
    path::PathBuf,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use outbox_harness::{eventually, outboxd::Running, service::Service};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::SliceRandom as _};
use rustix::process::Signal;
use sqlx::PgPool;

use crate::{HOSTS, LEASE_TTL, Options, Run, source};

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// A server is killed with SIGKILL, and started again.
    KillServer,
    /// A server stands still for longer than its lease, then goes on.
    PauseServer,
    /// The broker is killed with SIGKILL, and started again.
    KillKafka,
    /// Postgres stops at once, as in a power cut, and is started again.
    CrashPostgres,
    /// The slot that is streamed from is dropped. Nothing while the source is `poll`.
    DropSlot,
}

/// How many faults there were.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Landed {
    pub(crate) faults: usize,
    /// Those that found something to hit.
    pub(crate) hit: usize,
    /// Those that landed in mid-work: callers waited for the server, or events for its relay.
    pub(crate) landed: usize,
    /// Those that hit while events were on their way to Kafka, if a server was hit: in its own lanes.
    pub(crate) mid_publish: usize,
}

/// Who can be hit.
pub(crate) struct Victims<'a> {
    pub(crate) servers: &'a mut [Running],
    pub(crate) pool: &'a PgPool,
    pub(crate) kafka: Option<Service>,
    pub(crate) postgres: Option<Service>,
}

impl Options {
    /// Every fault of the run, in no order yet.
    fn faults(&self) -> Vec<Fault> {
        let kinds = [
            (Fault::KillServer, self.kills),
            (Fault::PauseServer, self.pauses),
            (Fault::KillKafka, self.kafka_kills),
            (Fault::CrashPostgres, self.postgres_crashes),
            (Fault::DropSlot, self.slot_drops),
        ];
        kinds.iter().flat_map(|(fault, times)| std::iter::repeat_n(*fault, *times)).collect()
    }

    /// The services that are to be hit.
    pub(crate) fn services(&self) -> (Option<Service>, Option<Service>) {
        let named = |folder: &Option<PathBuf>, faults: usize, flag: &str| {
            assert!(faults == 0 || folder.is_some(), "{flag} needs the folder of the service that is to be hit");
            folder.clone()
        };
        let kafka = named(&self.kafka_folder, self.kafka_kills, "--kafka-kills");
        let postgres = named(&self.postgres_folder, self.postgres_crashes, "--postgres-crashes");
        (kafka.map(Service::kafka), postgres.map(Service::postgres))
    }
}

/// Makes each fault at its moment.
pub(crate) async fn strike(run: &Run, mut victims: Victims<'_>) -> Landed {
    let mut random = StdRng::seed_from_u64(run.seed);
    let mut faults = run.options.faults();
    faults.shuffle(&mut random);
    let mut landed = Landed { faults: faults.len(), ..Landed::default() };
    for (index, fault) in faults.iter().enumerate() {
        let share = run.options.commits / faults.len();
        let moment = run.options.commits * index / faults.len() + random.random_range(0..share);
        if index > 0 {
            tokio::time::sleep(Duration::from_millis(run.options.pause_ms)).await;
        }
        run.allowed.store(moment + run.options.callers, Ordering::Relaxed);
        eventually("the next fault's moment", Duration::from_secs(1_200), async || {
            (run.started.load(Ordering::Relaxed) >= moment).then_some(())
        })
        .await;
        let mut victim = random.random_range(0..victims.servers.len());
        // One of them may have no lanes.
        if unsettled(victims.pool, Some(HOSTS[victim])).await == 0 {
            victim = (victim + 1) % victims.servers.len();
        }
        let waiting = run.waiting();
        let (callers, host) = match fault {
            Fault::KillServer | Fault::PauseServer => (waiting[victim], Some(HOSTS[victim])),
            Fault::KillKafka | Fault::CrashPostgres | Fault::DropSlot => (0, None),
        };
        let unsettled = unsettled(victims.pool, host).await;
        let began = Instant::now();
        let hit = victims.hit(run, *fault, victim).await;
        landed.hit += usize::from(hit);
        landed.landed += usize::from(hit && (callers > 0 || unsettled > 0));
        landed.mid_publish += usize::from(hit && unsettled > 0);
        println!(
            "fault {}: {fault:?} (server {victim}) after {moment} commits; callers waiting {waiting:?}, events unsettled \
             there {unsettled}; over after {:.1?}",
            index + 1,
            began.elapsed()
        );
    }
    run.allowed.store(usize::MAX, Ordering::Relaxed);
    landed
}

impl Victims<'_> {
    /// Whether there was anything to hit.
    async fn hit(&mut self, run: &Run, fault: Fault, victim: usize) -> bool {
        match fault {
            Fault::KillServer => {
                self.servers[victim].kill();
                self.servers[victim] = run.servers[victim].start();
                run.servers[victim].serving().await;
            }
            Fault::PauseServer => {
                self.servers[victim].pause();
                tokio::time::sleep(LEASE_TTL * 2).await;
                self.servers[victim].resume();
            }
            Fault::KillKafka => restart(self.kafka.clone().expect("the run has one"), Signal::KILL).await,
            Fault::CrashPostgres => restart(self.postgres.clone().expect("the run has one"), Signal::QUIT).await,
            Fault::DropSlot => return source::drop_slot(self.pool).await,
        }
        true
    }
}

async fn restart(service: Service, signal: Signal) {
    let restarted = tokio::task::spawn_blocking(move || {
        service.kill(signal);
        service.start(&[]);
    });
    restarted.await.expect("the service can be started again");
}

/// How many of the newest events are not settled, at least; with a host, of those in the lanes of its relay.
pub(crate) async fn unsettled(pool: &PgPool, host: Option<&str>) -> i64 {
    const NEWEST: &str = "
        select greatest(count(*) - (select settled_beyond from outbox.stream), 0)
        from (select * from outbox.events order by position desc limit 2000) as e
        join outbox.progress p using (lane)
        left join outbox.relays r on r.instance = p.owner
        where not outbox.is_settled(e) and ($1::text is null or r.host = $1)";
    sqlx::query_scalar(NEWEST).bind(host).fetch_one(pool).await.expect("the table can be read")
}
