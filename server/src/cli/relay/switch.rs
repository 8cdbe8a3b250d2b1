//! `outboxd relay switch`: asks for a source, and waits until it is in force.

use std::{
    error::Error,
    time::{Duration, Instant},
};

use clap::{Args, ValueEnum};

use crate::{
    model::source::Source,
    store::relay::{Connection, stream},
};

const LOOK_EVERY: Duration = Duration::from_millis(200);
const SAY_EVERY: Duration = Duration::from_secs(2);

/// Asks for a source and waits until it is in force. Events keep their order, and none is lost, whenever this is done;
/// polling goes on until the log can take over. `wal` needs wal_level = logical and a role that may replicate.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  outboxd relay switch wal
  outboxd relay switch poll --wait-s 60
  outboxd relay switch wal --wait-s 0     only asks; the relay changes as soon as it can")]
pub(in crate::cli) struct Switch {
    /// Where events are to be read from
    source: Name,
    /// Seconds to wait until it is in force
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    wait_s: u64,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(in crate::cli) enum Name {
    /// Looks into the table; needs only a plain role
    Poll,
    /// Streams the write-ahead log
    Wal,
}

impl From<Name> for Source {
    fn from(name: Name) -> Self {
        match name {
            Name::Poll => Self::Poll,
            Name::Wal => Self::Wal,
        }
    }
}

impl Switch {
    pub(super) async fn run(&self, connection: &mut Connection) -> Result<(), Box<dyn Error + Send + Sync>> {
        let wanted = Source::from(self.source);
        stream::desire(connection, wanted).await?;
        let (began, mut said) = (Instant::now(), None::<Instant>);
        loop {
            let stream = stream::read(connection).await?;
            if stream.source == wanted {
                println!("the source in force is `{wanted}`");
                return Ok(());
            }
            if stream.desired != wanted {
                let why = stream.note.unwrap_or_else(|| format!("`{}` was asked for meanwhile", stream.desired));
                return Err(format!("`{wanted}` is not in force: {why}").into());
            }
            if self.wait_s == 0 {
                println!("`{wanted}` is asked for; `{}` is in force until the relay has changed", stream.source);
                return Ok(());
            }
            if began.elapsed() >= Duration::from_secs(self.wait_s) {
                let step = step(&stream);
                return Err(format!("`{wanted}` is not in force after {} s: {step}", self.wait_s).into());
            }
            if said.is_none_or(|at| at.elapsed() >= SAY_EVERY) {
                said = Some(Instant::now());
                eprintln!("{:>4} s: {}", began.elapsed().as_secs(), step(&stream));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

/// What a change waits for.
fn step(stream: &stream::Stream) -> String {
    match (&stream.note, stream.owner, stream.source, &stream.slot) {
        (Some(note), ..) => note.clone(),
        (None, None, ..) => "no server with a relay has taken it up; is one running?".into(),
        (None, _, Source::Poll, None) => {
            "a slot is being made, which waits for every transaction that is writing".into()
        }
        (None, _, Source::Poll, Some(slot)) => {
            format!("the slot {} is made; polling settles what came before it", slot.name)
        }
        (None, _, Source::Wal, _) => "the log is streamed up to a checkpoint, and what was read settles".into(),
    }
}
