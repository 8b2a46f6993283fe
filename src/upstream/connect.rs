//! Opens connections: name resolution, TCP, TLS, HTTP/1.1. Until a connection is open, no part of a request has left
//! this process.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use http_body_util::Full;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;

use super::ending::{AttemptError, ProxyError};
use super::interim::{Allowance, Allowed};
use super::pool::PooledConnection;
use super::token_writer::{TokenSlot, TokenWriter};
use crate::config::UpstreamConfig as Settings;
use crate::tasks::Tasks;
use crate::watched_files::Snapshot;

/// Size limit of a CA file; anything larger is the wrong file.
const PEM_BYTES_MAX: u64 = 4 << 20;
/// Size limit of a response head, in bytes (`docs/decisions/limits.md`).
pub(super) const HEAD_BYTES_MAX: usize = 32 * 1024;
/// How long to wait for one address before trying the next in parallel (RFC 8305, section 5).
const CONNECTION_ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// Why the configured upstream can never be reached.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The system has no certificate authorities.
    #[error(
        "the system has no certificate authorities to verify the upstream with; \
         install the package ca-certificates, or set upstream.ca_file to a PEM file"
    )]
    NoAuthorities,
    /// `ca_file` cannot be read or holds no certificate.
    #[error("upstream.ca_file {0}: {1}; write the path of a PEM file with certificates")]
    CaFile(PathBuf, String),
    /// The URL's host is neither a name nor an address.
    #[error("upstream.url: {0} is not a valid host; write a name (eu1.make.com) or an address")]
    Host(String),
    /// TLS cannot be set up at all.
    #[error("cannot set up TLS: {0}")]
    Tls(rustls::Error),
}

/// Opens connections to one upstream.
pub(super) struct Connector {
    host: String,
    port: u16,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    /// Time limit for name resolution, TCP and TLS together.
    limit: Duration,
    /// The connections' tasks. Nobody waits for them: a connection dies with its [`PooledConnection`].
    tasks: Tasks,
}

impl Connector {
    pub(super) fn new(settings: &Settings, files: &Snapshot) -> Result<Self, SetupError> {
        let host = settings.url.host.clone();
        let tls = if settings.url.tls {
            let name = ServerName::try_from(host.clone()).map_err(|_| SetupError::Host(host.clone()))?;
            Some((TlsConnector::from(Arc::new(client_config(settings.ca_file.as_deref(), files)?)), name))
        } else {
            None
        };
        Ok(Self { host, port: settings.url.port, tls, limit: settings.connect, tasks: Tasks::new() })
    }

    /// Opens a connection that is ready for its first request.
    pub(super) async fn connect(&self) -> Result<PooledConnection, AttemptError> {
        let late = |_| AttemptError::new(ProxyError::ConnectionTimeout, "connecting and the handshake took too long");
        timeout(self.limit, self.open()).await.map_err(late)?
    }

    #[cfg(test)]
    pub(super) async fn closed(&self, limit: Duration) -> bool {
        self.tasks.drained(limit).await
    }

    async fn open(&self) -> Result<PooledConnection, AttemptError> {
        let addresses = lookup_host((self.host.as_str(), self.port)).await;
        let addresses = addresses.map_err(|error| AttemptError::with_cause(ProxyError::DnsError, &error))?;
        let tcp = race(addresses.collect()).await.map_err(|error| tcp_failure(&error))?;
        tcp.set_nodelay(true).map_err(|error| tcp_failure(&error))?;
        match &self.tls {
            None => self.http_handshake(tcp).await,
            Some((connector, name)) => {
                let tls = connector.connect(name.clone(), tcp).await.map_err(|error| tls_failure(&error))?;
                self.http_handshake(tls).await
            }
        }
    }

    async fn http_handshake<T>(&self, wire: T) -> Result<PooledConnection, AttemptError>
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let allowance = Allowance::new();
        let token = Arc::<TokenSlot>::default();
        let wire = TokenWriter::new(Allowed { wire, allowance: allowance.clone() }, token.clone());
        let wire = TokioIo::new(wire);
        let handshake = http1::Builder::new().max_header_size(HEAD_BYTES_MAX).handshake::<_, Full<Bytes>>(wire);
        let (sender, connection) =
            handshake.await.map_err(|error| AttemptError::with_cause(ProxyError::HttpProtocolError, &error))?;
        let driver = self.tasks.spawn(async move {
            // Whoever waits for a response on the connection learns how it ended.
            let _told_elsewhere = connection.await;
        });
        Ok(PooledConnection::new(sender, driver.abort_handle(), (allowance, token)))
    }
}

/// Connects to the first address that accepts, trying the next one soon if an address stays silent.
async fn race(addresses: Vec<SocketAddr>) -> io::Result<TcpStream> {
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "the name has no addresses");
    let mut rest = addresses.into_iter();
    let mut racing = FuturesUnordered::new();
    loop {
        racing.extend(rest.next().map(TcpStream::connect));
        tokio::select! {
            ended = racing.next() => match ended {
                Some(Ok(stream)) => return Ok(stream),
                Some(Err(error)) => failure = error,
                None => return Err(failure),
            },
            () = sleep(CONNECTION_ATTEMPT_DELAY), if rest.len() > 0 => {}
        }
    }
}

fn tcp_failure(error: &io::Error) -> AttemptError {
    use io::ErrorKind::{ConnectionRefused, ConnectionReset, HostUnreachable, NetworkUnreachable, NotFound, TimedOut};
    let known = [
        (ConnectionRefused, ProxyError::ConnectionRefused),
        (ConnectionReset, ProxyError::ConnectionTerminated),
        (HostUnreachable, ProxyError::DestinationIpUnroutable),
        (NetworkUnreachable, ProxyError::DestinationIpUnroutable),
        (TimedOut, ProxyError::ConnectionTimeout),
        (NotFound, ProxyError::DnsError),
    ];
    let found = known.into_iter().find(|(kind, _)| *kind == error.kind());
    AttemptError::with_cause(found.map_or(ProxyError::DestinationUnavailable, |(_, meaning)| meaning), error)
}

fn tls_failure(error: &io::Error) -> AttemptError {
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>());
    let kind = match cause {
        Some(rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented) => {
            ProxyError::TlsCertificateError
        }
        Some(rustls::Error::AlertReceived(_)) => ProxyError::TlsAlertReceived,
        Some(_) | None => ProxyError::TlsProtocolError,
    };
    AttemptError::with_cause(kind, error)
}

/// HTTP/1.1 via ALPN, with SNI, without early data or key log, and with an explicit crypto provider.
fn client_config(ca_file: Option<&Path>, files: &Snapshot) -> Result<ClientConfig, SetupError> {
    let roots = match ca_file {
        Some(path) => roots_of(path, files)?,
        None => system_roots()?,
    };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let versions = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let mut config = versions.map_err(SetupError::Tls)?.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

fn system_roots() -> Result<RootCertStore, SetupError> {
    let mut roots = RootCertStore::empty();
    // A few broken certificates are common in system stores; finding none at all is an error worth reporting.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() { Err(SetupError::NoAuthorities) } else { Ok(roots) }
}

fn roots_of(path: &Path, files: &Snapshot) -> Result<RootCertStore, SetupError> {
    let failed = |cause: &dyn fmt::Display| SetupError::CaFile(path.to_owned(), cause.to_string());
    let mut roots = RootCertStore::empty();
    let pem = files.read(path, PEM_BYTES_MAX).map_err(|error| failed(&error))?;
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|error| failed(&error))?;
        roots.add(certificate).map_err(|error| failed(&error))?;
    }
    if roots.is_empty() { Err(failed(&"it contains no certificate")) } else { Ok(roots) }
}
