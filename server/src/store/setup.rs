//! What the relay's source needs of the database, checked and made ahead of the relays: settings, role, publication, slot.
//!
//! `poll` needs nothing, and no slot is left to it: the database would keep log for one that nobody streams from. For
//! `wal` these are the first steps of the change of source that a relay directs, in the same form: a slot is written down
//! with the snapshot that was exported with it, so that polling settles what it does not give before anybody streams
//! from it. Every write is a compare-and-set that fails once a relay directs; the slot is then left to that relay.
//! Deliberately not here: putting `wal` in force.

use std::time::{Duration, Instant};

use sqlx::PgConnection;

use super::relay::{
    self, replication,
    slot::{self, Publication},
    stream::{self, Direction, Slot, Stream},
};
use crate::model::{log::Lsn, source::Source};

/// Between two looks whether a slot in the way has been let go.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Why the database cannot serve the source `wal`.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The log does not hold what a slot gives.
    #[error(
        "the relay's source is to be `wal`, and the database's wal_level is `{0}`: it needs wal_level = logical (alter \
         system set wal_level = 'logical', then restart Postgres); until then events are polled, and `outboxd relay \
         switch poll` takes the wish back"
    )]
    WalLevel(String),
    /// The role may not open replication connections.
    #[error(
        "the relay's source is to be `wal`, and the role {0} may not replicate: have a superuser run `alter role {0} \
         replication`"
    )]
    Role(String),
    /// The publication is not as it has to be.
    #[error(
        "the publication outboxd cannot be made or put right: {error}; the role {role} must own outbox.events and have \
         CREATE on the database, or their owner runs `create publication outboxd for table outbox.events with (publish = \
         'insert', publish_via_partition_root = true)`, after dropping another publication of that name"
    )]
    Publication {
        /// Who tried.
        role: String,
        /// What the database said.
        error: sqlx::Error,
    },
    /// The slot waited for too long.
    #[error(
        "no slot was made within {waited_s} s: it waits for every transaction that was writing when it was begun{writers}; \
         end them and try again, or start a server, whose relay goes on trying while it polls"
    )]
    Waiting {
        /// Seconds.
        waited_s: u64,
        /// The backends that it waits for, as far as this role may see them.
        writers: String,
    },
    /// The slot cannot be made.
    #[error("no slot can be made for `wal`: {0}")]
    Slot(#[from] replication::Error),
    /// A statement failed.
    #[error("the relay's source cannot be looked at: {0}")]
    Database(#[from] sqlx::Error),
}

/// What the source needs, and how it was found.
#[derive(Debug)]
pub enum Setup {
    /// Nothing.
    Poll {
        /// Slots that were left, and are dropped.
        dropped: usize,
    },
    /// A publication and a slot.
    Wal {
        /// The publication.
        publication: Publication,
        /// The slot.
        slot: Found,
    },
}

/// How the slot was found.
#[derive(Debug)]
pub enum Found {
    /// It gives what is not settled.
    Good {
        /// Its name.
        name: String,
        /// Bytes of log that are kept for it.
        retained_bytes: i64,
        /// Whether a relay directs, and so looks after it.
        is_tended: bool,
    },
    /// It is made: polling goes on until its snapshot is settled, then a relay streams from it.
    Made {
        /// Its name.
        name: String,
        /// What it gives begins here.
        from: Lsn,
        /// What was said of the one before.
        lost: Option<String>,
    },
    /// It is for a relay to make, or to replace.
    LeftToRelay {
        /// What is wrong with the one that is written down.
        lost: Option<String>,
    },
}

impl Setup {
    /// For operators, a line each.
    pub fn lines(&self) -> Vec<String> {
        match self {
            Self::Poll { dropped: 0 } => {
                vec!["the relay's source is `poll`, which needs neither publication nor slot".into()]
            }
            Self::Poll { dropped } => {
                vec![format!("the relay's source is `poll`; slots that nothing needed are dropped: {dropped}")]
            }
            Self::Wal { publication, slot } => {
                let publication = match publication {
                    Publication::Found => "is as it has to be",
                    Publication::Made => "is made",
                    Publication::PutRight => "was changed by somebody, and is put right",
                };
                let mut lines =
                    vec!["the relay's source is `wal`".into(), format!("the publication outboxd {publication}")];
                lines.extend(slot.lines());
                lines
            }
        }
    }
}

impl Found {
    fn lines(&self) -> Vec<String> {
        let (lost, line) = match self {
            Self::Good { name, retained_bytes, is_tended } => {
                let untended = if *is_tended { "" } else { ", and no relay runs that streams it" };
                (None, format!("the slot {name} is good; {retained_bytes} bytes of log are kept for it{untended}"))
            }
            Self::Made { name, from, lost } => (
                lost.clone(),
                format!(
                    "the slot {name} is made; the database keeps its log from {from} on until a relay has streamed it, \
                     without limit unless max_slot_wal_keep_size sets one: start a server"
                ),
            ),
            Self::LeftToRelay { lost } => (lost.clone(), "the slot is left to the relay, which makes one".into()),
        };
        lost.into_iter().chain([line]).collect()
    }
}

/// Sees to it that the database has what the source that is asked for needs; asks for `wanted` first, if it can be had.
/// Makes a slot if there is none, or none that is good, and no relay directs, unless `patience` is `None`: whoever calls
/// then runs a relay, which does that while it polls.
///
/// # Errors
/// [`Error`]; what was made before it stays. [`Error::Waiting`] once `patience` has passed.
pub async fn run(url: &str, wanted: Option<Source>, patience: Option<Duration>) -> Result<Setup, Error> {
    let mut connection = relay::connect(url).await?;
    let mut publication = None;
    if let Some(wanted) = wanted {
        if wanted == Source::Wal {
            publication = Some(require(&mut connection).await?);
        }
        stream::desire(&mut connection, wanted).await?;
    }
    let stream = stream::read(&mut connection).await?;
    if stream.desired == Source::Poll {
        return Ok(Setup::Poll { dropped: clear(&mut connection, &stream, patience.is_some()).await? });
    }
    let publication = match publication {
        Some(seen_to) => seen_to,
        None => require(&mut connection).await?,
    };
    let slot = match (look(&mut connection, &stream).await?, patience) {
        (Ok(good), _) => good,
        (Err(lost), None) => Found::LeftToRelay { lost },
        (Err(_), Some(patience)) => make(&mut connection, url, patience).await?,
    };
    Ok(Setup::Wal { publication, slot })
}

/// Checks the settings and the role that `wal` needs, and sees to the publication.
///
/// # Errors
/// [`Error::WalLevel`], [`Error::Role`], [`Error::Publication`] and [`Error::Database`].
pub async fn require(connection: &mut PgConnection) -> Result<Publication, Error> {
    let (wal_level, role, replicates): (String, String, bool) = sqlx::query_as(
        "select current_setting('wal_level'), session_user::text,
                exists (select from pg_roles r
                        where (r.rolname = session_user and (r.rolreplication or r.rolsuper))
                           -- Amazon RDS grants a role instead of the attribute.
                           or (r.rolname = 'rds_replication' and pg_has_role(session_user, r.oid, 'member')))",
    )
    .fetch_one(&mut *connection)
    .await?;
    if wal_level != "logical" {
        return Err(Error::WalLevel(wal_level));
    }
    if !replicates {
        return Err(Error::Role(role));
    }
    slot::publish(connection).await.map_err(|error| match error {
        error @ sqlx::Error::Database(_) => Error::Publication { role, error },
        error => error.into(),
    })
}

/// Looks at the slot that is written down; without a good one, says what is wrong with it, if it is there.
async fn look(connection: &mut PgConnection, stream: &Stream) -> sqlx::Result<Result<Found, Option<String>>> {
    let Some(Slot { name, settled, .. }) = &stream.slot else { return Ok(Err(None)) };
    Ok(match slot::usable(connection, name, settled.lsn).await? {
        Ok(state) => Ok(Found::Good {
            name: name.clone(),
            retained_bytes: state.retained_bytes,
            is_tended: stream.owner.is_some(),
        }),
        Err(fault) => Err(Some(slot::lost_note(name, &fault))),
    })
}

/// Makes a slot, and puts `poll` in force in place of one that is lost, unless a relay directs.
async fn make(connection: &mut PgConnection, url: &str, patience: Duration) -> Result<Found, Error> {
    let by = stream::direct_without_relay(connection).await?;
    // A relay may have had its say since the last look; with the direction, nobody has from here on.
    let stream = stream::read(connection).await?;
    let lost = match look(connection, &stream).await? {
        Ok(good) => return Ok(good),
        Err(lost) => lost,
    };
    let Some(by) = by else { return Ok(Found::LeftToRelay { lost }) };
    if let Some(note) = &lost
        && !stream::put_poll_in_force(connection, by, Source::Wal, Some(note)).await?
    {
        return Ok(Found::LeftToRelay { lost });
    }
    let made = make_within(connection, url, by, patience).await?;
    let Some(slot) = made else { return Ok(Found::LeftToRelay { lost }) };
    if !stream::set_slot(connection, by, &slot).await? {
        slot::forget(connection, &slot.name).await?;
        return Ok(Found::LeftToRelay { lost });
    }
    Ok(Found::Made { name: slot.name, from: slot.settled.lsn, lost })
}

/// Makes a slot once others are out of its way; `None` when a relay directs meanwhile.
async fn make_within(
    connection: &mut PgConnection,
    url: &str,
    by: Direction,
    patience: Duration,
) -> Result<Option<Slot>, Error> {
    let began = Instant::now();
    while slot::drop_leftovers(connection, None).await?.1 > 0 && began.elapsed() < patience {
        tokio::time::sleep(LOOK_EVERY).await;
    }
    let Some(number) = stream::count_slot(connection, by).await? else { return Ok(None) };
    let name = slot::name(connection, number).await?;
    let rest = patience.saturating_sub(began.elapsed());
    if let Ok(made) = tokio::time::timeout(rest, slot::make(url, name.clone())).await {
        return Ok(Some(made?));
    }
    let writers = slot::writers(connection).await?;
    slot::free(connection, &name).await?;
    let writers = if writers.is_empty() { String::new() } else { format!(" (backends {writers})") };
    Err(Error::Waiting { waited_s: patience.as_secs(), writers })
}

/// Lets go of slots that a change has left which is not wanted any more, unless a relay directs. Returns how many.
async fn clear(connection: &mut PgConnection, stream: &Stream, may_drop: bool) -> Result<usize, Error> {
    if stream.source == Source::Wal || stream.owner.is_some() || !may_drop {
        return Ok(0);
    }
    if stream.slot.is_some() {
        let Some(by) = stream::direct_without_relay(connection).await? else { return Ok(0) };
        stream::put_poll_in_force(connection, by, Source::Poll, stream.note.as_deref()).await?;
    }
    Ok(slot::drop_leftovers(connection, None).await?.0)
}
