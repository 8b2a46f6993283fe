//! `/history`: the last hour, as charts for people and in points of 10 s for scripts.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::response::Response;
use jiff::Timestamp;
use maud::{Markup, html};
use serde::Serialize;

use super::super::chart::{Chart, ChartLine, LINES_MAX, Scale};
use super::super::history::{ErrorKind, History, HistoryPoint, QuotaUse, SPAN};
use super::super::refusal::OperatorRefusal;
use super::super::render::{Page, PageFormat, PageView};
use super::super::rich;
use super::super::state::OperatorState;
use super::super::table::{PageTable, cell};
use super::rankings::Latency;
use crate::vocabulary::Answer;

/// What a chart shows as one moment: as many as there are pixels to see.
const GROUP: Duration = Duration::from_secs(30);
/// More than a minute, on the scale of durations.
const BEYOND_US: f64 = 1e8;

#[derive(Debug, Serialize)]
struct HistoryPage {
    points: Vec<HistoryRow>,
    #[serde(skip)]
    charts: HistoryCharts,
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

/// The last hour.
///
/// # Errors
/// A fault of makegate's own.
pub(crate) async fn history(
    State(state): State<Arc<OperatorState>>,
    view: PageView,
) -> Result<Response, OperatorRefusal> {
    state
        .walk(move |state| {
            // People see charts, programs see points; a live page is made again and again.
            let (points, charts) = match view.format {
                PageFormat::Html => (Vec::new(), HistoryCharts::of(&state.history)),
                PageFormat::Json | PageFormat::Csv => {
                    (state.history.points().iter().map(HistoryRow::of).collect(), HistoryCharts(Vec::new()))
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
            hit_ratio: rich::ratio(point.hits, point.hits + point.misses),
            hit_ratio_of_all: from_memory(point),
            latency: Latency::of(&point.durations),
            upstream_latency: Latency::of(&point.upstream),
            errors: errors.chain(others).collect(),
            quota: point.quota.iter().map(quota).collect(),
        }
    }
}

/// The part of all answers that came from memory.
fn from_memory(point: &HistoryPoint) -> Option<f64> {
    let part = |wanted: &[Answer]| {
        let counts = Answer::ALL.iter().zip(point.answers);
        counts.filter(|(answer, _)| wanted.contains(answer)).map(|(_, count)| count).sum()
    };
    rich::ratio(part(&[Answer::Hit, Answer::Stale]), part(Answer::ALL))
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

    fn html(&self) -> Markup {
        html! {
            p.quiet { "A point each 30 s; the JSON and CSV have one each 10 s. A restart begins anew: the audit log has what was before." }
            (self.charts.html())
        }
    }
}

impl QuotaRow {
    fn text(&self) -> String {
        let whose = self.organization.map_or_else(|| "account".to_owned(), |id| id.to_string());
        format!("{whose}={}/{}", self.used, self.limit)
    }
}

/// The charts of the last hour.
#[derive(Debug)]
pub(crate) struct HistoryCharts(Vec<HistoryPoint>);

impl HistoryCharts {
    pub(crate) fn of(history: &History) -> Self {
        Self(history.grouped(GROUP))
    }

    pub(crate) fn html(&self) -> Markup {
        html! {
            @if self.0.is_empty() {
                p.empty { "There is no history yet. The first point comes 10 s after the start, and shows what callers asked in between." }
            } @else {
                div.charts {
                    (self.answers().html())
                    (self.ratios().html())
                    (self.latency("chart-latency", "How long answers take, refusals apart", |point| Latency::of(&point.durations)).html())
                    (self.latency("chart-upstream", "How long Make takes", |point| Latency::of(&point.upstream)).html())
                    (self.errors().html())
                    (self.quota().html())
                }
            }
        }
    }

    /// How full the quotas were.
    pub(crate) fn quota(&self) -> Chart {
        let mut names: Vec<_> =
            self.0.iter().rev().flat_map(|point| &point.quota).map(|one| one.organization).collect();
        let mut seen = BTreeSet::new();
        names.retain(|name| seen.insert(*name));
        names.truncate(LINES_MAX);
        names.sort_unstable();
        let line = |organization: Option<u64>| {
            let of = |point: &HistoryPoint| point.quota.iter().find(|one| one.organization == organization).copied();
            let limit = self.0.iter().rev().find_map(of).map_or(0, |one| one.limit);
            let name = organization.map_or_else(|| "the account".to_owned(), |id| format!("organization {id}"));
            let value = |point: &HistoryPoint| {
                Some(of(point).map_or(0.0, |one| f64::from(one.used) / f64::from(one.limit.max(1))))
            };
            self.line(format!("{name}, of {limit} a minute"), value)
        };
        Chart {
            id: "chart-quota",
            title: "Quota used, of each organization's limit",
            scale: Scale::Percent,
            lines: names.into_iter().map(line).collect(),
            hint: "No quota was spent within the hour: nothing has gone upstream.",
        }
    }

    fn line(&self, name: impl Into<String>, value: impl Fn(&HistoryPoint) -> Option<f64>) -> ChartLine {
        let Some(newest) = self.0.last() else { return ChartLine { name: name.into(), points: Vec::new() } };
        let at = |point: &HistoryPoint| {
            1.0 - newest.at.saturating_duration_since(point.at).as_secs_f64() / SPAN.as_secs_f64()
        };
        ChartLine { name: name.into(), points: self.0.iter().map(|point| (at(point), value(point))).collect() }
    }

    fn answers(&self) -> Chart {
        let of = |place: usize| move |point: &HistoryPoint| point.answers.get(place).copied().unwrap_or(0);
        let is_there = |place: usize| self.0.iter().any(|point| of(place)(point) > 0);
        let lines = Answer::ALL.iter().enumerate().filter(|(place, _)| is_there(*place));
        let lines =
            lines.map(|(place, answer)| self.line(answer.as_str(), |point| Some(per_minute(of(place)(point), point))));
        Chart {
            id: "chart-answers",
            title: "Requests by answer",
            scale: Scale::PerMinute,
            lines: lines.collect(),
            hint: "Nobody asked anything within the hour. Send a request to the gateway's address with a caller's key.",
        }
    }

    fn ratios(&self) -> Chart {
        let of_those = |point: &HistoryPoint| rich::ratio(point.hits, point.hits + point.misses);
        let lines = vec![self.line("of all answers", from_memory), self.line("of those that could", of_those)];
        Chart {
            id: "chart-memory",
            title: "From memory",
            scale: Scale::Percent,
            lines,
            hint: "No answer within the hour could come from memory. Reads of a class with a lifetime can: see cache.lifetime.",
        }
    }

    fn latency(&self, id: &'static str, title: &'static str, of: impl Fn(&HistoryPoint) -> Latency) -> Chart {
        let value = |bound: fn(&Latency) -> Option<u64>| {
            let of = &of;
            move |point: &HistoryPoint| {
                let latency = of(point);
                (latency.samples > 0).then(|| bound(&latency).map_or(BEYOND_US, |us| us as f64))
            }
        };
        let lines = vec![
            self.line("p50", value(|latency| latency.p50_us)),
            self.line("p95", value(|latency| latency.p95_us)),
            self.line("p99", value(|latency| latency.p99_us)),
        ];
        Chart {
            id,
            title,
            scale: Scale::Duration,
            lines,
            hint: "Nothing was measured within the hour: there was no such answer.",
        }
    }

    fn errors(&self) -> Chart {
        let mut sums = BTreeMap::<ErrorKind, u64>::new();
        for (kind, count) in self.0.iter().flat_map(|point| &point.errors) {
            *sums.entry(*kind).or_default() += count;
        }
        let mut kinds: Vec<_> = sums.into_iter().collect();
        kinds.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        let kept: Vec<_> = kinds.into_iter().take(LINES_MAX - 1).map(|(kind, _)| kind).collect();
        let count = |point: &HistoryPoint, kind: ErrorKind| {
            point.errors.iter().filter(|(one, _)| *one == kind).map(|(_, count)| count).sum::<u64>()
        };
        let others = |point: &HistoryPoint| {
            let unlisted = point.errors.iter().filter(|(kind, _)| !kept.contains(kind)).map(|(_, count)| count);
            unlisted.sum::<u64>() + point.other_errors
        };
        let name = |kind: ErrorKind| match kind {
            ErrorKind::Code(code) => code.to_owned(),
            ErrorKind::Status(status) => format!("Make's {status}"),
        };
        let mut lines: Vec<_> = kept
            .iter()
            .map(|kind| self.line(name(*kind), |point| Some(per_minute(count(point, *kind), point))))
            .collect();
        if self.0.iter().any(|point| others(point) > 0) {
            lines.push(self.line("others", |point| Some(per_minute(others(point), point))));
        }
        Chart {
            id: "chart-errors",
            title: "Refusals by code, and Make's errors by status",
            scale: Scale::PerMinute,
            lines,
            hint: "Nothing was refused within the hour, and Make answered without an error.",
        }
    }
}

fn per_minute(count: u64, point: &HistoryPoint) -> f64 {
    count as f64 * 60.0 / point.length.as_secs_f64().max(1.0)
}
