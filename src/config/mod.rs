//! The checked configuration: the types that the rest of makegate reads. `read` builds them from a file and reports
//! every mistake at once.

mod callers;
mod certificate_name;
mod checks;
mod folders;
mod issuers;
#[cfg(test)]
mod mistakes_tests;
mod network;
mod operator_keys;
mod otlp;
mod read;
mod replicas;
#[cfg(test)]
mod sample_tests;
pub mod secret;
mod secret_warnings;
mod sections;
mod units;
mod unknown_caller;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use crate::catalogue::Catalogue;
use crate::ids::KeyHash;

pub use crate::toml_reader::{Diagnostic, InvalidValue, Severity};
pub use certificate_name::CertificateName;
pub use issuers::{IdentityConfig, IssuerConfig, JwksSource};
pub use network::Network;
pub use operator_keys::{OperatorKey, Role};
pub use otlp::{OtlpEndpoint, SampledShare};
pub use read::{ConfigError, LoadedConfig, Origins, ShownSetting, parse, read, read_despite_mistakes, read_in};
pub use replicas::{ShippedRecords, WithoutLease, is_replica_name};
pub use sections::{
    AuditConfig, CacheConfig, GatewayConfig, Limits, MetricsConfig, OperatorConfig, OtelConfig, ProcessConfig,
    ReplicasConfig, UpstreamConfig,
};
pub use unknown_caller::unknown_caller;

/// Parses a caller's name as `[[caller]]` does, for names given outside the file.
///
/// # Errors
/// The name is invalid; the error says what to write instead.
pub fn caller_name(text: &str) -> Result<Arc<str>, InvalidValue> {
    (units::CALLER.parse)(text)
}

/// Checks a host name as the file does, for names given outside the file.
///
/// # Errors
/// The name is invalid; the error says what to write instead.
pub fn host_name(text: &str) -> Result<String, InvalidValue> {
    (units::HOST.parse)(text)
}

/// Parses a duration as the file does (including `"0s"`), for durations given outside the file.
///
/// # Errors
/// The duration is invalid; the error says what to write instead.
pub fn duration(text: &str) -> Result<Duration, InvalidValue> {
    (units::DURATION_OR_OFF.parse)(text)
}

/// A complete configuration. Relative paths have been resolved against the file's folder.
#[derive(Clone, Debug)]
pub struct Config {
    /// `[gateway]`: the door for callers.
    pub gateway: GatewayConfig,
    /// `[operator]`: the door for operators.
    pub operator: OperatorConfig,
    /// `[metrics]`: the door for scrapers.
    pub metrics: MetricsConfig,
    /// `[upstream]`: Make.
    pub upstream: UpstreamConfig,
    /// `[cache]`.
    pub cache: CacheConfig,
    /// `[audit]`: the log.
    pub audit: AuditConfig,
    /// `[limits]`: every bound that has no section of its own.
    pub limits: Limits,
    /// `[otel]`: where telemetry is sent.
    pub otel: OtelConfig,
    /// `[replicas]`: what is shared with other replicas; `None`: this is the only one.
    pub replicas: Option<ReplicasConfig>,
    /// `[process]`.
    pub process: ProcessConfig,
    /// `[[issuer]]`, in the file's order.
    pub issuers: Vec<IssuerConfig>,
    /// `[[caller]]`, in the file's order.
    pub callers: Vec<CallerConfig>,
    /// The built-in rows and the `[[operation]]` rows.
    pub catalogue: Arc<Catalogue>,
}

/// An address that a door listens on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// An address and port.
    Tcp(SocketAddr),
    /// A Unix socket (`unix:/run/makegate.sock`).
    Unix(PathBuf),
}

/// `socket = { mode, owner, group }`: who may connect to the Unix sockets of a door.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketAccess {
    /// The mode (660: the owner and the group).
    pub mode: u32,
    /// The owner, as a name or number; left out: whom makegate runs as.
    pub owner: Option<String>,
    /// The group, as a name or number; left out: that of the process.
    pub group: Option<String>,
}

impl Default for SocketAccess {
    fn default() -> Self {
        Self { mode: 0o660, owner: None, group: None }
    }
}

/// `tls = { cert, key, client_ca, crl }` of a door: PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate chain.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Certificate authorities whose client certificates identify callers, or are demanded of operators.
    pub client_ca: Option<PathBuf>,
    /// Whether the door demands a client certificate where there is a `client_ca`, in addition to a key.
    pub requires_client: bool,
    /// Lists of the client certificates that were revoked.
    pub crl: Vec<PathBuf>,
}

/// Where a secret comes from; never the configuration file itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretSource {
    /// A file; if it does not exist, a file of that name in `$CREDENTIALS_DIRECTORY`.
    File(PathBuf),
    /// An environment variable.
    Env(String),
}

impl fmt::Display for SecretSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "the file {path:?}"),
            Self::Env(name) => write!(f, "the environment variable {name}"),
        }
    }
}

/// The upstream's quota per organization and minute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum QuotaSetting {
    /// Learned from each organization's `license.apiLimit`; 60 a minute until then.
    #[default]
    Auto,
    /// This many requests per minute for every bucket.
    PerMinute(u32),
}

/// The upstream's base URL, parsed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BaseUrl {
    /// Whether the scheme is https; http is allowed only for loopback.
    pub tls: bool,
    /// Host name or address, without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
    /// `host` or `host:port`, as sent in the `Host` header.
    pub authority: String,
}

/// What a caller may do.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Grants {
    /// `*`.
    All,
    /// Only these, sorted.
    Some(Vec<Arc<str>>),
}

impl Grants {
    /// Whether this grant is included.
    #[must_use]
    pub fn cover(&self, grant: &str) -> bool {
        match self {
            Self::All => true,
            Self::Some(grants) => grants.iter().any(|g| &**g == grant),
        }
    }
}

/// Which organizations a caller may touch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All organizations, and operations without one.
    All,
    /// Only these, sorted.
    Only(Vec<u64>),
}

impl Scope {
    /// Whether the scope includes everything.
    #[must_use]
    pub const fn is_all(&self) -> bool {
        matches!(self, Self::All)
    }

    /// Whether the scope includes this organization.
    #[must_use]
    pub fn covers(&self, organization: u64) -> bool {
        match self {
            Self::All => true,
            Self::Only(ids) => ids.binary_search(&organization).is_ok(),
        }
    }
}

/// A number of requests per period (`"600/min"`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Rate {
    /// Number of requests.
    pub requests: u32,
    /// Period.
    pub per: Duration,
}

/// `[[caller]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallerConfig {
    /// The caller's name.
    pub name: Arc<str>,
    /// The caller's keys.
    pub keys: Vec<KeyConfig>,
    /// The subjects of platforms' tokens that identify the caller.
    pub identities: Vec<IdentityConfig>,
    /// The names that identify the caller by a certificate that has one of them, besides its own.
    pub certificates: Vec<CertificateName>,
    /// The user ids that identify the caller over a Unix socket.
    pub uids: Vec<u32>,
    /// What the caller may do.
    pub grants: Grants,
    /// The organizations that the caller may touch.
    pub organizations: Scope,
    /// Sustained request rate (600 per minute).
    pub rate: Rate,
    /// Requests allowed at once (a tenth of a minute's rate).
    pub burst: u32,
    /// Whether `Cache-Control: no-cache` from the caller bypasses the cache (yes).
    pub may_refresh: bool,
}

/// One of a caller's `keys`: a hash, or a table with one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyConfig {
    /// SHA-256 of the key.
    pub hash: KeyHash,
    /// When the key expires; `None`: never.
    pub expires: Option<Expiry>,
    /// The networks from which the key may be used; empty: from anywhere.
    pub from: Vec<Network>,
    /// What the key is for, for operators.
    pub note: Option<Arc<str>>,
}

/// When something expires.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expiry {
    /// The first moment at which it has.
    pub at: Timestamp,
    /// As the file says it: the last day, or that moment.
    pub written: Arc<str>,
}
