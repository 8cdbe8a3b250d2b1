//! What the relay says of itself, for readiness and operators.

use std::time::Instant;

use crate::model::source::Source;

/// The relay's state at a moment. Watching it is cheap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Whether it has a session with the database.
    pub connected: bool,
    /// How many lanes are its own.
    pub lanes_owned: usize,
    /// Events that are held in its lanes, counted to 10,000.
    pub held: usize,
    /// Why it publishes nothing, when an operator has paused it.
    pub paused: Option<String>,
    /// Events published and not yet settled.
    pub in_flight: usize,
    /// Whether Kafka answers; `None` before anything was heard.
    pub kafka_reachable: Option<bool>,
    /// What ended the last session, until the next one runs.
    pub last_error: Option<String>,
    /// When it last settled events.
    pub last_settled: Option<Instant>,
    /// The source in force.
    pub source: Option<Source>,
    /// Why the source in force is not the one that was asked for.
    pub source_note: Option<String>,
    /// Bytes of log that the database keeps for this relay.
    pub retained_log_bytes: Option<i64>,
}

impl Status {
    /// Whether it gets on: it reaches both sides, as far as it knows. What is held keeps nothing else back, and a pause
    /// is meant.
    pub fn is_healthy(&self) -> bool {
        self.connected && self.kafka_reachable != Some(false)
    }
}
