//! What speaks HTTP to servers beside Make: the client, whom it trusts, and what its errors say.

use std::error::Error;
use std::fmt::Display;
use std::io;
use std::path::Path;
use std::sync::Arc;

use http_body::Body;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};

use crate::watched_files::Snapshot;

/// Size limit of a file with certificates, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// A client over http and https.
pub(crate) type HttpClient<B> = Client<HttpsConnector<HttpConnector>, B>;

/// A client that verifies https servers with `roots`, and keeps no connection: what it sends is rare.
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
    let connector = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().build();
    Ok(Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(connector))
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
