//! What is wrong with a credential that is more than unknown.

use std::sync::Arc;

use http::StatusCode;
use jiff::Timestamp;

use super::{RefusalRow, row};
use crate::config::CertificateName;
use crate::ids::{KeyId, escape_invisible};
use crate::issuers::{TokenError, TokenFault, VerifiedToken};

/// Names of a certificate that a refusal shows.
const NAMES_SHOWN_MAX: usize = 5;
/// Characters of such a name, or of a token's subject.
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
    /// No `[[issuer]]` issued the token.
    UnknownIssuer,
    /// The token is not valid.
    InvalidToken {
        /// What is wrong with it.
        why: TokenFault,
    },
    /// The token is valid, but identifies no caller.
    TokenOfNobody {
        /// The token.
        token: Arc<VerifiedToken>,
    },
    /// The keys of the token's issuer were never fetched.
    NoIssuerKeys {
        /// The issuer.
        issuer: Arc<str>,
    },
    /// The verified certificate names no caller.
    CertificateOfNobody {
        /// Its names.
        names: Arc<[CertificateName]>,
    },
    /// A browser sent the certificate along for another site's page.
    ForeignPage {
        /// How that shows.
        why: &'static str,
    },
}

impl From<TokenError> for CredentialFault {
    fn from(error: TokenError) -> Self {
        match error {
            TokenError::UnknownIssuer => Self::UnknownIssuer,
            TokenError::Invalid(why) => Self::InvalidToken { why },
            TokenError::NoKeys(issuer) => Self::NoIssuerKeys { issuer },
        }
    }
}

impl CredentialFault {
    pub(super) const fn row(&self) -> RefusalRow {
        match self {
            Self::KeyExpired { .. } => row(StatusCode::UNAUTHORIZED, "MG113", "The key has expired").own(),
            Self::KeyFromElsewhere { .. } => {
                row(StatusCode::UNAUTHORIZED, "MG114", "The key may not be used from this address").own()
            }
            Self::UnknownIssuer => row(StatusCode::UNAUTHORIZED, "MG115", "The token's issuer is unknown").own(),
            Self::InvalidToken { .. } => row(StatusCode::UNAUTHORIZED, "MG116", "The token is not valid").own(),
            Self::TokenOfNobody { .. } => {
                row(StatusCode::UNAUTHORIZED, "MG117", "The token identifies no caller").own()
            }
            Self::NoIssuerKeys { .. } => {
                row(StatusCode::SERVICE_UNAVAILABLE, "MG119", "The issuer's keys are not there").own().soon()
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
            Self::UnknownIssuer => "No `[[issuer]]` of the gateway has the `iss` of this token.".to_owned(),
            Self::InvalidToken { why } => format!("{}.", why.sentence()),
            Self::TokenOfNobody { token } => format!(
                "The token of `{}` is valid, but no caller has its subject {} among its `identities`.",
                token.issuer,
                shown(&token.subject)
            ),
            Self::NoIssuerKeys { issuer } => {
                format!(
                    "The keys of `{issuer}` could not be fetched yet, so its tokens cannot be verified: try again shortly."
                )
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
            Self::UnknownIssuer
            | Self::InvalidToken { .. }
            | Self::TokenOfNobody { .. }
            | Self::NoIssuerKeys { .. }
            | Self::CertificateOfNobody { .. }
            | Self::ForeignPage { .. } => None,
        }
    }
}

/// A name that somebody else has chosen, cut and without anything invisible.
fn shown(name: &str) -> String {
    let cut: String = name.chars().take(NAME_CHARS_MAX).collect();
    format!("`{}`", escape_invisible(&cut))
}

fn of_nobody(names: &[CertificateName]) -> String {
    let list: Vec<String> = names.iter().take(NAMES_SHOWN_MAX).map(|name| shown(name.as_str())).collect();
    let more = names.len().saturating_sub(list.len());
    let more = if more == 0 { String::new() } else { format!(" and {more} more") };
    match list.as_slice() {
        [] => "Your certificate has no DNS name, URI or e-mail address as a subject alternative name: the common name does not count.".to_owned(),
        list => format!("Your certificate names {}{more}, and no caller has such a name, or lists it among its `certificates`.", list.join(", ")),
    }
}
