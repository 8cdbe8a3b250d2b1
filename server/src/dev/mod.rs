//! `outboxd dev`: everything a developer needs to try outboxd, in one process and one folder.
//!
//! A private Postgres, an in-process broker unless a real Kafka is named, the sample catalog, then the same server and
//! relay as `outboxd serve`. Invariant: what was started here has ended when [`run`] returns, however it returns.
//! It deliberately offers no way to run in production: no address but this machine's for Postgres, a broker in memory.

mod account;
mod binaries;
mod broker;
mod error;
mod folder;
mod guide;
mod postgres;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::transport::Endpoint;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

pub(crate) use self::postgres::tail;
pub use self::{account::Account, broker::Broker, error::Error, folder::Folder, postgres::Postgres};
use crate::{app, config::Config};

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// The database of the sample catalog.
pub const DATABASE: &str = "shop";
/// An empty database for consumers: they have their own.
pub const MAILS: &str = "mails";
const SERVING_WITHIN: Duration = Duration::from_secs(60);

/// What to run.
pub struct Options {
    /// The server's configuration; its database, and unless set its catalog, are made here.
    pub config: Config,
    /// The data folder; made if missing.
    pub data: PathBuf,
    /// Where Postgres's programs are, if not where they are usually found.
    pub postgres_bin: Option<PathBuf>,
    /// Whether `config` names a Kafka to use; otherwise a broker is started in this process.
    pub kafka: bool,
}

/// What ends it: the first signal asks, the second insists.
#[derive(Clone, Default)]
pub struct Interrupts {
    /// Drain, then stop.
    pub first: CancellationToken,
    /// Stop at once; the private Postgres is still stopped in order.
    pub second: CancellationToken,
}

/// Runs until interrupted, or until the server fails.
///
/// # Errors
/// [`Error`] when something cannot be started, and what `app::serve` fails with.
pub async fn run(options: Options, interrupts: Interrupts) -> Result<(), Failure> {
    let Options { mut config, data, postgres_bin, kafka } = options;
    let folder = Folder::open(&data)?;
    let listen = free_address(&config.grpc.listen).await?;
    config.grpc.listen = listen.to_string();
    let account = Account::choose()?;
    let home = folder.cluster_home(&account);
    let starting = start(&folder, &home, postgres_bin.as_deref(), account);
    let Some(postgres) = interrupts.first.run_until_cancelled(starting).await else { return Ok(()) };
    let postgres = postgres?;
    let served = serve(&mut config, &folder, &postgres, kafka, listen, &interrupts).await;
    let stopped = postgres.stop().await;
    served?;
    Ok(stopped?)
}

async fn start(folder: &Folder, home: &Path, binaries: Option<&Path>, account: Account) -> Result<Postgres, Error> {
    eprintln!("starting a private Postgres in {}", home.display());
    if !home.starts_with(folder.path()) {
        let user = account.other_name().unwrap_or_default();
        let folder = folder.path().display();
        eprintln!(
            "  (there, because the user {user} it runs as cannot get to {folder}; --data chooses another folder)"
        );
    }
    let postgres = Postgres::start(home, binaries, account).await?;
    if postgres.is_taken_over() {
        eprintln!("  it was still running after the last `outboxd dev` was killed: taken over");
    }
    Ok(postgres)
}

async fn serve(
    config: &mut Config,
    folder: &Folder,
    postgres: &Postgres,
    kafka: bool,
    listen: SocketAddr,
    interrupts: &Interrupts,
) -> Result<(), Failure> {
    let catalog = folder.write_catalog()?;
    let (file, schema) = folder.schema()?;
    postgres.set_up(DATABASE, &file, schema).await?;
    postgres.set_up(MAILS, &file, String::new()).await?;
    config.database.url = postgres.url(DATABASE);
    config.catalog.dir.get_or_insert(catalog);
    let broker = if kafka { None } else { Some(Broker::start()?) };
    if let Some(broker) = &broker {
        broker.bootstrap_servers().clone_into(&mut config.kafka.bootstrap_servers);
    }
    let told = async {
        wait_until_serving(listen).await?;
        guide::print(config, local(listen), broker.is_some(), folder.path());
        std::future::pending::<Result<(), Failure>>().await
    };
    tokio::select! {
        served = app::serve(config.clone(), interrupts.first.clone()) => served,
        failed = told => failed,
        () = interrupts.second.cancelled() => Ok(()),
    }
}

/// The address to listen on, once it is sure that it can be; port 0 becomes a free one.
///
/// # Errors
/// [`Error::Listen`].
pub async fn free_address(listen: &str) -> Result<SocketAddr, Error> {
    let listener = TcpListener::bind(listen).await.and_then(|listener| listener.local_addr());
    listener.map_err(|source| Error::Listen { address: listen.to_owned(), source })
}

/// Waits until the server at this address says that it serves.
///
/// # Errors
/// [`Error::NotServing`] after a minute.
pub async fn wait_until_serving(listen: SocketAddr) -> Result<(), Error> {
    let start = Instant::now();
    while !serves(listen).await {
        if start.elapsed() > SERVING_WITHIN {
            return Err(Error::NotServing(listen));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

async fn serves(listen: SocketAddr) -> bool {
    let endpoint = Endpoint::from_shared(format!("http://{}", local(listen))).expect("an address makes a URI");
    let Ok(channel) = endpoint.connect().await else { return false };
    let answer = HealthClient::new(channel).check(HealthCheckRequest::default()).await;
    answer.is_ok_and(|answer| answer.get_ref().status() == ServingStatus::Serving)
}

/// How to get from this machine to who listens on `listen`.
fn local(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_taken_address_is_refused_with_what_to_do() {
        let holder = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let taken = holder.local_addr().expect("it is bound").to_string();
        let message = free_address(&taken).await.expect_err("it is taken").to_string();
        assert!(message.contains(&taken) && message.contains("--listen"), "{message}");
    }

    #[test]
    fn who_listens_everywhere_is_reached_on_this_machine() {
        let local = |text: &str| local(text.parse().expect("an address")).to_string();
        assert_eq!(local("0.0.0.0:7411"), "127.0.0.1:7411");
        assert_eq!(local("[::]:7411"), "[::1]:7411");
        assert_eq!(local("10.1.2.3:7411"), "10.1.2.3:7411");
    }
}
