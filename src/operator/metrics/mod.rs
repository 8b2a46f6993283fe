//! `/metrics`, in the OpenMetrics text format or Prometheus's own. Live counters are read at each scrape, so that no request pays
//! for it. Labels come from the configuration, the catalogue and closed sets of words; the organizations are few.

mod replicas;
mod text;
mod writer;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use http::HeaderMap;
use jiff::Timestamp;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::registry::Registry;

use self::writer::{Labels, MetricsWriter};

use super::process;
use super::refusal::OperatorRefusal;
use super::render::typed;
use super::state::OperatorState;
use crate::callers::SharedKind;
use crate::counters::{AnswerCount, AnswerKind};
use crate::ids::KeyId;
use crate::otel::MetricFamily;
use crate::process_log;
use crate::quota::BucketView;
use crate::shares::SharedLimit;
use crate::upstream::BreakerStatus;

/// The answer to a scrape.
pub(super) async fn metrics(State(state): State<Arc<OperatorState>>, headers: HeaderMap) -> Response {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(MetricsScrape(state)));
    let mut out = String::with_capacity(16 * 1024);
    match prometheus_client::encoding::text::encode(&mut out, &registry) {
        Ok(()) if text::accepts_openmetrics(&headers) => typed(text::OPENMETRICS, out),
        Ok(()) => typed(text::PROMETHEUS, text::to_prometheus(&out)),
        Err(fmt::Error) => OperatorRefusal::Internal.into_response(),
    }
}

struct MetricsScrape(Arc<OperatorState>);

impl fmt::Debug for MetricsScrape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Scrape")
    }
}

impl Collector for MetricsScrape {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        write_all(&mut MetricsWriter::Text(encoder), &self.0)
    }
}

/// The same metrics for OpenTelemetry.
pub(crate) fn metric_families(state: &OperatorState) -> Vec<MetricFamily> {
    let mut families = Vec::new();
    // Only a text could be too long for its buffer.
    let _infallible = write_all(&mut MetricsWriter::Families(&mut families), state);
    families
}

fn write_all(writer: &mut MetricsWriter<'_>, state: &OperatorState) -> fmt::Result {
    requests(writer, state)?;
    credentials(writer, state)?;
    shares(writer, state)?;
    upstream(writer, state)?;
    quota(writer, state)?;
    cache(writer, state)?;
    log(writer, state)?;
    replicas::replicas(writer, state)?;
    telemetry(writer, state)?;
    itself(writer, state)?;
    kernel(writer, state.started)
}

fn requests(writer: &mut MetricsWriter<'_>, state: &OperatorState) -> fmt::Result {
    let gateway = &state.gateway;
    let (policy, metrics) = (gateway.policy(), &gateway.metrics);
    let labels = |caller: &str, one: &AnswerCount| {
        let operation = one.operation.as_deref().unwrap_or_default().to_owned();
        let AnswerKind { answer, status, code } = one.kind;
        [
            ("caller", caller.to_owned()),
            ("operation", operation),
            ("answer", answer.as_str().to_owned()),
            ("status", status.to_string()),
            ("code", code.unwrap_or_default().to_owned()),
        ]
    };
    let known = policy.callers.iter().map(|caller| (caller.config.name.clone(), caller.state.answers.read()));
    let unknown = (Arc::from(""), metrics.unidentified.read());
    let samples = known.chain([unknown]).flat_map(|(caller, counts)| {
        counts.into_iter().map(move |one| (labels(&caller, &one), one.count)).collect::<Vec<_>>()
    });
    let help = "Answers, by caller (none: not known), operation (none: not classified), where the answer came from, status, and code \
                of a refusal";
    writer.counters("makegate_requests", help, samples)?;
    let help = "Time from the moment a request was read whole to its answer, by where the answer came from";
    let durations = metrics.durations().map(|(answer, counts)| ([("answer", answer.as_str().to_owned())], counts));
    writer.durations("makegate_request_duration", help, durations)?;
    writer.gauge("makegate_requests_under_way", "Requests under way", gateway.under_way())?;
    let connections = state.connections().into_iter().map(|(door, count)| ([("door", door.to_owned())], count));
    writer.gauges("makegate_connections", "Connections, by door", connections)?;
    let unread = state.unread_requests().into_iter();
    let unread = unread.map(|(door, kind, n)| ([("door", door.to_owned()), ("kind", kind.as_str().to_owned())], n));
    let help = "Requests that could not be read or did not arrive, by door and kind; they leave no record";
    writer.counters("makegate_unread_requests", help, unread)?;
    writer.count("makegate_faults", "Requests that failed for a fault of makegate's own", &metrics.faults)?;
    writer.counter("makegate_operator_key_failures", "Wrong operator keys", state.wrong_keys.total())
}

/// Keys that expire, the keys of issuers, and TLS handshakes that failed.
fn credentials(writer: &mut MetricsWriter<'_>, state: &OperatorState) -> fmt::Result {
    let policy = state.gateway.policy();
    let keys = policy.callers.iter().flat_map(|caller| caller.config.keys.iter().map(move |key| (caller, key)));
    let ends = keys.filter_map(|(caller, key)| {
        let (caller, id) = (caller.config.name.to_string(), KeyId::of(&key.hash).to_string());
        Some(([("caller", caller), ("key", id)], seconds(key.expires.as_ref()?.at)))
    });
    writer.gauges("makegate_key_expires_timestamp_seconds", "When a caller's key expires, if ever", ends)?;
    let issuers = policy.issuers.iter().map(|issuer| ([("issuer", issuer.config().name.to_string())], issuer.counts()));
    let issuers: Vec<_> = issuers.collect();
    let keys = issuers.iter().map(|(issuer, (keys, _))| (issuer.clone(), *keys as u64));
    writer.gauges("makegate_issuer_keys", "Public keys of an issuer of tokens", keys)?;
    let failures = issuers.into_iter().map(|(issuer, (_, failures))| (issuer, failures));
    writer.counters("makegate_issuer_fetch_failures", "Failed fetches of an issuer's public keys", failures)?;
    let failures = state.handshake_failures().into_iter().flat_map(|(door, counts)| {
        let labels = move |reason: &str| [("door", door.to_owned()), ("reason", reason.to_owned())];
        counts.into_iter().map(move |(why, count)| (labels(why.as_str()), count))
    });
    writer.counters("makegate_tls_handshake_failures", "TLS handshakes that failed, by door and reason", failures)?;
    let ends = state.certificate_ends().into_iter().map(|(door, end)| ([("door", door.to_owned())], seconds(end)));
    let help = "When the certificate of a door expires";
    writer.gauges("makegate_certificate_expires_timestamp_seconds", help, ends)
}

/// What callers share beside Make's quota.
fn shares(writer: &mut MetricsWriter<'_>, state: &OperatorState) -> fmt::Result {
    let (shared, policy) = (&state.gateway.callers.shared, state.gateway.policy());
    let by_kind = |amount: fn(&SharedLimit) -> u64| shared.iter().map(move |(kind, one)| (labelled(kind), amount(one)));
    writer.gauges(
        "makegate_shared_taken",
        "What callers hold of a limit that they share, by kind",
        by_kind(SharedLimit::taken),
    )?;
    writer.gauges("makegate_shared_limit", "The shared limit itself, by kind", by_kind(SharedLimit::limit))?;
    let refused = policy.callers.iter().flat_map(|caller| {
        let share_holders = caller.state.share_holders.iter().filter(|(_, holder)| holder.refused() > 0);
        share_holders.map(|(kind, holder)| {
            let [kind] = labelled(kind);
            ([("caller", caller.config.name.to_string()), kind], holder.refused())
        })
    });
    let help = "Requests that found their caller's share taken, or nothing free of it, by caller and kind";
    writer.counters("makegate_share_refusals", help, refused)
}

fn labelled(kind: SharedKind) -> Labels<1> {
    [("kind", kind.as_str().to_owned())]
}

fn upstream(writer: &mut MetricsWriter<'_>, state: &OperatorState) -> fmt::Result {
    let metrics = &state.gateway.metrics;
    let attempts = metrics.attempts().map(|(ending, count)| ([("result", ending.as_str().to_owned())], count));
    writer.counters("makegate_upstream_attempts", "Requests sent upstream, by how they ended", attempts)?;
    let responses = metrics.upstream.iter().flat_map(|one| {
        let labels = |status: u16| [("operation", one.operation.to_string()), ("status", status.to_string())];
        one.statuses().map(move |(status, count)| (labels(status), count))
    });
    writer.counters("makegate_upstream_responses", "Answers of the upstream, by operation and status", responses)?;
    let durations =
        metrics.upstream.iter().map(|one| ([("operation", one.operation.to_string())], one.durations.read()));
    let help = "Time from the beginning of an attempt to its end, by operation";
    writer.durations("makegate_upstream_duration", help, durations)?;
    let upstream = state.gateway.upstream();
    let (standing, silent) = (upstream.breaker().status(), upstream.breaker().silent_operations());
    let states = BreakerStatus::ALL.iter();
    let states = states.map(|state| ([("state", state.as_str().to_owned())], u64::from(*state == standing)));
    let help = "What the breaker does: 1 at its state (closed: requests go upstream)";
    writer.gauges("makegate_upstream_breaker", help, states)?;
    let help = "Operations of organizations that are not sent for a while, because the upstream did not answer them";
    writer.gauge("makegate_upstream_silent", help, silent)?;
    let (in_use, waiting) = upstream.load();
    writer.gauge("makegate_upstream_connections", "Connections to the upstream in use", in_use)?;
    writer.gauge("makegate_upstream_waiting", "Requests that wait for a connection to the upstream", waiting)?;
    writer.count(
        "makegate_token_refused",
        "Upstream answers 401 to the gateway's own token",
        &metrics.token_refused,
    )?;
    let refused_now = u64::from(state.gateway.upstream().token_refused_since().is_some());
    let help = "1: Make's last conclusive answer was 401 to the gateway's token";
    writer.gauge("makegate_upstream_token_refused", help, refused_now)?;
    writer.count("makegate_token_leaks", "Upstream answers withheld because they held the token", &metrics.leaks)?;
    let help = "Upstream answers 403 that do not come from Make, but from something in front of it";
    writer.count("makegate_edge_refused", help, &metrics.edge_refused)
}

fn quota(writer: &mut MetricsWriter<'_>, state: &OperatorState) -> fmt::Result {
    let buckets = state.gateway.quota.buckets();
    if let Some(least) = buckets.iter().map(|bucket| bucket.remaining).min() {
        let help = "The fewest slots left in any bucket of the upstream's quota";
        writer.gauge("makegate_quota_remaining", help, least)?;
    }
    let waiting = buckets.iter().map(|bucket| bucket.waiting as u64).sum::<u64>();
    writer.gauge("makegate_quota_waiting", "Requests that wait for quota", waiting)?;
    let mut by_caller = BTreeMap::<&str, CallerQuota>::new();
    for one in buckets.iter().flat_map(|bucket| &bucket.callers) {
        let sum = by_caller.entry(&one.name).or_default();
        sum.sent += one.sent;
        sum.saved += one.saved;
        sum.refused += one.refused;
        sum.waited += Duration::from_micros(one.waited_us);
    }
    let by_caller = || by_caller.iter().map(|(name, sum)| ([("caller", (*name).to_owned())], sum));
    let help = "Attempts that took a slot, by caller";
    writer.counters("makegate_quota_sent", help, by_caller().map(|(labels, sum)| (labels, sum.sent)))?;
    let help = "Answers from memory that would have taken a slot, by caller";
    writer.counters("makegate_quota_saved", help, by_caller().map(|(labels, sum)| (labels, sum.saved)))?;
    let help = "Requests for a slot that were refused, by caller";
    writer.counters("makegate_quota_refused", help, by_caller().map(|(labels, sum)| (labels, sum.refused)))?;
    let help = "Time that attempts waited for their slots, by caller";
    let waited = by_caller().map(|(labels, sum)| (labels, sum.waited.as_secs_f64()));
    writer.counters("makegate_quota_waited_seconds", help, waited)?;
    organizations(writer, buckets.clone())?;
    let closed = buckets.iter().filter(|bucket| bucket.closed_for.is_some()).count();
    writer.gauge("makegate_quota_closed", "Buckets that the upstream's own 429 has closed", closed)?;
    let waits = state.gateway.metrics.quota_waits.read();
    writer.durations("makegate_quota_wait", "Waits for quota", [([], waits)])
}

#[derive(Default)]
struct CallerQuota {
    sent: u64,
    saved: u64,
    refused: u64,
    waited: Duration,
}

/// Organizations with samples of their own: those that used most of their quota. The others share one of each.
const ORGANIZATIONS_MAX: usize = 100;

fn organizations(writer: &mut MetricsWriter<'_>, mut buckets: Vec<BucketView>) -> fmt::Result {
    buckets.sort_by_key(|bucket| std::cmp::Reverse(bucket.used));
    let mut sums = BTreeMap::<String, [u64; 3]>::new();
    for (at, bucket) in buckets.iter().enumerate() {
        let name = match bucket.organization {
            _ if at >= ORGANIZATIONS_MAX => "other".to_owned(),
            None => "account".to_owned(),
            Some(id) => id.to_string(),
        };
        let refused = bucket.callers.iter().map(|caller| caller.refused).sum();
        let own = [u64::from(bucket.used), u64::from(bucket.limit), refused];
        sums.entry(name).or_default().iter_mut().zip(own).for_each(|(sum, own)| *sum += own);
    }
    let sums = || sums.iter().map(|(name, sums)| ([("organization", name.clone())], sums));
    let help = "Slots taken of an organization's quota in the last minute (\"account\": operations without one; \"other\": all further ones)";
    writer.gauges("makegate_quota_bucket_used", help, sums().map(|(labels, [used, ..])| (labels, *used)))?;
    let help = "Slots per minute of an organization's quota";
    writer.gauges("makegate_quota_bucket_limit", help, sums().map(|(labels, [_, limit, _])| (labels, *limit)))?;
    let help = "Requests for a slot of an organization's quota that were refused";
    writer.counters("makegate_quota_bucket_refused", help, sums().map(|(labels, [.., refused])| (labels, *refused)))
}

fn cache(writer: &mut MetricsWriter<'_>, state: &OperatorState) -> fmt::Result {
    let size = state.gateway.cache.size();
    let results = [("hit", size.hits), ("miss", size.misses)].map(|(name, n)| ([("result", name.to_owned())], n));
    writer.counters("makegate_cache_requests", "Reads that looked in memory", results)?;
    writer.counter("makegate_cache_evictions", "Entries that were evicted to make room for others", size.evictions)?;
    writer.gauge("makegate_cache_entries", "Entries in memory", size.entries)?;
    writer.gauge("makegate_cache_bytes", "Bytes of the entries in memory", size.bytes)?;
    writer.gauge("makegate_cache_capacity_bytes", "The most bytes of entries in memory", size.capacity_bytes)?;
    let help = "Answers that were stored although the upstream said not to";
    writer.count("makegate_cache_overruled", help, &state.gateway.metrics.overruled)?;
    let help = "Answers of Make that cannot be answers of their operation: passed on, not stored";
    writer.count("makegate_cache_odd_answers", help, &state.gateway.metrics.odd)?;
    writer.count("makegate_cache_refreshed_ahead", "Fetches of what was still fresh", &state.gateway.metrics.ahead)
}

fn log(writer: &mut MetricsWriter<'_>, state: &OperatorState) -> fmt::Result {
    let log = &state.gateway.log;
    let counts = log.counts();
    let help = "Records that are not on disk yet, or that room is kept for";
    writer.gauge("makegate_audit_backlog", help, log.backlog())?;
    writer.gauge("makegate_audit_writable", "1: writes are accepted", u64::from(log.writable()))?;
    writer.counter("makegate_audit_records", "Records on disk since the start", counts.records)?;
    writer.counter("makegate_audit_written_bytes", "Bytes of records on disk since the start", counts.bytes)?;
    writer.counter("makegate_audit_syncs", "Calls of fdatasync", counts.syncs)?;
    writer.counter("makegate_audit_failures", "Writes to disk and calls of fdatasync that failed", counts.failures)?;
    writer.counter("makegate_audit_refused", "Requests that got no room in the log or no disk", counts.refused)?;
    let help = "Requests that were refused without a record, because the log had no room";
    writer.count("makegate_audit_unrecorded", help, &state.gateway.metrics.unrecorded)?;
    let help = "Refusals that the log holds as a count, not as a record each";
    writer.counter("makegate_audit_counted", help, state.gateway.refusal_tally.counted())?;
    writer.gauge("makegate_writes_in_doubt", "Writes whose effect is not known; see /doubts", counts.doubts)?;
    let (open, limit) = log.doubts().room().load();
    let help = "Writes that take room for doubts: those in doubt, and those under way that may become so";
    writer.gauge("makegate_writes_open", help, open)?;
    writer.gauge("makegate_writes_open_limit", "The room for doubts itself (limits.doubts)", limit)?;
    let now = state.gateway.clock.wall();
    let age = |since: Timestamp| now.duration_since(since).as_secs_f64().max(0.0);
    let oldest = log.doubts().oldest().map_or(0.0, age);
    writer.gauge(
        "makegate_oldest_doubt_age_seconds",
        "Age of the oldest write in doubt; 0 if there is none",
        oldest,
    )?;
    let help = "Time since the newest signed head";
    writer.gauge("makegate_audit_head_age_seconds", help, log.head_age().as_secs_f64())?;
    if let Some(usage) = log.disk_usage() {
        writer.gauge("makegate_audit_disk_bytes", "Bytes of all files in the log's folder", usage.used_bytes)?;
        let help = "Bytes that are free on the log's disk for this user";
        writer.gauge("makegate_audit_disk_free_bytes", help, usage.free_bytes)?;
    }
    let help = "Idempotency keys whose first answer is kept";
    writer.gauge("makegate_idempotency_keys", help, state.gateway.idempotency.kept())?;
    let metrics = &state.gateway.metrics;
    writer.count("makegate_looks", "Reads made to see what became of a write in doubt", &metrics.looks)?;
    writer.count("makegate_looks_settled", "Writes in doubt that were settled by such reads", &metrics.settled_by_look)
}

/// What is sent to a receiver of telemetry, if anything is.
fn telemetry(writer: &mut MetricsWriter<'_>, state: &OperatorState) -> fmt::Result {
    let otel = state.gateway.otel.as_ref();
    let fates = otel.into_iter().flat_map(|otel| otel.fates());
    let fates = fates.map(|(fate, spans)| ([("result", fate.as_str().to_owned())], spans));
    let help = "Spans, by what became of them: sent; dropped, because the queue was full; failed, because the receiver did not take them";
    writer.counters("makegate_otel_spans", help, fates)?;
    let exports = otel.into_iter().flat_map(|otel| otel.exports());
    let labels =
        |signal: &str, ok| [("signal", signal.to_owned()), ("result", if ok { "ok" } else { "failed" }.to_owned())];
    let exports = exports.map(|(signal, ok, count)| (labels(signal.as_str(), ok), count));
    let help = "Requests to the receiver of telemetry, by signal and result";
    writer.counters("makegate_otel_exports", help, exports)
}

fn itself(writer: &mut MetricsWriter<'_>, state: &OperatorState) -> fmt::Result {
    let in_force = state.in_force();
    let successful = u64::from(in_force.error.is_none());
    writer.gauge("makegate_config_last_reload_successful", "1: the last (re)load took effect", successful)?;
    let help = "When the last (re)load was tried";
    writer.gauge("makegate_config_last_reload_timestamp_seconds", help, seconds(in_force.loaded))?;
    let help = "Lines of the process log that were dropped, because nobody took them in time";
    writer.counter("makegate_log_lines_dropped", help, process_log::dropped())?;
    writer.gauge("makegate_ready", "1: ready for requests", u64::from(state.gateway.is_ready()))?;
    let build = [("version", env!("CARGO_PKG_VERSION").to_owned()), ("commit", env!("MAKEGATE_COMMIT").to_owned())];
    writer.info("makegate_build", "What is running", build)
}

fn kernel(writer: &mut MetricsWriter<'_>, started: Timestamp) -> fmt::Result {
    let process = process::process();
    if let Some(spent) = process.cpu_seconds {
        writer.counter("process_cpu_seconds", "CPU time spent", spent)?;
    }
    let gauges = [
        ("process_resident_memory_bytes", "Resident memory", process.resident_bytes),
        ("process_virtual_memory_bytes", "Virtual memory", process.virtual_bytes),
        ("process_open_fds", "Open file descriptors", process.open_fds),
        ("process_max_fds", "The most file descriptors", process.max_fds),
        ("process_threads", "Threads", process.threads),
    ];
    for (name, help, value) in gauges {
        if let Some(value) = value {
            writer.gauge(name, help, value)?;
        }
    }
    writer.gauge("process_start_time_seconds", "When the process started", seconds(started))
}

fn seconds(time: Timestamp) -> f64 {
    time.as_duration().as_secs_f64()
}
