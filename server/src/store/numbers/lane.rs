//! A lane as operators see it, and how fast it settles events.
//!
//! A rate is the difference of two readings: the first one has none. Deliberately not here: taking readings.

use std::{collections::HashMap, time::Duration};

use chrono::{DateTime, Utc};
use serde::Serialize;
use uuid::Uuid;

use super::rfc3339;

/// A lane.
#[derive(Clone, Debug, Serialize, sqlx::FromRow)]
pub struct Lane {
    /// Its number.
    pub lane: i16,
    /// Its owner.
    pub owner: Option<Uuid>,
    /// Raised each time it changes hands.
    pub epoch: i64,
    /// Events settled since the outbox was set up.
    pub settled: i64,
    /// Events settled per second since the reading before.
    #[sqlx(default)]
    pub events_per_second: Option<f64>,
    /// When its progress was last written.
    #[serde(serialize_with = "rfc3339")]
    pub updated_at: DateTime<Utc>,
    /// Take-overs from relays that died, without progress since.
    pub claims: i32,
}

/// Adds rates, by comparison with an earlier reading.
pub(super) fn rates(lanes: &mut [Lane], before: &[Lane], between: Duration) {
    let before: HashMap<i16, i64> = before.iter().map(|lane| (lane.lane, lane.settled)).collect();
    for lane in lanes {
        let settled = before.get(&lane.lane).map(|settled| (lane.settled - settled).max(0));
        lane.events_per_second = settled.map(|settled| settled as f64 / between.as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_what_was_settled_between_two_readings() {
        let lane = |settled| Lane {
            lane: 3,
            owner: None,
            epoch: 1,
            settled,
            events_per_second: None,
            updated_at: Utc::now(),
            claims: 0,
        };
        let mut now = [lane(700)];
        rates(&mut now, &[lane(100)], Duration::from_secs(2));
        assert_eq!(now[0].events_per_second, Some(300.0));
        let mut first = [lane(700)];
        rates(&mut first, &[], Duration::from_secs(2));
        assert_eq!(first[0].events_per_second, None, "there is nothing to compare with");
    }
}
