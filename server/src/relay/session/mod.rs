//! One session of the relay: from connecting to the first database error, lost lease or shutdown.
//!
//! `run_once` does what there is to do, in the order of an event's way: leases, reading, sending, settling. `run` waits
//! in between. Everything it remembers of the database is only as good as its connections, and is dropped with them:
//! after a database crash, transactions and positions that were never durable may be given out again. It deliberately
//! does not reconnect: `Relay::run` does.

mod attempts;
mod entry;
mod held;
mod reading;
mod recovery;
mod sending;
mod settling;
mod upkeep;

use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub(super) use self::entry::{Entry, connect, within};
use self::{attempts::Attempts, held::Held, recovery::Care};
use super::{
    Error, Settings, Status, Wake,
    lane::Lanes,
    lease::Lease,
    publisher::{Publisher, Report},
    source::Source,
    trace::Spans,
    window::Window,
};
use crate::store::relay::Connection;

/// A session.
pub(super) struct Session<'a, P, S: Source> {
    settings: &'a Settings,
    publisher: &'a mut P,
    wake: &'a Wake,
    status: &'a watch::Sender<Status>,
    control: Connection,
    source: S,
    lease: Lease,
    lanes: Lanes,
    window: Window<S::Reach>,
    spans: Spans,
    care: Care,
    held: Held,
    attempts: Attempts,
    /// The last of the source's rounds that a durable commit has followed.
    flushed_round: u64,
    draining: bool,
    /// When to write the progress of lanes that had no events.
    write_at: Instant,
    reports: Vec<Report>,
    /// When Kafka last moved, or there was nothing for it to move.
    last_movement: Instant,
    last_warning: Option<Instant>,
}

impl<'a, P: Publisher, S: Source> Session<'a, P, S> {
    /// A session on the lanes that the relay owned already.
    pub(super) fn new(
        settings: &'a Settings,
        publisher: &'a mut P,
        wake: &'a Wake,
        status: &'a watch::Sender<Status>,
        entry: Entry,
        source: S,
    ) -> Self {
        let Entry { control, sent, mark, owned, .. } = entry;
        let ttl = Duration::from_millis(settings.config.lease_ttl_ms);
        let mut session = Self {
            settings,
            publisher,
            wake,
            status,
            control,
            source,
            lease: Lease::new(ttl, sent, mark),
            lanes: Lanes::default(),
            window: Window::default(),
            spans: Spans::new(),
            care: Care::default(),
            held: Held::default(),
            attempts: Attempts::default(),
            flushed_round: 0,
            draining: false,
            write_at: sent + ttl / 3,
            reports: Vec::new(),
            last_movement: Instant::now(),
            last_warning: None,
        };
        session.take_over(owned);
        session
    }
}

impl<P: Publisher, S: Source> Session<'_, P, S> {
    /// Relays until shutdown or an error.
    pub(super) async fn run(&mut self, shutdown: &CancellationToken, drain: Duration) -> Result<(), Error> {
        while !shutdown.is_cancelled() {
            self.run_once().await?;
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = self.something_to_do() => {}
            }
        }
        self.draining = true;
        let deadline = tokio::time::sleep(drain);
        tokio::pin!(deadline);
        loop {
            self.run_once().await?;
            // While the relay is paused, what is not enqueued stays.
            if self.window.pages.is_empty() || self.held.paused.is_some() && self.window.enqueued == 0 {
                break;
            }
            tokio::select! {
                () = &mut deadline => break,
                () = self.something_to_do() => {}
            }
        }
        self.leave().await
    }

    /// The event whose attempt would be blamed if the process died now.
    pub(super) fn under_suspicion(&self) -> Option<Uuid> {
        self.attempts.counted()
    }

    /// Does what there is to do without waiting for anything but the database.
    pub(super) async fn run_once(&mut self) -> Result<(), Error> {
        self.settle().await?;
        self.keep_lease().await?;
        self.take_batch().await?;
        self.drain_held().await?;
        self.ask();
        self.send().await?;
        self.report();
        Ok(())
    }

    /// Waits until there is. May be dropped at any point.
    async fn something_to_do(&mut self) {
        if self.care.more_to_send {
            return tokio::task::yield_now().await;
        }
        let next = self.next_deadline();
        tokio::select! {
            () = self.publisher.changed() => {}
            () = self.source.done(), if !self.draining => {}
            () = self.wake.woken(), if !self.draining => self.source.wake(),
            () = tokio::time::sleep_until(next.into()) => {}
        }
    }

    fn next_deadline(&self) -> Instant {
        let mut next = self.lease.renew_at.min(self.write_at);
        if !self.draining {
            next = next.min(self.lease.share_at);
        }
        if !self.draining
            && self.has_room()
            && let Some(next_read) = self.source.next_read(&self.lanes)
        {
            next = next.min(next_read);
        }
        if let Some(resend_at) = self.care.resend_at {
            next = next.min(resend_at);
        }
        if !self.draining
            && self.held.paused.is_none()
            && !self.source.is_leaving()
            && !self.window.drains()
            && self.has_room()
            && let Some(next_drain) = self.held.next_drain(Instant::now())
        {
            next = next.min(next_drain);
        }
        next
    }
}
