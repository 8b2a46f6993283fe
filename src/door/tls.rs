//! TLS at a door: its certificate and key, which may change while it is open, and whom a caller's certificate names.

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

/// No file of certificates is larger; more is the wrong file.
const PEM_BYTES_MAX: u64 = 4 << 20;

/// What a certificate calls whom it belongs to. `None`: there is no certificate, which costs a request nothing.
pub type CertificateNames = Option<Arc<[Box<str>]>>;

/// What a door shows of itself, and which certificates of callers it believes. Clones change together.
#[derive(Clone)]
pub struct Certificate(Arc<ArcSwap<CheckedCertificate>>);

/// A certificate with its key and authorities, read and found good, and in force nowhere yet.
pub struct CheckedCertificate {
    config: Arc<ServerConfig>,
    /// When the certificate expires; `None`: never.
    end: Option<Timestamp>,
}

/// A certificate that expires within this is told to the process log.
const CLOSE: SignedDuration = SignedDuration::from_hours(14 * 24);

impl CheckedCertificate {
    /// Reads the files.
    ///
    /// # Errors
    /// One cannot be read or used, or the key is not the certificate's: says which and why.
    pub fn read(tls: &TlsFiles, files: &Snapshot) -> Result<Self, Error> {
        let chain = certificates(&tls.cert, files)?;
        let end = chain.first().and_then(end);
        let key = PrivateKeyDer::from_pem_slice(&contents(&tls.key, files)?);
        let key = key.map_err(|error| named(&tls.key, &error))?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(Error::other)?;
        let config = match &tls.client_ca {
            None => config.with_no_client_auth(),
            Some(path) => config.with_client_cert_verifier(authorities(path, files, provider)?),
        };
        let mut config = config.with_single_cert(chain, key).map_err(|error| named(&tls.cert, &error))?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self { config: Arc::new(config), end })
    }
}

impl Certificate {
    pub(super) fn new(checked: CheckedCertificate) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(checked)))
    }

    /// Connections that come from now on see this one.
    pub fn put(&self, checked: CheckedCertificate) {
        self.0.store(Arc::new(checked));
    }

    /// Tells the process log if it expires soon, or has.
    pub fn tell_end(&self, now: Timestamp) {
        let Some(end) = self.0.load().end else { return };
        let left = end.duration_since(now);
        if left.is_negative() {
            tracing::error!(target: STATE, %end, "the certificate of the gateway door has expired: callers do not accept it");
        } else if left < CLOSE {
            let days = left.as_hours() / 24;
            tracing::warn!(target: STATE, %end, days, "the certificate of the gateway door expires soon: replace its file");
        }
    }

    pub(super) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.0.load().config.clone())
    }
}

/// When a certificate expires. webpki says so of one that is looked at when it has.
fn end(certificate: &CertificateDer<'_>) -> Option<Timestamp> {
    // RFC 5280, section 4.1.2.5: the end of a certificate that has none.
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

fn named(path: &Path, why: &dyn Display) -> Error {
    Error::new(ErrorKind::InvalidData, format!("{}: {why}", path.display()))
}

fn contents(path: &Path, files: &Snapshot) -> Result<FileContents, Error> {
    files.read(path, PEM_BYTES_MAX).map_err(|error| named(path, &error))
}

fn certificates(path: &Path, files: &Snapshot) -> Result<Vec<CertificateDer<'static>>, Error> {
    let pem = contents(path, files)?;
    let all = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
    let all = all.map_err(|error| named(path, &error))?;
    if all.is_empty() {
        return Err(named(path, &"no certificate in it: one begins with -----BEGIN CERTIFICATE-----"));
    }
    Ok(all)
}

/// Believes certificates of these authorities; a caller may show none and send a key.
fn authorities(
    path: &Path,
    files: &Snapshot,
    provider: Arc<rustls::crypto::CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, Error> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path, files)? {
        roots.add(certificate).map_err(|error| named(path, &error))?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).allow_unauthenticated();
    verifier.build().map_err(|error| named(path, &error))
}

/// The callers that a verified certificate may name: its DNS names and URIs (RFC 5280, section 4.2.1.6). Not its common name, which an
/// authority's name constraints don't bind.
pub(super) fn names(chain: Option<&[CertificateDer<'_>]>) -> CertificateNames {
    let certificate = webpki::EndEntityCert::try_from(chain?.first()?).ok()?;
    Some(certificate.valid_dns_names().chain(certificate.valid_uri_names()).map(Box::from).collect())
}
