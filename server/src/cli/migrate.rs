//! `outboxd migrate`: brings the database up to date, and sees to it that the relay's source has what it needs there.

use std::{error::Error, time::Duration};

use clap::Args;

use super::relay::Name;
use crate::{
    config::Config,
    store::{migrate, session::Connector, setup},
};

/// Applies pending migrations, makes the partitions of the days to come, and checks what the relay's source needs. With
/// `wal` that is wal_level = logical, a role that may replicate, and a publication and a slot, which are made if they are
/// not there or not good. Run again it changes nothing.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  outboxd migrate
  outboxd migrate --source wal     a new database, whose log is to be streamed from the first relay on")]
pub(super) struct Arguments {
    /// Asks for this source first, as `outboxd relay switch` does; otherwise it is what was asked for last
    #[arg(long)]
    source: Option<Name>,
    /// Seconds that a slot may wait for transactions that are writing
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    wait_s: u64,
}

impl Arguments {
    pub(super) async fn run(&self, config: &Config) -> Result<(), Box<dyn Error + Send + Sync>> {
        let mut connection = Connector::new(&config.database)?.connect().await?;
        migrate::run(&mut connection).await?;
        println!("the database is up to date");
        let patience = Duration::from_secs(self.wait_s);
        let setup = setup::run(&config.database.url, self.source.map(Into::into), Some(patience)).await?;
        for line in setup.lines() {
            println!("{line}");
        }
        Ok(())
    }
}
