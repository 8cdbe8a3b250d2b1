//! The client of `OutboxService`.
//!
//! One [`Client`] holds one HTTP/2 connection, made when first needed and again after it breaks; clones share it.
//! Invariant: every call ends by its deadline.
//! It deliberately keeps no queue of commits: a commit that the caller gave up is not sent later.

pub(crate) mod call;
mod commit;
mod error;
mod open;
mod result;
mod retry;
mod sent;
mod transact;
pub(crate) mod value;

use std::{sync::Arc, time::Duration};

use outbox_proto::v1::{self, outbox_service_client::OutboxServiceClient};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};

pub(crate) use self::{commit::timestamp, sent::Connection};
pub use self::{
    commit::{Command, Commit, NewEvent},
    error::{CommitError, Failure, FieldViolation},
    open::{OpenTransaction, Returned},
    result::{Committed, Disposition, OperationResult, ReadError, Row},
    transact::{Isolation, Transact, TransactError, Transacted},
    value::{FromValue, Interval, IntoValue, Numeric, ValueError},
};
use crate::backoff::Backoff;

/// What a call may take, over all its attempts, unless told otherwise.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(10);
/// The largest answer that is read, in bytes.
const ANSWER_BYTES_MAX: usize = 16 << 20;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
const BACKOFF: Backoff = Backoff { base: Duration::from_millis(50), ceiling: Duration::from_secs(2) };

/// A client of an outboxd server. Cheap to clone.
///
/// ```no_run
/// use outbox_sdk::{Client, Command, NewEvent};
///
/// # async fn activate() -> Result<(), Box<dyn std::error::Error>> {
/// let client = Client::connect("http://localhost:7411")?;
/// let committed = client
///     .commit()
///     .command(Command::new("activate_user").param("user_id", "user-7"))
///     .event(NewEvent::new("users", "user.activated").key("user-7").json(&serde_json::json!({"id": "user-7"}))?)
///     .send()
///     .await?;
/// let email: String = committed.result(0)?.row(0)?.get("email")?;
/// # let _ = email;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Client {
    rpc: Rpc,
    connection: Connection,
    settings: Arc<Settings>,
}

type Rpc = OutboxServiceClient<Connection>;

#[derive(Debug)]
struct Settings {
    namespace: String,
    deadline: Duration,
    address: String,
    port: u16,
}

/// Why a client cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The endpoint is not a URI such as `http://localhost:7411`.
    #[error("the endpoint `{endpoint}` is not a URI with scheme and host, such as `http://localhost:7411`")]
    Endpoint {
        /// What was given.
        endpoint: String,
        /// What is wrong with it, where more is known.
        #[source]
        source: Option<tonic::transport::Error>,
    },
    /// The TLS settings cannot be used.
    #[error("TLS for `{endpoint}` cannot be set up")]
    Tls {
        /// What was given.
        endpoint: String,
        /// What is wrong with it.
        #[source]
        source: tonic::transport::Error,
    },
}

/// Settings of a [`Client`], made by [`Client::builder`].
#[derive(Clone, Debug)]
pub struct ClientBuilder {
    endpoint: String,
    namespace: String,
    deadline: Duration,
    ca_certificate: Option<Vec<u8>>,
}

impl Client {
    /// A client of the server at `endpoint`: `http://host:port`, or `https://host:port` for TLS with the system's
    /// certificate authorities. Nothing is sent yet: the connection is made by the first call.
    ///
    /// # Errors
    /// [`ConnectError`] when the endpoint is not usable. That nobody listens there is the first call's error.
    ///
    /// # Panics
    /// Outside a Tokio runtime.
    pub fn connect(endpoint: impl Into<String>) -> Result<Self, ConnectError> {
        Self::builder(endpoint).connect()
    }

    /// A client with settings of its own.
    ///
    /// ```no_run
    /// # fn connect() -> Result<(), outbox_sdk::ConnectError> {
    /// use std::time::Duration;
    ///
    /// let client = outbox_sdk::Client::builder("https://outbox.example.com")
    ///     .namespace("shop")
    ///     .deadline(Duration::from_secs(3))
    ///     .connect()?;
    /// # let _ = client;
    /// # Ok(())
    /// # }
    /// ```
    pub fn builder(endpoint: impl Into<String>) -> ClientBuilder {
        let endpoint = endpoint.into();
        ClientBuilder { endpoint, namespace: String::new(), deadline: DEFAULT_DEADLINE, ca_certificate: None }
    }

    /// A commit to fill and send. Its request id is made here.
    pub fn commit(&self) -> Commit {
        Commit::new(self.clone())
    }

    /// An interactive transaction to run: for what is written depends on what is read. Its request id is made here.
    ///
    /// ```no_run
    /// use outbox_sdk::{Client, Command, NewEvent};
    ///
    /// # #[derive(Debug, thiserror::Error)]
    /// # enum OrderError {
    /// #     #[error("there is not enough left")]
    /// #     SoldOut,
    /// #     #[error(transparent)]
    /// #     Commit(#[from] outbox_sdk::CommitError),
    /// #     #[error(transparent)]
    /// #     Read(#[from] outbox_sdk::ReadError),
    /// # }
    /// # async fn order(client: Client) -> Result<(), Box<dyn std::error::Error>> {
    /// let ordered = client
    ///     .transact()
    ///     .run(async |tx| {
    ///         let stock = tx.run(Command::new("lock_stock").param("item", "lamp")).await?;
    ///         let left: i64 = stock.result().row(0)?.get("left")?;
    ///         if left == 0 {
    ///             return Err(OrderError::SoldOut); // nothing is written
    ///         }
    ///         tx.run(Command::new("take").param("item", "lamp").param("count", 1)).await?;
    ///         tx.event(NewEvent::new("orders", "lamp.ordered").key("lamp"));
    ///         Ok(left - 1)
    ///     })
    ///     .await?;
    /// println!("{:?} are left", ordered.value);
    /// # Ok(())
    /// # }
    /// ```
    pub fn transact(&self) -> Transact {
        Transact::new(self.clone())
    }

    /// The stored answer of an earlier commit; `None` when the server remembers none (any longer).
    /// `namespace` may be empty, for the client's own.
    ///
    /// # Errors
    /// [`CommitError::Refused`] and [`CommitError::Unreachable`].
    pub async fn get_commit(&self, namespace: &str, request_id: &str) -> Result<Option<Committed>, CommitError> {
        let namespace = if namespace.is_empty() { &self.settings.namespace } else { namespace };
        let request = v1::GetCommitRequest { namespace: namespace.to_owned(), request_id: request_id.to_owned() };
        let call = call::Call { method: call::GET_COMMIT, request_id, deadline: self.settings.deadline };
        let send = |mut rpc: Rpc, request| async move { rpc.get_commit(request).await };
        match self.call(&self.rpc, call, request, send).await {
            Ok(answer) => Ok(answer.commit.map(Committed::new)),
            Err(error) if error.reason() == Some("COMMIT_NOT_FOUND") => Ok(None),
            // Reading has no outcome to doubt.
            Err(CommitError::Unknown(failure)) => Err(CommitError::Unreachable(failure)),
            Err(error) => Err(error),
        }
    }

    /// What another service of the server is called on.
    pub(crate) fn connection(&self) -> Connection {
        self.connection.clone()
    }

    /// The namespace of calls that name none.
    pub(crate) fn namespace(&self) -> &str {
        &self.settings.namespace
    }

    /// What a call may take.
    pub(crate) fn deadline(&self) -> Duration {
        self.settings.deadline
    }
}

impl ClientBuilder {
    /// The namespace of every commit that does not name its own. Unless set, the server's `default`.
    #[must_use]
    pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
        self.namespace = namespace.into();
        self
    }

    /// What a call may take over all its attempts, unless it says otherwise. 10 s unless set.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Trusts the certificate authorities in this PEM text instead of the system's. Only used with `https`.
    #[must_use]
    pub fn ca_certificate(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.ca_certificate = Some(pem.into());
        self
    }

    /// Makes the client, as [`Client::connect`] does.
    ///
    /// # Errors
    /// [`ConnectError`] when the endpoint or the certificate is not usable.
    ///
    /// # Panics
    /// Outside a Tokio runtime.
    pub fn connect(self) -> Result<Client, ConnectError> {
        let connection = sent::heeding(self.channel()?);
        let bad = || ConnectError::Endpoint { endpoint: self.endpoint.clone(), source: None };
        let uri: http::Uri = self.endpoint.parse().map_err(|_| bad())?;
        let tls = uri.scheme_str() == Some("https");
        let settings = Settings {
            namespace: self.namespace.clone(),
            deadline: self.deadline,
            address: uri.host().ok_or_else(bad)?.to_owned(),
            port: uri.port_u16().unwrap_or(if tls { 443 } else { 80 }),
        };
        let rpc = OutboxServiceClient::new(connection.clone()).max_decoding_message_size(ANSWER_BYTES_MAX);
        Ok(Client { rpc, connection, settings: Arc::new(settings) })
    }

    fn channel(&self) -> Result<Channel, ConnectError> {
        let of_endpoint = |source| ConnectError::Endpoint { endpoint: self.endpoint.clone(), source: Some(source) };
        let endpoint = Endpoint::from_shared(self.endpoint.clone()).map_err(of_endpoint)?;
        let (scheme, host) = (endpoint.uri().scheme_str(), endpoint.uri().host());
        if host.is_none() || !matches!(scheme, Some("http" | "https")) {
            return Err(ConnectError::Endpoint { endpoint: self.endpoint.clone(), source: None });
        }
        let tls = scheme == Some("https");
        let endpoint = endpoint
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .user_agent(concat!("outbox-sdk-rust/", env!("CARGO_PKG_VERSION")))
            .map_err(of_endpoint)?;
        if !tls {
            return Ok(endpoint.connect_lazy());
        }
        let trust = match &self.ca_certificate {
            Some(pem) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem)),
            None => ClientTlsConfig::new().with_native_roots(),
        };
        let of_tls = |source| ConnectError::Tls { endpoint: self.endpoint.clone(), source };
        Ok(endpoint.tls_config(trust).map_err(of_tls)?.connect_lazy())
    }
}
