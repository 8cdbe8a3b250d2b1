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
    store::relay::{self as store, identity},
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
            Self::Switch(switch) => switch.run(&mut store::connect(&config.database.url).await?).await,
            Self::Adopt => {
                let mut connection = store::connect(&config.database.url).await?;
                identity::adopt_timeline(&mut connection).await?;
                let timeline = identity::read(&mut connection).await?.timeline;
                println!("relay progress is trusted on timeline {timeline}; start the servers again");
                Ok(())
            }
        }
    }
}
