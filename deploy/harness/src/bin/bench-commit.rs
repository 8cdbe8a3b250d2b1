//! Commit RPCs per second against `pgbench -M prepared` running the same SQL, in one run on one database.
//!
//! Three ways by turns, several rounds, medians: `fused`, the very statement the server sends (claim, update, event,
//! position, answer); `plain`, the least anyone would write by hand (begin, update, insert, commit); and the server.

#![allow(clippy::expect_used, clippy::print_stdout, reason = "a benchmark that cannot run says why")]

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use clap::Parser;
use outbox_harness::{
    commits::{self, Pace},
    figures::median,
    outboxd::Outboxd,
    postgres::Database,
};
use rand::rngs::StdRng;
use uuid::Uuid;

const KEYS: i64 = 10_000;
const PAYLOAD_BYTES: usize = 300;

/// Compares the server with pgbench on the same SQL.
#[derive(Debug, Parser)]
struct Options {
    /// The outboxd executable
    #[arg(long, default_value = "target/release/outboxd")]
    outboxd: PathBuf,
    /// Callers, and clients of pgbench
    #[arg(long, default_value_t = 32)]
    clients: usize,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Rounds of all three
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Connections of the server (database.commit_connections)
    #[arg(long, default_value_t = 32)]
    connections: usize,
}

#[tokio::main]
async fn main() {
    let options = Options::parse();
    println!("{options:?}");
    let folder = std::env::temp_dir().join(format!("outboxd-bench-{}", Uuid::now_v7()));
    std::fs::create_dir(&folder).expect("a folder can be made");
    std::fs::write(folder.join("count.sql"), commits::CATALOG).expect("a file can be written");
    let database = Database::fresh().await;
    let pool = database.pool().await;
    commits::make_counters(&pool, KEYS).await;
    let server = Outboxd::new(&options.outboxd, &database.url, folder.join("log"))
        .set("catalog.dir", &folder.display().to_string())
        .set("database.commit_connections", &options.connections.to_string())
        .set("relay.enabled", "false");
    let running = server.start();
    server.serving().await;
    let fused = script(&folder, "fused.sql", &fused_script());
    let plain = script(&folder, "plain.sql", &plain_script());

    let (mut fused_tps, mut plain_tps, mut server_tps, mut cpu) = (vec![], vec![], vec![], vec![]);
    for round in 1..=options.rounds {
        fused_tps.push(pgbench(&options, &database.url, &fused));
        plain_tps.push(pgbench(&options, &database.url, &plain));
        let span = Duration::from_secs(options.seconds);
        let request = |random: &mut StdRng| {
            commits::count_and_emit("bench", commits::any_key(random, KEYS), &"x".repeat(PAYLOAD_BYTES))
        };
        let Pace { per_second: tps, cpu_us } =
            commits::closed_loop(&server, &running, options.clients, span, request).await;
        server_tps.push(tps);
        cpu.push(cpu_us);
        let last = |figures: &[f64]| figures.last().copied().unwrap_or_default();
        println!(
            "round {round}: fused {:.0}/s, plain {:.0}/s, server {tps:.0}/s, server CPU {cpu_us:.0} µs/commit",
            last(&fused_tps),
            last(&plain_tps)
        );
    }
    let ratio = |of: &[f64]| median(server_tps.iter().zip(of).map(|(server, other)| server / other));
    println!("median: fused {:.0}/s, plain {:.0}/s", median(fused_tps.clone()), median(plain_tps.clone()));
    println!("median: server {:.0}/s, CPU {:.0} µs/commit", median(server_tps.clone()), median(cpu));
    println!("median of ratios: server/fused {:.2}, server/plain {:.2}", ratio(&fused_tps), ratio(&plain_tps));
    drop(running);
    std::fs::remove_dir_all(&folder).expect("the folder can be removed");
}

fn script(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, text).expect("a file can be written");
    path
}

/// A UUIDv7 of today out of pgbench's random number: its own function would cost what the server's ids do not.
fn id(variable: &str) -> String {
    let now = Uuid::now_v7().to_string();
    format!("('{}-7000-8000-' || lpad(to_hex((:{variable})::bigint), 12, '0'))::uuid", &now[..13])
}

fn variables() -> String {
    let id = "random(1, 281474976710655)";
    format!("\\set key random(0, {KEYS} - 1)\n\\set a {id}\n\\set b {id}\n")
}

fn fused_script() -> String {
    let (variables, request, event) = (variables(), id("a"), id("b"));
    let (fingerprint, data) = ("00".repeat(32), "78".repeat(PAYLOAD_BYTES));
    format!(
        "{variables}with outboxd_claim as materialized (
  select outbox.claim_request({request}, '\\x{fingerprint}'::bytea, interval '168 hours') as claimed),
outboxd_op as (update counters set n = n + 1 where key = :key returning n),
outboxd_answer as (select count(*) as n, coalesce(json_agg(json_build_array(op.n::text)), '[]') as rows
                   from (select * from outboxd_op limit 1001) as op)
select f.results, f.committed_at from outboxd_claim, lateral outbox.finish_request(
  case when claimed then {request} end, 'default', (:a)::text, '\\x{fingerprint}'::bytea,
  (select json_build_array(json_build_object('rows_affected', n, 'columns', '[[\"n\",\"bigint\"]]'::text::json,
                                             'rows', rows)) from outboxd_answer),
  array[1::bigint], array[1::bigint], array[{event}], array['bench'], array[convert_to((:key)::text, 'UTF8')],
  array['bench'], array['counted'], array[null]::text[], array['\\x{data}'::bytea], array['application/json'],
  array[null]::text[]::jsonb[], array[now()], array[null]::text[], array[null]::text[]) as f;\n"
    )
}

fn plain_script() -> String {
    let (variables, event, data) = (variables(), id("b"), "78".repeat(PAYLOAD_BYTES));
    format!(
        "{variables}begin;
update counters set n = n + 1 where key = :key returning n;
insert into outbox.events (id, namespace, lane, position, xid, topic, key, source, type, data, content_type, time)
values ({event}, 'default', 0, nextval('outbox.positions'), pg_current_xact_id(), 'bench',
        convert_to((:key)::text, 'UTF8'), 'bench', 'counted', '\\x{data}', 'application/json', now());
commit;\n"
    )
}

/// Transactions per second, without the time to connect.
fn pgbench(options: &Options, url: &str, script: &Path) -> f64 {
    let clients = options.clients.to_string();
    let output = Command::new("pgbench")
        .args(["-n", "-M", "prepared", "-j", "2", "-c", &clients, "-T", &options.seconds.to_string(), "-f"])
        .arg(script)
        .arg(url)
        .output()
        .expect("pgbench is installed and in the PATH");
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    let tps = text.lines().find_map(|line| line.strip_prefix("tps = ")).and_then(|rest| rest.split(' ').next());
    tps.and_then(|tps| tps.parse().ok()).unwrap_or_else(|| panic!("pgbench failed: {text}{errors}"))
}
