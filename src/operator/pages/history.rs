//! `/history`: the last hour, as charts for people and in points of 10 s for scripts; and more than that, from the log's index.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::{Extension, State};
use axum::response::Response;
use jiff::Timestamp;
use maud::{Markup, html};
use serde::Serialize;

use super::super::cells;
use super::super::history::{HistoryPoint, QuotaUse};
use super::super::operators::Operator;
use super::super::refusal::OperatorRefusal;
use super::super::render::{Page, PageFormat, PageView};
use super::super::state::OperatorState;
use super::super::table::{PageTable, cell};
use super::charts::{HistoryCharts, from_memory};
use super::hours::{asked, hours, longer_spans};
use super::rankings::Latency;
use crate::vocabulary::Answer;

#[derive(Debug, Serialize)]
struct HistoryPage {
    points: Vec<HistoryRow>,
    /// For people alone.
    #[serde(skip)]
    charts: Option<HistoryCharts>,
}

#[derive(Debug, Serialize)]
struct HistoryRow {
    /// When it ended.
    time: Timestamp,
    seconds: f64,
    answers: BTreeMap<&'static str, u64>,
    hit_ratio: Option<f64>,
    hit_ratio_of_all: Option<f64>,
    latency: Latency,
    upstream_latency: Latency,
    /// By code of a refusal or status of the upstream's.
    errors: BTreeMap<String, u64>,
    quota: Vec<QuotaRow>,
}

#[derive(Debug, Serialize)]
struct QuotaRow {
    /// `None`: the account.
    organization: Option<u64>,
    used: u32,
    limit: u32,
}

/// The last hour; or the hours that the query asks for.
///
/// # Errors
/// A parameter is unknown or invalid; the index is not ready.
pub(crate) async fn history(
    State(state): State<Arc<OperatorState>>,
    Extension(operator): Extension<Arc<Operator>>,
    view: PageView,
) -> Result<Response, OperatorRefusal> {
    if let Some(asked) = asked(&view.query, state.gateway.clock.wall())? {
        return hours(&state, &operator, asked, view).await;
    }
    state
        .walk(move |state| {
            // People see charts, programs see points; a live page is made again and again.
            let (points, charts) = match view.format {
                PageFormat::Html => (Vec::new(), Some(HistoryCharts::of(&state.history))),
                PageFormat::Json | PageFormat::Csv => {
                    (state.history.points().iter().map(HistoryRow::of).collect(), None)
                }
            };
            view.show(&HistoryPage { points, charts })
        })
        .await
}

impl HistoryRow {
    fn of(point: &HistoryPoint) -> Self {
        let errors = point.errors.iter().map(|(kind, count)| (kind.to_string(), *count));
        let others = (point.other_errors > 0).then(|| ("other".to_owned(), point.other_errors));
        let quota = |one: &QuotaUse| QuotaRow { organization: one.organization, used: one.used, limit: one.limit };
        Self {
            time: point.time,
            seconds: point.length.as_secs_f64(),
            answers: Answer::ALL.iter().map(|answer| answer.as_str()).zip(point.answers).collect(),
            hit_ratio: cells::ratio(point.hits, point.hits + point.misses),
            hit_ratio_of_all: from_memory(point),
            latency: Latency::of(&point.durations),
            upstream_latency: Latency::of(&point.upstream),
            errors: errors.chain(others).collect(),
            quota: point.quota.iter().map(quota).collect(),
        }
    }
}

impl Page for HistoryPage {
    const TITLE: &str = "The last hour";

    fn table(&self) -> PageTable {
        let columns = &[
            "time", "seconds", "hit", "stale", "miss", "forwarded", "replayed", "refused", "hit_ratio",
            "hit_ratio_of_all", "latency_p50_us", "latency_p95_us", "latency_p99_us", "upstream_latency_p50_us",
            "upstream_latency_p95_us", "upstream_latency_p99_us", "errors", "quota",
        ];
        let row = |point: &HistoryRow| {
            let answers = Answer::ALL.iter().map(|answer| cell(point.answers.get(answer.as_str())));
            let latencies = [&point.latency, &point.upstream_latency]
                .map(|one| [one.p50_us, one.p95_us, one.p99_us].map(cell))
                .concat();
            let errors: Vec<_> = point.errors.iter().map(|(kind, count)| format!("{kind}={count}")).collect();
            let quota: Vec<_> = point.quota.iter().map(QuotaRow::text).collect();
            [point.time.to_string(), point.seconds.to_string()]
                .into_iter()
                .chain(answers)
                .chain([point.hit_ratio, point.hit_ratio_of_all].map(cell))
                .chain(latencies)
                .chain([errors.join(" "), quota.join(" ")])
                .collect()
        };
        PageTable { columns, rows: self.points.iter().map(row).collect() }
    }

    fn html(&self, _: Timestamp) -> Markup {
        html! {
            p.quiet {
                "A point each 10 to 30 s; the JSON and CSV have one each 10 s. A restart begins anew. The log knows what was before: the last "
                (longer_spans()) "."
            }
            @if let Some(charts) = &self.charts { (charts.html()) }
        }
    }
}

impl QuotaRow {
    fn text(&self) -> String {
        let whose = self.organization.map_or_else(|| "account".to_owned(), |id| id.to_string());
        format!("{whose}={}/{}", self.used, self.limit)
    }
}
