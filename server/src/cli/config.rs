//! `outboxd config`: check and print.

use clap::Subcommand;

use crate::config::{Error, Layers, REFERENCE};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Reads every layer and says what does not hold
    Check,
    /// Prints the configuration in force as TOML; passwords are left out
    Print {
        /// Prints every key with its default and what it means instead
        #[arg(long)]
        defaults: bool,
    },
}

impl Command {
    pub(super) fn run(&self, layers: &Layers) -> Result<(), Error> {
        match self {
            Self::Check => {
                layers.load()?;
                println!("the configuration holds");
            }
            Self::Print { defaults: true } => print!("{REFERENCE}"),
            Self::Print { defaults: false } => print!("{}", layers.load()?.to_toml()),
        }
        Ok(())
    }
}
