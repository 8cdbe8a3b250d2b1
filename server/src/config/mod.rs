//! The configuration: one documented struct, verified before anything binds.
//!
//! Later layers win: defaults, then the TOML file, then the environment (`OUTBOXD_DATABASE__URL` sets
//! `database.url`), then command-line flags.

mod layers;
mod verify;

use std::{collections::BTreeMap, path::PathBuf};

use serde::{Deserialize, Serialize};

pub use self::layers::{Error, Layers};

/// The configuration file with every key at its default and what it means.
pub const REFERENCE: &str = include_str!("../../../deploy/outboxd.toml");

/// Everything `outboxd` can be told. Times are in the unit their name ends in.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The gRPC server.
    pub grpc: Grpc,
    /// Postgres.
    pub database: Database,
    /// The commands callers may run.
    pub catalog: Catalog,
    /// The write path.
    pub commit: Commit,
    /// Interactive transactions.
    pub transact: Transact,
    /// Leases on events.
    pub inbox: Inbox,
    /// The relay from Postgres to Kafka.
    pub relay: Relay,
    /// Kafka.
    pub kafka: Kafka,
    /// How long what is done with is kept.
    pub retention: Retention,
    /// Metrics.
    pub metrics: Metrics,
    /// Logs and traces.
    pub telemetry: Telemetry,
}

/// The gRPC server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Grpc {
    /// Address to listen on.
    pub listen: String,
    /// Largest request message.
    pub request_bytes_max: usize,
    /// How long a request may take when its caller sets no deadline, and the most it may take when it does.
    pub deadline_max_ms: u64,
    /// How long requests and the relay may take to finish after SIGTERM before they are cut off.
    pub drain_ms: u64,
}

impl Default for Grpc {
    fn default() -> Self {
        Self { listen: "127.0.0.1:7411".into(), request_bytes_max: 16 << 20, deadline_max_ms: 30_000, drain_ms: 10_000 }
    }
}

/// Postgres.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Database {
    /// Connection URL, `postgres://user:password@host:port/database`.
    pub url: String,
    /// Connections that run commits, each one commit at a time.
    pub commit_connections: u32,
    /// Connections that read documents and run read-only commands.
    pub query_connections: u32,
    /// Connections that serve reads of the outbox itself.
    pub read_connections: u32,
    /// How long to wait for a connection to be made.
    pub connect_timeout_ms: u64,
    /// Whether `serve` applies pending migrations when it starts.
    pub migrate_at_start: bool,
}

impl Default for Database {
    fn default() -> Self {
        Self {
            url: "postgres://postgres@127.0.0.1:5432/postgres".into(),
            commit_connections: 16,
            query_connections: 4,
            read_connections: 4,
            connect_timeout_ms: 5_000,
            migrate_at_start: true,
        }
    }
}

/// The commands callers may run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Catalog {
    /// Folder of `*.sql` files (commands) and `*.binpb` files (RPCs made of them), read once at start. Not set: there are none.
    pub dir: Option<PathBuf>,
}

/// The write path.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Commit {
    /// How long a request id is remembered.
    pub request_window_hours: u32,
    /// How old an event may be that a request handles: marks are kept from its time on.
    pub consume_window_hours: u32,
    /// Commits that may wait for a connection, and as many for one with their request id; more are refused with RESOURCE_EXHAUSTED.
    pub queue_max: usize,
    /// How often a commit that lost a deadlock or a serialization conflict is tried again, within its deadline.
    pub conflict_retries_max: u32,
    /// Operations in one commit.
    pub operations_max: usize,
    /// Events in one commit.
    pub events_max: usize,
    /// Key, payload and headers of one event together, unless its topic is known to take less.
    pub event_bytes_max: usize,
    /// Bytes of one document's JSON.
    pub document_bytes_max: usize,
    /// Rows that one operation may return.
    pub result_rows_max: u64,
    /// How far a caller's event id may lie from the server's clock, either way.
    pub event_id_clock_window_ms: u64,
    /// How far ahead an event may be delayed.
    pub deliver_after_max_hours: u32,
    /// CloudEvents `source` of events that name none.
    pub default_source: String,
}

impl Default for Commit {
    fn default() -> Self {
        Self {
            request_window_hours: 168,
            consume_window_hours: 168,
            queue_max: 1_024,
            conflict_retries_max: 5,
            operations_max: 100,
            events_max: 10_000,
            event_bytes_max: 900 << 10,
            document_bytes_max: 1 << 20,
            result_rows_max: 1_000,
            event_id_clock_window_ms: 600_000,
            deliver_after_max_hours: 744,
            default_source: "outboxd".into(),
        }
    }
}

/// Interactive transactions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Transact {
    /// Connections that run them, each one transaction at a time.
    pub connections: u32,
    /// Transactions that may wait for a connection; more are refused with RESOURCE_EXHAUSTED.
    pub queue_max: usize,
    /// How long a caller may be silent before the transaction is rolled back.
    pub idle_ms: u64,
    /// How long a transaction may take, waiting included.
    pub total_ms: u64,
    /// Messages of one transaction.
    pub steps_max: usize,
    /// Key, payload and headers of all its events together: they are held in memory until it commits.
    pub events_bytes_max: usize,
}

impl Default for Transact {
    fn default() -> Self {
        Self {
            connections: 8,
            queue_max: 64,
            idle_ms: 5_000,
            total_ms: 30_000,
            steps_max: 1_000,
            events_bytes_max: 16 << 20,
        }
    }
}

/// Leases on events, for consumers whose effects are outside a database.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Inbox {
    /// Connections that claim, extend, complete and release, each one call at a time.
    pub connections: u32,
    /// Calls that may wait for a connection; more are refused with RESOURCE_EXHAUSTED.
    pub queue_max: usize,
    /// How old an event may be that is claimed: claims are kept from its time on.
    pub window_hours: u32,
    /// The longest lease.
    pub lease_max_ms: u64,
    /// Bytes of the result that completes a claim.
    pub result_bytes_max: usize,
}

impl Default for Inbox {
    fn default() -> Self {
        Self {
            connections: 8,
            queue_max: 1_024,
            window_hours: 168,
            lease_max_ms: 3_600_000,
            result_bytes_max: 64 << 10,
        }
    }
}

/// The relay from Postgres to Kafka.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Relay {
    /// Whether this process relays at all.
    pub enabled: bool,
    /// How long its lanes stay a relay's after it was last heard of, unless its connection has ended, as a killed process's does.
    pub lease_ttl_ms: u64,
    /// Longest pause between two looks for new events while there are none.
    pub poll_interval_max_ms: u64,
    /// Events published and not yet settled, at most: what a crash can repeat.
    pub in_flight_events_max: usize,
    /// Bytes of events published and not yet settled, at most.
    pub in_flight_bytes_max: usize,
    /// Log that the database may keep for the `wal` source; past it the relay goes back to `poll`.
    pub retained_log_bytes_max: u64,
    /// What becomes of the later events of a key whose event cannot be published.
    pub held_policy: HeldPolicy,
    /// The same for single topics.
    pub held_policy_by_topic: BTreeMap<String, HeldPolicy>,
    /// How records carry events.
    pub format: Format,
    /// The same for single topics.
    pub format_by_topic: BTreeMap<String, Format>,
    /// Pause before what is held for a reason that may pass, such as a missing topic, is tried again.
    pub held_retry_ms: u64,
    /// An event during whose publishing the process died this often is held.
    pub attempts_max: u32,
}

/// What becomes of the later events of a key while one of it is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HeldPolicy {
    /// They are held behind it, so that the key's order is kept.
    BlockKey,
    /// They pass it.
    Pass,
}

/// How records carry events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// CloudEvents in binary mode: attributes as headers, the payload as the value.
    Binary,
    /// CloudEvents in structured mode: attributes and payload as one JSON object in the value. Tombstones are binary.
    Structured,
    /// The payload as the value, without attributes: whoever reads it cannot tell a repeat.
    Raw,
}

impl Relay {
    /// The format of a topic.
    pub fn format(&self, topic: &str) -> Format {
        self.format_by_topic.get(topic).copied().unwrap_or(self.format)
    }

    /// The policy of a topic.
    pub fn held_policy(&self, topic: &str) -> HeldPolicy {
        self.held_policy_by_topic.get(topic).copied().unwrap_or(self.held_policy)
    }
}

impl Default for Relay {
    fn default() -> Self {
        Self {
            enabled: true,
            lease_ttl_ms: 5_000,
            poll_interval_max_ms: 50,
            in_flight_events_max: 10_000,
            in_flight_bytes_max: 32 << 20,
            retained_log_bytes_max: 8 << 30,
            held_policy: HeldPolicy::BlockKey,
            held_policy_by_topic: BTreeMap::new(),
            format: Format::Binary,
            format_by_topic: BTreeMap::new(),
            held_retry_ms: 30_000,
            attempts_max: 3,
        }
    }
}

/// Kafka.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Kafka {
    /// Brokers, `host:port` separated by commas.
    pub bootstrap_servers: String,
    /// Further librdkafka properties, such as `security.protocol`. Those that delivery depends on are refused.
    pub properties: BTreeMap<String, String>,
}

impl Default for Kafka {
    fn default() -> Self {
        Self { bootstrap_servers: "127.0.0.1:9092".into(), properties: BTreeMap::new() }
    }
}

/// How long what is done with is kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Retention {
    /// Whether this process drops partitions at all.
    pub enabled: bool,
    /// How long events are kept at least, once they are settled, and with them where they went.
    pub events_hours: u32,
}

impl Default for Retention {
    fn default() -> Self {
        Self { enabled: true, events_hours: 168 }
    }
}

/// What operators look at over HTTP: metrics in Prometheus's text format, and readiness.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Metrics {
    /// Address to serve them on, at `/metrics`, `/ready` and `/ready/relay`. Empty: they are not served.
    pub listen: String,
}

/// Logs and traces.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Telemetry {
    /// Which log lines appear, in `tracing` filter syntax such as `info,outbox_server=debug`.
    pub log: String,
    /// `text` or `json`.
    pub log_format: LogFormat,
    /// OTLP/gRPC endpoint for traces, such as `http://127.0.0.1:4317`. Empty: traces are passed on, not exported.
    pub otlp_endpoint: String,
    /// OpenTelemetry `service.name`.
    pub service_name: String,
    /// Share of traces started here that are sampled, 0 to 1. A caller's own decision is kept.
    pub sample_ratio: f64,
}

impl Default for Telemetry {
    fn default() -> Self {
        Self {
            log: "info".into(),
            log_format: LogFormat::Text,
            otlp_endpoint: String::new(),
            service_name: "outboxd".into(),
            sample_ratio: 1.0,
        }
    }
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl Config {
    /// As TOML, with passwords left out.
    pub fn to_toml(&self) -> String {
        let mut shown = self.clone();
        shown.database.url = without_password(&shown.database.url);
        for (key, value) in &mut shown.kafka.properties {
            if key.contains("password") || key.contains("key.pem") || key.contains("jaas") {
                *value = "***".into();
            }
        }
        toml::to_string(&shown).expect("the configuration has a TOML form")
    }
}

fn without_password(url: &str) -> String {
    let parts = url.split_once("://").and_then(|(scheme, rest)| {
        let (user, host) = rest.rsplit_once('@')?;
        let (user, _) = user.split_once(':')?;
        Some(format!("{scheme}://{user}:***@{host}"))
    });
    parts.unwrap_or_else(|| url.to_owned())
}
