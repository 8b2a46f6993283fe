//! The sections of the file. Each function lists its section's keys with their defaults and types.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::units::{self, DURATION, DURATION_OR_OFF, HOST, LISTEN, PATH, QUOTA, SECRET_FILE, URL, VARIABLE, size};
use super::{
    AuditConfig, CacheConfig, GatewayConfig, Limits, Listen, OperatorConfig, SecretSource, TlsFiles, UpstreamConfig,
};
use crate::toml_reader::{FLAG, Table, ValueKind, WithSpan, number};

pub(super) fn gateway(t: &Table<'_>, base: &Path) -> GatewayConfig {
    GatewayConfig {
        listen: listen(t, "127.0.0.1:8080", base),
        tls: t.optional_table("tls", |t| tls(t, base)).flatten(),
        names: names(t),
    }
}

fn names(t: &Table<'_>) -> Vec<String> {
    t.list("names", HOST).unwrap_or_default().into_iter().map(|name| name.value).collect()
}

fn tls(t: &Table<'_>, base: &Path) -> Option<TlsFiles> {
    let (cert, key) = (t.required("cert", PATH), t.required("key", PATH));
    let client_ca = t.optional("client_ca", PATH);
    Some(TlsFiles { cert: base.join(cert?), key: base.join(key?), client_ca: client_ca.map(|path| base.join(path)) })
}

pub(super) fn operator(t: &Table<'_>, base: &Path) -> OperatorConfig {
    OperatorConfig {
        listen: listen(t, "127.0.0.1:8081", base),
        key: source(t, "key_file", "key_env", "/run/secrets/operator", base),
        names: names(t),
    }
}

pub(super) fn upstream(t: &Table<'_>, base: &Path) -> UpstreamConfig {
    UpstreamConfig {
        url: t.value("url", "https://eu1.make.com", URL),
        token: source(t, "token_file", "token_env", "/run/secrets/make", base),
        quota: t.value("quota", "auto", QUOTA),
        deadline: t.value("deadline", "15s", DURATION),
        write_deadline: t.value("write_deadline", "40s", DURATION),
        attempt: t.value("attempt", "10s", DURATION),
        write_attempt: t.value("write_attempt", "30s", DURATION),
        connect: t.value("connect", "3s", DURATION),
        quota_wait: t.value("quota_wait", "5s", DURATION_OR_OFF),
        connections: t.value("connections", "18", count()),
        idle: t.value("idle", "15s", DURATION),
        look: t.value("look", "true", FLAG),
        ca_file: t.optional("ca_file", PATH).map(|path| base.join(path)),
    }
}

pub(super) fn cache(t: &Table<'_>) -> CacheConfig {
    CacheConfig {
        capacity_bytes: t.value("capacity", "64MiB", size()),
        stale_if_error: t.value("stale_if_error", "1h", DURATION_OR_OFF),
        settle: t.value("settle", "10s", DURATION_OR_OFF),
        doubt: t.value("doubt", "2m", DURATION),
        negative: t.value("negative", "0s", DURATION_OR_OFF),
        refresh_floor: t.value("refresh_floor", "1s", DURATION_OR_OFF),
        refresh_ahead: t.value("refresh_ahead", "false", FLAG),
        lifetime: t.table("lifetime", lifetime),
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

pub(super) fn audit(t: &Table<'_>, base: &Path) -> AuditConfig {
    AuditConfig {
        dir: base.join(t.value("dir", "audit/", PATH)),
        retention: t.value("retention", "400d", DURATION),
        retention_bytes: t.value("retention_bytes", "1024GiB", size()),
        segment_bytes: t.value("segment", "64MiB", size()),
        head: t.value("head", "60s", DURATION),
        buffer_records: t.value("buffer_records", "50000", count()),
        buffer_bytes: t.value("buffer_bytes", "32MiB", size()),
        record_bytes: t.value("record_bytes", "8KiB", size()),
        disk_wait: t.value("disk_wait", "700ms", DURATION),
    }
}

pub(super) fn limits(t: &Table<'_>) -> Limits {
    Limits {
        connections: t.value("connections", "1024", count()),
        handshake: t.value("handshake", "5s", DURATION),
        first_byte: t.value("first_byte", "5s", DURATION),
        head: t.value("head", "10s", DURATION),
        head_bytes: t.value("head_bytes", "32KiB", size()),
        head_fields: t.value("head_fields", "64", count()),
        target_bytes: t.value("target_bytes", "8000B", size()),
        body_bytes: t.value("body_bytes", "1MiB", size()),
        bodies_bytes: t.value("bodies_bytes", "64MiB", size()),
        body_gap: t.value("body_gap", "10s", DURATION),
        body: t.value("body", "30s", DURATION),
        idle: t.value("idle", "60s", DURATION),
        age: t.value("age", "1h", DURATION),
        age_grace: t.value("age_grace", "2m", DURATION),
        write_stall: t.value("write_stall", "30s", DURATION),
        in_flight: t.value("in_flight", "512", count()),
        in_flight_per_caller: t.value("in_flight_per_caller", "64", count()),
        joined: t.value("joined", "8192", count()),
        h2_streams: t.value("h2_streams", "64", count()),
        quota_queue: t.value("quota_queue", "50", count()),
        stored_bytes: t.value("stored_bytes", "4MiB", size()),
        answer_bytes: t.value("answer_bytes", "64MiB", size()),
        answers_bytes: t.value("answers_bytes", "128MiB", size()),
        attempts: t.value("attempts", "3", count()),
        attempts_once: t.value("attempts_once", "2", count()),
        retry_percent: t.value("retry_percent", "10", number()),
        retry_floor: t.value("retry_floor", "2", number()),
        breaker_failures: t.value("breaker_failures", "5", number()),
        breaker_open: t.value("breaker_open", "5s", DURATION),
        breaker_open_max: t.value("breaker_open_max", "60s", DURATION),
        idempotency_keys: t.value("idempotency_keys", "100000", count()),
        idempotency_age: t.value("idempotency_age", "24h", DURATION),
        idempotency_answer_bytes: t.value("idempotency_answer_bytes", "64KiB", size()),
        idempotency_bytes: t.value("idempotency_bytes", "256MiB", size()),
        drain: t.value("drain", "25s", DURATION),
    }
}

/// A count that every counter in the process can hold.
const fn count<T: TryFrom<u64>>() -> ValueKind<T> {
    units::count::<T, 1_000_000_000>()
}

fn listen(t: &Table<'_>, default: &'static str, base: &Path) -> Vec<Listen> {
    let mut seen: Vec<Listen> = Vec::new();
    for WithSpan { value, place } in t.one_or_more("listen", default, LISTEN) {
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

/// The source of a secret: exactly one of `file` and `env`.
fn source(t: &Table<'_>, file: &'static str, env: &'static str, example: &str, base: &Path) -> SecretSource {
    let (path, variable) = (t.optional(file, SECRET_FILE), t.optional(env, VARIABLE));
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
