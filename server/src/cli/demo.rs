//! `outboxd demo`.

use std::{error::Error, path::PathBuf};

use clap::Args;

use super::{Settings, dev};
use crate::{
    demo::{self, Options},
    dev::Interrupts,
};

/// Starts a private Postgres, a broker in this process unless --kafka names one, and a server of its own; commits,
/// delivers twice, retries, kills the server with SIGKILL and checks what is left. Exit status 0: every check held.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Folder for the database and the logs; without it a temporary one, removed at the end
    #[arg(long, value_name = "FOLDER")]
    data: Option<PathBuf>,
    /// Folder of Postgres's programs; otherwise the newest in /usr/lib/postgresql, or PATH
    #[arg(long, value_name = "FOLDER")]
    postgres_bin: Option<PathBuf>,
    /// Keeps the temporary folder, and the topic in the Kafka of --kafka
    #[arg(long)]
    keep: bool,
    /// Prints one JSON object per step
    #[arg(long)]
    json: bool,
}

impl Arguments {
    pub(super) async fn run(
        self,
        settings: &Settings,
        interrupts: Interrupts,
    ) -> Result<(), Box<dyn Error + Send + Sync>> {
        dev::refuse_database_url(settings)?;
        let config = settings.layers().load()?;
        let Self { data, postgres_bin, keep, json } = self;
        let options = Options { config, data, postgres_bin, kafka: settings.kafka.is_some(), keep, json };
        let failed = demo::run(options, interrupts).await?;
        if failed.is_empty() { Ok(()) } else { Err(format!("the demo failed: {}", failed.join("; ")).into()) }
    }
}
