//! What is configured, checked: the types that the rest of makegate reads. `read` makes them from a file, with every mistake at once.

mod callers;
mod checks;
#[cfg(test)]
mod mistakes;
mod read;
mod report;
#[cfg(test)]
mod sample;
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
pub use report::report;

/// A caller's name as `[[caller]]` takes it, for what is written outside the file.
///
/// # Errors
/// It is none: what to write instead.
pub fn caller_name(text: &str) -> Result<Arc<str>, InvalidValue> {
    (units::CALLER.parse)(text)
}

/// A time as the file takes it (`"0s"` too), for what is written outside the file.
///
/// # Errors
/// It is none: what to write instead.
pub fn duration(text: &str) -> Result<Duration, InvalidValue> {
    (units::DURATION_OR_OFF.parse)(text)
}

/// A whole configuration. Relative paths have been made relative to its file.
#[derive(Clone, Debug)]
pub struct Config {
    /// `[gateway]`: the callers' door.
    pub gateway: GatewayConfig,
    /// `[operator]`: the operators' door.
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
    /// The built-in rows and those of `[[operation]]`.
    pub catalogue: Arc<Catalogue>,
}

/// Where a door listens.
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
    /// Authorities whose client certificates identify callers.
    pub client_ca: Option<PathBuf>,
}

/// Where a secret comes from. Never the configuration file itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretSource {
    /// A file; a name that is not there is also looked for in `$CREDENTIALS_DIRECTORY`.
    File(PathBuf),
    /// An environment variable.
    Env(String),
}

/// `[gateway]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayConfig {
    /// Where it listens.
    pub listen: Vec<Listen>,
    /// With it, HTTP/1.1 and HTTP/2 over TLS; without, plain HTTP/1.1.
    pub tls: Option<TlsFiles>,
}

/// `[operator]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OperatorConfig {
    /// Where it listens.
    pub listen: Vec<Listen>,
    /// The operator key.
    pub key: SecretSource,
    /// Further names under which the door may be addressed (`Host`), beside its own addresses and `localhost`.
    pub hosts: Vec<String>,
}

/// The upstream's quota per organization and minute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum QuotaSetting {
    /// Learned from each organization's `license.apiLimit`; 60 a minute until then.
    #[default]
    Auto,
    /// So many a minute for every bucket.
    PerMinute(u32),
}

/// The upstream's base URL, taken apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BaseUrl {
    /// https? (http is for loopback only.)
    pub tls: bool,
    /// Host name or address, without brackets.
    pub host: String,
    /// Port.
    pub port: u16,
    /// `host` or `host:port` as the `Host` header carries it.
    pub authority: String,
}

/// `[upstream]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamConfig {
    /// Where it is.
    pub url: BaseUrl,
    /// The shared Make token.
    pub token: SecretSource,
    /// Its quota.
    pub quota: QuotaSetting,
    /// No answer to a read comes later, counted from the moment the request was read whole.
    pub deadline: Duration,
    /// The same for writes.
    pub write_deadline: Duration,
    /// Time-out of one attempt of a read.
    pub attempt: Duration,
    /// Time-out of one attempt of a write.
    pub write_attempt: Duration,
    /// Time-out of connect and TLS handshake.
    pub connect: Duration,
    /// Longest wait for quota.
    pub quota_wait: Duration,
    /// Most connections at once.
    pub connections: usize,
    /// An idle connection is closed after this.
    pub idle: Duration,
    /// Are writes in doubt settled by looking, with spare quota?
    pub look: bool,
    /// Authorities to trust instead of the system's.
    pub ca_file: Option<PathBuf>,
}

/// `[cache]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheConfig {
    /// Bound on what all entries weigh.
    pub capacity_bytes: u64,
    /// How long after its lifetime an entry may answer while the upstream fails.
    pub stale_if_error: Duration,
    /// After a write, what it touches lives no longer than this (Make lags).
    pub settle: Duration,
    /// How long after a write in doubt it may still take effect.
    pub doubt: Duration,
    /// How long a 404 is remembered.
    pub negative: Duration,
    /// `no-cache` is content with an entry this young.
    pub refresh_floor: Duration,
    /// Are entries that are still asked for fetched anew before they are stale, with quota that nobody wants?
    pub refresh_ahead: bool,
    /// `[cache.lifetime]`: lifetime by class, or by the id of an operation, which is then a class of its own. Zero: not stored.
    pub lifetime: BTreeMap<Arc<str>, Duration>,
}

/// `[audit]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditConfig {
    /// The log's folder.
    pub dir: PathBuf,
    /// Sealed segments older than this go.
    pub retention: Duration,
    /// So do the oldest while all together are larger than this.
    pub retention_bytes: u64,
    /// A segment is sealed at this size.
    pub segment_bytes: u64,
    /// While there are new records, a signed head is stored so often.
    pub head: Duration,
    /// Records that may wait for the disk.
    pub buffer_records: usize,
    /// Bytes that those may be.
    pub buffer_bytes: usize,
    /// A longer record is cut at its longest field.
    pub record_bytes: usize,
    /// The longest that a write waits for the disk before it is refused (700 ms: its caller knows within a
    /// second, though it may have waited a quarter of one for the quota's journal before).
    pub disk_wait: Duration,
}

/// `[limits]`; `docs/decisions/limits.md` says where the defaults come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections of one door at once (1,024).
    pub connections: usize,
    /// From accept to the end of the TLS handshake (5 s).
    pub handshake: Duration,
    /// From there to the first byte of a request (5 s).
    pub first_byte: Duration,
    /// From the first byte of a head to its end (10 s).
    pub head: Duration,
    /// A head's size (32 KiB).
    pub head_bytes: usize,
    /// A head's fields (64).
    pub head_fields: usize,
    /// The request target's size (8,000 B).
    pub target_bytes: usize,
    /// A request body's size (1 MiB).
    pub body_bytes: usize,
    /// What all request bodies under way may hold together, shared by the callers (64 MiB).
    pub bodies_bytes: usize,
    /// Longest silence within a body (10 s).
    pub body_gap: Duration,
    /// A whole body (30 s).
    pub body: Duration,
    /// An idle connection is closed after this (60 s).
    pub idle: Duration,
    /// A connection is closed gracefully at this age (1 h).
    pub age: Duration,
    /// It is dropped as it is when so much more has passed (2 min).
    pub age_grace: Duration,
    /// A caller that takes none of its answer for so long is cut off (30 s).
    pub write_stall: Duration,
    /// Requests under way at once, shared by the callers (512).
    pub in_flight: usize,
    /// The most of one caller (64).
    pub in_flight_per_caller: usize,
    /// Requests that only wait for the fetch of another one, shared by the callers (8192).
    pub joined: usize,
    /// Streams of one HTTP/2 connection (64).
    pub h2_streams: u32,
    /// Requests of one caller that wait for one bucket's quota (50).
    pub quota_queue: usize,
    /// The largest answer of the upstream that is kept in the cache (4 MiB).
    pub stored_bytes: usize,
    /// The largest answer of the upstream at all (64 MiB).
    pub answer_bytes: usize,
    /// What all answers under way may hold together, shared by the callers (128 MiB).
    pub answers_bytes: usize,
    /// Attempts of a `safe` or `idempotent` request (3).
    pub attempts: u32,
    /// Attempts of a `once` write (2).
    pub attempts_once: u32,
    /// Re-sent attempts, as a share of all attempts of the last 60 s, in percent (10)...
    pub retry_percent: u32,
    /// ...and at least so many per 10 s (2).
    pub retry_floor: u32,
    /// Requests in a row that fail to reach the upstream before the breaker opens (5; 0: never).
    pub breaker_failures: u32,
    /// How long it stays open at first (5 s), doubling...
    pub breaker_open: Duration,
    /// ...up to this (60 s).
    pub breaker_open_max: Duration,
    /// Idempotency keys that are known at once (100,000), shared by the callers: beyond its share a caller's new keys are refused.
    pub idempotency_keys: u64,
    /// How long they are kept (24 h); none goes earlier.
    pub idempotency_age: Duration,
    /// The largest first answer that is kept, in bytes (64 KiB).
    pub idempotency_answer_bytes: usize,
    /// What all kept first answers may weigh, in bytes (256 MiB).
    pub idempotency_bytes: u64,
    /// After SIGTERM, what is under way has so long to finish (25 s).
    pub drain: Duration,
}

/// What a caller may do.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Grants {
    /// `*`.
    All,
    /// These, sorted.
    Some(Vec<Arc<str>>),
}

impl Grants {
    /// Is this grant among them?
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
    /// All, and what belongs to none.
    All,
    /// These, sorted.
    Only(Vec<u64>),
}

impl Scope {
    /// Is nothing left out?
    #[must_use]
    pub const fn is_all(&self) -> bool {
        matches!(self, Self::All)
    }

    /// Is this organization among them?
    #[must_use]
    pub fn covers(&self, organization: u64) -> bool {
        match self {
            Self::All => true,
            Self::Only(ids) => ids.binary_search(&organization).is_ok(),
        }
    }
}

/// A number of requests in a time (`"600/min"`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Rate {
    /// So many...
    pub requests: u32,
    /// ...in this.
    pub per: Duration,
}

/// `[[caller]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallerConfig {
    /// Its name.
    pub name: Arc<str>,
    /// The SHA-256 of each of its keys.
    pub keys: Vec<KeyHash>,
    /// What it may do.
    pub grants: Grants,
    /// On which organizations.
    pub organizations: Scope,
    /// How often (600 a minute).
    pub rate: Rate,
    /// How many of those at once (a tenth of the rate).
    pub burst: u32,
    /// May it make the gateway fetch what it has in memory (`Cache-Control: no-cache`)? (yes)
    pub may_refresh: bool,
}
