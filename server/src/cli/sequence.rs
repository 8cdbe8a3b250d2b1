//! `outboxd sequence`: has topics number their events per key.

use std::error::Error;

use clap::Subcommand;

use crate::{
    config::Config,
    store::{
        self,
        sequence::{self, Sequenced},
        session::Connector,
    },
};

#[derive(Debug, Subcommand)]
#[command(after_help = "\
Events of such a topic carry the header outbox-sequence with epoch, number and namespace; consumers use it to tell gaps
and repeats. Each of its keys costs a row and each event an update of it. Servers need not be restarted.")]
pub(super) enum Command {
    /// Has a topic number the events of each key from now on, without a gap
    Start {
        /// The topic
        topic: String,
    },
    /// Has a topic number its events no more, and forgets its numbers
    Stop {
        /// The topic
        topic: String,
    },
    /// Shows the topics that do
    List,
}

impl Command {
    pub(super) async fn run(&self, config: &Config) -> Result<(), Box<dyn Error + Send + Sync>> {
        let mut connection = Connector::new(&config.database)?.connect().await?;
        match self {
            Self::Start { topic } => {
                let epoch = sequence::start(&mut connection, topic).await.map_err(busy)?;
                println!("`{topic}` numbers the events of each key, in epoch {epoch}");
            }
            Self::Stop { topic } => match sequence::stop(&mut connection, topic).await.map_err(busy)? {
                true => println!("`{topic}` numbers its events no more"),
                false => println!("`{topic}` did not number its events"),
            },
            Self::List => {
                for Sequenced { topic, epoch, keys } in sequence::list(&mut connection).await? {
                    println!("{topic}  epoch {epoch}, {keys} keys");
                }
            }
        }
        Ok(())
    }
}

fn busy(error: store::Error) -> Box<dyn Error + Send + Sync> {
    match error {
        store::Error::Conflict => "a long transaction keeps the events locked; try again when it has ended".into(),
        other => other.into(),
    }
}
