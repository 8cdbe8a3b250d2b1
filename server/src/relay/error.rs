//! Why a relay, or one session of it, ended.

use crate::{
    model::source::Source,
    store::relay::{self as store, replication, row::Malformed},
};

/// Why the relay could not begin, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A property of `kafka.properties` that delivery depends on.
    #[error("kafka.properties.{name} cannot be set: {reason}")]
    Property {
        /// The property.
        name: String,
        /// What it is instead.
        reason: String,
    },
    /// librdkafka refuses the configuration.
    #[error("the Kafka producer cannot be made: {0}; check kafka.bootstrap_servers and kafka.properties")]
    Producer(String),
    /// The database is not the one that its relay progress was written in.
    #[error(
        "this database was set up in cluster {expected} and now runs in cluster {found}: its relay progress is made of \
         the other cluster's transaction ids, so nothing is published; restore progress by hand first"
    )]
    Identity {
        /// `outbox.identity.system_identifier`.
        expected: i64,
        /// What the cluster says.
        found: i64,
    },
    /// The database goes on from another history than the one that its relay progress was written in.
    #[error(
        "this database was on timeline {expected} and now is on timeline {found}: a standby was promoted, or it was \
         restored to an earlier time, so that transactions which relay progress counts as settled may be gone and their \
         ids given to others, which would be skipped; nothing is published until you have made sure that no commit was \
         lost and run `outboxd relay adopt`"
    )]
    Timeline {
        /// `outbox.identity.timeline`.
        expected: i64,
        /// What the server says.
        found: i64,
    },
    /// The database is a standby.
    #[error("the database is a standby or in recovery; the relay reads only from a primary")]
    Standby,
    /// The database failed.
    #[error("the database failed: {0}")]
    Database(#[from] store::Error),
    /// The database did not answer in time.
    #[error("the database did not answer within {0:?}")]
    Timeout(std::time::Duration),
    /// The lease ran out before it was renewed.
    #[error("the relay's lease ran out before it was renewed")]
    LeaseLost,
    /// The log's stream failed.
    #[error("the stream of the database's log failed: {0}")]
    Stream(#[from] replication::Error),
    /// Another source is in force now.
    #[error("the source in force is `{0}` now")]
    SourceChanged(Source),
    /// An event's row cannot be read.
    #[error(transparent)]
    Malformed(#[from] Malformed),
}

/// What to do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Remedy {
    /// Stop and say so.
    Stop,
    /// Begin a new session at once.
    Again,
    /// Begin a new session after a pause that grows.
    Later,
}

impl Error {
    pub(super) fn remedy(&self) -> Remedy {
        match self {
            Self::Property { .. } | Self::Producer(_) | Self::Identity { .. } | Self::Timeline { .. } => Remedy::Stop,
            Self::LeaseLost | Self::SourceChanged(_) => Remedy::Again,
            Self::Standby | Self::Database(_) | Self::Timeout(_) | Self::Stream(_) | Self::Malformed(_) => {
                Remedy::Later
            }
        }
    }
}
