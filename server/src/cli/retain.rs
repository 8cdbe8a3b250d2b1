//! `outboxd retain`: drops partitions that nothing needs any more, or says which it would.

use std::error::Error;

use clap::Args;

use crate::{
    config::Config,
    store::{
        retention::{self, Ages, Expired, Verdict},
        session::Connector,
    },
};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Only says what would be dropped, and what is kept and why
    #[arg(long)]
    dry_run: bool,
}

impl Arguments {
    pub(super) async fn run(&self, config: &Config) -> Result<(), Box<dyn Error + Send + Sync>> {
        let mut connection = Connector::new(&config.database)?.connect().await?;
        let expired = retention::run(&mut connection, Ages::new(config), self.dry_run).await?;
        if expired.is_empty() {
            println!("no partition's time has come, or another process is at it");
        }
        for Expired { name, verdict } in expired {
            let verdict = match verdict {
                Verdict::Dropped if self.dry_run => "would be dropped",
                Verdict::Dropped => "dropped",
                Verdict::Unsettled => "kept: a lane's progress has not passed all of it",
                Verdict::Needed => "kept: events that belong with it are kept, or yet to come into it",
                Verdict::Locked => "kept: a transaction is using it; the next run tries again",
            };
            println!("{name}  {verdict}");
        }
        Ok(())
    }
}
