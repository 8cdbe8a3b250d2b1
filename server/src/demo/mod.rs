//! `outboxd demo`: tells the story of one event by itself, with a crash in it, and checks every claim.
//!
//! A private Postgres and a broker as in `dev`, but the server is a process of its own, so that it can be killed with
//! SIGKILL; client and consumer are the SDK's. Invariants: whatever happens, what was started here has ended when
//! [`run`] returns; and a check looks at the database, at the log in Kafka or at the consumer's effects, never only at
//! what the server says. It deliberately is no test suite: it shows what there is, on one machine.

mod crash;
mod kafka;
mod mailer;
mod report;
mod server;
mod spans;
mod story;
mod typed;

use std::{
    fs::{self, File},
    path::PathBuf,
    time::{Duration, Instant},
};

use outbox_sdk::Client;
use sqlx::{PgPool, postgres::PgPoolOptions};
use uuid::Uuid;

use self::{kafka::Topic, report::Report, server::Server, spans::Spans};
use crate::{
    config::Config,
    dev::{self, Account, Broker, DATABASE, Folder, Interrupts, MAILS, Postgres},
};

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// How long a killed server's lanes stay its own here: short, so that the demo is.
const LEASE_TTL_MS: u64 = 1_500;

/// What to run.
pub struct Options {
    /// The server's configuration; database, catalog and address are made here.
    pub config: Config,
    /// The data folder; a temporary one unless given.
    pub data: Option<PathBuf>,
    /// Where Postgres's programs are, if not where they are usually found.
    pub postgres_bin: Option<PathBuf>,
    /// Whether `config` names a Kafka to use; otherwise a broker is started in this process.
    pub kafka: bool,
    /// Whether to keep the temporary folder and the topic.
    pub keep: bool,
    /// One JSON object per step instead of text.
    pub json: bool,
}

/// What the story plays in.
struct World {
    config: Config,
    folder: PathBuf,
    /// Distinguishes this run's users, topic and consumer from another's.
    run: String,
    topic: Topic,
    client: Client,
    server: Server,
    shop: PgPool,
    mails: PgPool,
    spans: Spans,
    trace_id: Option<String>,
}

/// Tells the story. Returns the checks that failed; none: all is well.
///
/// # Errors
/// When something that the story needs cannot be started, or it was interrupted.
pub async fn run(options: Options, interrupts: Interrupts) -> Result<Vec<String>, Failure> {
    let id = Uuid::now_v7().simple().to_string();
    let temporary = std::env::temp_dir().join(format!("outboxd-demo-{id}"));
    let remove = options.data.is_none() && !options.keep;
    let folder = Folder::open(options.data.as_ref().unwrap_or(&temporary))?;
    let account = Account::choose()?;
    let home = folder.cluster_home(&account);
    let mut report = Report::new(options.json);
    report.step("start", "A private Postgres, a broker, and `outboxd serve` as a process of its own");
    report.saw("folder", folder.path().display().to_string());
    let starting = Postgres::start(&home, options.postgres_bin.as_deref(), account);
    let outcome: Result<Option<String>, Failure> = match interrupts.first.run_until_cancelled(starting).await {
        None => Err("interrupted".into()),
        Some(Err(error)) => Err(error.into()),
        Some(Ok(postgres)) => {
            let run = id[id.len() - 8..].to_owned();
            let playing = play(&options, run, &folder, &postgres, &mut report);
            let played = interrupts.first.run_until_cancelled(playing).await;
            let stopped = postgres.stop().await;
            played.ok_or_else(|| "interrupted".into()).and_then(|trace_id| Ok(stopped.map(|()| trace_id)?))
        }
    };
    if remove {
        for folder in [&home, folder.path()].into_iter().filter(|folder| folder.exists()) {
            fs::remove_dir_all(folder)?;
        }
    }
    Ok(report.finish(outcome?))
}

/// Sets the stage and tells the story; what breaks it off counts as a check that failed. Returns the trace's id.
async fn play(
    options: &Options,
    run: String,
    folder: &Folder,
    postgres: &Postgres,
    report: &mut Report,
) -> Option<String> {
    let broker = if options.kafka { Ok(None) } else { Broker::start().map(Some) };
    let told = async {
        let broker = broker?;
        let mut world = set_up(options, run, broker.as_ref(), folder, postgres, report).await?;
        let told = story::tell(&mut world, report).await;
        let trace_id = world.trace_id.take();
        if options.kafka && !options.keep {
            world.topic.delete().await?;
        }
        told.map(|()| trace_id)
    };
    told.await.unwrap_or_else(|error: Failure| {
        report.check(&format!("the story gets to its end: {error}"), false);
        None
    })
}

async fn set_up(
    options: &Options,
    run: String,
    broker: Option<&Broker>,
    folder: &Folder,
    postgres: &Postgres,
    report: &mut Report,
) -> Result<World, Failure> {
    let mut config = options.config.clone();
    let catalog = folder.write_catalog()?;
    let (file, schema) = folder.schema()?;
    postgres.set_up(DATABASE, &file, schema).await?;
    postgres.set_up(MAILS, &file, mailer::SCHEMA.into()).await?;
    config.database.url = postgres.url(DATABASE);
    config.catalog.dir = Some(catalog);
    config.relay.lease_ttl_ms = LEASE_TTL_MS;
    config.grpc.listen = dev::free_address("127.0.0.1:0").await?.to_string();
    if let Some(broker) = broker {
        broker.bootstrap_servers().clone_into(&mut config.kafka.bootstrap_servers);
    }
    let topic = Topic::new(format!("users-{run}"), &config.kafka);
    if broker.is_none() {
        topic.create().await?;
    }
    let spans = Spans::collect(File::create(folder.path().join("demo.log"))?)?;
    let server = Server::start(&config, folder.path()).await?;
    report.saw("grpc", config.grpc.listen.as_str());
    report.saw("kafka", config.kafka.bootstrap_servers.as_str());
    let note = "in this process and in memory: it speaks Kafka's protocol and proves nothing about a real Kafka";
    report.saw("broker", if broker.is_some() { note } else { "a real one" });
    report.saw("server_process", server.pid());
    let pool = |database| PgPoolOptions::new().max_connections(8).connect(database);
    Ok(World {
        client: Client::connect(format!("http://{}", config.grpc.listen))?,
        shop: pool(&config.database.url).await?,
        mails: pool(&postgres.url(MAILS)).await?,
        folder: folder.path().to_owned(),
        trace_id: None,
        run,
        config,
        topic,
        server,
        spans,
    })
}

/// Waits until `look` finds what it looks for.
async fn eventually<T>(
    what: &str,
    within: Duration,
    mut look: impl AsyncFnMut() -> Result<Option<T>, Failure>,
) -> Result<T, Failure> {
    let start = Instant::now();
    loop {
        if let Some(found) = look().await? {
            return Ok(found);
        }
        if start.elapsed() > within {
            return Err(format!("waited {within:?} in vain for {what}").into());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
