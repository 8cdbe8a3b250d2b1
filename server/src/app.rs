//! Wiring: builds the parts of a server from its configuration and runs them until shutdown.

use std::{error::Error, sync::Arc, time::Duration};

use tokio::{net::TcpListener, sync::watch, time::MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::{
    api::{self, typed::Rpcs},
    catalog::Catalog,
    commit::Committer,
    config::Config,
    ops::{self, metrics::Metrics, readiness::Readiness},
    relay::{Inflow, Relay, Wake, kafka::limits::TopicLimits},
    store::{
        self,
        commit::{Executor, Statements, transact::Transactions},
        event::Reader,
        inbox::Claims,
        migrate,
        numbers::Gauge,
        retention::{self, Ages},
        session::Connector,
        setup,
        state::State,
    },
};

type Failure = Box<dyn Error + Send + Sync>;

/// How often missing partitions are looked for; they are made days ahead.
const PARTITIONS_EVERY: Duration = Duration::from_secs(3_600);

/// Prepares a server, takes the configured address and runs until `shutdown` is cancelled.
///
/// # Errors
/// As [`Server::prepare`] and [`Server::run`], or when the address is taken.
pub async fn serve(config: Config, shutdown: CancellationToken) -> Result<(), Failure> {
    let server = Server::prepare(config).await?;
    let listener = TcpListener::bind(&server.config.grpc.listen).await?;
    server.run(listener, shutdown).await
}

/// A server whose database and catalog have been found in order.
pub struct Server {
    config: Config,
    connector: Connector,
    catalog: Catalog,
    rpcs: Rpcs,
}

impl Server {
    /// Connects, applies migrations if it may, and prepares the catalog. Binds nothing.
    ///
    /// # Errors
    /// When the database cannot be reached, or a migration or the catalog does not hold.
    pub async fn prepare(config: Config) -> Result<Self, Failure> {
        let connector = Connector::new(&config.database)?;
        let mut connection = connector.connect().await?;
        if config.database.migrate_at_start {
            migrate::run(&mut connection).await?;
            set_up_source(&config.database.url).await;
        }
        let catalog = match &config.catalog.dir {
            Some(dir) => Catalog::load(dir, &mut connection).await?,
            None => Catalog::empty(),
        };
        let rpcs = match &config.catalog.dir {
            Some(dir) => Rpcs::load(dir, &catalog, &config.commit)?,
            None => Rpcs::default(),
        };
        tracing::info!(commands = catalog.names().count(), rpcs = rpcs.count(), "catalog prepared");
        Ok(Self { config, connector, catalog, rpcs })
    }

    /// Serves until `shutdown` is cancelled, then drains: calls in progress and events in flight may end within
    /// `grpc.drain_ms`, then what is left is cut off.
    ///
    /// # Errors
    /// When the listener fails, or the relay finds a database that it must not trust.
    pub async fn run(self, listener: TcpListener, shutdown: CancellationToken) -> Result<(), Failure> {
        let Self { config, connector, catalog, rpcs } = self;
        let drain = Duration::from_millis(config.grpc.drain_ms);
        let relay = match config.relay.enabled {
            true => Some(Relay::new(config.relay.clone(), &config.kafka, &config.database)?),
            false => None,
        };
        let (wake, status) = relay.as_ref().map(|relay| (relay.wake(), relay.status())).unzip();
        let limits = config.relay.enabled.then(|| TopicLimits::new(&config.kafka));
        let learning = limits.clone().map(|limits| tokio::spawn(limits.learn(shutdown.clone())));
        let reader = Reader::new(&connector, &config);
        let gauge = Gauge::new(&reader, &config);
        let metrics = match config.metrics.listen.as_str() {
            "" => None,
            address => Some(TcpListener::bind(address).await?),
        };
        let services = services(&config, &connector, (catalog, rpcs), reader.clone(), gauge.clone(), limits, wake);

        let inflow = relay.as_ref().map(|relay| Inflow::new(&config.database, relay.wake()).run(shutdown.clone()));
        let inflow = inflow.map(tokio::spawn);
        let relaying = relay.map(|relay| tokio::spawn(relay.run(shutdown.clone(), drain)));
        let (readiness, looking) = ops::readiness::start(reader, status.clone(), shutdown.clone());
        let (health, reporter) = ops::health::start(readiness.clone()).await;
        let ages = config.retention.enabled.then(|| Ages::new(&config));
        let windows =
            Windows { consume_hours: config.commit.consume_window_hours, inbox_hours: config.inbox.window_hours };
        let partitions = tokio::spawn(keep_partitions(connector, windows, ages, shutdown.clone()));
        let numbers = Metrics::new(gauge, status);
        let metrics =
            metrics.map(|listener| tokio::spawn(serve_operators(listener, numbers, readiness, shutdown.clone())));

        tracing::info!(address = %listener.local_addr()?, "serving");
        let serving = api::serve(listener, services, health, shutdown.clone().cancelled_owned());
        let served = tokio::select! {
            served = serving => served,
            () = cut_off(&shutdown, drain) => {
                tracing::warn!(?drain, "calls were still in progress after the time to drain");
                Ok(())
            }
        };
        shutdown.cancel();
        let relayed = match relaying {
            Some(relaying) => relaying.await?,
            None => Ok(()),
        };
        for task in [looking, reporter, partitions].into_iter().chain(metrics).chain(inflow).chain(learning) {
            task.abort();
        }
        tracing::info!("stopped");
        served?;
        Ok(relayed?)
    }
}

fn services(
    config: &Config,
    connector: &Connector,
    (catalog, rpcs): (Catalog, Rpcs),
    reader: Reader,
    gauge: Gauge,
    limits: Option<TopicLimits>,
    wake: Option<Wake>,
) -> api::Services {
    let catalog = Arc::new(catalog);
    let statements = Arc::new(Statements::new(&catalog, config.commit.result_rows_max));
    let state = State::new(connector, Arc::clone(&statements), config);
    let executor = Executor::new(connector.clone(), Arc::clone(&statements), &config.database, &config.commit);
    let transactions = Transactions::new(connector, Arc::clone(&statements), state.clone(), config);
    let record_bytes_max = move |topic: &str| limits.as_ref().and_then(|limits| limits.of(topic));
    let committed = move || {
        if let Some(wake) = &wake {
            wake.wake();
        }
    };
    api::Services {
        committer: Committer::new(
            Arc::clone(&catalog),
            executor,
            transactions,
            state.clone(),
            config,
            record_bytes_max,
            committed,
        ),
        catalog,
        rpcs,
        state,
        claims: Claims::new(connector, &config.inbox),
        inbox: config.inbox.clone(),
        reader,
        gauge,
        policies: config.relay.clone(),
        limits: api::Limits { deadline_max: Duration::from_millis(config.grpc.deadline_max_ms) },
        transact: config.transact.clone(),
        result_rows_max: config.commit.result_rows_max,
        request_bytes_max: config.grpc.request_bytes_max,
    }
}

/// Sees to what the relay's source needs, but for the slot, which relays make while they poll. What is wrong keeps nobody
/// from serving: relays poll, and note it.
async fn set_up_source(url: &str) {
    match setup::run(url, None, None).await {
        Ok(setup) => setup.lines().iter().for_each(|line| tracing::info!("{line}")),
        Err(error) => tracing::error!(%error, "the relay's source is not set up"),
    }
}

async fn cut_off(shutdown: &CancellationToken, drain: Duration) {
    shutdown.cancelled().await;
    tokio::time::sleep(drain).await;
}

async fn serve_operators(
    listener: TcpListener,
    metrics: Metrics,
    readiness: watch::Receiver<Readiness>,
    shutdown: CancellationToken,
) {
    if let Ok(address) = listener.local_addr() {
        tracing::info!(%address, "serving metrics and readiness");
    }
    if let Err(error) = ops::http::serve(listener, metrics, readiness, shutdown.cancelled_owned()).await {
        tracing::error!(error, "metrics and readiness are not served any more");
    }
}

/// How old events may be that marks and claims are made for.
#[derive(Clone, Copy)]
struct Windows {
    consume_hours: u32,
    inbox_hours: u32,
}

/// Makes partitions ahead of time and drops those that nothing needs, for as long as the server runs.
async fn keep_partitions(connector: Connector, windows: Windows, ages: Option<Ages>, shutdown: CancellationToken) {
    let mut ticks = tokio::time::interval(PARTITIONS_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while shutdown.run_until_cancelled(ticks.tick()).await.is_some() {
        match make_partitions(&connector, windows).await {
            Ok(0) => {}
            Ok(made) => tracing::info!(made, "partitions made"),
            Err(error) => {
                tracing::error!(error = &error as &dyn Error, "partitions could not be made; next try in an hour");
            }
        }
        if let Some(ages) = ages
            && let Err(error) = drop_partitions(&connector, ages).await
        {
            tracing::warn!(error = &error as &dyn Error, "partitions could not be dropped; next try in an hour");
        }
    }
}

async fn drop_partitions(connector: &Connector, ages: Ages) -> Result<(), store::Error> {
    let mut connection = connector.connect().await?;
    retention::run(&mut connection, ages, false).await.map(drop)
}

async fn make_partitions(connector: &Connector, windows: Windows) -> Result<i32, store::Error> {
    let mut connection = connector.connect().await?;
    let made = migrate::make_partitions(&mut connection).await?;
    let marks = migrate::make_mark_partitions(&mut connection, windows.consume_hours).await?;
    Ok(made + marks + migrate::make_claim_partitions(&mut connection, windows.inbox_hours).await?)
}
