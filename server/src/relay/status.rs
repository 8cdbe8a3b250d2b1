//! What the relay says of itself, for readiness and operators.

use std::time::Instant;

use serde::{Serialize, Serializer};

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
    /// Whether Kafka has acknowledged nothing for seconds of what it was given.
    pub kafka_stalled: bool,
    /// What ended the last session, until the next one runs.
    pub last_error: Option<String>,
    /// Whether that ended the relay for good: an operator has to act.
    pub stopped: bool,
    /// When it last settled events.
    pub last_settled: Option<Instant>,
    /// The source in force.
    pub source: Option<Source>,
    /// Why the source in force is not the one that was asked for.
    pub source_note: Option<String>,
    /// Bytes of log that the database keeps for this relay.
    pub retained_log_bytes: Option<i64>,
}

/// Why a relay is in trouble. The names are stable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It has ended for good, and an operator has to act: the database is not the one that its progress is of.
    Stopped,
    /// It has no session with the database.
    NoSession,
    /// No broker answers.
    KafkaUnreachable,
    /// Kafka acknowledges nothing of what it was given.
    KafkaStalled,
    /// The source is not as it was asked for: a slot was lost, too much log was kept, or `wal` cannot be had.
    SourceNotAsAsked,
    /// Events of its lanes are held.
    Held,
    /// An operator has paused it.
    Paused,
}

impl Reason {
    /// Every reason, the worst first.
    pub const ALL: [Self; 7] = [
        Self::Stopped,
        Self::NoSession,
        Self::KafkaUnreachable,
        Self::KafkaStalled,
        Self::SourceNotAsAsked,
        Self::Held,
        Self::Paused,
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::NoSession => "no_session",
            Self::KafkaUnreachable => "kafka_unreachable",
            Self::KafkaStalled => "kafka_stalled",
            Self::SourceNotAsAsked => "source_not_as_asked",
            Self::Held => "held",
            Self::Paused => "paused",
        }
    }

    /// Whether nothing is published because of it. What is held keeps nothing else back, with either source events are
    /// published, and a pause is meant.
    pub fn stops(self) -> bool {
        matches!(self, Self::Stopped | Self::NoSession | Self::KafkaUnreachable | Self::KafkaStalled)
    }
}

impl Serialize for Reason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// Something that an operator should know of a relay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Trouble {
    /// What kind it is.
    pub reason: Reason,
    /// What has happened, and what to do. No payloads, no keys.
    pub detail: String,
}

impl Status {
    /// What troubles it, the worst first.
    pub fn troubles(&self) -> Vec<Trouble> {
        Reason::ALL
            .into_iter()
            .filter_map(|reason| self.detail(reason).map(|detail| Trouble { reason, detail }))
            .collect()
    }

    /// Whether it gets on: it reaches both sides, as far as it knows.
    pub fn is_healthy(&self) -> bool {
        !Reason::ALL.into_iter().any(|reason| reason.stops() && self.detail(reason).is_some())
    }

    fn detail(&self, reason: Reason) -> Option<String> {
        let last_error = || self.last_error.clone().unwrap_or_else(|| "it has just started".into());
        match reason {
            Reason::Stopped => self.stopped.then(last_error),
            Reason::NoSession => (!self.connected && !self.stopped).then(last_error),
            Reason::KafkaUnreachable => (self.kafka_reachable == Some(false)).then(|| {
                "no broker of kafka.bootstrap_servers answers; what is committed is published once one does".into()
            }),
            Reason::KafkaStalled => self.kafka_stalled.then(|| {
                format!(
                    "kafka acknowledges nothing of {} events under way; are its partitions in sync?",
                    self.in_flight
                )
            }),
            Reason::SourceNotAsAsked => self.source_note.clone(),
            Reason::Held => (self.held > 0)
                .then(|| format!("{} events are held in this relay's lanes; see EventService.ListHeld", self.held)),
            Reason::Paused => self
                .paused
                .as_ref()
                .map(|reason| format!("paused by an operator: {reason}; RelayService.Resume ends it")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reasons(status: &Status) -> Vec<&'static str> {
        status.troubles().into_iter().map(|trouble| trouble.reason.name()).collect()
    }

    #[test]
    fn a_relay_that_gets_on_has_no_troubles_and_one_that_just_starts_does_not_get_on_yet() {
        let well = Status { connected: true, kafka_reachable: Some(true), ..Status::default() };
        assert!(well.is_healthy() && well.troubles().is_empty());
        let starting = Status::default();
        assert!(!starting.is_healthy());
        assert_eq!(reasons(&starting), ["no_session"]);
    }

    #[test]
    fn what_stops_publishing_is_told_apart_from_what_does_not() {
        let well = Status { connected: true, ..Status::default() };
        let stopping = [
            (Status { kafka_reachable: Some(false), ..well.clone() }, "kafka_unreachable"),
            (Status { kafka_stalled: true, in_flight: 3, ..well.clone() }, "kafka_stalled"),
            (Status { stopped: true, last_error: Some("why".into()), ..Status::default() }, "stopped"),
            (Status { last_error: Some("why".into()), ..Status::default() }, "no_session"),
        ];
        for (status, reason) in stopping {
            assert_eq!((reasons(&status), status.is_healthy()), (vec![reason], false));
        }
        let others = [
            (Status { source_note: Some("the slot is lost".into()), ..well.clone() }, "source_not_as_asked"),
            (Status { held: 2, ..well.clone() }, "held"),
            (Status { paused: Some("maintenance".into()), ..well }, "paused"),
        ];
        for (status, reason) in others {
            assert_eq!((reasons(&status), status.is_healthy()), (vec![reason], true));
        }
    }
}
