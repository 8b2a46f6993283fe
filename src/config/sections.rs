//! The sections of the file: each setting with its type, its key, its default and its kind.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::operator_keys::{self, OperatorKey};
use super::otlp::{ENDPOINT, OtlpEndpoint, SERVICE, SHARE, SampledShare};
use super::replicas::{RECORDS, REPLICA, RESERVE, ShippedRecords, WITHOUT, WithoutLease};
use super::units::{self, ACCOUNT, DURATION, DURATION_OR_OFF, HOST, PATH, QUOTA, SOCKET_MODE, URL, VARIABLE, size};
use super::{BaseUrl, Listen, QuotaSetting, SecretSource, SocketAccess, TlsFiles};
use crate::toml_reader::{FLAG, Table, ValueKind, WithSpan, number};

/// A section of the file: its type, and `read`, which asks for each key with its default and kind. So no setting is
/// listed twice.
macro_rules! section {
    ($(#[$doc:meta])* $name:ident($table:ident, $base:ident) {
        $($(#[$field_doc:meta])* $field:ident: $type:ty = $read:expr;)*
    }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct $name { $($(#[$field_doc])* pub $field: $type,)* }

        impl $name {
            pub(super) fn read($table: &Table<'_>, $base: &Path) -> Self {
                Self { $($field: $read,)* }
            }
        }
    };
}

section! {
    /// `[gateway]`.
    GatewayConfig(t, base) {
        /// The addresses to listen on.
        listen: Vec<Listen> = listen::<8080>(t, "127.0.0.1:8080", base);
        /// If set, the door serves HTTP/1.1 and HTTP/2 over TLS; otherwise plain HTTP/1.1.
        tls: Option<TlsFiles> = t.optional_table("tls", |t| tls(t, base, false)).flatten();
        /// The hosts that requests may name, besides the door's own addresses and `localhost`. If empty, any host will
        /// do for callers with keys.
        names: Vec<String> = names(t);
        /// Who may connect to its Unix sockets.
        socket: SocketAccess = t.optional_table("socket", socket_access).unwrap_or_default();
    }
}

section! {
    /// `[operator]`.
    OperatorConfig(t, base) {
        /// The addresses to listen on.
        listen: Vec<Listen> = listen::<8081>(t, "127.0.0.1:8081", base);
        /// If set, the door serves HTTP/1.1 and HTTP/2 over TLS; with `client_ca`, only to clients with a certificate.
        tls: Option<TlsFiles> = t.optional_table("tls", |t| tls(t, base, true)).flatten();
        /// Where the key of the operator without a name is; `None` if only `keys` has operators.
        key: Option<SecretSource> = operator_key(t, base);
        /// `[[operator.key]]`.
        keys: Vec<OperatorKey> = operator_keys::read(t);
        /// Further accepted `Host` names, besides the door's own addresses and `localhost`.
        names: Vec<String> = names(t);
        /// Who may connect to its Unix sockets.
        socket: SocketAccess = t.optional_table("socket", socket_access).unwrap_or_default();
    }
}

section! {
    /// `[metrics]`: a door of its own for scrapers and probes, which need no key.
    MetricsConfig(t, base) {
        /// The addresses to listen on; none: there is no such door.
        listen: Vec<Listen> = match t.has("listen") {
            true => listen::<9464>(t, "127.0.0.1:9464", base),
            false => t.optional("listen", units::listen::<9464>()).into_iter().collect(),
        };
    }
}

/// The source of the key without a name, which may be left out where `[[operator.key]]` has operators.
fn operator_key(t: &Table<'_>, base: &Path) -> Option<SecretSource> {
    let (file, env) = ("key_file", "key_env");
    if t.has("key") {
        return optional_source(t, file, env, base);
    }
    Some(source(t, file, env, "/run/secrets/operator", base))
}

fn names(t: &Table<'_>) -> Vec<String> {
    t.list("names", HOST).unwrap_or_default().into_iter().map(|name| name.value).collect()
}

fn tls(t: &Table<'_>, base: &Path, requires_client: bool) -> Option<TlsFiles> {
    let (cert, key) = (t.required_like("cert", "tls/cert.pem", PATH), t.required_like("key", "tls/key.pem", PATH));
    let client_ca = t.optional_like("client_ca", "tls/ca.pem", PATH).map(|path| base.join(path));
    let crl = t.list("crl", PATH).unwrap_or_default().into_iter().map(|path| base.join(path.value)).collect();
    if t.has("crl") && !t.has("client_ca") {
        let help = "add client_ca, or leave crl out: without client_ca no client certificate is accepted";
        t.wrong_at(&["crl"], "crl is set, but client_ca is not", help);
    }
    Some(TlsFiles { cert: base.join(cert?), key: base.join(key?), client_ca, crl, requires_client })
}

fn socket_access(t: &Table<'_>) -> SocketAccess {
    let mode = t.optional("mode", SOCKET_MODE).unwrap_or(SocketAccess::default().mode);
    SocketAccess { mode, owner: t.optional("owner", ACCOUNT), group: t.optional("group", ACCOUNT) }
}

section! {
    /// `[upstream]`.
    UpstreamConfig(t, base) {
        /// The base URL.
        url: BaseUrl = t.value("url", "https://eu1.make.com", URL);
        /// The shared Make token.
        token: SecretSource = source(t, "token_file", "token_env", "/run/secrets/make", base);
        /// The quota per organization and minute.
        quota: QuotaSetting = t.value("quota", "auto", QUOTA);
        /// The largest `license.apiLimit` that is believed.
        quota_max: u32 = t.value("quota_max", "10000", count());
        /// `[upstream.quotas]`: quotas by organization, instead of `quota`.
        quotas: BTreeMap<u64, QuotaSetting> = t.table("quotas", quotas);
        /// Latest answer to a read, counted from when the request was read whole.
        deadline: Duration = t.value("deadline", "15s", DURATION);
        /// Latest answer to a write, counted the same way.
        write_deadline: Duration = t.value("write_deadline", "40s", DURATION);
        /// Timeout of one attempt of a read.
        attempt: Duration = t.value("attempt", "10s", DURATION);
        /// Timeout of one attempt of a write.
        write_attempt: Duration = t.value("write_attempt", "30s", DURATION);
        /// Timeout of the connect and TLS handshake.
        connect: Duration = t.value("connect", "3s", DURATION);
        /// Longest wait for quota.
        quota_wait: Duration = t.value("quota_wait", "5s", DURATION_OR_OFF);
        /// Maximum number of connections.
        connections: usize = t.value("connections", "18", count());
        /// How long an idle connection stays open.
        idle: Duration = t.value("idle", "15s", DURATION);
        /// Whether writes in doubt are settled by looking at what became of them, with spare quota.
        look: bool = t.value("look", "true", FLAG);
        /// Certificate authorities to trust instead of the system's.
        ca_file: Option<PathBuf> = t.optional("ca_file", PATH).map(|path| base.join(path));
    }
}

/// Organizations with a quota of their own.
fn quotas(t: &Table<'_>) -> BTreeMap<u64, QuotaSetting> {
    let mut quotas = BTreeMap::new();
    for item in t.items() {
        match (units::ORGANIZATION.parse)(item.key()) {
            Err(wrong) => item.wrong(item.key_place(), wrong.message, "write the id in quotes: \"11\" = \"240/min\""),
            Ok(_) if item.is_table() => {
                item.wrong(item.key_place(), "this must be a quota, not a table", "write \"240/min\"")
            }
            Ok(organization) => quotas.extend(item.scalar(QUOTA).map(|quota| (organization, quota))),
        }
    }
    quotas
}

section! {
    /// `[cache]`.
    CacheConfig(t, _base) {
        /// Limit on the total size of all entries.
        capacity_bytes: u64 = t.value("capacity", "64MiB", size());
        /// How long an entry may still be served after its lifetime while the upstream fails.
        stale_if_error: Duration = t.value("stale_if_error", "1h", DURATION_OR_OFF);
        /// Maximum lifetime of what a write touches, right after the write (Make lags).
        settle: Duration = t.value("settle", "10s", DURATION_OR_OFF);
        /// How long a write in doubt may still take effect.
        doubt: Duration = t.value("doubt", "2m", DURATION);
        /// How long a 404 is remembered.
        negative: Duration = t.value("negative", "0s", DURATION_OR_OFF);
        /// `no-cache` still accepts an entry this young.
        refresh_floor: Duration = t.value("refresh_floor", "1s", DURATION_OR_OFF);
        /// Whether entries in use are refreshed before they go stale, with spare quota.
        refresh_ahead: bool = t.value("refresh_ahead", "false", FLAG);
        /// `[cache.lifetime]`: lifetime by class, or by operation id, which makes the operation its own class. Zero: not
        /// cached.
        lifetime: BTreeMap<Arc<str>, Duration> = t.table("lifetime", lifetime);
    }
}

/// The classes of the built-in rows, and any others named here.
fn lifetime(t: &Table<'_>) -> BTreeMap<Arc<str>, Duration> {
    let mut lifetimes = BTreeMap::new();
    for item in t.items() {
        if item.is_table() {
            let help = format!("put operation ids in quotes, for example \"{}.list\" = \"5m\"", item.key());
            item.wrong(item.key_place(), format!("{} must be a duration, not a table", item.key()), help);
        } else if let Some(lifetime) = item.scalar(DURATION_OR_OFF) {
            lifetimes.insert(Arc::from(item.key()), lifetime);
        }
    }
    for (class, default) in [("organizations", "5m"), ("usage", "5m"), ("feature-controls", "1m")] {
        if !t.has(class) {
            lifetimes.insert(Arc::from(class), t.value(class, default, DURATION_OR_OFF));
        }
    }
    lifetimes
}

section! {
    /// `[audit]`.
    AuditConfig(t, base) {
        /// The log's folder.
        dir: PathBuf = base.join(t.value("dir", "audit/", PATH));
        /// Sealed segments older than this are deleted.
        retention: Duration = t.value("retention", "400d", DURATION);
        /// The oldest sealed segments are also deleted while the log is larger than this.
        retention_bytes: u64 = t.value("retention_bytes", "1024GiB", size());
        /// Size at which a segment is sealed.
        segment_bytes: u64 = t.value("segment", "64MiB", size());
        /// How often a signed head is stored while new records come in.
        head: Duration = t.value("head", "60s", DURATION);
        /// Maximum number of records waiting for the disk.
        buffer_records: usize = t.value("buffer_records", "50000", count());
        /// Maximum size of the records waiting for the disk.
        buffer_bytes: usize = t.value("buffer_bytes", "32MiB", size());
        /// Maximum size of a record; a longer one is cut at its longest field.
        record_bytes: usize = t.value("record_bytes", "8KiB", size());
        /// How long a write waits for the disk before it is refused. With the default of 700 ms the caller knows within a
        /// second, even after waiting 250 ms for the quota journal.
        disk_wait: Duration = t.value("disk_wait", "700ms", DURATION);
    }
}

section! {
    /// `[limits]`; `docs/decisions/limits.md` explains the defaults.
    Limits(t, _base) {
        /// Open connections per door.
        connections: usize = t.value("connections", "1024", count());
        /// Time from accept to the end of the TLS handshake.
        handshake: Duration = t.value("handshake", "5s", DURATION);
        /// Time from there to the first byte of a request.
        first_byte: Duration = t.value("first_byte", "5s", DURATION);
        /// Time from the first byte of a request head to its end.
        head: Duration = t.value("head", "10s", DURATION);
        /// Size of a request head.
        head_bytes: usize = t.value("head_bytes", "32KiB", size());
        /// Header fields in a request head.
        head_fields: usize = t.value("head_fields", "64", count());
        /// Size of the request target.
        target_bytes: usize = t.value("target_bytes", "8000B", size());
        /// Size of a request body.
        body_bytes: usize = t.value("body_bytes", "1MiB", size());
        /// Total size of all request bodies in memory, shared by the callers.
        bodies_bytes: usize = t.value("bodies_bytes", "64MiB", size());
        /// Longest pause within a request body.
        body_gap: Duration = t.value("body_gap", "10s", DURATION);
        /// Time for a whole request body.
        body: Duration = t.value("body", "30s", DURATION);
        /// Longest pause of a client while the rest of a body whose request is answered already is read and thrown away, for at most `body`...
        linger: Duration = t.value("linger", "2s", DURATION_OR_OFF);
        /// ...and how much of it.
        linger_bytes: usize = t.value("linger_bytes", "64MiB", size());
        /// Time until an idle connection is closed.
        idle: Duration = t.value("idle", "60s", DURATION);
        /// Age at which a connection is closed gracefully.
        age: Duration = t.value("age", "1h", DURATION);
        /// Time after that until it is dropped.
        age_grace: Duration = t.value("age_grace", "2m", DURATION);
        /// Time until a caller that does not read its answer is cut off.
        write_stall: Duration = t.value("write_stall", "30s", DURATION);
        /// Requests in progress, shared by the callers.
        in_flight: usize = t.value("in_flight", "512", count());
        /// Requests in progress of one caller.
        in_flight_per_caller: usize = t.value("in_flight_per_caller", "64", count());
        /// Requests that only wait for another request's fetch, shared by the callers.
        joined: usize = t.value("joined", "8192", count());
        /// Concurrent streams of one HTTP/2 connection.
        h2_streams: u32 = t.value("h2_streams", "64", count());
        /// Bytes of a request body that an HTTP/2 client may send ahead on one stream...
        h2_window_bytes: u32 = t.value("h2_window_bytes", "64KiB", size());
        /// ...and on all streams of a connection together.
        h2_connection_window_bytes: u32 = t.value("h2_connection_window_bytes", "256KiB", size());
        /// Size of the largest HTTP/2 frame that is accepted.
        h2_frame_bytes: u32 = t.value("h2_frame_bytes", "16KiB", size());
        /// Size of the table that compresses the heads of an HTTP/2 connection.
        h2_header_table_bytes: u32 = t.value("h2_header_table_bytes", "4KiB", size());
        /// Bytes of an answer that wait on one HTTP/2 stream for the client.
        h2_send_bytes: usize = t.value("h2_send_bytes", "400KiB", size());
        /// HTTP/2 streams that a client has reset and the gateway has not taken up yet; beyond, the connection ends.
        h2_pending_resets: usize = t.value("h2_pending_resets", "20", count());
        /// HTTP/2 streams that the gateway has reset because the client broke a rule; beyond, the connection ends.
        h2_local_resets: usize = t.value("h2_local_resets", "64", count());
        /// How often an HTTP/2 client is asked whether it is still there...
        h2_ping: Duration = t.value("h2_ping", "20s", DURATION);
        /// ...and how long it has to answer.
        h2_ping_wait: Duration = t.value("h2_ping_wait", "10s", DURATION);
        /// Requests of one caller that wait for quota of one bucket.
        quota_queue: usize = t.value("quota_queue", "50", count());
        /// Writes under way or in doubt, shared by the callers; beyond its share a caller's writes are refused.
        doubts: u64 = t.value("doubts", "10000", count());
        /// Size of the largest answer that is cached.
        stored_bytes: usize = t.value("stored_bytes", "4MiB", size());
        /// Size of the largest answer accepted from the upstream.
        answer_bytes: usize = t.value("answer_bytes", "64MiB", size());
        /// Total size of all answers in transit, shared by the callers.
        answers_bytes: usize = t.value("answers_bytes", "128MiB", size());
        /// Attempts per `safe` or `idempotent` request.
        attempts: u32 = t.value("attempts", "3", count());
        /// Attempts per `once` write.
        attempts_once: u32 = t.value("attempts_once", "2", count());
        /// Retries as a percentage of all attempts in the last 60 s...
        retry_percent: u32 = t.value("retry_percent", "10", number());
        /// ...but at least this many retries per 10 s.
        retry_floor: u32 = t.value("retry_floor", "2", number());
        /// Consecutive failures to reach the upstream before the breaker opens (0: never).
        breaker_failures: u32 = t.value("breaker_failures", "5", number());
        /// How long the breaker stays open at first, doubling...
        breaker_open: Duration = t.value("breaker_open", "5s", DURATION);
        /// ...up to this.
        breaker_open_max: Duration = t.value("breaker_open_max", "60s", DURATION);
        /// Idempotency keys remembered at once, shared by the callers; beyond its share a caller's new keys are refused.
        idempotency_keys: u64 = t.value("idempotency_keys", "100000", count());
        /// How long idempotency keys are remembered, without exception, counted while makegate runs.
        idempotency_age: Duration = t.value("idempotency_age", "24h", DURATION);
        /// Size of the largest first answer that is kept.
        idempotency_answer_bytes: usize = t.value("idempotency_answer_bytes", "64KiB", size());
        /// Total size of all first answers that are kept.
        idempotency_bytes: u64 = t.value("idempotency_bytes", "256MiB", size());
        /// Time to finish work in progress after SIGTERM.
        drain: Duration = t.value("drain", "25s", DURATION);
    }
}

section! {
    /// `[process]`.
    ProcessConfig(t, _base) {
        /// Whether `serve` confines itself to the files that it needs.
        confine: bool = t.value("confine", "true", FLAG);
    }
}

section! {
    /// `[otel]`: telemetry in the form of OpenTelemetry.
    OtelConfig(t, base) {
        /// Where it is sent; left out: where the environment says, or nowhere.
        endpoint: Option<OtlpEndpoint> = t.optional("endpoint", ENDPOINT);
        /// Where the headers are that prove who makegate is, as `NAME=VALUE,NAME=VALUE`.
        headers: Option<SecretSource> = optional_source(t, "headers_file", "headers_env", base);
        /// Certificate authorities to trust instead of the system's.
        ca_file: Option<PathBuf> = t.optional("ca_file", PATH).map(|path| base.join(path));
        /// The service's name; left out: that of the environment, or `makegate`.
        service: Option<Arc<str>> = t.optional("service", SERVICE);
        /// The share of the traces that begin here; left out: that of the environment, or all.
        sample: Option<SampledShare> = t.optional("sample", SHARE);
        /// Whether traces are sent.
        traces: bool = t.value("traces", "true", FLAG);
        /// Whether metrics are sent.
        metrics: bool = t.value("metrics", "true", FLAG);
        /// How often metrics are sent.
        interval: Duration = t.value("interval", "60s", DURATION);
        /// Time limit for sending once.
        timeout: Duration = t.value("timeout", "10s", DURATION);
        /// Spans that wait to be sent; any further one is dropped.
        queue: usize = t.value("queue", "4096", count());
    }
}

section! {
    /// `[replicas]`: several replicas that share their state through PostgreSQL.
    ReplicasConfig(t, base) {
        /// Where the URL of the PostgreSQL database is.
        url: SecretSource = source(t, "url_file", "url_env", "/run/secrets/postgres", base);
        /// Certificate authorities to trust for it instead of the system's.
        ca_file: Option<PathBuf> = t.optional("ca_file", PATH).map(|path| base.join(path));
        /// This replica's name; left out: the host's.
        name: Option<Arc<str>> = t.optional("name", REPLICA);
        /// The file with the key for fingerprints that all replicas share.
        key_file: PathBuf = base.join(t.value("key_file", "replicas.key", PATH));
        /// The most replicas that there can be.
        max: u32 = t.value("max", "100", units::count::<u32, 1_000>());
        /// How long a replica may answer from memory after it last heard from the database.
        lease: Duration = t.value("lease", "5s", DURATION);
        /// What becomes of hits without a lease.
        without: WithoutLease = t.value("without", "refuse", WITHOUT);
        /// The part of each quota, in percent, that is kept for replicas that cannot reach the database.
        reserve_percent: u32 = t.value("reserve", "0%", RESERVE);
        /// Which records the database gets.
        records: ShippedRecords = t.value("records", "all", RECORDS);
        /// How long the database keeps them.
        keep: Duration = t.value("keep", "30d", DURATION);
    }
}

/// A count that every counter in the process can hold.
const fn count<T: TryFrom<u64>>() -> ValueKind<T> {
    units::count::<T, 1_000_000_000>()
}

/// The addresses of a door, and the port that is suggested where one is missing.
fn listen<const PORT: u16>(t: &Table<'_>, default: &'static str, base: &Path) -> Vec<Listen> {
    let mut seen: Vec<Listen> = Vec::new();
    for WithSpan { value, place } in t.one_or_more("listen", default, units::listen::<PORT>()) {
        let value = match value {
            Listen::Unix(path) => Listen::Unix(base.join(path)),
            Listen::Tcp(address) => Listen::Tcp(address),
        };
        if seen.contains(&value) {
            t.wrong(place, "this address appears twice", "remove one");
        } else {
            seen.push(value);
        }
    }
    seen
}

/// The source of a secret that may be left out.
fn optional_source(t: &Table<'_>, file: &'static str, env: &'static str, base: &Path) -> Option<SecretSource> {
    if t.has(file) || t.has(env) {
        return Some(source(t, file, env, "", base));
    }
    let left_out = (t.optional(file, PATH), t.optional(env, VARIABLE));
    left_out.0.map(SecretSource::File)
}

/// The source of a secret: exactly one of `file` and `env`.
fn source(t: &Table<'_>, file: &'static str, env: &'static str, example: &str, base: &Path) -> SecretSource {
    let (path, variable) = (t.optional_like(file, example, PATH), t.optional(env, VARIABLE));
    if !t.has(file) && !t.has(env) {
        let help = format!("add {file} = \"{example}\", or {env} = \"NAME\" for an environment variable");
        t.missing(format!("neither {file} nor {env} says where the secret is"), help);
    }
    if t.has(file) && t.has(env) {
        t.wrong_at(&[env], format!("both {file} and {env} are set"), "remove one");
    }
    match (path, variable) {
        (Some(path), _) => SecretSource::File(base.join(path)),
        (None, Some(variable)) => SecretSource::Env(variable),
        (None, None) => SecretSource::File(PathBuf::from(example)),
    }
}
