//! From `poll` to `wal`, and who begins to stream.
//!
//! Polling goes on while a slot is made, which waits for every open writer, and after that until each lane's written
//! progress covers the snapshot that was exported with the slot: what the slot does not give is then settled, and what
//! it gives twice is known by the lanes' progress. Only then is `wal` put in force. One relay directs this, under an
//! epoch of the stream's row. Deliberately not here: the way back, which `wal` knows.

use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::{
    model::source::Source,
    relay::{Error, Settings, source::Steered},
    store::{
        relay::{
            self as store, Connection, progress,
            replication::Error as SlotError,
            slot,
            stream::{self, Direction, Slot, Stream},
        },
        setup::{self, Error as Unfit},
    },
};

/// How long a slot may wait for open writers before it is given up and tried again.
const SLOT_PATIENCE: Duration = Duration::from_secs(300);
/// How often it is said that a slot is still waiting.
const SAY_EVERY: Duration = Duration::from_secs(10);
/// Pause after a slot could not be made.
const RETRY_PAUSE: Duration = Duration::from_secs(5);

/// The relay's part in a change to `wal`.
pub(super) struct ToWal {
    instance: Uuid,
    url: String,
    retained_log_bytes_max: u64,
    direction: Option<Direction>,
    making: Option<Making>,
    retry_at: Option<Instant>,
    /// Whether slots that an earlier change has left are gone.
    clean: bool,
}

struct Making {
    slot: String,
    task: JoinHandle<Result<Slot, SlotError>>,
    since: Instant,
    said: Instant,
}

impl ToWal {
    pub(super) fn new(settings: &Settings) -> Self {
        Self {
            instance: settings.instance,
            url: settings.database_url.clone(),
            retained_log_bytes_max: settings.config.retained_log_bytes_max,
            direction: None,
            making: None,
            retry_at: None,
            clean: false,
        }
    }

    /// Carries out the next step. `owned` are lanes that this relay still has.
    pub(super) async fn steer(
        &mut self,
        connection: &mut Connection,
        owned: usize,
        stream: &Stream,
    ) -> Result<Steered, Error> {
        match (stream.source, stream.desired) {
            (Source::Wal, _) => {
                // Whoever directs streams; the others, and it until it has let its lanes go, stand by.
                if self.take(connection, stream).await?.is_some() && owned == 0 {
                    return Err(Error::SourceChanged(Source::Wal));
                }
                Ok(Steered { share: Some(0), ..Steered::default() })
            }
            (Source::Poll, Source::Wal) => {
                let Some(by) = self.take(connection, stream).await? else { return Ok(Steered::default()) };
                match &stream.slot {
                    None if self.making.as_ref().is_some_and(|making| !making.task.is_finished()) => {
                        self.wait_for_slot(connection, by).await
                    }
                    None => self.make(connection, by).await.map(|()| Steered::default()),
                    Some(slot) => self.wait_for_progress(connection, by, slot).await,
                }
            }
            (Source::Poll, Source::Poll) => {
                if self.direction.is_some() || stream.slot.is_some() || !self.clean {
                    self.clear(connection, stream).await?;
                }
                Ok(Steered::default())
            }
        }
    }

    /// The direction, if this relay has it or nobody does.
    async fn take(&mut self, connection: &mut Connection, stream: &Stream) -> Result<Option<Direction>, Error> {
        let has = |by: &Direction| stream.owner == by.owner && stream.epoch == by.epoch;
        if self.direction.as_ref().is_none_or(|by| !has(by)) {
            let is_free = stream.owner.is_none_or(|owner| owner == self.instance);
            self.stop_making();
            self.direction = if is_free { stream::direct(connection, self.instance).await? } else { None };
        }
        Ok(self.direction)
    }

    /// Begins to make a slot, or takes note of the one that is made.
    async fn make(&mut self, connection: &mut Connection, by: Direction) -> Result<(), Error> {
        let now = Instant::now();
        if let Some(making) = self.making.take() {
            match making.task.await {
                Ok(Ok(slot)) => {
                    tracing::info!(slot = slot.name, waited_ms = making.since.elapsed().as_millis(), "a slot is made");
                    stream::set_slot(connection, by, &slot).await?;
                }
                Ok(Err(error)) => self.failed(connection, by, &error.into()).await?,
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            }
        } else if self.retry_at.is_none_or(|at| now >= at) {
            match self.prepare(connection, by).await {
                Ok(None) => {}
                Ok(Some(slot)) => {
                    tracing::info!(slot, "a slot is being made");
                    let (url, name) = (self.url.clone(), slot.clone());
                    let task = tokio::spawn(async move { slot::make(&url, name).await });
                    self.making = Some(Making { slot, task, since: now, said: now });
                }
                // Such as a role that may not: the connection is as good as before.
                Err(Unfit::Database(error)) if !matches!(error, store::Error::Database(_)) => return Err(error.into()),
                Err(error) => self.failed(connection, by, &error).await?,
            }
        }
        Ok(())
    }

    /// Looks how long a slot waits for open writers, and how much log it keeps meanwhile.
    async fn wait_for_slot(&mut self, connection: &mut Connection, by: Direction) -> Result<Steered, Error> {
        let Some(making) = &mut self.making else { return Ok(Steered::default()) };
        let now = Instant::now();
        if now > making.said + SAY_EVERY {
            making.said = now;
            let waited_s = (now - making.since).as_secs();
            tracing::info!(waited_s, "the slot waits for transactions that were writing; polling goes on");
        }
        if now > making.since + SLOT_PATIENCE {
            self.stop_making();
            tracing::warn!("the slot is given up and tried again: some transaction has been writing all along");
            return Ok(Steered::default());
        }
        let slot = making.slot.clone();
        match slot::state(connection, &slot).await? {
            Some(state) => self.keep_to_budget(connection, by, &slot, state.retained_bytes).await,
            None => Ok(Steered::default()),
        }
    }

    /// Gives a slot up that keeps more log than it may: `poll` is what is asked for then.
    async fn keep_to_budget(
        &mut self,
        connection: &mut Connection,
        by: Direction,
        slot: &str,
        retained: i64,
    ) -> Result<Steered, Error> {
        if retained.unsigned_abs() <= self.retained_log_bytes_max {
            return Ok(Steered { share: None, retained_log_bytes: Some(retained) });
        }
        let note = over_budget(retained, self.retained_log_bytes_max);
        self.stop_making();
        if stream::put_poll_in_force(connection, by, Source::Poll, Some(&note)).await? {
            tracing::error!(slot, "{note}");
        }
        Ok(Steered::default())
    }

    /// Makes ready for a slot; returns its name, or `None` while an old one is in the way.
    async fn prepare(&self, connection: &mut Connection, by: Direction) -> Result<Option<String>, Unfit> {
        setup::require(connection).await?;
        let (_, used) = slot::drop_leftovers(connection, None).await?;
        if used > 0 {
            return Ok(None);
        }
        match stream::count_slot(connection, by).await? {
            Some(number) => Ok(Some(slot::name(connection, number).await?)),
            None => Ok(None),
        }
    }

    async fn failed(&mut self, connection: &mut Connection, by: Direction, error: &Unfit) -> Result<(), Error> {
        tracing::warn!(%error, "no slot can be made for the log; polling goes on, and it is tried again");
        stream::set_note(connection, by, &error.to_string()).await?;
        self.retry_at = Some(Instant::now() + RETRY_PAUSE);
        Ok(())
    }

    /// Puts `wal` in force once polling has settled everything that the slot does not give.
    async fn wait_for_progress(
        &mut self,
        connection: &mut Connection,
        by: Direction,
        slot: &Slot,
    ) -> Result<Steered, Error> {
        let state = match slot::usable(connection, &slot.name, slot.settled.lsn).await? {
            Ok(state) => state,
            Err(fault) => {
                let note = format!(
                    "the slot {} was lost before it was streamed from: {fault}; another one is made",
                    slot.name
                );
                tracing::warn!(
                    slot = slot.name,
                    fault,
                    "the slot was lost before it was streamed from; another one is made"
                );
                stream::put_poll_in_force(connection, by, Source::Wal, Some(&note)).await?;
                return Ok(Steered::default());
            }
        };
        let steered = self.keep_to_budget(connection, by, &slot.name, state.retained_bytes).await?;
        if steered.retained_log_bytes.is_none() {
            return Ok(steered);
        }
        let lanes = progress::seen(connection).await?;
        if lanes.iter().all(|seen| seen.covers(&slot.snapshot)) && stream::put_wal_in_force(connection, by).await? {
            tracing::info!(slot = slot.name, "the source in force is `wal` now");
        }
        Ok(steered)
    }

    /// Lets go of what a change that is not wanted any more, or one that a crash has cut off, has left behind.
    async fn clear(&mut self, connection: &mut Connection, stream: &Stream) -> Result<(), Error> {
        let Some(by) = self.take(connection, stream).await? else { return Ok(()) };
        self.stop_making();
        if stream.slot.is_some() {
            stream::put_poll_in_force(connection, by, Source::Poll, stream.note.as_deref()).await?;
        }
        match slot::drop_leftovers(connection, None).await {
            Ok((dropped, used)) => {
                if dropped > 0 {
                    tracing::info!(dropped, "slots that are not needed any more are dropped");
                }
                if used > 0 {
                    return Ok(());
                }
            }
            Err(error @ store::Error::Database(_)) => {
                tracing::warn!(%error, "a slot that is not needed any more cannot be dropped; drop it by hand");
            }
            Err(error) => return Err(error.into()),
        }
        self.clean = true;
        self.direction = None;
        stream::leave(connection, by).await?;
        Ok(())
    }

    fn stop_making(&mut self) {
        if let Some(making) = self.making.take() {
            making.task.abort();
        }
    }
}

impl Drop for ToWal {
    fn drop(&mut self) {
        self.stop_making();
    }
}

/// What is said when the log kept for a slot has grown past its budget.
pub(in crate::relay) fn over_budget(retained: i64, budget: u64) -> String {
    format!(
        "the database kept {retained} bytes of log for `wal`, more than relay.retained_log_bytes_max = {budget}: the \
         source in force is `poll`; once the backlog is published, run `outboxd relay switch wal`"
    )
}
