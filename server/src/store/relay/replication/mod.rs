//! Replication connections: commands, and the stream of committed events.
//!
//! A stream gives every event of every transaction that commits, in commit order, each with the place behind it. The
//! server is told that a place is settled only by [`Stream::confirm`]; while nothing is taken, it is answered all the
//! same, so that a slow reader does not lose the connection. Memory is bounded by the number of events that are ahead
//! of the reader. Deliberately not here: which of them are settled already.

mod pgoutput;
mod tls;

use std::time::Duration;

use futures_util::FutureExt as _;
use percent_encoding::percent_decode_str;
use pgwire_replication::{
    Lsn as WireLsn, PgWireError, ReplicationClient, ReplicationConfig, ReplicationEvent, SslMode, TlsConfig,
};
use sqlx::{ConnectOptions as _, postgres::PgConnectOptions};

use self::pgoutput::{Decoder, Message};
use super::row::{Malformed, Row};
use crate::model::log::{LogPosition, Lsn};

/// Messages that are ahead of the reader, at most.
const AHEAD_MAX: usize = 1_024;
/// How often the server is answered at least.
const STATUS_EVERY: Duration = Duration::from_secs(1);
/// How often a confirmed place is passed on.
const CONFIRM_EVERY: Duration = Duration::from_millis(100);
/// After how long without an answer the server takes this end for gone, and frees the slot.
const SENDER_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a replication connection failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The connection or the server.
    #[error("{0}")]
    Wire(#[from] PgWireError),
    /// The connection could not be made.
    #[error("no replication connection can be made: {0}")]
    Connect(#[from] std::io::Error),
    /// A statement beside it.
    #[error("{0}")]
    Database(#[from] sqlx::Error),
    /// A command's answer has another shape.
    #[error("a replication command was answered in an unexpected form")]
    Answer,
    /// The stream does not hold what it should.
    #[error("the log's stream cannot be read: {0}")]
    Malformed(#[from] Malformed),
    /// It ended although nobody asked.
    #[error("the log's stream ended")]
    Ended,
}

/// A connection for commands.
pub struct Session(ReplicationClient);

impl Session {
    /// Connects.
    ///
    /// # Errors
    /// When the URL or the server does not allow it.
    pub async fn open(url: &str) -> Result<Self, Error> {
        let config = config(url, "unused", LogPosition::default()).await?;
        Ok(Self(ReplicationClient::connect_gated(config).await?))
    }

    /// Runs a command; returns its rows as text.
    ///
    /// # Errors
    /// When it fails.
    pub async fn query(&mut self, command: &str) -> Result<Vec<Vec<Option<String>>>, Error> {
        let rows = self.0.simple_query(command).await?;
        let text = |bytes: bytes::Bytes| String::from_utf8_lossy(&bytes).into_owned();
        Ok(rows.into_iter().map(|row| row.into_iter().map(|column| column.map(text)).collect()).collect())
    }
}

/// What a stream gives.
#[derive(Debug)]
pub enum Item {
    /// An event.
    Event {
        /// The row.
        row: Row,
        /// Its transaction.
        xid: u64,
        /// The place behind it.
        behind: LogPosition,
    },
    /// Everything up to here has come: a commit has ended, or there is nothing for us in the log.
    Through(Lsn),
}

/// The stream of a slot.
pub struct Stream {
    client: ReplicationClient,
    decoder: Decoder,
    /// The commit that is coming, and how many of its events have.
    commit: Option<LogPosition>,
}

impl Stream {
    /// Begins to stream, from a place that is settled.
    ///
    /// # Errors
    /// When the server does not allow it, or somebody else streams from the slot.
    pub async fn open(url: &str, slot: &str, from: LogPosition) -> Result<Self, Error> {
        let mut client = ReplicationClient::connect(config(url, slot, from).await?).await?;
        client.wait_started().await?;
        Ok(Self { client, decoder: Decoder::default(), commit: None })
    }

    /// The next item. May be dropped at any point.
    ///
    /// # Errors
    /// When the stream has failed.
    pub async fn next(&mut self) -> Result<Item, Error> {
        loop {
            let event = self.client.recv().await?.ok_or(Error::Ended)?;
            if let Some(item) = self.read(event)? {
                return Ok(item);
            }
        }
    }

    /// The next item if it is here already.
    ///
    /// # Errors
    /// When the stream has failed.
    pub fn next_now(&mut self) -> Result<Option<Item>, Error> {
        self.next().now_or_never().transpose()
    }

    /// Tells the server that everything up to a place is settled and need not come again.
    pub fn confirm(&self, to: Lsn) {
        self.client.update_applied_lsn(WireLsn::from_u64(to.0));
    }

    fn read(&mut self, event: ReplicationEvent) -> Result<Option<Item>, Error> {
        Ok(match event {
            ReplicationEvent::Begin { final_lsn, .. } => {
                self.commit = Some(LogPosition::at(Lsn(final_lsn.as_u64())));
                None
            }
            ReplicationEvent::XLogData { data, .. } => match (self.decoder.read(&data)?, &mut self.commit) {
                (Message::Event { row, xid }, Some(place)) => {
                    place.index += 1;
                    Some(Item::Event { row, xid, behind: *place })
                }
                (Message::Event { .. }, None) => return Err(Malformed("an event outside a commit").into()),
                (Message::Other, _) => None,
            },
            ReplicationEvent::Commit { end_lsn, .. } => {
                self.commit = None;
                Some(Item::Through(Lsn(end_lsn.as_u64())))
            }
            // Within a commit it may lie beyond events that are still to come.
            ReplicationEvent::KeepAlive { wal_end, .. } if self.commit.is_none() => {
                Some(Item::Through(Lsn(wal_end.as_u64())))
            }
            ReplicationEvent::KeepAlive { .. } | ReplicationEvent::Message { .. } => None,
            ReplicationEvent::StoppedAt { .. } => return Err(Error::Ended),
        })
    }
}

async fn config(url: &str, slot: &str, from: LogPosition) -> Result<ReplicationConfig, Error> {
    let options: PgConnectOptions = url.parse()?;
    // The one way to the password, wherever it came from.
    let shown = options.to_url_lossy();
    let password = percent_decode_str(shown.password().unwrap_or_default()).decode_utf8_lossy().into_owned();
    let (host, port) = match (tls::connect(&options).await?, options.get_socket()) {
        (Some(folder), _) => (folder.display().to_string(), tls::PORT),
        (None, Some(folder)) => (folder.display().to_string(), options.get_port()),
        (None, None) => (options.get_host().to_owned(), options.get_port()),
    };
    let user = options.get_username();
    let mut config = ReplicationConfig::new(
        host,
        user,
        password,
        options.get_database().unwrap_or(user),
        slot,
        super::slot::PUBLICATION,
    )
    .with_port(port)
    .with_start_lsn(WireLsn::from_u64(from.lsn.0))
    .with_status_interval(CONFIRM_EVERY)
    .with_wakeup_interval(STATUS_EVERY)
    .with_buffer_size(AHEAD_MAX)
    .with_binary(true)
    .with_options(format!("-c wal_sender_timeout={}", SENDER_TIMEOUT.as_millis()))
    .with_tls(TlsConfig { mode: SslMode::Disable, ..TlsConfig::default() });
    config.application_name = Some("outboxd relay".into());
    Ok(config)
}
