//! When certificates expire.

use std::time::Duration;

use jiff::Timestamp;
use rustls::pki_types::{CertificateDer, UnixTime};
use webpki::KeyUsage;

/// When a certificate expires. webpki reveals that only in its error for an expired certificate, so it is verified as of the last
/// possible date.
pub(super) fn end(certificate: &CertificateDer<'_>) -> Option<Timestamp> {
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
