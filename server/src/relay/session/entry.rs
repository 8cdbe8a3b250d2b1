//! Entering: connects, makes sure that this is the right database, and takes the lease.

use std::{
    future::Future,
    time::{Duration, Instant},
};

use crate::{
    model::source::Source,
    relay::{Error, Settings},
    store::relay::{
        self as store, Connection,
        lease::{self, Mark},
        progress::LaneRow,
        stream::{self, Direction, Stream},
    },
};

/// What a session begins with.
pub(in crate::relay) struct Entry {
    /// For leases and progress.
    pub(in crate::relay) control: Connection,
    /// When the lease's renewal was sent.
    pub(super) sent: Instant,
    pub(super) mark: Mark,
    /// The lanes that the relay owned already.
    pub(super) owned: Vec<LaneRow>,
    /// Which source is in force.
    pub(in crate::relay) stream: Stream,
    /// Set when `wal` is in force and it is this relay that streams.
    pub(in crate::relay) direction: Option<Direction>,
}

impl Entry {
    /// Enters.
    pub(in crate::relay) async fn open(settings: &Settings) -> Result<Self, Error> {
        let mut control = within(settings.connect_timeout, connect(settings)).await?;
        let ttl = Duration::from_millis(settings.config.lease_ttl_ms);
        within(ttl, enter(&mut control, settings, ttl)).await.map(|(sent, mark, owned, stream, direction)| Self {
            control,
            sent,
            mark,
            owned,
            stream,
            direction,
        })
    }
}

/// Connects, and checks that this is the right database.
pub(in crate::relay) async fn connect(settings: &Settings) -> Result<Connection, Error> {
    let mut connection = store::connect(&settings.database_url).await?;
    let identity = store::identity::read(&mut connection).await?;
    if identity.standby {
        return Err(Error::Standby);
    }
    if identity.system_identifier != identity.expected_identifier {
        return Err(Error::Identity { expected: identity.expected_identifier, found: identity.system_identifier });
    }
    if identity.timeline != identity.expected_timeline {
        return Err(Error::Timeline { expected: identity.expected_timeline, found: identity.timeline });
    }
    Ok(connection)
}

type Entered = (Instant, Mark, Vec<LaneRow>, Stream, Option<Direction>);

async fn enter(control: &mut Connection, settings: &Settings, ttl: Duration) -> Result<Entered, Error> {
    lease::register(control, settings.instance, &settings.host, ttl).await?;
    let owned = lease::reclaim(control, settings.instance).await?;
    let sent = Instant::now();
    let mark = lease::renew(control, settings.instance, ttl).await?.ok_or(Error::LeaseLost)?;
    let mut stream = stream::read(control).await?;
    let mut direction = None;
    if stream.source == Source::Wal {
        direction = stream::direct(control, settings.instance).await?;
        // What it said before may have been another owner's last word.
        stream = stream::read(control).await?;
    }
    Ok((sent, mark, owned, stream, direction))
}

/// A database that does not answer is one that failed.
pub(in crate::relay) async fn within<T, E: Into<Error>>(
    limit: Duration,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, Error> {
    match tokio::time::timeout(limit, work).await {
        Ok(done) => done.map_err(Into::into),
        Err(_) => Err(Error::Timeout(limit)),
    }
}
