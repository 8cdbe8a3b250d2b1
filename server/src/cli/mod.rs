//! The command line: reads arguments, sets up the process, and calls the command.

#![allow(clippy::print_stdout, reason = "printing is what a command line is for")]

mod config;
mod demo;
mod dev;
mod migrate;
mod relay;
mod replay;
mod retain;
mod sequence;

use std::{error::Error, path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::{app, config::Layers, dev::Interrupts, telemetry};

/// A transactional outbox run as a service: state and events in one database transaction, and a relay to Kafka.
#[derive(Debug, Parser)]
#[command(name = "outboxd", version, max_term_width = 100, after_help = EXAMPLES)]
struct Cli {
    #[command(flatten)]
    settings: Settings,
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  outboxd dev
  outboxd demo
  outboxd serve --config /etc/outboxd.toml
  outboxd serve --database-url postgres://app@db/app --kafka broker:9092 --catalog ./catalog
  OUTBOXD_DATABASE__URL=postgres://app@db/app outboxd migrate
  outboxd relay switch wal
  outboxd relay status --database-url postgres://app@db/app
  outboxd replay --topic users --from 2026-03-01T08:00:00Z --before 2026-03-01T09:00:00Z --dry-run
  outboxd retain --dry-run
  outboxd sequence start users
  outboxd config check --config /etc/outboxd.toml
  outboxd config print --defaults > outboxd.toml";

#[derive(Debug, Args)]
struct Settings {
    /// Configuration file (TOML); every key is shown by `outboxd config print --defaults`
    #[arg(long, global = true, value_name = "FILE", env = "OUTBOXD_CONFIG")]
    config: Option<PathBuf>,
    /// Sets any key, such as relay.lease_ttl_ms=3000; may be repeated
    #[arg(long, global = true, value_name = "KEY=VALUE", value_parser = key_value)]
    set: Vec<(String, String)>,
    /// Address to listen on (grpc.listen)
    #[arg(long, global = true, value_name = "ADDRESS:PORT")]
    listen: Option<String>,
    /// Postgres (database.url)
    #[arg(long, global = true, value_name = "URL")]
    database_url: Option<String>,
    /// Kafka brokers (kafka.bootstrap_servers)
    #[arg(long, global = true, value_name = "HOST:PORT,…")]
    kafka: Option<String>,
    /// Folder of the commands' *.sql and the RPCs' *.binpb files (catalog.dir)
    #[arg(long, global = true, value_name = "FOLDER")]
    catalog: Option<String>,
}

impl Settings {
    fn layers(&self) -> Layers {
        let named = [
            ("grpc.listen", &self.listen),
            ("database.url", &self.database_url),
            ("kafka.bootstrap_servers", &self.kafka),
            ("catalog.dir", &self.catalog),
        ];
        let named = named.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value.clone()?)));
        Layers { file: self.config.clone(), flags: self.set.iter().cloned().chain(named).collect() }
    }
}

fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE, such as relay.lease_ttl_ms=3000")?;
    Ok((key.to_owned(), value.to_owned()))
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serves the API and relays events until SIGTERM or Ctrl-C
    Serve,
    /// Runs everything to try outboxd on this machine: Postgres, a broker, the server and a sample catalog
    Dev(dev::Arguments),
    /// Tells the story of one event by itself, with a crash in it, and checks every claim
    Demo(demo::Arguments),
    /// Applies pending migrations, and sees to what the relay's source needs of the database
    Migrate(migrate::Arguments),
    /// Looks at the relays of all processes, changes their source, or answers what they ask
    #[command(subcommand)]
    Relay(relay::Command),
    /// Publishes events again that were published before
    Replay(Box<replay::Arguments>),
    /// Drops the partitions that nothing needs any more; `serve` does it every hour
    Retain(retain::Arguments),
    /// Has topics number their events per key, so that consumers can tell gaps and repeats
    #[command(subcommand)]
    Sequence(sequence::Command),
    /// Checks or prints the configuration
    #[command(subcommand)]
    Config(config::Command),
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("outboxd: {error}");
            let mut source = error.source();
            while let Some(cause) = source {
                eprintln!("  because: {cause}");
                source = cause.source();
            }
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn run(cli: Cli) -> Result<(), Box<dyn Error + Send + Sync>> {
    let layers = cli.settings.layers();
    match cli.command {
        Command::Serve => {
            let config = layers.load()?;
            let _telemetry = telemetry::init(&config.telemetry)?;
            app::serve(config, shutdown_signal()?).await
        }
        Command::Dev(arguments) => arguments.run(&cli.settings, interrupts()?).await,
        Command::Demo(arguments) => arguments.run(&cli.settings, interrupts()?).await,
        Command::Migrate(arguments) => {
            let config = layers.load()?;
            let _telemetry = telemetry::init(&config.telemetry)?;
            arguments.run(&config).await
        }
        Command::Relay(command) => command.run(&layers.load()?).await,
        Command::Replay(arguments) => arguments.run(&layers.load()?).await,
        Command::Retain(arguments) => {
            let config = layers.load()?;
            let _telemetry = telemetry::init(&config.telemetry)?;
            arguments.run(&config).await
        }
        Command::Sequence(command) => command.run(&layers.load()?).await,
        Command::Config(command) => Ok(command.run(&layers)?),
    }
}

/// Cancelled by SIGTERM or SIGINT; a second one ends the process at once.
fn shutdown_signal() -> std::io::Result<CancellationToken> {
    let Interrupts { first, second } = interrupts()?;
    tokio::spawn(async move {
        second.cancelled().await;
        std::process::exit(130);
    });
    Ok(first)
}

/// Cancelled by the first and the second SIGTERM or SIGINT.
fn interrupts() -> std::io::Result<Interrupts> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let interrupts = Interrupts::default();
    let Interrupts { first, second } = interrupts.clone();
    tokio::spawn(async move {
        for token in [first, second] {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            tracing::info!("shutting down; once more to stop at once");
            token.cancel();
        }
    });
    Ok(interrupts)
}
