//! Callers' certificates: their names, and the open connections that they authenticate.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::ClientCertVerifier;

use super::connections::ConnectionState;
use super::order::ConnectionOrder;
use super::subject_names::subject_names;
use super::validity::end;
use crate::config::CertificateName;

/// The certificate of a caller, verified in the handshake.
#[derive(Debug)]
pub struct ClientCertificate {
    names: Arc<[CertificateName]>,
    /// The certificate, and those between it and the authority.
    chain: Box<[CertificateDer<'static>]>,
    ends: Option<Timestamp>,
}

impl ClientCertificate {
    /// The certificate that begins this chain.
    pub(super) fn of(chain: &[CertificateDer<'_>]) -> Option<Self> {
        let first = chain.first()?;
        let names = subject_names(first)?.into();
        let chain = chain.iter().map(|certificate| certificate.clone().into_owned()).collect();
        Some(Self { names, chain, ends: end(first) })
    }

    /// Its DNS names, URIs and e-mail addresses.
    #[must_use]
    pub fn names(&self) -> &[CertificateName] {
        &self.names
    }

    /// The same, to keep.
    #[must_use]
    pub fn shared_names(&self) -> Arc<[CertificateName]> {
        self.names.clone()
    }

    /// Whether `verifier` accepts it now. Without a verifier no certificate is accepted.
    pub(super) fn is_trusted_by(&self, verifier: Option<&dyn ClientCertVerifier>, now: Timestamp) -> bool {
        let (Some(verifier), Some((first, between))) = (verifier, self.chain.split_first()) else { return false };
        let second = Duration::from_secs(u64::try_from(now.as_second()).unwrap_or(0));
        verifier.verify_client_cert(first, between, UnixTime::since_unix_epoch(second)).is_ok()
    }
}

/// The open connections that a certificate authenticates.
#[derive(Default)]
pub(super) struct CertifiedConnections(Mutex<OpenConnections>);

#[derive(Default)]
struct OpenConnections {
    next: u64,
    by_number: HashMap<u64, (Arc<ConnectionState>, Arc<ClientCertificate>)>,
}

impl CertifiedConnections {
    /// Adds a connection until the guard is dropped.
    pub(super) fn add(
        self: &Arc<Self>,
        state: &Arc<ConnectionState>,
        certificate: &Arc<ClientCertificate>,
    ) -> CertifiedConnection {
        let mut open = self.lock();
        let number = open.next;
        open.next += 1;
        open.by_number.insert(number, (state.clone(), certificate.clone()));
        CertifiedConnection { number, all: self.clone() }
    }

    /// Drops the connections whose certificates `verifier` does not accept now.
    pub(super) fn verify_again(&self, verifier: Option<&dyn ClientCertVerifier>, now: Timestamp) {
        // Verified outside of the lock, which every new connection takes.
        let open: Vec<_> = self.lock().by_number.values().cloned().collect();
        let untrusted = open.iter().filter(|(_, certificate)| !certificate.is_trusted_by(verifier, now));
        untrusted.for_each(|(state, _)| state.give_order(ConnectionOrder::Drop));
    }

    /// Drops the connections whose certificates have expired.
    pub(super) fn drop_expired(&self, now: Timestamp) {
        let open = self.lock();
        let expired = open.by_number.values().filter(|(_, certificate)| certificate.ends.is_some_and(|end| end < now));
        expired.for_each(|(state, _)| state.give_order(ConnectionOrder::Drop));
    }

    fn lock(&self) -> MutexGuard<'_, OpenConnections> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection among the [`CertifiedConnections`].
pub(super) struct CertifiedConnection {
    number: u64,
    all: Arc<CertifiedConnections>,
}

impl Drop for CertifiedConnection {
    fn drop(&mut self) {
        self.all.lock().by_number.remove(&self.number);
    }
}
