//! `outboxd relay`: looks at the relays of all processes, changes their source, and gives the answer that they may ask
//! for. All of it by way of the database.

mod status;
mod switch;

use std::error::Error;

use clap::Subcommand;

pub(super) use self::switch::Name;
use self::{status::Status, switch::Switch};
use crate::{
    config::Config,
    store::relay::{self as store, Connection, identity},
};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Shows source, lag, backlog, lanes and what is held; looks twice, a second apart, so that it can tell rates
    Status(Status),
    /// Changes where events are read from, while servers run and commits go on
    Switch(Switch),
    /// Accepts the timeline that the database is on now: say so only when no commit was lost in a failover or restore
    Adopt,
}

impl Command {
    pub(super) async fn run(&self, config: &Config) -> Result<(), Box<dyn Error + Send + Sync>> {
        match self {
            Self::Status(status) => status.run(config).await,
            Self::Switch(switch) => switch.run(&mut connect(config).await?).await,
            Self::Adopt => adopt(&mut connect(config).await?).await,
        }
    }
}

/// Connects to a database that holds an outbox.
async fn connect(config: &Config) -> Result<Connection, Box<dyn Error + Send + Sync>> {
    let mut connection = store::connect(&config.database.url).await?;
    if !identity::is_there(&mut connection).await? {
        return Err("the database of database.url holds no outbox; `outboxd migrate` makes it".into());
    }
    Ok(connection)
}

async fn adopt(connection: &mut Connection) -> Result<(), Box<dyn Error + Send + Sync>> {
    let before = identity::read(connection).await?;
    if before.standby {
        return Err("the database is a standby or in recovery; adopt the timeline on the primary".into());
    }
    if before.system_identifier != before.expected_identifier {
        return Err(format!(
            "this database was set up in cluster {} and now runs in cluster {}: that is no other timeline but another \
             history, in which relay progress means nothing; restore progress by hand first",
            before.expected_identifier, before.system_identifier
        )
        .into());
    }
    if before.timeline == before.expected_timeline {
        println!("relay progress is trusted on timeline {} already; nothing is changed", before.timeline);
        return Ok(());
    }
    identity::adopt_timeline(connection).await?;
    println!("relay progress is trusted on timeline {}; start the servers again", before.timeline);
    Ok(())
}
