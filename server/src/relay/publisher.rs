//! What the relay asks of the place that it publishes to.
//!
//! Two implementations: Kafka, and the wrapper around it that the tests inject faults with.

use std::{borrow::Cow, future::Future};

use outbox_proto::{record::AttributesRef, structured};

use crate::{
    config::Format,
    store::relay::row::{Event, Malformed, replay_of},
};

/// Publishes records and reports what became of each.
///
/// *Delivery*: an acknowledged record is as durable as the topic is configured to be. Every enqueued record is reported
/// exactly once, unless [`reset`](Self::reset) is called first; there is no time limit of its own.
///
/// *Order*: records of one key appear in the order they were enqueued, and without gaps: when one fails, none that was
/// enqueued after it under the same key appears before `reset`. What appears may be repeated by enqueueing it again.
///
/// *Concurrency*: one relay session calls it, one call at a time. Reports may arrive at any time.
///
/// *Cancellation*: [`changed`](Self::changed) may be dropped at any point without losing a report.
///
/// *Shutdown*: dropping it abandons what is enqueued, as `reset` does.
pub trait Publisher: Send + 'static {
    /// Whether a topic is there. Never blocks: while it is being asked for, the answer is [`Topic::Asking`], and
    /// `changed` tells when that changes. A missing topic is asked for again after some seconds.
    fn topic(&mut self, topic: &str) -> Topic;

    /// Hands a record over, copying it. The token, which is the caller's, comes back with the report.
    ///
    /// # Errors
    /// [`Refusal`]: the record was not taken, and will not be reported.
    fn enqueue(&mut self, record: &Record<'_>, token: usize) -> Result<(), Refusal>;

    /// Appends the reports that have come since the last call.
    fn take(&mut self, reports: &mut Vec<Report>);

    /// Waits until there is a report to take, or a topic's answer has changed.
    fn changed(&self) -> impl Future<Output = ()> + Send;

    /// Abandons everything that is enqueued and begins anew, and returns the last reports. Abandoned records may still
    /// appear later, in their order; those without a report here are as good as failed with [`Fault::Publisher`].
    fn reset(&mut self) -> impl Future<Output = Vec<Report>> + Send;

    /// What it last heard of the other side: `None` before it heard anything.
    fn reachable(&self) -> Option<bool>;
}

/// A record to be published.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// The stored event.
    pub event: &'a Event<'a>,
    /// How the record carries it.
    pub format: Format,
}

impl<'a> Record<'a> {
    /// Calls `put` with each header's name and value, and returns the record's value.
    ///
    /// # Errors
    /// [`Malformed`] when the event's free headers cannot be read.
    pub fn encode(&self, mut put: impl FnMut(&str, &[u8])) -> Result<Option<Cow<'a, [u8]>>, Malformed> {
        let mut free = self.event.headers()?;
        let attributes = AttributesRef {
            // A copy is published as what it is a copy of.
            id: replay_of(&mut free)?.unwrap_or(self.event.id),
            source: self.event.source,
            event_type: self.event.event_type,
            subject: self.event.subject,
            time: Some(self.event.time),
            content_type: self.event.content_type,
            traceparent: self.event.traceparent,
            tracestate: self.event.tracestate,
        };
        let value = match (self.format, self.event.data) {
            (Format::Structured, Some(data)) => {
                attributes.encode_content(Some(structured::CONTENT_TYPE), &mut put);
                Some(Cow::Owned(structured::encode(&attributes, data)))
            }
            (Format::Raw, data) => {
                attributes.encode_content(attributes.content_type, &mut put);
                data.map(Cow::Borrowed)
            }
            // The value of a tombstone is null, or compaction would keep it: only headers can carry its attributes.
            (Format::Binary, data) | (Format::Structured, data @ None) => {
                attributes.encode(&mut put);
                data.map(Cow::Borrowed)
            }
        };
        for (name, value) in &free {
            put(name, value.as_bytes());
        }
        Ok(value)
    }
}

/// What is known of a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Topic {
    /// It is there.
    Ready,
    /// Not known yet.
    Asking,
    /// It is not there or may not be written, and why.
    Missing(String),
}

/// Why a record was not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The queue is full; try again when something has been reported.
    Full,
    /// This record has to wait for the report of another one; so has everything behind it in its lane.
    Later,
    /// This record can never be published as things are.
    Record(String),
    /// Its topic takes no records.
    Topic(String),
    /// The publisher has failed and must be reset.
    Publisher(String),
}

/// What became of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The caller's token.
    pub token: usize,
    /// Where it is, or why it is not.
    pub outcome: Result<Place, Fault>,
}

/// Where an acknowledged record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Partition of its topic.
    pub partition: i32,
    /// Offset in the partition.
    pub offset: i64,
}

/// Why a record failed for good. The publisher must be reset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It, or another record that was sent together with it, was rejected, and will be until something is changed.
    Record(String),
    /// The same, for a reason that may pass by itself.
    Unclear(String),
    /// Its topic takes no records.
    Topic(String),
    /// Nothing is wrong with the record.
    Publisher(String),
}
