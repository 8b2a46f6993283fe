//! `/`: what is wrong, and the state of things at a glance.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use jiff::Timestamp;
use maud::{Markup, html};
use serde::Serialize;

use super::super::problems::{Problem, problems};
use super::super::refusal::OperatorRefusal;
use super::super::render::{Page, PageView};
use super::super::rich::{self, RichCell};
use super::super::state::OperatorState;
use super::super::table::{PageTable, cell};
use super::super::{cells, html};
use super::callers::{CallerRow, CountsByWord, caller_rows};
use super::charts::HistoryCharts;
use super::hours::longer_spans;
use super::quota::gauge;
use super::rankings::{Latency, Rankings};
use crate::counters::DurationCounts;
use crate::quota::BucketView;
use crate::vocabulary::Answer;

/// The most quotas that the overview shows, the fullest ones; `/quota` has all.
const BUCKETS_MAX: usize = 20;

#[derive(Debug, Serialize)]
struct OverviewPage {
    version: &'static str,
    started: Timestamp,
    /// What is wrong, the worst first.
    problems: Vec<Problem>,
    ready: bool,
    draining: bool,
    /// What the breaker does: `closed` lets requests through.
    upstream: &'static str,
    requests: u64,
    answers: CountsByWord,
    under_way: u64,
    /// Of the reads that looked in memory; `None` if none did.
    hit_ratio: Option<f64>,
    /// Of all answers, refusals too.
    hit_ratio_of_all: Option<f64>,
    /// Of answers, refusals apart.
    latency: Latency,
    /// Of attempts at Make.
    upstream_latency: Latency,
    quota_wait: Latency,
    doubts: u64,
    log: LogState,
    #[serde(flatten)]
    rankings: Rankings,
    /// How many there are in all.
    quota_buckets: usize,
    /// The fullest.
    quota: Vec<BucketView>,
    callers: Vec<CallerRow>,
    /// Scripts find it at `/history.json`.
    #[serde(skip)]
    charts: HistoryCharts,
}

#[derive(Debug, Serialize)]
struct LogState {
    writable: bool,
    records: u64,
    backlog: usize,
    failures: u64,
}

/// The state of things now.
///
/// # Errors
/// A fault of makegate's own.
pub(crate) async fn overview(
    State(state): State<Arc<OperatorState>>,
    view: PageView,
) -> Result<Response, OperatorRefusal> {
    state.walk(move |state| view.show(&overview_page(state))).await
}

fn overview_page(state: &OperatorState) -> OverviewPage {
    let gateway = &state.gateway;
    let (size, counts, callers) = (gateway.cache.size(), gateway.log.counts(), caller_rows(state));
    let mut answers = CountsByWord::new();
    for (source, count) in callers.iter().flat_map(|caller| &caller.answers) {
        *answers.entry(source).or_default() += count;
    }
    let answered =
        gateway.metrics.durations().filter(|(answer, _)| *answer != Answer::Refused).map(|(_, counts)| counts);
    let upstream: DurationCounts = gateway.metrics.upstream.iter().map(|one| one.durations.read()).sum();
    let requests: u64 = answers.values().sum();
    let from_memory: u64 = [Answer::Hit, Answer::Stale].iter().filter_map(|answer| answers.get(answer.as_str())).sum();
    let mut quota = gateway.quota.buckets();
    let (rankings, quota_buckets) = (Rankings::of(state, &callers, &quota), quota.len());
    // The closed ones first, then by what is left.
    quota.sort_by_key(|bucket| (bucket.closed_because.is_none(), bucket.remaining));
    quota.truncate(BUCKETS_MAX);
    OverviewPage {
        version: env!("CARGO_PKG_VERSION"),
        started: state.started,
        problems: problems(state, &quota),
        ready: gateway.is_ready(),
        draining: gateway.is_draining(),
        upstream: gateway.upstream().breaker().status().as_str(),
        requests,
        answers,
        under_way: gateway.under_way(),
        hit_ratio: cells::ratio(size.hits, size.hits + size.misses),
        hit_ratio_of_all: cells::ratio(from_memory, requests),
        latency: Latency::of(&answered.sum()),
        upstream_latency: Latency::of(&upstream),
        quota_wait: Latency::of(&gateway.metrics.quota_waits.read()),
        doubts: counts.doubts,
        log: LogState {
            writable: gateway.log.writable(),
            records: counts.records,
            backlog: gateway.log.backlog(),
            failures: counts.failures,
        },
        rankings,
        quota_buckets,
        quota,
        callers,
        charts: HistoryCharts::of(&state.history),
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
            ("hit_ratio_of_all", cell(self.hit_ratio_of_all)),
            ("latency_p50_us", cell(self.latency.p50_us)),
            ("latency_p95_us", cell(self.latency.p95_us)),
            ("latency_p99_us", cell(self.latency.p99_us)),
            ("upstream_latency_p50_us", cell(self.upstream_latency.p50_us)),
            ("upstream_latency_p95_us", cell(self.upstream_latency.p95_us)),
            ("upstream_latency_p99_us", cell(self.upstream_latency.p99_us)),
            ("doubts", self.doubts.to_string()),
            ("log_writable", self.log.writable.to_string()),
            ("log_backlog", self.log.backlog.to_string()),
        ];
        let own = own.into_iter().map(|(name, value)| vec![name.to_owned(), value]);
        let problems =
            self.problems.iter().map(|problem| vec![format!("problem {}", problem.name), problem.what.clone()]);
        PageTable { columns: &["name", "value"], rows: own.chain(problems).collect() }
    }

    fn html(&self, now: Timestamp) -> Markup {
        let figures = [
            ("Requests since the start", self.requests.to_string()),
            ("From memory, of all answers", cells::percent(self.hit_ratio_of_all)),
            ("From memory, of those that could", cells::percent(self.hit_ratio)),
            ("Under way", self.under_way.to_string()),
            ("In doubt", self.doubts.to_string()),
        ];
        let more = self.quota_buckets - self.quota.len();
        html! {
            (self.problem_list(now))
            (html::figures(&figures))
            h2 { "The last hour" }
            (self.charts.html())
            p.quiet {
                a href="/history" { "The last hour by itself" } ", as JSON and CSV, too. From the log: "
                (longer_spans())
            }
            h2 { "How long it takes" }
            (self.latencies(now))
            h2 { "Quota" }
            @if self.quota.is_empty() { p.empty { "No quota was spent yet: nothing has gone upstream." } }
            @for bucket in &self.quota { (gauge(bucket)) }
            @if more > 0 { p { a href="/quota" { (more) " more" } } }
            (self.rankings.html(now))
            h2 { "Callers" }
            (rich::table_of(&self.caller_table(), "There is no caller yet: see Callers.", now))
            p.quiet { "makegate " (self.version) ", started " (cells::time(self.started, now)) "." }
        }
    }
}

impl OverviewPage {
    fn problem_list(&self, now: Timestamp) -> Markup {
        html! {
            section.problems aria-label="What is wrong" {
                @if self.problems.is_empty() {
                    p.good { "Nothing is wrong." }
                } @else {
                    ul {
                        @for Problem { name, severity, what, since, todo, page, runbook, .. } in &self.problems {
                            li.warn id=(name) {
                                strong { (severity.as_str()) ": " } (cells::sentence(what))
                                @if let Some(since) = since {
                                    " It began " (cells::time(*since, now)) "."
                                }
                                br;
                                "What to do: " (cells::sentence(todo))
                                @if page != "/" { " " a href=(page) { "See more" } }
                                @if let Some(runbook) = runbook { span.quiet { " Runbook: docs/runbooks.md, " (runbook) } }
                            }
                        }
                    }
                }
            }
        }
    }

    fn latencies(&self, now: Timestamp) -> Markup {
        let row = |name: &str, latency: &Latency| {
            let Latency { samples, p50_us, p95_us, p99_us } = *latency;
            let bounds = [p50_us, p95_us, p99_us].map(|us| RichCell::Quantity(cells::bound(us)));
            [RichCell::text(name), RichCell::text(samples)].into_iter().chain(bounds).collect()
        };
        let rows: [Vec<_>; 3] = [
            row("answers (refusals apart)", &self.latency),
            row("Make", &self.upstream_latency),
            row("waiting for quota", &self.quota_wait),
        ];
        rich::table(&["what", "count", "p50", "p95", "p99"], &rows, "", now)
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
