//! What speaks HTTP to servers beside Make: the client, whom it trusts, and what its errors say.

use std::error::Error;
use std::fmt::Display;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http_body::Body;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tower::util::MapResponse;

use crate::watched_files::Snapshot;

/// Size limit of a file with certificates, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The most bytes that are read of a connection, which serves one request: the largest answer that anybody reads, and its head. hyper reads
/// interim answers (1xx) without an end and without yielding the thread.
const CONNECTION_BYTES_MAX: usize = (1 << 20) + 64 * 1024;

/// A client over http and https.
pub(crate) type HttpClient<B> = Client<HttpsConnector<BoundedConnector>, B>;

type BoundedConnector = MapResponse<HttpConnector, fn(TokioIo<TcpStream>) -> TokioIo<BoundedStream>>;

/// A client that verifies https servers with `roots`, and keeps no connection: what it sends is rare. What a server sends is bounded.
///
/// # Errors
/// TLS cannot be set up at all.
pub(crate) fn http_client<B>(roots: RootCertStore) -> io::Result<HttpClient<B>>
where
    B: Body + Send + 'static + Unpin,
    B::Data: Send,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let tls = tls.map_err(io::Error::other)?.with_root_certificates(roots).with_no_client_auth();
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false); // https goes through it, too
    let bounded: fn(TokioIo<TcpStream>) -> TokioIo<BoundedStream> =
        |stream| TokioIo::new(BoundedStream { stream: stream.into_inner(), left: CONNECTION_BYTES_MAX });
    let tcp = MapResponse::new(tcp, bounded);
    let connector =
        HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().wrap_connector(tcp);
    Ok(Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(connector))
}

/// A connection of which no more than `left` bytes are read.
pub(crate) struct BoundedStream {
    stream: TcpStream,
    left: usize,
}

impl AsyncRead for BoundedStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.left == 0 {
            return Poll::Ready(Err(io::Error::other("the answer does not end")));
        }
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.left = self.left.saturating_sub(buf.filled().len() - before);
        polled
    }
}

impl AsyncWrite for BoundedStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl Connection for BoundedStream {
    fn connected(&self) -> Connected {
        self.stream.connected()
    }
}

/// The authorities in a PEM file.
///
/// # Errors
/// Which file cannot be used, and why.
pub(crate) fn authorities(path: &Path, files: &Snapshot) -> io::Result<RootCertStore> {
    let pem = files.read(path, FILE_BYTES_MAX).map_err(|error| file_error(path, &error))?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|error| file_error(path, &error))?;
        roots.add(certificate).map_err(|error| file_error(path, &error))?;
    }
    if roots.is_empty() {
        return Err(file_error(path, &"contains no certificate (-----BEGIN CERTIFICATE-----)"));
    }
    Ok(roots)
}

/// The system's authorities, or `None` if it has none.
pub(crate) fn system_authorities() -> Option<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    (!roots.is_empty()).then_some(roots)
}

/// An error that names its file.
pub(crate) fn file_error(path: &Path, why: &dyn Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{}: {why}", path.display()))
}

/// What happened, according to the innermost error; the outer ones only say in which layer.
pub(crate) fn cause(mut error: &(dyn Error + 'static)) -> String {
    while let Some(inner) = error.source() {
        error = inner;
    }
    error.to_string()
}
