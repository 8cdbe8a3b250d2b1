//! Publishes what the outbox holds: reads committed events from Postgres, hands them to Kafka, and writes down how far
//! it got.
//!
//! Invariant: a lane's written progress never passes an event that is not settled: acknowledged by Kafka, or durably held.
//! Per key, events are enqueued in commit order, without gaps but for those that are held. Whatever dies can therefore only repeat.
//! `session` holds the loop; everything it remembers dies with its database connections. It deliberately never changes
//! an event, and knows nothing of the gRPC side.

mod error;
mod inflow;
pub mod kafka;
mod lane;
mod lease;
mod opening;
mod properties;
pub mod publisher;
mod session;
mod source;
mod status;
mod trace;
mod wake;
mod window;

use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub use self::{
    error::Error,
    inflow::Inflow,
    status::{Reason, Status, Trouble},
    wake::Wake,
};
use self::{
    error::Remedy,
    kafka::Kafka,
    publisher::Publisher,
    session::{Entry, Session},
    source::{poll::Poll, wal::Wal},
};
use crate::{
    config,
    store::relay::{attempt, fetch},
};

const PAUSE_MIN: Duration = Duration::from_millis(50);
/// Events wait for it after an outage of the database.
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// A relay, ready to run.
pub struct Relay<P = Kafka> {
    settings: Settings,
    publisher: P,
    wake: Wake,
    status: watch::Sender<Status>,
    /// The event whose attempt was under way when a session failed: the process has outlived it.
    outlived: Option<Uuid>,
}

/// What does not change while it runs.
pub(crate) struct Settings {
    config: config::Relay,
    database_url: String,
    connect_timeout: Duration,
    instance: Uuid,
    host: String,
}

impl Relay<Kafka> {
    /// Checks the configuration and makes the producer; connects to nothing yet.
    ///
    /// # Errors
    /// [`Error::Property`] and [`Error::Producer`].
    pub fn new(relay: config::Relay, kafka: &config::Kafka, database: &config::Database) -> Result<Self, Error> {
        let publisher = Kafka::new(&properties::all(&relay, kafka)?)?;
        Ok(Self::with_publisher(relay, database, publisher))
    }
}

impl<P: Publisher> Relay<P> {
    /// A relay that publishes elsewhere.
    pub fn with_publisher(config: config::Relay, database: &config::Database, publisher: P) -> Self {
        let settings = Settings {
            config,
            database_url: database.url.clone(),
            connect_timeout: Duration::from_millis(database.connect_timeout_ms),
            instance: Uuid::now_v7(),
            host: std::env::var("HOSTNAME").unwrap_or_else(|_| "unknown".into()),
        };
        Self { settings, publisher, wake: Wake::default(), status: watch::Sender::default(), outlived: None }
    }

    /// A handle to wake it with.
    pub fn wake(&self) -> Wake {
        self.wake.clone()
    }

    /// Its state from now on.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    /// What it publishes with, for a wrapper around it.
    pub fn into_publisher(self) -> P {
        self.publisher
    }

    /// The id that its leases carry.
    pub fn instance(&self) -> Uuid {
        self.settings.instance
    }

    /// Relays until `shutdown`, then lets what is in flight settle for at most `drain`, and gives its lanes back.
    /// Dropping the future is like a crash: what is in flight will be repeated, the lanes are free when the lease ends.
    ///
    /// # Errors
    /// [`Error::Identity`]: it must not run on this database. Everything else it waits out.
    pub async fn run(mut self, shutdown: CancellationToken, drain: Duration) -> Result<(), Error> {
        let mut pause = PAUSE_MIN;
        loop {
            let Some(ended) = shutdown.run_until_cancelled(self.open()).await else { return Ok(()) };
            let ended = match ended {
                Ok(session) => {
                    let began = Instant::now();
                    let (ended, suspect) = session.run(&shutdown, drain).await;
                    // What a session had enqueued is abandoned before anything is read again.
                    self.publisher.reset().await;
                    self.outlived = suspect;
                    if began.elapsed() > PAUSE_MAX {
                        pause = PAUSE_MIN;
                    }
                    ended
                }
                Err(error) => Err(error),
            };
            let Err(error) = ended else { return Ok(()) };
            self.tell(&error);
            match error.remedy() {
                Remedy::Stop => {
                    tracing::error!(%error, "the relay stops");
                    return Err(error);
                }
                Remedy::Again if matches!(error, Error::SourceChanged(_)) => {
                    tracing::info!(%error, "the relay begins anew");
                }
                Remedy::Again => tracing::warn!(%error, "the relay begins anew"),
                Remedy::Later => {
                    tracing::warn!(%error, pause_ms = pause.as_millis(), "the relay begins anew after a pause");
                    if shutdown.run_until_cancelled(tokio::time::sleep(jittered(pause))).await.is_none() {
                        return Ok(());
                    }
                    pause = (pause * 2).min(PAUSE_MAX);
                }
            }
        }
    }

    /// Opens a session with the source in force. While another relay streams, one with `poll` stands by without lanes.
    async fn open(&mut self) -> Result<Opened<'_, P>, Error> {
        let Self { settings, publisher, wake, status, outlived } = self;
        let mut entry = Entry::open(settings).await?;
        if let Some(id) = *outlived {
            session::within(settings.connect_timeout, attempt::take_back(&mut entry.control, id)).await?;
            *outlived = None;
        }
        Ok(match entry.direction {
            Some(direction) => {
                let source = Wal::open(settings, direction, &mut entry).await?;
                Opened::Wal(Session::new(settings, publisher, wake, status, entry, source))
            }
            None => {
                let mut reader = session::within(settings.connect_timeout, session::connect(settings)).await?;
                session::within(settings.connect_timeout, fetch::prepare(&mut reader)).await?;
                let source = Poll::new(settings, reader);
                Opened::Poll(Session::new(settings, publisher, wake, status, entry, source))
            }
        })
    }

    fn tell(&self, error: &Error) {
        let kafka_reachable = self.publisher.reachable();
        self.status.send_modify(|status| {
            let last_error = Some(error.to_string());
            let stopped = error.remedy() == Remedy::Stop;
            let (last_settled, source) = (status.last_settled, status.source);
            let source_note = status.source_note.take();
            *status =
                Status { last_error, stopped, kafka_reachable, last_settled, source, source_note, ..Status::default() };
        });
    }
}

/// A session with either source.
enum Opened<'a, P> {
    Poll(Session<'a, P, Poll>),
    Wal(Session<'a, P, Wal>),
}

impl<P: Publisher> Opened<'_, P> {
    /// How it ended, and the event whose attempt was under way then.
    async fn run(self, shutdown: &CancellationToken, drain: Duration) -> (Result<(), Error>, Option<Uuid>) {
        match self {
            Self::Poll(mut session) => (session.run(shutdown, drain).await, session.under_suspicion()),
            Self::Wal(mut session) => (session.run(shutdown, drain).await, session.under_suspicion()),
        }
    }
}

/// Between half of it and all of it, so that relays that failed together do not return together.
fn jittered(pause: Duration) -> Duration {
    let random = Uuid::now_v7().as_u128() & 0xffff;
    pause / 2 + pause / 2 * u32::try_from(random).unwrap_or(0) / 0x1_0000
}
