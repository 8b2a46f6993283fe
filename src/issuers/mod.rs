//! Platforms whose signed tokens identify callers: their keys, and the tokens that were verified.
//!
//! Cryptography and its keys are aws-lc's; `docs/decisions/tokens-of-platforms.md` says why no library for tokens is used.

mod fetched_keys;
mod jwks;
mod token;

use std::fmt;
use std::io;
use std::sync::Arc;

use http::Uri;
use http::uri::Scheme;
use jiff::Timestamp;
use moka::sync::Cache;
use rustls::RootCertStore;

use crate::clock::Clock;
use crate::config::{IssuerConfig, JwksSource};
use crate::hash;
use crate::http_client::{self, authorities, file_error};
use crate::tasks::Tasks;
use crate::watched_files::Snapshot;

use fetched_keys::FetchedKeys;
use jwks::KeySet;
use token::UnverifiedToken;

pub use token::{TokenFault, VerifiedToken, is_token};

/// Size limit of a file with keys, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Verified tokens that are remembered. A further one displaces one that is used less; it is verified again when it comes back.
const REMEMBERED_MAX: u64 = 10_000;

/// A platform that issues tokens, and its keys.
pub struct Issuer {
    config: IssuerConfig,
    keys: IssuerKeys,
}

enum IssuerKeys {
    OfFile(Arc<KeySet>),
    AtUrl(Arc<FetchedKeys>, Option<[u8; 32]>),
}

impl fmt::Debug for Issuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issuer").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Issuer {
    /// Reads the issuer's keys, or prepares to fetch them; if they were fetched for `before`, which is the same, they are kept.
    ///
    /// # Errors
    /// If a file cannot be read or used: says which and why.
    pub fn read(config: &IssuerConfig, files: &Snapshot, before: &[Arc<Self>]) -> io::Result<Self> {
        let keys = match &config.keys {
            JwksSource::File(path) => {
                let json = files.read(path, FILE_BYTES_MAX).map_err(|error| file_error(path, &error))?;
                IssuerKeys::OfFile(Arc::new(KeySet::parse(&json).map_err(|error| file_error(path, &error))?))
            }
            JwksSource::Url(url) => {
                let ca = config.ca_file.as_ref().map(|path| authorities(path, files)).transpose()?;
                let ca_hash = config.ca_file.as_ref().and_then(|path| files.hashes().of(path));
                let same = before.iter().find(|before| before.config == *config);
                match same.map(|before| &before.keys) {
                    Some(IssuerKeys::AtUrl(keys, hash)) if *hash == ca_hash => IssuerKeys::AtUrl(keys.clone(), ca_hash),
                    Some(_) | None => {
                        let roots = ca.map_or_else(|| system_authorities(config, url), Ok)?;
                        let keys = FetchedKeys::new(config.name.clone(), url.clone(), roots)?;
                        IssuerKeys::AtUrl(Arc::new(keys), ca_hash)
                    }
                }
            }
        };
        Ok(Self { config: config.clone(), keys })
    }

    /// Begins to fetch its keys, if they are at a URL and that has not begun yet.
    pub fn follow(&self, tasks: &Tasks, clock: &Clock) {
        if let IssuerKeys::AtUrl(keys, _) = &self.keys {
            keys.follow(tasks, clock);
        }
    }

    /// Fetches its keys once, if they are at a URL, to see whether that works.
    ///
    /// # Errors
    /// Why it does not.
    pub async fn check(&self) -> Result<(), String> {
        match &self.keys {
            IssuerKeys::OfFile(_) => Ok(()),
            IssuerKeys::AtUrl(keys, _) => keys.check().await,
        }
    }

    /// Its settings.
    #[must_use]
    pub const fn config(&self) -> &IssuerConfig {
        &self.config
    }

    /// The number of its keys, and of failed fetches.
    #[must_use]
    pub fn counts(&self) -> (usize, u64) {
        let failures = match &self.keys {
            IssuerKeys::OfFile(_) => 0,
            IssuerKeys::AtUrl(keys, _) => keys.failures(),
        };
        (self.current_keys().map_or(0, |keys| keys.len()), failures)
    }

    fn current_keys(&self) -> Option<Arc<KeySet>> {
        match &self.keys {
            IssuerKeys::OfFile(keys) => Some(keys.clone()),
            IssuerKeys::AtUrl(keys, _) => keys.current(),
        }
    }

    /// Whether it still stands by a token that was verified before: it has the same name for itself and for the audience, and the key.
    #[must_use]
    pub fn stands_by(&self, token: &VerifiedToken) -> bool {
        let (issuer, audience, key) = &token.verified_by;
        let is_same = self.config.issuer == *issuer && self.config.audience == *audience;
        is_same && self.current_keys().is_some_and(|keys| keys.has(key))
    }
}

/// Why a token identifies nobody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenError {
    /// No issuer of the configuration issued it.
    UnknownIssuer,
    /// It is not valid.
    Invalid(TokenFault),
    /// The keys of this issuer were never fetched.
    NoKeys(Arc<str>),
}

/// Tokens that were verified, until they end.
#[derive(Debug)]
pub struct VerifiedTokens(Cache<[u8; 32], Arc<VerifiedToken>>);

impl Default for VerifiedTokens {
    fn default() -> Self {
        Self(Cache::new(REMEMBERED_MAX))
    }
}

impl VerifiedTokens {
    /// Verifies a token, or remembers that it was verified. Waits a moment for the issuer's keys if they lack the token's.
    ///
    /// # Errors
    /// [`TokenError`].
    pub async fn verify(
        &self,
        token: &[u8],
        issuers: &[Arc<Issuer>],
        clock: &Clock,
    ) -> Result<Arc<VerifiedToken>, TokenError> {
        let (hash, now) = (hash::sha256(token), clock.wall());
        if let Some(known) = self.0.get(&hash) {
            let issuer = issuers.iter().find(|issuer| issuer.config.name == known.issuer);
            if known.ends > now && issuer.is_some_and(|issuer| issuer.stands_by(&known)) {
                return Ok(known);
            }
            self.0.invalidate(&hash);
        }
        let claimed = UnverifiedToken::parse(token).map_err(TokenError::Invalid)?;
        let issuer = claimed.claimed_issuer().and_then(|name| issuers.iter().find(|one| *one.config.issuer == *name));
        let issuer = issuer.ok_or(TokenError::UnknownIssuer)?;
        let verified = match issuer.verify(&claimed, (hash, now)) {
            Err(TokenError::Invalid(TokenFault::UnknownKey) | TokenError::NoKeys(_))
                if issuer.refreshed(clock).await =>
            {
                issuer.verify(&claimed, (hash, now))
            }
            verified => verified,
        };
        let verified = Arc::new(verified?);
        self.0.insert(hash, verified.clone());
        Ok(verified)
    }
}

impl Issuer {
    fn verify(&self, token: &UnverifiedToken<'_>, now: ([u8; 32], Timestamp)) -> Result<VerifiedToken, TokenError> {
        let keys = self.current_keys().ok_or_else(|| TokenError::NoKeys(self.config.name.clone()))?;
        token.verify(&self.config, &keys, now).map_err(TokenError::Invalid)
    }

    /// Waits a moment for its keys to be fetched again. `false`: they were not.
    async fn refreshed(&self, clock: &Clock) -> bool {
        match &self.keys {
            IssuerKeys::OfFile(_) => false,
            IssuerKeys::AtUrl(keys, _) => keys.refreshed(clock).await,
        }
    }
}

/// The system's authorities, if the server of the keys is verified at all: http is for this machine alone.
fn system_authorities(config: &IssuerConfig, url: &Uri) -> io::Result<RootCertStore> {
    if url.scheme() != Some(&Scheme::HTTPS) {
        return Ok(RootCertStore::empty());
    }
    http_client::system_authorities().ok_or_else(|| {
        let what = format!(
            "the system has no certificate authorities to verify the keys of the issuer {} with; install the package \
             ca-certificates, or set its ca_file to a PEM file",
            config.name
        );
        io::Error::new(io::ErrorKind::NotFound, what)
    })
}
