//! Faults: finds the record that cannot be published, has it held, and sends everything else again.
//!
//! A failed record stops the producer, so that none behind it passes. The producer is closed, and what it had not got
//! acknowledged is enqueued with a new one, in order. Kafka rejects records by the batch: when several were rejected
//! together, fewer are let out at a time, by halves, until the one at fault is alone. It deliberately does not know what
//! waits behind a held event: `held` does.

use std::time::{Duration, Instant};

use super::{Session, held::Failure};
use crate::relay::{
    Error,
    publisher::{Fault, Publisher},
    source::Source,
};

const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// How carefully to send.
#[derive(Default)]
pub(super) struct Care {
    /// Set while the record at fault is looked for.
    pub(super) in_flight_max: Option<usize>,
    /// The last of the records that were rejected together.
    suspects_end: usize,
    /// Set after a fault of the publisher's own.
    pub(super) resend_at: Option<Instant>,
    pause: Duration,
    /// Whether sending stopped only to let others have their turn.
    pub(super) more_to_send: bool,
}

impl Care {
    /// An event has arrived: the publisher works, and suspects up to it are cleared.
    pub(super) fn acknowledged(&mut self, token: usize) {
        self.pause = PAUSE_MIN;
        if self.in_flight_max.is_some() && token >= self.suspects_end {
            self.in_flight_max = None;
        }
    }

    /// Whether to wait before sending again.
    pub(super) fn must_wait(&mut self, now: Instant) -> bool {
        if self.resend_at.is_some_and(|at| at <= now) {
            self.resend_at = None;
        }
        self.resend_at.is_some()
    }

    fn back_off(&mut self, now: Instant) {
        self.resend_at = Some(now + self.pause);
        self.pause = (self.pause * 2).clamp(PAUSE_MIN, PAUSE_MAX);
    }
}

impl<P: Publisher, S: Source> Session<'_, P, S> {
    /// Closes the publisher, finds the records at fault among all that it reports, and has the rest sent again.
    /// `own` is the publisher's own fault, when it is known already.
    pub(super) async fn recover(
        &mut self,
        mut faults: Vec<(usize, Fault)>,
        mut own: Option<String>,
    ) -> Result<(), Error> {
        for report in self.publisher.reset().await {
            self.take_report(report, &mut faults);
        }
        self.window.rewind();
        faults.sort_by_key(|(token, _)| *token);
        let (mut rejected, mut of_topics) = (Vec::new(), Vec::new());
        for (token, fault) in faults {
            match fault {
                Fault::Record(reason) => rejected.push((token, Failure::Record(reason))),
                Fault::Unclear(reason) => rejected.push((token, Failure::Unclear(reason))),
                Fault::Topic(reason) => of_topics.push((token, Failure::Topic(reason))),
                Fault::Publisher(reason) => own = Some(reason),
            }
        }
        if rejected.is_empty()
            && of_topics.is_empty()
            && let Some(reason) = own
        {
            tracing::warn!(reason, "the publisher has failed; it is made anew and what it had is sent again");
            self.care.back_off(Instant::now());
        }
        for (token, failure) in of_topics {
            self.set_aside(token, &failure).await?;
        }
        self.suspect(&rejected).await
    }

    async fn suspect(&mut self, rejected: &[(usize, Failure)]) -> Result<(), Error> {
        match rejected {
            [] => {}
            [(token, failure)] => self.set_aside(*token, failure).await?,
            [_, .., (last, failure)] => {
                let together = self.care.in_flight_max.map_or(rejected.len(), |max| max.min(rejected.len()));
                let in_flight_max = (together / 2).max(1);
                tracing::warn!(
                    records = rejected.len(),
                    in_flight_max,
                    ?failure,
                    "kafka rejected records together; they are sent again, fewer at a time"
                );
                self.care.in_flight_max = Some(in_flight_max);
                self.care.suspects_end = self.care.suspects_end.max(*last);
            }
        }
        Ok(())
    }
}
