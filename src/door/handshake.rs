//! TLS handshakes that fail are counted by their reason.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use rustls::CertificateError;

use crate::vocabulary::word_enum;

word_enum! {
    /// Why a TLS handshake failed.
    HandshakeFailure {
        /// It took longer than `limits.handshake`.
        TimedOut = "timed-out",
        /// The client closed the connection.
        Closed = "closed",
        /// The client sent something other than TLS.
        NotTls = "not-tls",
        /// The client has no protocol version, cipher or key type in common with the door.
        Incompatible = "incompatible",
        /// The client does not accept the door's certificate, or gave up for another reason of its own.
        RefusedByClient = "refused-by-client",
        /// The client's certificate comes from an authority that the door does not trust.
        UnknownAuthority = "unknown-authority",
        /// The client's certificate has expired or is not valid yet.
        CertificateExpired = "certificate-expired",
        /// The client's certificate was revoked.
        CertificateRevoked = "certificate-revoked",
        /// The client's certificate cannot be used for another reason.
        CertificateInvalid = "certificate-invalid",
        /// Anything else.
        Other = "other",
    }
}

impl HandshakeFailure {
    /// The reason of this error.
    pub(super) fn of(error: &io::Error) -> Self {
        let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        tls.map_or_else(|| Self::of_io(error.kind()), Self::of_tls)
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "the kinds of a client that is gone are these")]
    const fn of_io(kind: io::ErrorKind) -> Self {
        match kind {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Self::Closed,
            _ => Self::Other,
        }
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "rustls has many more errors, and will have others")]
    fn of_tls(error: &rustls::Error) -> Self {
        match error {
            rustls::Error::InvalidCertificate(why) => Self::of_certificate(why),
            rustls::Error::AlertReceived(_) => Self::RefusedByClient,
            rustls::Error::InvalidMessage(_) | rustls::Error::InappropriateMessage { .. } => Self::NotTls,
            rustls::Error::PeerIncompatible(_) | rustls::Error::NoApplicationProtocol => Self::Incompatible,
            _ => Self::Other,
        }
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "rustls has many more errors, and will have others")]
    const fn of_certificate(why: &CertificateError) -> Self {
        match why {
            CertificateError::UnknownIssuer => Self::UnknownAuthority,
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. } => Self::CertificateExpired,
            CertificateError::Revoked => Self::CertificateRevoked,
            _ => Self::CertificateInvalid,
        }
    }

    /// Whether anybody who connects and leaves causes it, such as a probe of the port.
    pub(super) const fn is_ordinary(self) -> bool {
        matches!(self, Self::TimedOut | Self::Closed)
    }
}

/// Counts failed handshakes by their reason.
#[derive(Debug, Default)]
pub(super) struct HandshakeFailures([AtomicU64; HandshakeFailure::ALL.len()]);

impl HandshakeFailures {
    pub(super) fn add(&self, why: HandshakeFailure) {
        if let Some(count) = self.0.get(why as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn counts(&self) -> impl Iterator<Item = (HandshakeFailure, u64)> {
        HandshakeFailure::ALL.iter().copied().zip(self.0.iter().map(|count| count.load(Ordering::Relaxed)))
    }
}
