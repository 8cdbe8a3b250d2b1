//! The names of the metrics. None has a label whose values grow with events or keys; those of relays that have ended are gone.

/// Age of the oldest event that is not settled; 0 when every one is.
pub const LAG_SECONDS: &str = "outboxd_relay_lag_seconds";
/// Events that are not settled: exact up to 10,000, an estimate beyond.
pub const UNSETTLED_EVENTS: &str = "outboxd_relay_unsettled_events";
/// 1 when the former was counted, 0 when it is estimated.
pub const UNSETTLED_IS_EXACT: &str = "outboxd_relay_unsettled_is_exact";
/// Delayed events that are not due yet, counted to 10,000.
pub const SCHEDULED_EVENTS: &str = "outboxd_relay_scheduled_events";
/// Held events, by `state`: `failed` or `parked`, each counted to 10,000.
pub const HELD_EVENTS: &str = "outboxd_relay_held_events";
/// Events, keys and topics that are waited for.
pub const HOLDS: &str = "outboxd_relay_holds";
/// 1 while every relay is paused.
pub const PAUSED: &str = "outboxd_relay_paused";
/// By `source`, `poll` or `wal`: 1 for the one in force, 0 for the other.
pub const SOURCE_IN_FORCE: &str = "outboxd_relay_source_in_force";
/// By `source`: 1 for the one that is wanted.
pub const SOURCE_DESIRED: &str = "outboxd_relay_source_desired";
/// 1 while there is a note that says why the source is not as it was asked for.
pub const SOURCE_HAS_NOTE: &str = "outboxd_relay_source_has_note";
/// Raised whenever a relay takes the source's direction, also anew.
pub const SOURCE_EPOCH: &str = "outboxd_relay_source_epoch";
/// Bytes of log that the database keeps for the slot; absent while there is none.
pub const RETAINED_LOG_BYTES: &str = "outboxd_relay_retained_log_bytes";
/// Relays that run, in all processes.
pub const INSTANCES: &str = "outboxd_relay_instances";
/// By `instance` and `host`, of the relays that run now: lanes that each owns.
pub const INSTANCE_LANES: &str = "outboxd_relay_instance_lanes";
/// Lanes without an owner.
pub const LANES_WITHOUT_OWNER: &str = "outboxd_relay_lanes_without_owner";
/// By `lane`: events settled since the outbox was set up.
pub const LANE_SETTLED_EVENTS: &str = "outboxd_relay_lane_settled_events";
/// By `lane`: its epoch, raised each time it changes hands.
pub const LANE_EPOCH: &str = "outboxd_relay_lane_epoch";
/// Claims that are not completed, by `state`: `leased` or `run_out`, both counted to 10,000 together.
pub const OPEN_CLAIMS: &str = "outboxd_inbox_open_claims";
/// Claims that are remembered, as Postgres estimates.
pub const CLAIMS: &str = "outboxd_inbox_claims";
/// Marks that are remembered, as Postgres estimates.
pub const MARKS: &str = "outboxd_inbox_marks";
/// Lanes that this process owns.
pub const LANES_OWNED: &str = "outboxd_relay_lanes_owned";
/// Events that this process has under way.
pub const IN_FLIGHT_EVENTS: &str = "outboxd_relay_in_flight_events";
/// 1 while this process's relay has a session with the database.
pub const CONNECTED: &str = "outboxd_relay_connected";
/// 1 unless this process last heard that no broker answers.
pub const KAFKA_REACHABLE: &str = "outboxd_relay_kafka_reachable";
/// By `reason`, as readiness tells them: 1 while it troubles this process's relay.
pub const TROUBLE: &str = "outboxd_relay_trouble";
