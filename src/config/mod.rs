//! The checked configuration: the types that the rest of makegate reads. `read` builds them from a file and reports
//! every mistake at once.

mod callers;
mod checks;
#[cfg(test)]
mod mistakes_tests;
mod read;
#[cfg(test)]
mod sample_tests;
pub mod secret;
mod sections;
mod units;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::catalogue::Catalogue;
use crate::ids::KeyHash;

pub use crate::toml_reader::{Diagnostic, InvalidValue, Severity};
pub use read::{ConfigError, LoadedConfig, Origins, ShownSetting, parse, read, read_in};

/// Parses a caller's name as `[[caller]]` does, for names given outside the file.
///
/// # Errors
/// The name is invalid; the error says what to write instead.
pub fn caller_name(text: &str) -> Result<Arc<str>, InvalidValue> {
    (units::CALLER.parse)(text)
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
    /// `[upstream]`: Make.
    pub upstream: UpstreamConfig,
    /// `[cache]`.
    pub cache: CacheConfig,
    /// `[audit]`: the log.
    pub audit: AuditConfig,
    /// `[limits]`: every bound that has no section of its own.
    pub limits: Limits,
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

/// `tls = { cert, key, client_ca }` of a door: PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate chain.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Certificate authorities whose client certificates identify callers.
    pub client_ca: Option<PathBuf>,
}

/// Where a secret comes from; never the configuration file itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretSource {
    /// A file; if it does not exist, a file of that name in `$CREDENTIALS_DIRECTORY`.
    File(PathBuf),
    /// An environment variable.
    Env(String),
}

/// `[gateway]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayConfig {
    /// The addresses to listen on.
    pub listen: Vec<Listen>,
    /// If set, the door serves HTTP/1.1 and HTTP/2 over TLS; otherwise plain HTTP/1.1.
    pub tls: Option<TlsFiles>,
    /// The hosts that requests may name, besides the door's own addresses and `localhost`. If empty, any host will do for callers with
    /// keys.
    pub names: Vec<String>,
}

/// `[operator]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OperatorConfig {
    /// The addresses to listen on.
    pub listen: Vec<Listen>,
    /// The operator key.
    pub key: SecretSource,
    /// Further accepted `Host` names, besides the door's own addresses and `localhost`.
    pub names: Vec<String>,
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

/// `[upstream]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamConfig {
    /// The base URL.
    pub url: BaseUrl,
    /// The shared Make token.
    pub token: SecretSource,
    /// The quota per organization and minute.
    pub quota: QuotaSetting,
    /// Latest answer to a read, counted from when the request was read whole.
    pub deadline: Duration,
    /// Latest answer to a write, counted the same way.
    pub write_deadline: Duration,
    /// Timeout of one attempt of a read.
    pub attempt: Duration,
    /// Timeout of one attempt of a write.
    pub write_attempt: Duration,
    /// Timeout of the connect and TLS handshake.
    pub connect: Duration,
    /// Longest wait for quota.
    pub quota_wait: Duration,
    /// Maximum number of connections.
    pub connections: usize,
    /// How long an idle connection stays open.
    pub idle: Duration,
    /// Whether writes in doubt are settled by looking at what became of them, with spare quota.
    pub look: bool,
    /// Certificate authorities to trust instead of the system's.
    pub ca_file: Option<PathBuf>,
}

/// `[cache]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheConfig {
    /// Limit on the total size of all entries.
    pub capacity_bytes: u64,
    /// How long an entry may still be served after its lifetime while the upstream fails.
    pub stale_if_error: Duration,
    /// Maximum lifetime of what a write touches, right after the write (Make lags).
    pub settle: Duration,
    /// How long a write in doubt may still take effect.
    pub doubt: Duration,
    /// How long a 404 is remembered.
    pub negative: Duration,
    /// `no-cache` still accepts an entry this young.
    pub refresh_floor: Duration,
    /// Whether entries in use are refreshed before they go stale, with spare quota.
    pub refresh_ahead: bool,
    /// `[cache.lifetime]`: lifetime by class, or by operation id, which makes the operation its own class. Zero: not
    /// cached.
    pub lifetime: BTreeMap<Arc<str>, Duration>,
}

/// `[audit]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditConfig {
    /// The log's folder.
    pub dir: PathBuf,
    /// Sealed segments older than this are deleted.
    pub retention: Duration,
    /// The oldest sealed segments are also deleted while the log is larger than this.
    pub retention_bytes: u64,
    /// Size at which a segment is sealed.
    pub segment_bytes: u64,
    /// How often a signed head is stored while new records come in.
    pub head: Duration,
    /// Maximum number of records waiting for the disk.
    pub buffer_records: usize,
    /// Maximum size of the records waiting for the disk.
    pub buffer_bytes: usize,
    /// Maximum size of a record; a longer one is cut at its longest field.
    pub record_bytes: usize,
    /// How long a write waits for the disk before it is refused. With the default of 700 ms the caller knows within a
    /// second, even after waiting 250 ms for the quota journal.
    pub disk_wait: Duration,
}

/// `[limits]`; `docs/decisions/limits.md` explains the defaults.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Open connections per door (1,024).
    pub connections: usize,
    /// Time from accept to the end of the TLS handshake (5 s).
    pub handshake: Duration,
    /// Time from there to the first byte of a request (5 s).
    pub first_byte: Duration,
    /// Time from the first byte of a request head to its end (10 s).
    pub head: Duration,
    /// Size of a request head (32 KiB).
    pub head_bytes: usize,
    /// Header fields in a request head (64).
    pub head_fields: usize,
    /// Size of the request target (8,000 B).
    pub target_bytes: usize,
    /// Size of a request body (1 MiB).
    pub body_bytes: usize,
    /// Total size of all request bodies in memory, shared by the callers (64 MiB).
    pub bodies_bytes: usize,
    /// Longest pause within a request body (10 s).
    pub body_gap: Duration,
    /// Time for a whole request body (30 s).
    pub body: Duration,
    /// Time until an idle connection is closed (60 s).
    pub idle: Duration,
    /// Age at which a connection is closed gracefully (1 h).
    pub age: Duration,
    /// Time after that until it is dropped (2 min).
    pub age_grace: Duration,
    /// Time until a caller that does not read its answer is cut off (30 s).
    pub write_stall: Duration,
    /// Requests in progress, shared by the callers (512).
    pub in_flight: usize,
    /// Requests in progress of one caller (64).
    pub in_flight_per_caller: usize,
    /// Requests that only wait for another request's fetch, shared by the callers (8192).
    pub joined: usize,
    /// Concurrent streams of one HTTP/2 connection (64).
    pub h2_streams: u32,
    /// Requests of one caller that wait for quota of one bucket (50).
    pub quota_queue: usize,
    /// Size of the largest answer that is cached (4 MiB).
    pub stored_bytes: usize,
    /// Size of the largest answer accepted from the upstream (64 MiB).
    pub answer_bytes: usize,
    /// Total size of all answers in transit, shared by the callers (128 MiB).
    pub answers_bytes: usize,
    /// Attempts per `safe` or `idempotent` request (3).
    pub attempts: u32,
    /// Attempts per `once` write (2).
    pub attempts_once: u32,
    /// Retries as a percentage of all attempts in the last 60 s (10)...
    pub retry_percent: u32,
    /// ...but at least this many retries per 10 s (2).
    pub retry_floor: u32,
    /// Consecutive failures to reach the upstream before the breaker opens (5; 0: never).
    pub breaker_failures: u32,
    /// How long the breaker stays open at first (5 s), doubling...
    pub breaker_open: Duration,
    /// ...up to this (60 s).
    pub breaker_open_max: Duration,
    /// Idempotency keys remembered at once (100,000), shared by the callers; beyond its share a caller's new keys are refused.
    pub idempotency_keys: u64,
    /// How long idempotency keys are remembered (24 h), without exception.
    pub idempotency_age: Duration,
    /// Size of the largest first answer that is kept (64 KiB).
    pub idempotency_answer_bytes: usize,
    /// Total size of all first answers that are kept (256 MiB).
    pub idempotency_bytes: u64,
    /// Time to finish work in progress after SIGTERM (25 s).
    pub drain: Duration,
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
    /// SHA-256 of each of the caller's keys.
    pub keys: Vec<KeyHash>,
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
