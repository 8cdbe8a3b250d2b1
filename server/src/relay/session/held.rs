//! Holding: sets aside what cannot be published, with what must not pass it, and drains what is due.
//!
//! An event is held by a durable write of its own, before anything passes it. Only this session, the owner of its lanes,
//! adds to a hold and drains it, one page of held events at a time, so that the two meet: what comes of a key while it is
//! held is added behind, and a hold ends when its last event is published and nothing more has come. It deliberately
//! does not decide why an event fails: `recovery` does.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    time::{Duration, Instant},
};

use uuid::Uuid;

use super::{Session, within};
use crate::{
    config::HeldPolicy,
    relay::{
        Error,
        publisher::{Publisher, Topic},
        source::Source,
        window::Drained,
    },
    store::relay::{
        drain,
        held::{self, Cause, Kind, News},
        row::{Event, Row},
    },
};

/// Holds that are drained together.
const HOLDS_MAX: i64 = 32;
/// A lane that was taken over this often, and not given back, without progress in between is sent with care.
const CLAIMS_MAX: i32 = 3;
/// Pause before a topic is asked for again that was being asked for.
const ASKING_PAUSE: Duration = Duration::from_millis(100);

/// What the session knows of its lanes' holds.
#[derive(Default)]
pub(super) struct Held {
    /// The lanes with holds: what is read of them is compared with these.
    lanes: BTreeSet<i16>,
    /// The newest hold seen.
    newest: i64,
    /// Whether a hold may be drained.
    due: bool,
    /// Not before then.
    drain_at: Option<Instant>,
    /// Events held, counted to a limit.
    pub(super) count: usize,
    /// Why nothing may be published now.
    pub(super) paused: Option<String>,
}

/// Why an event is set aside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// It can never be published as things are: an operator has to help.
    Record(String),
    /// It may be published later, though nothing says when.
    Unclear(String),
    /// Its topic is not there, or takes nothing.
    Topic(String),
    /// The process died so many times while it was being published.
    Crashes(i32),
}

impl Held {
    /// When there may be something to drain: not before `now`.
    pub(super) fn next_drain(&self, now: Instant) -> Option<Instant> {
        self.due.then(|| self.drain_at.map_or(now, |at| at.max(now)))
    }
}

impl<P: Publisher, S: Source> Session<'_, P, S> {
    /// Looks for what operators have changed: pauses, parked keys, holds that are due.
    pub(super) async fn look(&mut self) -> Result<(), Error> {
        let lanes: Vec<i16> = self.lanes.iter().map(|(lane, _)| lane).collect();
        let news = within(self.patience(), held::news(&mut self.control, &lanes, CLAIMS_MAX)).await?;
        let News { paused, lanes, newest, due, held, claimed, careful, suspects } = news;
        self.attempts.look_out(claimed, &careful, suspects);
        if paused != self.held.paused {
            match &paused {
                Some(reason) => tracing::warn!(reason, "the relay is paused"),
                None => tracing::info!("the relay goes on"),
            }
        }
        let is_news = newest != self.held.newest || lanes.iter().any(|lane| !self.held.lanes.contains(lane));
        let drain_at = self.held.drain_at;
        let count = usize::try_from(held).unwrap_or_default();
        self.held = Held { lanes: lanes.into_iter().collect(), newest, due, drain_at, count, paused };
        if is_news {
            self.hold_waiting(None, 0).await?;
        }
        Ok(())
    }

    /// Sets an event aside that waits, with what must not pass it.
    pub(super) async fn set_aside(&mut self, token: usize, failure: &Failure) -> Result<(), Error> {
        let Some(row) = self.window.row(token).filter(|_| self.window.waits(token)) else { return Ok(()) };
        let (lane, position) = (row.lane(), row.position());
        let Some(epoch) = self.lanes.epoch(lane) else { return Ok(()) };
        let event = match row.event() {
            Ok(event) => event,
            Err(malformed) => return self.hold_unreadable(token, (lane, epoch), position, malformed.to_string()).await,
        };
        let cause = self.cause(&event, failure);
        let (event_id, topic, reason) = (event.id, event.topic, cause.reason.as_str());
        tracing::error!(lane, %event_id, topic, position, reason, "an event cannot be published; it is held");
        let owner = (self.settings.instance, lane, epoch);
        let setting = held::set_aside(&mut self.control, owner, (&event, position), &cause);
        if !within(Duration::from_millis(self.settings.config.lease_ttl_ms), setting).await? {
            self.drop_lane(lane);
            return Ok(());
        }
        self.spans.failed(token, &cause.reason);
        let held: Vec<usize> = {
            let waits =
                |row: &Row| row.lane() == lane && row.event().is_ok_and(|other| waits_with(&event, &other, cause.kind));
            self.window.waiting(token, true).filter(|(_, row)| waits(row)).map(|(token, _)| token).collect()
        };
        for token in held {
            self.window.give_up(token);
        }
        self.held.lanes.insert(lane);
        self.hold_waiting(Some(lane), token).await
    }

    /// Holds an event by itself that cannot be read: neither its key nor what follows it is known.
    async fn hold_unreadable(
        &mut self,
        token: usize,
        (lane, epoch): (i16, i64),
        position: i64,
        reason: String,
    ) -> Result<(), Error> {
        tracing::error!(lane, position, reason, "an event cannot be read; it is held");
        let owner = (self.settings.instance, lane, epoch);
        let patience = self.patience();
        if within(patience, held::hold_unreadable(&mut self.control, owner, position, &reason)).await? {
            self.window.give_up(token);
        } else {
            self.drop_lane(lane);
        }
        Ok(())
    }

    fn cause(&self, event: &Event<'_>, failure: &Failure) -> Cause {
        let config = &self.settings.config;
        let retry = Duration::from_millis(config.held_retry_ms);
        let blocks = event.key.is_some() && config.held_policy(event.topic) == HeldPolicy::BlockKey;
        let kind = if blocks { Kind::Key } else { Kind::Event };
        match failure {
            Failure::Record(reason) => Cause { kind, reason: reason.clone(), attempts: 1, retry_after: None },
            Failure::Unclear(reason) => Cause { kind, reason: reason.clone(), attempts: 1, retry_after: Some(retry) },
            Failure::Topic(reason) => {
                Cause { kind: Kind::Topic, reason: reason.clone(), attempts: 1, retry_after: Some(retry) }
            }
            Failure::Crashes(attempts) => Cause {
                kind,
                reason: format!("the relay's process died {attempts} times while it was being published"),
                attempts: *attempts,
                retry_after: None,
            },
        }
    }

    /// Holds what waits, from an event on, and belongs to a hold. Of one lane, or of every lane that has holds.
    pub(super) async fn hold_waiting(&mut self, lane: Option<i16>, from: usize) -> Result<(), Error> {
        // What cannot be read is held when its turn to be sent comes.
        let in_lanes = |row: &Row| {
            lane.is_none_or(|lane| row.lane() == lane) && self.held.lanes.contains(&row.lane()) && row.event().is_ok()
        };
        let (tokens, rows): (Vec<usize>, Vec<&Row>) =
            self.window.waiting(from, false).filter(|(_, row)| in_lanes(row)).unzip();
        if rows.is_empty() {
            return Ok(());
        }
        let lanes: BTreeSet<i16> = rows.iter().map(|row| row.lane()).collect();
        let owner = self.lanes.owner(self.settings.instance, lanes);
        let patience = Duration::from_millis(self.settings.config.lease_ttl_ms);
        let held: HashSet<Uuid> =
            within(patience, held::hold(&mut self.control, &owner, &rows)).await?.into_iter().collect();
        let mut given_up = Vec::new();
        for (token, row) in tokens.into_iter().zip(rows) {
            if held.contains(&row.event()?.id) {
                given_up.push(token);
            }
        }
        for token in given_up {
            self.window.give_up(token);
        }
        Ok(())
    }

    /// Puts the first events of due holds into the window, when none are under way.
    pub(super) async fn drain_held(&mut self) -> Result<(), Error> {
        let now = Instant::now();
        let is_time = self.held.next_drain(now).is_some_and(|at| at <= now);
        let may = !self.draining && !self.source.is_leaving() && self.held.paused.is_none() && self.lease.is_held(now);
        if !is_time || !may || self.window.drains() || !self.has_room() {
            return Ok(());
        }
        let ready = self.ready_to_drain().await?;
        if ready.is_empty() {
            return Ok(());
        }
        let owner = self.lanes.owner(self.settings.instance, ready.values().copied().collect::<BTreeSet<_>>());
        let chosen: Vec<i64> = ready.keys().copied().collect();
        let patience = self.patience();
        let holds = within(patience, drain::begin(&mut self.control, &owner, &chosen)).await?;
        let room = self.room();
        let rows = drain::events(&mut self.control, &holds, room.rows_max, room.bytes_max);
        let rows = within(patience, rows).await?;
        tracing::info!(holds = holds.len(), events = rows.len(), "held events are drained");
        let lanes: BTreeSet<i16> = holds.iter().filter_map(|hold| ready.get(hold).copied()).collect();
        self.window.push_held(lanes.into_iter().collect(), rows, holds);
        Ok(())
    }

    /// The due holds that can be drained now, with their lanes. The others are put off.
    async fn ready_to_drain(&mut self) -> Result<BTreeMap<i64, i16>, Error> {
        let open = self.lanes.iter().map(|(lane, _)| lane).filter(|lane| self.lanes.is_open(*lane));
        let lanes: Vec<i16> = open.collect();
        let patience = self.patience();
        let due = within(patience, drain::due(&mut self.control, &lanes, HOLDS_MAX)).await?;
        self.held.due = !due.is_empty();
        self.held.drain_at = None;
        let owner = self.lanes.owner(self.settings.instance, due.iter().map(|due| due.lane).collect::<BTreeSet<_>>());
        let (mut ready, mut missing, mut fatal) = (BTreeMap::new(), Vec::new(), Vec::new());
        let drains_max = i32::try_from(self.settings.config.attempts_max).unwrap_or(i32::MAX);
        for due in due {
            match self.publisher.topic(&due.topic) {
                _ if due.drains >= drains_max => fatal.push(due.hold),
                Topic::Ready => drop(ready.insert(due.hold, due.lane)),
                Topic::Asking => self.held.drain_at = Some(Instant::now() + ASKING_PAUSE),
                Topic::Missing(_) => missing.push(due.hold),
            }
        }
        let retry = Duration::from_millis(self.settings.config.held_retry_ms);
        if !missing.is_empty() {
            within(patience, drain::postpone(&mut self.control, &owner, &missing, Some(retry), None)).await?;
        }
        if !fatal.is_empty() {
            let reason = format!("the relay's process died {drains_max} times while it was being drained");
            tracing::error!(holds = fatal.len(), reason, "held events are left until an operator unparks them");
            within(patience, drain::postpone(&mut self.control, &owner, &fatal, None, Some(&reason))).await?;
        }
        Ok(ready)
    }

    /// A page of held events is settled: what Kafka has is held no more.
    pub(super) async fn end_drain(&mut self, drained: Drained) -> Result<(), Error> {
        let Drained { lanes, holds, published, delivered } = drained;
        let owner = self.lanes.owner(self.settings.instance, lanes);
        let delivered = delivered.into_iter().collect();
        let ending = drain::end(&mut self.control, &owner, &holds, &published, &delivered);
        within(Duration::from_millis(self.settings.config.lease_ttl_ms), ending).await?;
        // There may be more of them, or they failed again and are not due.
        (self.held.due, self.held.drain_at) = (true, None);
        Ok(())
    }
}

/// Whether a later event must not pass one that failed.
fn waits_with(failed: &Event<'_>, later: &Event<'_>, kind: Kind) -> bool {
    match kind {
        Kind::Event => failed.id == later.id,
        Kind::Key => (failed.namespace, failed.topic, failed.key) == (later.namespace, later.topic, later.key),
        Kind::Topic => failed.topic == later.topic,
    }
}
