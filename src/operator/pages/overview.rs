//! `/`: the state of things at a glance.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use jiff::Timestamp;
use maud::{Markup, html};
use serde::Serialize;

use super::super::render::{Page, PageView};
use super::super::state::OperatorState;
use super::super::table::{PageTable, cell};
use super::super::{cells, html};
use super::callers::{CallerRow, CountsByWord, caller_rows};
use super::quota::gauge;
use crate::counters::DurationCounts;
use crate::quota::BucketView;
use crate::vocabulary::Answer;

#[derive(Debug, Serialize)]
struct OverviewPage {
    version: &'static str,
    started: Timestamp,
    ready: bool,
    draining: bool,
    /// What the breaker does: `closed` lets requests through.
    upstream: &'static str,
    requests: u64,
    answers: CountsByWord,
    under_way: u64,
    /// Of the reads that looked in memory; `None` if none did.
    hit_ratio: Option<f64>,
    latency: Latency,
    quota_wait: Latency,
    doubts: u64,
    log: LogState,
    quota: Vec<BucketView>,
    callers: Vec<CallerRow>,
}

/// Percentiles, as the upper bounds of their buckets. `None`: no sample, or more than a minute.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Latency {
    samples: u64,
    p50_us: Option<u64>,
    p95_us: Option<u64>,
    p99_us: Option<u64>,
}

#[derive(Debug, Serialize)]
struct LogState {
    writable: bool,
    records: u64,
    backlog: usize,
    failures: u64,
}

/// The state of things now.
pub(crate) async fn overview(State(state): State<Arc<OperatorState>>, view: PageView) -> Response {
    let gateway = &state.gateway;
    let (size, counts, callers) = (gateway.cache.size(), gateway.log.counts(), caller_rows(&state));
    let mut answers = CountsByWord::new();
    for (source, count) in callers.iter().flat_map(|caller| &caller.answers) {
        *answers.entry(source).or_default() += count;
    }
    let answered =
        gateway.metrics.durations().filter(|(answer, _)| *answer != Answer::Refused).map(|(_, counts)| counts);
    let answered: DurationCounts = answered.sum();
    let looked = size.hits + size.misses;
    view.show(&OverviewPage {
        version: env!("CARGO_PKG_VERSION"),
        started: state.started,
        ready: state.gateway.is_ready(),
        draining: gateway.is_draining(),
        upstream: gateway.upstream().breaker().status().as_str(),
        requests: answers.values().sum(),
        answers,
        under_way: gateway.under_way(),
        hit_ratio: (looked > 0).then(|| size.hits as f64 / looked as f64),
        latency: Latency::of(&answered),
        quota_wait: Latency::of(&gateway.metrics.quota_waits.read()),
        doubts: counts.doubts,
        log: LogState {
            writable: gateway.log.writable(),
            records: counts.records,
            backlog: gateway.log.backlog(),
            failures: counts.failures,
        },
        quota: gateway.quota.buckets(),
        callers,
    })
}

impl Latency {
    fn of(counts: &DurationCounts) -> Self {
        let [p50_us, p95_us, p99_us] = [50, 95, 99].map(|percent| counts.percentile_us(percent));
        Self { samples: counts.samples(), p50_us, p95_us, p99_us }
    }
}

/// `≤ 2.5 ms`.
fn latency_text(bound_us: Option<u64>) -> String {
    match bound_us {
        None => "–".to_owned(),
        Some(us) if us < 1000 => format!("≤ {us} µs"),
        Some(us) if us < 1_000_000 => format!("≤ {} ms", us as f64 / 1e3),
        Some(us) => format!("≤ {} s", us as f64 / 1e6),
    }
}

impl Page for OverviewPage {
    const TITLE: &str = "Overview";

    fn table(&self) -> PageTable {
        let own = [
            ("version", self.version.to_owned()),
            ("started", self.started.to_string()),
            ("ready", self.ready.to_string()),
            ("upstream", self.upstream.to_owned()),
            ("requests", self.requests.to_string()),
            ("under_way", self.under_way.to_string()),
            ("hit_ratio", cell(self.hit_ratio)),
            ("latency_p50_us", cell(self.latency.p50_us)),
            ("latency_p95_us", cell(self.latency.p95_us)),
            ("latency_p99_us", cell(self.latency.p99_us)),
            ("doubts", self.doubts.to_string()),
            ("log_writable", self.log.writable.to_string()),
            ("log_backlog", self.log.backlog.to_string()),
        ];
        let rows = own.into_iter().map(|(name, value)| vec![name.to_owned(), value]).collect();
        PageTable { columns: &["name", "value"], rows }
    }

    fn html(&self) -> Markup {
        let ratio = self.hit_ratio.map_or_else(|| "–".to_owned(), |ratio| format!("{:.0} %", ratio * 100.0));
        let figures = [
            ("Requests", self.requests.to_string()),
            ("Answered from memory", ratio),
            ("Half are answered in", latency_text(self.latency.p50_us)),
            ("95 % in", latency_text(self.latency.p95_us)),
            ("Under way", self.under_way.to_string()),
            ("In doubt", self.doubts.to_string()),
        ];
        html! {
            (self.warnings())
            (html::figures(&figures))
            h2 { "Quota" }
            @if self.quota.is_empty() { p.empty { "No quota was spent yet: nothing has gone upstream." } }
            @for bucket in &self.quota { (gauge(bucket)) }
            h2 { "Callers" }
            (html::table(&self.caller_table(), "There is no caller yet: see Callers."))
            p.quiet { "makegate " (self.version) ", running since " (cells::time(self.started)) "." }
        }
    }
}

impl OverviewPage {
    fn warnings(&self) -> Markup {
        html! {
            @if !self.ready { p.warn { "Not ready: see " a href="/readyz?verbose" { "readiness" } "." } }
            @if self.upstream != "closed" { p.warn { "Make could not be reached lately; reads are answered from memory where they may be." } }
            @if !self.log.writable { p.warn { "The log cannot be written: writes are refused." } }
            @if self.callers.iter().flat_map(|caller| &caller.keys).any(|key| key.warning.is_some()) {
                p.warn { "Some callers' keys expire soon or have expired: " a href="/callers" { "replace them" } "." }
            }
            @if self.doubts > 0 { p.warn { "Some writes are in doubt: " a href="/doubts" { "look at them" } "." } }
        }
    }

    fn caller_table(&self) -> PageTable {
        let count = |caller: &CallerRow, source: &str| cell(caller.answers.get(source));
        let row = |caller: &CallerRow| {
            let name = caller.name.to_string();
            let sources = ["hit", "stale", "miss", "forwarded", "replayed"].map(|source| count(caller, source));
            let own = [name, caller.rate.clone(), caller.requests.to_string()];
            own.into_iter().chain(sources).chain([caller.refused.to_string()]).collect()
        };
        let columns = &["caller", "rate", "requests", "hit", "stale", "miss", "forwarded", "replayed", "refused"];
        PageTable { columns, rows: self.callers.iter().map(row).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latency_is_told_in_fitting_units() {
        let texts = [None, Some(250), Some(2500), Some(10_000_000)].map(latency_text);
        assert_eq!(texts, ["–", "≤ 250 µs", "≤ 2.5 ms", "≤ 10 s"]);
    }
}
