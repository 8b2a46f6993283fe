//! Checks across settings: contradictions, classes that nothing uses, files that do not exist.

#![expect(clippy::disallowed_methods, reason = "runs at startup and on the `watched-files` thread")]

use std::path::Path;
use std::time::Duration;

use super::{Config, JwksSource, Listen, SecretSource, secret, secret_warnings};
use crate::catalogue::rows::ParsedRow;
use crate::toml_reader::{Table, nearest, quoted};
use crate::watched_files::Snapshot;

pub(super) fn check(root: &Table<'_>, config: &Config, added: &[ParsedRow], snapshot: &Snapshot) {
    bounds(root, config);
    order(root, config);
    classes(root, config, added);
    doors(root, config);
    files(root, config);
    secret_warnings::check(root, config, snapshot);
    if config.callers.is_empty() && !root.has("caller") {
        let help = "add a [[caller]]; `makegate key new --caller NAME` creates its key";
        root.warn_missing("no caller is configured: every request will be refused", help);
    }
}

/// Values outside their usable range.
fn bounds(root: &Table<'_>, config: &Config) {
    let (limits, audit) = (&config.limits, &config.audit);
    let bounds = [
        ("head_bytes", limits.head_bytes >= 8 << 10, "write \"8KiB\" or more: HTTP needs that much"),
        ("head_bytes", limits.head_bytes <= 1 << 20, "write \"1MiB\" or less"),
        ("target_bytes", limits.target_bytes <= 65_534, "write \"65534B\" or less"),
        ("stored_bytes", limits.stored_bytes <= 1 << 30, "write \"1GiB\" or less"),
        // RFC 9113 sections 6.5.2 and 6.9.1.
        ("h2_frame_bytes", (1 << 14..1 << 24).contains(&limits.h2_frame_bytes), "write \"16KiB\" to \"16777215B\""),
        ("h2_window_bytes", limits.h2_window_bytes < 1 << 31, "write less than \"2GiB\""),
        ("h2_connection_window_bytes", limits.h2_connection_window_bytes < 1 << 31, "write less than \"2GiB\""),
        ("retry_percent", limits.retry_percent <= 100, "write 100 or less"),
    ];
    for (key, _, help) in bounds.into_iter().filter(|(_, holds, _)| !holds) {
        root.wrong_at(&["limits", key], format!("{key} is out of range"), help);
    }
    let otel = &config.otel;
    let telemetry = [
        ("interval", otel.interval >= Duration::from_secs(1), "write \"1s\" or more"),
        ("timeout", otel.timeout <= Duration::from_mins(1), "write \"60s\" or less"),
        ("queue", otel.queue <= 1 << 20, "write 1048576 or less: each span takes about 1 KiB of memory"),
    ];
    for (key, _, help) in telemetry.into_iter().filter(|(_, holds, _)| !holds) {
        root.wrong_at(&["otel", key], format!("{key} is out of range"), help);
    }
    if let Some(replicas) = &config.replicas {
        let is_long = replicas.lease > config.upstream.write_deadline / 2;
        let times = [
            ("lease", replicas.lease >= Duration::from_secs(1), "write \"1s\" or more"),
            (
                "lease",
                !is_long,
                "write half of upstream.write_deadline or less: the answer to a write may wait for a lease",
            ),
            ("keep", replicas.keep >= Duration::from_hours(24), "write \"1d\" or more: records are dropped by days"),
        ];
        for (key, _, help) in times.into_iter().filter(|(_, holds, _)| !holds) {
            root.wrong_at(&["replicas", key], format!("{key} is out of range"), help);
        }
    }
    let twice = "write at least twice `segment`: segments are deleted whole";
    let record_fits = [
        ("record_bytes", audit.record_bytes >= 1 << 10, "write \"1KiB\" or more"),
        ("segment", audit.segment_bytes >= audit.record_bytes as u64, "a segment must be able to hold a record"),
        ("retention_bytes", audit.retention_bytes >= 2 * audit.segment_bytes, twice),
        ("buffer_bytes", audit.buffer_bytes >= audit.record_bytes, "the buffer must be able to hold a record"),
    ];
    for (key, _, help) in record_fits.into_iter().filter(|(_, holds, _)| !holds) {
        root.wrong_at(&["audit", key], format!("{key} is too small"), help);
    }
}

/// Pairs of settings where the first must not exceed the second.
fn order(root: &Table<'_>, config: &Config) {
    let (upstream, limits) = (&config.upstream, &config.limits);
    let replicas = config.replicas.as_ref();
    let lease = replicas.map_or(Duration::ZERO, |replicas| replicas.lease);
    let times = [
        // A write's attempts end a lease before its deadline.
        (["replicas", "lease"], lease, "half of upstream.write_deadline", upstream.write_deadline / 2),
        (["upstream", "attempt"], upstream.attempt, "deadline", upstream.deadline),
        (["upstream", "write_attempt"], upstream.write_attempt, "write_deadline", upstream.write_deadline),
        (["upstream", "connect"], upstream.connect, "attempt", upstream.attempt),
        (["upstream", "quota_wait"], upstream.quota_wait, "deadline", upstream.deadline),
        (["audit", "disk_wait"], config.audit.disk_wait, "write_deadline", upstream.write_deadline),
        (["upstream", "write_deadline"], upstream.write_deadline, "cache.doubt", config.cache.doubt),
        (["cache", "negative"], config.cache.negative, "30s", Duration::from_secs(30)),
        (["limits", "body_gap"], limits.body_gap, "body", limits.body),
        (["limits", "breaker_open"], limits.breaker_open, "breaker_open_max", limits.breaker_open_max),
    ];
    for ([section, key], _, top, _) in times.into_iter().filter(|(_, value, _, top)| value > top) {
        root.warn_at(&[section, key], format!("{key} is longer than {top}"), format!("write {top} or less"));
    }
    let sizes = [
        ("in_flight_per_caller", limits.in_flight_per_caller, "in_flight", limits.in_flight),
        // Each of these requests reserves a place for its record.
        ("joined", limits.joined, "half of audit.buffer_records", config.audit.buffer_records / 2),
        ("stored_bytes", limits.stored_bytes, "answer_bytes", limits.answer_bytes),
        // A single caller gets no more than that; the rest is reserved for others.
        ("body_bytes", limits.body_bytes, "seven eighths of bodies_bytes", limits.bodies_bytes / 8 * 7),
        ("answer_bytes", limits.answer_bytes, "seven eighths of answers_bytes", limits.answers_bytes / 8 * 7),
    ];
    for (key, _, top, _) in sizes.into_iter().filter(|(_, value, _, top)| value > top) {
        root.warn_at(&["limits", key], format!("{key} is more than {top}"), format!("write {top} or less"));
    }
}

/// Lifetimes that no operation uses.
fn classes(root: &Table<'_>, config: &Config, added: &[ParsedRow]) {
    let rows = config.catalogue.rows();
    let named = added.iter().filter_map(|row| row.class.as_deref());
    let used: Vec<&str> = rows.iter().filter_map(|row| row.cache.as_deref()).chain(named).collect();
    let given = config.cache.lifetime.keys().filter(|class| root.has_path(&["cache", "lifetime", class]));
    for class in given.filter(|class| !used.contains(&&***class)) {
        let place = ["cache", "lifetime", class];
        if let Some(row) = config.catalogue.row(class) {
            let help = "leave it out: only reads are cached, and none with secrets or expiring links";
            root.wrong_at(&place, format!("answers to {} are never cached", row.id), help);
            continue;
        }
        let stored = rows.iter().filter(|row| row.may_cache).map(|row| &*row.id);
        let help = match nearest(class, used.iter().copied().chain(stored)) {
            Some(near) => format!("did you mean \"{near}\"?"),
            None => "set it as cache in an [[operation]], or write an operation's id".to_owned(),
        };
        root.warn_at(&place, format!("no operation uses the class {}", quoted(class)), help);
    }
}

fn doors(root: &Table<'_>, config: &Config) {
    let doors = [
        ("gateway", "the gateway", &config.gateway.listen),
        ("operator", "the operator door", &config.operator.listen),
        ("metrics", "the door for scrapers", &config.metrics.listen),
    ];
    for (at, (section, door, listens)) in doors.iter().enumerate() {
        let fixed = listens.iter().filter(|listen| !matches!(listen, Listen::Tcp(address) if address.port() == 0));
        for listen in fixed {
            if let Some((_, other, _)) = doors.iter().take(at).find(|(_, _, others)| others.contains(listen)) {
                let message = format!("{other} already listens on this address");
                root.wrong_at(&[section, "listen"], message, format!("give {door} another address"));
            }
        }
    }
    let has_socket = config.gateway.listen.iter().any(|listen| matches!(listen, Listen::Unix(_)));
    if !has_socket && config.callers.iter().any(|caller| !caller.uids.is_empty()) {
        let help = "add \"unix:/run/makegate.sock\" to it, or remove uids";
        root.warn_at(&["gateway", "listen"], "callers have uids, but the gateway listens on no Unix socket", help);
    }
    let takes_certificates = config.gateway.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some());
    if !takes_certificates && config.callers.iter().any(|caller| !caller.certificates.is_empty()) {
        let help = "add client_ca to gateway.tls, or remove certificates";
        root.warn_at(&["gateway", "tls"], "callers have certificates, but the gateway asks for none", help);
    }
    let open = |listen: &Listen| matches!(listen, Listen::Tcp(address) if !address.ip().is_loopback());
    if config.gateway.tls.is_none() && config.gateway.listen.iter().any(open) {
        let help = "add tls = { cert = \"…\", key = \"…\" } unless a proxy in front terminates TLS";
        root.warn_at(&["gateway", "listen"], "callers send their keys to this address unencrypted", help);
    }
    let is_exposed = config.otel.endpoint.as_ref().is_some_and(|endpoint| !endpoint.tls && !endpoint.is_local);
    if is_exposed && config.otel.headers.is_some() {
        let help = "use https, or send them from this machine to a collector that has them";
        root.warn_at(&["otel", "endpoint"], "the headers of [otel] go to this address unencrypted", help);
    }
    if config.operator.tls.is_none() && config.operator.listen.iter().any(open) {
        let help = "add tls = { cert = \"…\", key = \"…\" }, or use 127.0.0.1 or a Unix socket";
        root.warn_at(&["operator", "listen"], "operators send their key to this address unencrypted", help);
    }
}

/// Missing files are only a warning, because `check` may run on another machine.
fn files(root: &Table<'_>, config: &Config) {
    let secrets = [
        ("operator", "key_file", "key_env", config.operator.key.as_ref()),
        ("upstream", "token_file", "token_env", Some(&config.upstream.token)),
        ("otel", "headers_file", "headers_env", config.otel.headers.as_ref()),
        ("replicas", "url_file", "url_env", config.replicas.as_ref().map(|replicas| &replicas.url)),
    ];
    for (section, file, env, source) in secrets {
        let Some(source) = source else { continue };
        let key = match source {
            SecretSource::File(_) => file,
            SecretSource::Env(_) => env,
        };
        if root.has_path(&[section, key]) && !secret::exists(source) {
            root.warn_at(
                &[section, key],
                format!("{source} is missing"),
                "provide the secret before you start makegate",
            );
        }
    }
    let missing = |path: &[&str], file: Option<&Path>| {
        if let Some(file) = file.filter(|file| !file.exists()) {
            let what = format!("the file {file:?} is missing");
            root.warn_at(path, what, "create it before you start makegate");
        }
    };
    for (section, tls) in [("gateway", &config.gateway.tls), ("operator", &config.operator.tls)] {
        let Some(tls) = tls else { continue };
        missing(&[section, "tls", "cert"], Some(&tls.cert));
        missing(&[section, "tls", "key"], Some(&tls.key));
        missing(&[section, "tls", "client_ca"], tls.client_ca.as_deref());
        tls.crl.iter().for_each(|list| missing(&[section, "tls", "crl"], Some(list)));
    }
    missing(&["upstream", "ca_file"], config.upstream.ca_file.as_deref());
    missing(&["otel", "ca_file"], config.otel.ca_file.as_deref());
    missing(&["replicas", "ca_file"], config.replicas.as_ref().and_then(|replicas| replicas.ca_file.as_deref()));
    let shared_key = config.replicas.as_ref().map(|replicas| secret::file_or_credential(&replicas.key_file));
    missing(&["replicas", "key_file"], shared_key.as_deref());
    for issuer in &config.issuers {
        let keys = match &issuer.keys {
            JwksSource::File(path) => Some(&**path),
            JwksSource::Url(_) => None,
        };
        missing(&["issuer"], keys);
        missing(&["issuer"], issuer.ca_file.as_deref());
    }
}
