//! Leases: renewing, taking and giving up lanes, leaving; and saying how things are.

use std::time::{Duration, Instant};

use super::{Session, within};
use crate::{
    relay::{
        Error, Status,
        lane::State,
        publisher::Publisher,
        source::{Source, Unwritten},
    },
    store::relay::{lease, progress::LaneRow, stream},
};

/// Kafka is given this long before it is said that it does not answer, and this long between two such lines.
const STALLED_AFTER: Duration = Duration::from_secs(5);
const WARNING_PAUSE: Duration = Duration::from_secs(10);

impl<P: Publisher, S: Source> Session<'_, P, S> {
    /// How long the database may take to answer about leases and progress.
    pub(super) fn patience(&self) -> Duration {
        Duration::from_millis(self.settings.config.lease_ttl_ms)
    }

    /// Renews the lease and looks at the share of lanes, when it is time.
    pub(super) async fn keep_lease(&mut self) -> Result<(), Error> {
        if Instant::now() >= self.lease.renew_at {
            self.renew().await?;
        }
        if Instant::now() >= self.write_at {
            self.write_at = Instant::now() + self.patience() / 3;
            self.write(Unwritten::Empty, None).await?;
        }
        if Instant::now() >= self.lease.share_at && !self.draining {
            self.take_share().await?;
            self.give_surplus().await?;
            self.look().await?;
        }
        Ok(())
    }

    /// Renews the lease with a durable commit: what any snapshot taken before has seen is flushed after it.
    pub(super) async fn renew(&mut self) -> Result<(), Error> {
        let (sent, round) = (Instant::now(), self.source.round());
        let ttl = self.patience();
        let renewal = lease::renew(&mut self.control, self.settings.instance, ttl);
        let mark = within(ttl, renewal).await?.ok_or(Error::LeaseLost)?;
        self.lease.renewed(sent, mark);
        self.flushed_round = round;
        Ok(())
    }

    async fn take_share(&mut self) -> Result<(), Error> {
        let wanted = self.steer().await?;
        let patience = self.patience();
        let share = within(patience, lease::share(&mut self.control, self.settings.instance, wanted)).await?;
        self.lease.shared(Instant::now());
        if !share.claimed.is_empty() {
            tracing::info!(lanes = share.claimed.len(), "lanes claimed");
        }
        self.take_over(share.claimed);
        let leaving = self.lanes.iter().filter(|(_, l)| matches!(l.state, State::Leaving { .. })).count();
        let now = Instant::now();
        let stay = self.lanes.iter().rev().filter(|(_, l)| !matches!(l.state, State::Leaving { .. }));
        let chosen: Vec<i16> = stay.take(share.surplus.saturating_sub(leaving)).map(|(n, _)| n).collect();
        for lane in chosen {
            if let Some(lane) = self.lanes.get_mut(lane) {
                lane.state = State::Leaving { since: now };
            }
        }
        Ok(())
    }

    /// Looks which source is in force, and lets this one do its part in a change. Returns the relay's share of lanes.
    async fn steer(&mut self) -> Result<Option<i64>, Error> {
        let patience = self.patience();
        let stream = within(patience, stream::read(&mut self.control)).await?;
        let steering = self.source.steer(&mut self.control, &self.lanes, &stream, self.window.drains());
        let steered = within(patience, steering).await?;
        self.status.send_if_modified(|status| {
            let before = (status.source, status.retained_log_bytes, status.source_note.take());
            status.source = Some(stream.source);
            status.retained_log_bytes = steered.retained_log_bytes;
            status.source_note = stream.note;
            before != (status.source, status.retained_log_bytes, status.source_note.clone())
        });
        Ok(steered.share)
    }

    /// Begins to relay claimed lanes.
    pub(super) fn take_over(&mut self, claimed: Vec<LaneRow>) {
        for row in claimed {
            self.lanes.add(row.lane, row.epoch);
            self.source.claimed(row);
        }
    }

    /// Gives up the lanes that are to leave and have nothing under way, or have waited for a lease's length: their next
    /// owner then repeats what is under way.
    async fn give_surplus(&mut self) -> Result<(), Error> {
        let (now, patience) = (Instant::now(), self.patience());
        let ready = |lane: i16, state: State| match state {
            State::Leaving { since } => !self.window.holds(lane) || now > since + patience,
            _ => false,
        };
        let leaving: Vec<i16> = self.lanes.iter().filter(|(n, l)| ready(*n, l.state)).map(|(n, _)| n).collect();
        if leaving.is_empty() {
            return Ok(());
        }
        self.write(Unwritten::Empty, None).await?;
        within(patience, lease::release(&mut self.control, self.settings.instance, &leaving)).await?;
        tracing::info!(lanes = leaving.len(), "lanes released");
        for lane in leaving {
            self.window.forget(lane);
            self.source.lost(lane);
            self.lanes.remove(lane);
        }
        Ok(())
    }

    /// Writes what is settled and gives everything back.
    pub(super) async fn leave(&mut self) -> Result<(), Error> {
        self.settle().await?;
        // The process ends by itself: what is under way was not its end.
        self.take_back_attempt(Duration::ZERO).await?;
        self.write(Unwritten::Empty, None).await?;
        within(self.patience(), lease::leave(&mut self.control, self.settings.instance)).await?;
        tracing::info!(abandoned = self.window.events(), "the relay has left");
        Ok(())
    }

    /// Tells watchers what has changed, and warns, now and then, when Kafka does not take anything.
    pub(super) fn report(&mut self) {
        let now = Instant::now();
        if self.window.events() == 0 {
            self.last_movement = now;
        } else if now > self.last_movement + STALLED_AFTER && self.last_warning.is_none_or(|t| now > t + WARNING_PAUSE)
        {
            self.last_warning = Some(now);
            let stalled_s = (now - self.last_movement).as_secs();
            tracing::warn!(in_flight = self.window.events(), stalled_s, "kafka acknowledges nothing; the relay waits");
        }
        let (owned, in_flight) = (self.lanes.len(), self.window.events());
        let kafka_stalled = self.window.enqueued > 0 && now > self.last_movement + STALLED_AFTER;
        let kafka_reachable = self.publisher.reachable();
        self.status.send_if_modified(|status| {
            let changed = !status.connected
                || status.lanes_owned != owned
                || status.in_flight != in_flight
                || status.kafka_reachable != kafka_reachable
                || status.kafka_stalled != kafka_stalled
                || status.held != self.held.count
                || status.paused != self.held.paused;
            if changed {
                *status = Status {
                    connected: true,
                    lanes_owned: owned,
                    held: self.held.count,
                    paused: self.held.paused.clone(),
                    in_flight,
                    kafka_reachable,
                    kafka_stalled,
                    last_error: None,
                    source_note: status.source_note.take(),
                    ..*status
                };
            }
            changed
        });
    }
}
