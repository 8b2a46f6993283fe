//! What is wrong with a credential that is more than unknown.

use std::sync::Arc;

use http::StatusCode;
use jiff::Timestamp;

use super::{RefusalRow, row};
use crate::ids::{KeyId, escape_invisible};

/// Names of a certificate that a refusal shows.
const NAMES_SHOWN_MAX: usize = 5;
/// Characters of such a name.
const NAME_CHARS_MAX: usize = 100;

/// Why a credential does not identify its caller.
#[derive(Clone, Debug)]
pub enum CredentialFault {
    /// The key has expired.
    KeyExpired {
        /// The key.
        key: KeyId,
        /// Since when.
        since: Timestamp,
    },
    /// The key may not be used from this peer.
    KeyFromElsewhere {
        /// The key.
        key: KeyId,
    },
    /// The verified certificate names no caller.
    CertificateOfNobody {
        /// Its names.
        names: Arc<[Box<str>]>,
    },
    /// A browser sent the certificate along for another site's page.
    ForeignPage {
        /// How that shows.
        why: &'static str,
    },
}

impl CredentialFault {
    pub(super) const fn row(&self) -> RefusalRow {
        match self {
            Self::KeyExpired { .. } => row(StatusCode::UNAUTHORIZED, "MG113", "The key has expired").own(),
            Self::KeyFromElsewhere { .. } => {
                row(StatusCode::UNAUTHORIZED, "MG114", "The key may not be used from this address").own()
            }
            Self::CertificateOfNobody { .. } => {
                row(StatusCode::UNAUTHORIZED, "MG118", "The certificate names no caller").own()
            }
            Self::ForeignPage { .. } => {
                row(StatusCode::FORBIDDEN, "MG134", "The request comes from another site's page")
            }
        }
    }

    pub(super) fn detail(&self) -> String {
        match self {
            Self::KeyExpired { since, .. } => format!("This key expired at {since}: ask an operator for a new one."),
            Self::KeyFromElsewhere { .. } => {
                "This key may only be used from certain addresses; an operator can add yours to the key's `from`."
                    .to_owned()
            }
            Self::CertificateOfNobody { names } => of_nobody(names),
            Self::ForeignPage { why } => {
                format!(
                    "A browser sends a certificate whichever page asks, so {why}. Other clients leave these headers out."
                )
            }
        }
    }

    /// The id of the key, if the credential is one that the gateway knows.
    #[must_use]
    pub const fn key(&self) -> Option<KeyId> {
        match self {
            Self::KeyExpired { key, .. } | Self::KeyFromElsewhere { key } => Some(*key),
            Self::CertificateOfNobody { .. } | Self::ForeignPage { .. } => None,
        }
    }
}

fn of_nobody(names: &[Box<str>]) -> String {
    let shown = |name: &str| {
        let cut: String = name.chars().take(NAME_CHARS_MAX).collect();
        format!("`{}`", escape_invisible(&cut))
    };
    let list: Vec<String> = names.iter().take(NAMES_SHOWN_MAX).map(|name| shown(name)).collect();
    let more = names.len().saturating_sub(list.len());
    let more = if more == 0 { String::new() } else { format!(" and {more} more") };
    match list.as_slice() {
        [] => "Your certificate has neither a DNS name nor a URI as its subject alternative name: the common name does not count.".to_owned(),
        list => format!("Your certificate names {}{more}, and no caller has such a name.", list.join(", ")),
    }
}
