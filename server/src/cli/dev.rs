//! `outboxd dev`.

use std::{error::Error, path::PathBuf};

use clap::Args;

use super::Settings;
use crate::{
    dev::{self, Interrupts, Options},
    telemetry,
};

/// A private Postgres, a broker in this process unless --kafka names one, the server, the relay and a sample catalog.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Folder for the database and the catalog; kept when this stops
    #[arg(long, value_name = "FOLDER", default_value = ".outboxd")]
    data: PathBuf,
    /// Folder of Postgres's programs; otherwise the newest in /usr/lib/postgresql, or PATH
    #[arg(long, value_name = "FOLDER")]
    postgres_bin: Option<PathBuf>,
}

impl Arguments {
    pub(super) async fn run(
        self,
        settings: &Settings,
        interrupts: Interrupts,
    ) -> Result<(), Box<dyn Error + Send + Sync>> {
        refuse_database_url(settings)?;
        let config = settings.layers().load()?;
        let _telemetry = telemetry::init(&config.telemetry)?;
        let kafka = settings.kafka.is_some();
        dev::run(Options { config, data: self.data, postgres_bin: self.postgres_bin, kafka }, interrupts).await
    }
}

/// `dev` and `demo` both make their own.
pub(super) fn refuse_database_url(settings: &Settings) -> Result<(), dev::Error> {
    match settings.database_url {
        Some(_) => Err(dev::Error::Usage("this runs a Postgres of its own; with --database-url, use `outboxd serve`")),
        None => Ok(()),
    }
}
