//! TLS for replication connections, as `sslmode` asks for it.
//!
//! The replication client's own TLS brings a second crypto library into the build, so the connection is made here, with
//! the one that everything else uses, and handed over through a socket in a private folder that takes one connection
//! and is gone then. What each mode checks is what the other connections' library checks: `prefer` and `require`
//! nothing, `verify-ca` the chain, `verify-full` the name besides. Deliberately not here: authentication.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use sqlx::{ConnectOptions as _, postgres::PgConnectOptions, postgres::PgSslMode};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UnixListener},
};
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        self, CertificateError, ClientConfig, DigitallySignedStruct, Error as TlsError, RootCertStore, SignatureScheme,
        client::{
            WebPkiServerVerifier,
            danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        },
        crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _},
    },
};
use uuid::Uuid;

/// Asks for TLS (PostgreSQL documentation, "Message Formats", `SSLRequest`).
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];
/// How long the client in this process may take to come.
const HANDED_OVER_WITHIN: Duration = Duration::from_secs(10);

/// Makes the connection if there is to be TLS; returns the folder of the socket that leads to it.
pub(super) async fn connect(options: &PgConnectOptions) -> io::Result<Option<PathBuf>> {
    let mode = options.get_ssl_mode();
    if options.get_socket().is_some() || matches!(mode, PgSslMode::Disable | PgSslMode::Allow) {
        return Ok(None);
    }
    let mut server = TcpStream::connect((options.get_host(), options.get_port())).await?;
    server.set_nodelay(true)?;
    server.write_all(&SSL_REQUEST).await?;
    match server.read_u8().await? {
        b'S' => {}
        _ if matches!(mode, PgSslMode::Prefer) => return Ok(None),
        _ => return Err(io::Error::other("the server does not speak TLS, and sslmode asks for it")),
    }
    let name = ServerName::try_from(options.get_host().to_owned()).map_err(io::Error::other)?;
    let config = client_config(mode, &Files::of(options)?)?;
    let server = TlsConnector::from(Arc::new(config)).connect(name, server).await?;
    hand_over(server).map(Some)
}

/// Leads one connection through a socket in a folder that only this user can enter.
fn hand_over(mut server: TlsStream<TcpStream>) -> io::Result<PathBuf> {
    let folder = std::env::temp_dir().join(format!("outboxd-{}", Uuid::now_v7().simple()));
    DirBuilder::new().mode(0o700).create(&folder)?;
    let listener = UnixListener::bind(folder.join(SOCKET)).inspect_err(|_| remove(&folder))?;
    let removed = folder.clone();
    tokio::spawn(async move {
        let accepted = tokio::time::timeout(HANDED_OVER_WITHIN, listener.accept()).await;
        drop(listener);
        remove(&removed);
        let Ok(Ok((mut client, _))) = accepted else { return };
        // Either end tells by closing; whoever reads the stream reports it.
        if let Err(error) = tokio::io::copy_bidirectional(&mut client, &mut server).await {
            tracing::debug!(%error, "a replication connection over TLS has ended");
        }
    });
    Ok(folder)
}

/// The name of the socket, for port [`PORT`].
const SOCKET: &str = ".s.PGSQL.5432";
pub(super) const PORT: u16 = 5432;

fn remove(folder: &Path) {
    if let Err(error) = fs::remove_dir_all(folder) {
        tracing::debug!(%error, folder = %folder.display(), "a folder is left behind");
    }
}

/// Certificates and key that the URL names, in PEM.
#[derive(Default)]
struct Files {
    root: Option<Vec<u8>>,
    client: Option<Vec<u8>>,
    key: Option<Vec<u8>>,
}

impl Files {
    fn of(options: &PgConnectOptions) -> io::Result<Self> {
        let mut files = Self::default();
        for (name, value) in options.to_url_lossy().query_pairs() {
            // The one way to what was set; a file's name comes back with this in front.
            let pem = || match value.strip_prefix("file: ") {
                Some(path) => fs::read(path).map(Some).map_err(|error| io::Error::other(format!("{path}: {error}"))),
                None => Ok(Some(value.as_bytes().to_vec())),
            };
            match &*name {
                "sslrootcert" => files.root = pem()?,
                "sslcert" => files.client = pem()?,
                "sslkey" => files.key = pem()?,
                _ => {}
            }
        }
        Ok(files)
    }
}

fn client_config(mode: PgSslMode, files: &Files) -> io::Result<ClientConfig> {
    let provider = Arc::new(ring::default_provider());
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?;
    let checks = match mode {
        PgSslMode::VerifyFull => Checks::Name(chain(files)?),
        PgSslMode::VerifyCa => Checks::Chain(chain(files)?),
        _ => Checks::Nothing,
    };
    let config = config.dangerous().with_custom_certificate_verifier(Arc::new(Verifier { provider, checks }));
    match (&files.client, &files.key) {
        (Some(certificate), Some(key)) => {
            let key = PrivateKeyDer::from_pem_slice(key).map_err(io::Error::other)?;
            config.with_client_auth_cert(certificates(certificate)?, key).map_err(io::Error::other)
        }
        _ => Ok(config.with_no_client_auth()),
    }
}

/// Checks chains against the system's roots and the one in the URL.
fn chain(files: &Files) -> io::Result<Arc<WebPkiServerVerifier>> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(root) = &files.root {
        for certificate in certificates(root)? {
            roots.add(certificate).map_err(io::Error::other)?;
        }
    }
    let provider = Arc::new(ring::default_provider());
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().map_err(io::Error::other)
}

fn certificates(pem: &[u8]) -> io::Result<Vec<CertificateDer<'static>>> {
    CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(io::Error::other)
}

/// How much of the server's certificate is checked. The handshake's signature always is.
#[derive(Debug)]
enum Checks {
    Nothing,
    Chain(Arc<WebPkiServerVerifier>),
    Name(Arc<WebPkiServerVerifier>),
}

#[derive(Debug)]
struct Verifier {
    provider: Arc<CryptoProvider>,
    checks: Checks,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        match &self.checks {
            Checks::Nothing => Ok(ServerCertVerified::assertion()),
            Checks::Name(chain) => chain.verify_server_cert(certificate, between, name, ocsp, now),
            Checks::Chain(chain) => match chain.verify_server_cert(certificate, between, name, ocsp, now) {
                Err(TlsError::InvalidCertificate(
                    CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
                )) => Ok(ServerCertVerified::assertion()),
                checked => checked,
            },
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls12_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
