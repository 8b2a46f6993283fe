//! TLS at a door: its certificate and key, and whose certificates it accepts. All of it can be replaced while the door is open.

use std::fmt::Display;
use std::io::{Error, ErrorKind};
use std::path::Path;
use std::sync::Arc;

use arc_swap::ArcSwap;
use jiff::{SignedDuration, Timestamp};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;

use super::client_certificate::{CertifiedConnection, CertifiedConnections, ClientCertificate};
use super::connections::ConnectionState;
use super::handshake::HandshakeFailure;
use super::validity::{end, list_end, period};
use crate::config::TlsFiles;
use crate::process_log::STATE;
use crate::watched_files::{FileContents, Snapshot};

/// Maximum size of a certificate file; a larger one is the wrong file.
const PEM_BYTES_MAX: u64 = 4 << 20;

/// The door's own certificate, and the authorities that it trusts for callers' certificates. All clones are replaced together.
#[derive(Clone)]
pub struct Certificate {
    current: Arc<ArcSwap<CheckedCertificate>>,
    certified: Arc<CertifiedConnections>,
}

/// A certificate with its key and authorities, read and checked but not in use yet.
pub struct CheckedCertificate {
    config: Arc<ServerConfig>,
    /// Decides whose certificates are accepted; `None`: nobody's.
    verifier: Option<Arc<dyn ClientCertVerifier>>,
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
        let verifier = tls.client_ca.as_ref().map(|path| authorities(tls, path, files, provider)).transpose()?;
        let config = match verifier.clone() {
            None => config.with_no_client_auth(),
            Some(verifier) => config.with_client_cert_verifier(verifier),
        };
        let mut config = config.with_single_cert(chain, key).map_err(|error| file_error(&tls.cert, &error))?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self { config: Arc::new(config), verifier, end })
    }
}

impl Certificate {
    pub(super) fn new(checked: CheckedCertificate) -> Self {
        Self { current: Arc::new(ArcSwap::from_pointee(checked)), certified: Arc::default() }
    }

    /// Connections from now on use this certificate. Those whose callers' certificates are not accepted any more are dropped. Verifies
    /// all of these, which takes a while.
    pub fn replace(&self, checked: CheckedCertificate, now: Timestamp) {
        let checked = Arc::new(checked);
        self.current.store(checked.clone());
        self.certified.verify_again(checked.verifier.as_deref(), now);
    }

    /// Drops the connections whose callers' certificates have expired.
    pub(super) fn drop_expired(&self, now: Timestamp) {
        self.certified.drop_expired(now);
    }

    /// What a handshake uses.
    pub(super) fn current(&self) -> Arc<CheckedCertificate> {
        self.current.load_full()
    }

    /// The caller's certificate from a handshake that used `used`, and the guard that keeps its connection among those that are verified
    /// again.
    ///
    /// # Errors
    /// If it is not accepted any more.
    pub(super) fn certify(
        &self,
        chain: Option<&[CertificateDer<'_>]>,
        used: &Arc<CheckedCertificate>,
        (state, now): (&Arc<ConnectionState>, Timestamp),
    ) -> Result<Option<(Arc<ClientCertificate>, CertifiedConnection)>, HandshakeFailure> {
        let Some(certificate) = chain.and_then(ClientCertificate::of).map(Arc::new) else { return Ok(None) };
        let guard = self.certified.add(state, &certificate);
        // Replaced during the handshake: its connections were verified again before this one was among them.
        let current = self.current();
        if !Arc::ptr_eq(&current, used) && !certificate.is_trusted_by(current.verifier.as_deref(), now) {
            return Err(HandshakeFailure::CertificateInvalid);
        }
        Ok(Some((certificate, guard)))
    }

    /// When it expires; `None` if never.
    #[must_use]
    pub fn end(&self) -> Option<Timestamp> {
        self.current.load().end
    }

    /// Tells the process log if it expires soon, or has.
    pub fn log_expiry(&self, door: &str, now: Timestamp) {
        let Some(end) = self.current.load().end else { return };
        let left = end.duration_since(now);
        if left.is_negative() {
            tracing::error!(target: STATE, %end, "the certificate of the {door} door has expired: clients reject it");
        } else if left < EXPIRY_WARNING {
            let days = left.as_hours() / 24;
            tracing::warn!(target: STATE, %end, days, "the certificate of the {door} door expires soon: replace its file");
        }
    }
}

impl CheckedCertificate {
    pub(super) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.config.clone())
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

/// When the certificates in this file begin to be good, if they say so, and when they expire, as far as they do.
///
/// # Errors
/// If it cannot be read or has none: says why.
pub fn certificate_periods(path: &Path, files: &Snapshot) -> Result<Vec<(Option<Timestamp>, Timestamp)>, Error> {
    let periods = certificates(path, files)?;
    Ok(periods.iter().map(|one| period(one)).filter_map(|(begin, end)| Some((begin, end?))).collect())
}

/// When newer lists are due in place of the revocation lists in this file, as far as these say so.
///
/// # Errors
/// If it cannot be read or has none: says why.
pub fn revocation_list_ends(path: &Path, files: &Snapshot) -> Result<Vec<Timestamp>, Error> {
    Ok(revocation_list(path, files)?.iter().filter_map(|list| list_end(list)).collect())
}

/// Trusts certificates issued by these authorities, unless one of the lists revokes them. Unless they are required, a client may also send a
/// key instead of one.
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
    let lists: Vec<_> = tls.crl.iter().map(|path| revocation_list(path, files)).collect::<Result<Vec<_>, _>>()?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    let verifier = if tls.requires_client { verifier } else { verifier.allow_unauthenticated() };
    let verifier = verifier
        .with_crls(lists.into_iter().flatten())
        // An authority without a list revokes nothing.
        .allow_unknown_revocation_status();
    verifier.build().map_err(|error| match tls.crl.first() {
        Some(list) if matches!(error, VerifierBuilderError::InvalidCrl(_)) => file_error(list, &error),
        Some(_) | None => file_error(path, &error),
    })
}

/// The certificate revocation lists in this file: PEM, or one in DER.
fn revocation_list(path: &Path, files: &Snapshot) -> Result<Vec<CertificateRevocationListDer<'static>>, Error> {
    /// The first byte of every list in DER, and of none in PEM.
    const DER_SEQUENCE: u8 = 0x30;
    let bytes = contents(path, files)?;
    if bytes.first() == Some(&DER_SEQUENCE) {
        return Ok(vec![CertificateRevocationListDer::from(bytes.to_vec())]);
    }
    let lists = CertificateRevocationListDer::pem_slice_iter(&bytes).collect::<Result<Vec<_>, _>>();
    let lists = lists.map_err(|error| file_error(path, &error))?;
    if lists.is_empty() {
        return Err(file_error(path, &"contains no revocation list (-----BEGIN X509 CRL-----)"));
    }
    Ok(lists)
}
