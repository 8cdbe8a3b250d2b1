//! Sending: enqueues what waits, in order, lane by lane independent of each other.

use std::{collections::BTreeSet, time::Instant};

use super::{Session, attempts::OUTLIVED_AFTER, held::Failure};
use crate::{
    config,
    relay::{
        Error,
        publisher::{Publisher, Record, Refusal, Topic},
        source::Source,
        trace::Spans,
        window::Mark,
    },
    store::relay::row::Row,
};

/// Events enqueued before the session looks at anything else.
const BURST: usize = 1_000;

/// Why sending paused.
enum Pause {
    /// Nothing waits that can be sent.
    Nothing,
    /// There is more.
    Burst,
    /// The publisher has failed.
    Failed(String),
}

impl<P: Publisher, S: Source> Session<'_, P, S> {
    /// Enqueues what it can.
    pub(super) async fn send(&mut self) -> Result<(), Error> {
        self.care.more_to_send = false;
        if self.held.paused.is_some() || self.care.must_wait(Instant::now()) {
            return self.take_back_attempt(OUTLIVED_AFTER).await;
        }
        self.start_attempt().await?;
        let mut refused = Vec::new();
        match self.enqueue(&mut refused) {
            Pause::Nothing => {}
            Pause::Burst => self.care.more_to_send = true,
            Pause::Failed(reason) => self.recover(Vec::new(), Some(reason)).await?,
        }
        // What is held may be all that a page waited for.
        self.care.more_to_send |= !refused.is_empty();
        for (token, failure) in refused {
            self.set_aside(token, &failure).await?;
        }
        Ok(())
    }

    /// Collects events that cannot be sent; their lanes are passed over.
    fn enqueue(&mut self, refused: &mut Vec<(usize, Failure)>) -> Pause {
        let mut passed_over = BTreeSet::new();
        let mut burst = 0;
        for page in &mut self.window.pages {
            // What was read under a snapshot may be published only once what the snapshot sees is flushed.
            if page.round > self.flushed_round {
                break;
            }
            let mut in_order = true;
            for index in page.next..page.rows.len() {
                let row = &page.rows[index];
                if page.marks[index] == Mark::Waiting && !passed_over.contains(&row.lane()) {
                    // A lease that may have run out: another relay may have the lanes by now.
                    if !self.lease.is_held(Instant::now()) {
                        return Pause::Nothing;
                    }
                    if self.care.in_flight_max.is_some_and(|max| self.window.enqueued >= max) {
                        return Pause::Nothing;
                    }
                    let token = page.token(index);
                    let offered = match self.attempts.admit(row.lane(), token) {
                        true => offer(self.publisher, &mut self.spans, &self.settings.config, row, token),
                        false => Ok(false),
                    };
                    match offered {
                        Ok(true) => {
                            page.marks[index] = Mark::Enqueued;
                            self.window.enqueued += 1;
                            burst += 1;
                        }
                        Ok(false) | Err(Refusal::Later) => {
                            passed_over.insert(row.lane());
                        }
                        Err(Refusal::Full) => return Pause::Nothing,
                        Err(Refusal::Record(reason)) => {
                            passed_over.insert(row.lane());
                            refused.push((token, Failure::Record(reason)));
                        }
                        Err(Refusal::Topic(reason)) => {
                            passed_over.insert(row.lane());
                            refused.push((token, Failure::Topic(reason)));
                        }
                        Err(Refusal::Publisher(reason)) => return Pause::Failed(reason),
                    }
                }
                in_order &= page.marks[index] != Mark::Waiting;
                if in_order {
                    page.next = index + 1;
                }
                if burst == BURST {
                    return Pause::Burst;
                }
            }
        }
        Pause::Nothing
    }
}

/// Hands an event over; false while it is not known whether its topic is there.
fn offer<P: Publisher>(
    publisher: &mut P,
    spans: &mut Spans,
    config: &config::Relay,
    row: &Row,
    token: usize,
) -> Result<bool, Refusal> {
    let event = row.event().map_err(|malformed| Refusal::Record(malformed.to_string()))?;
    match publisher.topic(event.topic) {
        Topic::Ready => {}
        Topic::Asking => return Ok(false),
        Topic::Missing(reason) => return Err(Refusal::Topic(reason)),
    }
    publisher.enqueue(&Record { event: &event, format: config.format(event.topic) }, token)?;
    spans.enqueued(token, &event);
    Ok(true)
}
