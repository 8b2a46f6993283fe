//! A platform's token: a signed JSON Web Token in compact form (RFC 7515 section 3.1, RFC 7519).

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::jwks::{KeySet, PublicKeyHash, SignatureAlgorithm};
use crate::config::IssuerConfig;

/// Longest token accepted, in bytes: those of platforms have 1 to 3 KiB.
const TOKEN_BYTES_MAX: usize = 8 << 10;
/// How much the issuer's clock and ours may differ, in seconds.
const LEEWAY_S: i64 = 30;
/// Keys that are tried for a token that names none: each costs up to a tenth of a millisecond, whoever sends it.
const KEYS_TRIED_MAX: usize = 8;
/// Beginnings of every token: its header begins with `{`, and then a quote, a space or a line break.
const BEGINNINGS: [&[u8]; 2] = [b"ey", b"ew"];

/// Whether a credential has the form of a token.
#[must_use]
pub fn is_token(credential: &[u8]) -> bool {
    credential.len() <= TOKEN_BYTES_MAX
        && BEGINNINGS.iter().any(|beginning| credential.starts_with(beginning))
        && credential.iter().filter(|byte| **byte == b'.').count() == 2
}

/// Why a token is not valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenFault {
    /// It is not a signed JSON Web Token.
    Malformed,
    /// It is signed with an algorithm other than RS256, ES256 and EdDSA.
    Algorithm,
    /// It names a key that the issuer does not have.
    UnknownKey,
    /// No key of the issuer made its signature.
    Signature,
    /// It is for somebody else.
    Audience,
    /// It has no time of expiry, or one that is over.
    Expired,
    /// It is not valid yet.
    NotYet,
    /// It does not say whom it is about.
    NoSubject,
}

impl TokenFault {
    /// The fault, in a sentence.
    #[must_use]
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::Malformed => "The token is not a signed JSON Web Token",
            Self::Algorithm => "The token must be signed with RS256, ES256 or EdDSA",
            Self::UnknownKey => "The token names a key that its issuer does not have",
            Self::Signature => "The token's signature does not fit its issuer's keys",
            Self::Audience => "The token is for another audience",
            Self::Expired => "The token has expired, or says no time of expiry: ask the platform for a new one",
            Self::NotYet => "The token is not valid yet",
            Self::NoSubject => "The token has no subject",
        }
    }
}

/// A token whose signature was not verified.
#[derive(Debug)]
pub(super) struct UnverifiedToken<'t> {
    /// What is signed: header and claims, encoded.
    signed: &'t [u8],
    signature: Vec<u8>,
    header: TokenHeader,
    claims: TokenClaims,
}

#[derive(Debug, Deserialize)]
struct TokenHeader {
    alg: String,
    kid: Option<String>,
    /// Extensions that must be understood (RFC 7515 section 4.1.11). None is.
    crit: Option<IgnoredAny>,
}

#[derive(Debug, Deserialize)]
struct TokenClaims {
    iss: Option<String>,
    sub: Option<String>,
    aud: Option<TokenAudience>,
    exp: Option<f64>,
    nbf: Option<f64>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum TokenAudience {
    One(String),
    Several(Vec<String>),
}

impl TokenAudience {
    fn has(&self, audience: &str) -> bool {
        match self {
            Self::One(one) => one == audience,
            Self::Several(several) => several.iter().any(|one| one == audience),
        }
    }
}

/// A token whose signature, audience and times were verified.
#[derive(Debug)]
pub struct VerifiedToken {
    /// The name of its issuer in the configuration.
    pub issuer: Arc<str>,
    /// Whom it is about.
    pub subject: Box<str>,
    /// From then on it is not valid.
    pub ends: Timestamp,
    /// SHA-256 of the token.
    pub hash: [u8; 32],
    /// What it was verified by; the configuration may have changed since.
    pub(super) verified_by: (Arc<str>, Arc<str>, PublicKeyHash),
}

impl VerifiedToken {
    /// A sample, for the table of refusals.
    #[must_use]
    pub fn sample() -> Self {
        Self {
            issuer: "cluster".into(),
            subject: "system:serviceaccount:finance:dashboard".into(),
            ends: Timestamp::MAX,
            hash: [0; 32],
            verified_by: ("https://cluster.example".into(), "makegate".into(), [0; 32]),
        }
    }
}

impl<'t> UnverifiedToken<'t> {
    pub(super) fn parse(token: &'t [u8]) -> Result<Self, TokenFault> {
        let parsed = || {
            let end = memchr::memrchr(b'.', token)?;
            let (signed, signature) = (token.get(..end)?, token.get(end + 1..)?);
            let (header, claims) = signed.split_at_checked(memchr::memchr(b'.', signed)?)?;
            let decoded = |part: &[u8]| URL_SAFE_NO_PAD.decode(part).ok();
            Some(Self {
                signed,
                signature: decoded(signature)?,
                header: serde_json::from_slice(&decoded(header)?).ok()?,
                claims: serde_json::from_slice(&decoded(claims.get(1..)?)?).ok()?,
            })
        };
        parsed().ok_or(TokenFault::Malformed)
    }

    /// Who it claims to come from.
    pub(super) fn claimed_issuer(&self) -> Option<&str> {
        self.claims.iss.as_deref()
    }

    /// Verifies everything about it.
    pub(super) fn verify(
        &self,
        config: &IssuerConfig,
        keys: &KeySet,
        (hash, now): ([u8; 32], Timestamp),
    ) -> Result<VerifiedToken, TokenFault> {
        let algorithm = SignatureAlgorithm::parse(&self.header.alg).ok_or(TokenFault::Algorithm)?;
        if self.header.crit.is_some() {
            return Err(TokenFault::Malformed);
        }
        let mut candidates = keys.candidates(self.header.kid.as_deref(), algorithm).take(KEYS_TRIED_MAX).peekable();
        if candidates.peek().is_none() {
            return Err(TokenFault::UnknownKey);
        }
        let key = candidates.find(|key| key.has_signed(self.signed, &self.signature)).ok_or(TokenFault::Signature)?;
        let TokenClaims { iss, sub, aud, exp, nbf } = &self.claims;
        if iss.as_deref() != Some(&*config.issuer) {
            return Err(TokenFault::Signature);
        }
        if !aud.as_ref().is_some_and(|aud| aud.has(&config.audience)) {
            return Err(TokenFault::Audience);
        }
        let ends = exp.and_then(|exp| at(exp, LEEWAY_S)).filter(|ends| *ends > now).ok_or(TokenFault::Expired)?;
        if nbf.is_some_and(|nbf| at(nbf, -LEEWAY_S).is_none_or(|begins| begins > now)) {
            return Err(TokenFault::NotYet);
        }
        Ok(VerifiedToken {
            issuer: config.name.clone(),
            subject: sub.as_deref().ok_or(TokenFault::NoSubject)?.into(),
            ends,
            hash,
            verified_by: (config.issuer.clone(), config.audience.clone(), key.hash),
        })
    }
}

/// The moment so many seconds after 1970, moved by so many more.
fn at(seconds: f64, moved_s: i64) -> Option<Timestamp> {
    #[expect(clippy::cast_possible_truncation, reason = "saturates, and what is out of range is no timestamp")]
    let whole = seconds.floor() as i64;
    Timestamp::from_second(whole.checked_add(moved_s)?).ok().filter(|_| seconds.is_finite())
}
