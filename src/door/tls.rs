//! TLS at a door: its certificate and key, which can be replaced while it is open, and the names in a caller's certificate.

use std::fmt::Display;
use std::io::{Error, ErrorKind};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use jiff::{SignedDuration, Timestamp};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;
use webpki::KeyUsage;

use crate::config::TlsFiles;
use crate::process_log::STATE;
use crate::watched_files::{FileContents, Snapshot};

/// Maximum size of a certificate file; a larger one is the wrong file.
const PEM_BYTES_MAX: u64 = 4 << 20;

/// The names in a caller's certificate. `None` without a certificate, so that a request pays nothing for it.
pub type CertificateNames = Option<Arc<[Box<str>]>>;

/// The door's own certificate, and the authorities that it trusts for callers' certificates. All clones are replaced together.
#[derive(Clone)]
pub struct Certificate(Arc<ArcSwap<CheckedCertificate>>);

/// A certificate with its key and authorities, read and checked but not in use yet.
pub struct CheckedCertificate {
    config: Arc<ServerConfig>,
    /// When the certificate expires; `None` if never.
    end: Option<Timestamp>,
}

/// A certificate that expires sooner than this is logged.
const EXPIRY_WARNING: SignedDuration = SignedDuration::from_hours(14 * 24);

impl CheckedCertificate {
    /// Reads and checks the files.
    ///
    /// # Errors
    /// If a file cannot be read or used, or the key does not match the certificate: says which and why.
    pub fn read(tls: &TlsFiles, files: &Snapshot) -> Result<Self, Error> {
        let chain = certificates(&tls.cert, files)?;
        let end = chain.first().and_then(end);
        let key = PrivateKeyDer::from_pem_slice(&contents(&tls.key, files)?);
        let key = key.map_err(|error| file_error(&tls.key, &error))?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(Error::other)?;
        let config = match &tls.client_ca {
            None => config.with_no_client_auth(),
            Some(path) => config.with_client_cert_verifier(authorities(tls, path, files, provider)?),
        };
        let mut config = config.with_single_cert(chain, key).map_err(|error| file_error(&tls.cert, &error))?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self { config: Arc::new(config), end })
    }
}

impl Certificate {
    pub(super) fn new(checked: CheckedCertificate) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(checked)))
    }

    /// Connections from now on use this certificate. Logs a warning if it expires soon, or an error if it has expired.
    pub fn replace(&self, checked: CheckedCertificate) {
        self.0.store(Arc::new(checked));
    }

    /// Tells the process log if it expires soon, or has.
    pub fn log_expiry(&self, door: &str, now: Timestamp) {
        let Some(end) = self.0.load().end else { return };
        let left = end.duration_since(now);
        if left.is_negative() {
            tracing::error!(target: STATE, %end, "the certificate of the {door} door has expired: clients reject it");
        } else if left < EXPIRY_WARNING {
            let days = left.as_hours() / 24;
            tracing::warn!(target: STATE, %end, days, "the certificate of the {door} door expires soon: replace its file");
        }
    }

    pub(super) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.0.load().config.clone())
    }
}

/// When a certificate expires. webpki reveals that only in its error for an expired certificate, so it is verified as of the last
/// possible date.
fn end(certificate: &CertificateDer<'_>) -> Option<Timestamp> {
    // RFC 5280, section 4.1.2.5: the expiry date of a certificate that never expires.
    const NEVER: Duration = Duration::from_secs(253_402_300_799);
    let certificate = webpki::EndEntityCert::try_from(certificate).ok()?;
    let (then, usage) = (UnixTime::since_unix_epoch(NEVER), KeyUsage::server_auth());
    match certificate.verify_for_usage(&[], &[], &[], then, usage, None, None) {
        Err(webpki::Error::CertExpired { not_after, .. }) => {
            i64::try_from(not_after.as_secs()).ok().and_then(|second| Timestamp::from_second(second).ok())
        }
        Ok(_) | Err(_) => None,
    }
}

fn file_error(path: &Path, why: &dyn Display) -> Error {
    Error::new(ErrorKind::InvalidData, format!("{}: {why}", path.display()))
}

fn contents(path: &Path, files: &Snapshot) -> Result<FileContents, Error> {
    files.read(path, PEM_BYTES_MAX).map_err(|error| file_error(path, &error))
}

fn certificates(path: &Path, files: &Snapshot) -> Result<Vec<CertificateDer<'static>>, Error> {
    let pem = contents(path, files)?;
    let all = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
    let all = all.map_err(|error| file_error(path, &error))?;
    if all.is_empty() {
        return Err(file_error(path, &"contains no certificate (-----BEGIN CERTIFICATE-----)"));
    }
    Ok(all)
}

/// Trusts certificates issued by these authorities. Unless they are required, a client may also send a key instead of one.
fn authorities(
    tls: &TlsFiles,
    path: &Path,
    files: &Snapshot,
    provider: Arc<rustls::crypto::CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, Error> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path, files)? {
        roots.add(certificate).map_err(|error| file_error(path, &error))?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    let verifier = if tls.requires_client { verifier } else { verifier.allow_unauthenticated() };
    verifier.build().map_err(|error| file_error(path, &error))
}

/// The caller names in a verified certificate: its DNS names and URIs (RFC 5280, section 4.2.1.6). The common name does not count,
/// because an authority's name constraints do not apply to it.
pub(super) fn certificate_names(chain: Option<&[CertificateDer<'_>]>) -> CertificateNames {
    let certificate = webpki::EndEntityCert::try_from(chain?.first()?).ok()?;
    Some(certificate.valid_dns_names().chain(certificate.valid_uri_names()).map(Box::from).collect())
}
