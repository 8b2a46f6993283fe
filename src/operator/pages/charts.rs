//! The charts of the last hour.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use maud::{Markup, html};

use super::super::cells;
use super::super::chart::{Chart, ChartLine, ChartSpan, LINES_MAX, Scale};
use super::super::history::{ErrorKind, History, HistoryPoint, INTERVAL, QUOTAS_MAX, QuotaUse, SPAN};
use super::rankings::Latency;
use crate::vocabulary::Answer;

/// What charts may span. A young history is drawn wide.
const SPANS: [Duration; 3] = [Duration::from_secs(6 * 60), Duration::from_secs(20 * 60), SPAN];
/// The most moments of a chart: as many as there are pixels to see.
const MOMENTS_MAX: u32 = 120;
/// More than a minute, on the scale of durations.
const BEYOND_US: f64 = 1e8;

/// The charts of the last hour.
#[derive(Debug)]
pub(super) struct HistoryCharts {
    points: Vec<ChartedPoint>,
    span: Duration,
}

/// What is drawn of a moment.
#[derive(Debug)]
struct ChartedPoint {
    point: HistoryPoint,
    /// Of answers, refusals apart.
    latency: Latency,
    upstream_latency: Latency,
}

impl ChartedPoint {
    fn of(point: HistoryPoint) -> Self {
        let [latency, upstream_latency] = [&point.durations, &point.upstream].map(Latency::of);
        Self { point, latency, upstream_latency }
    }
}

impl HistoryCharts {
    pub(super) fn of(history: &History) -> Self {
        let span = SPANS.into_iter().find(|span| history.age() <= *span).unwrap_or(SPAN);
        let points = history.grouped(INTERVAL.max(span / MOMENTS_MAX)).into_iter().map(ChartedPoint::of).collect();
        Self { points, span }
    }

    pub(super) fn html(&self) -> Markup {
        html! {
            @if self.points.is_empty() {
                (none_yet())
            } @else {
                div.charts {
                    (self.answers().html())
                    (self.ratios().html())
                    (self.latency("latency", "How long answers take, refusals apart", |charted| &charted.latency).html())
                    (self.latency("upstream", "How long Make takes", |charted| &charted.upstream_latency).html())
                    (self.errors().html())
                    (self.quotas().html())
                }
            }
        }
    }

    /// Each quota by itself, in slots.
    pub(super) fn quotas_html(&self) -> Markup {
        let charts: Vec<_> = self.fullest().into_iter().map(|organization| self.quota(organization)).collect();
        html! {
            @if self.points.is_empty() {
                (none_yet())
            } @else if charts.is_empty() {
                p.empty { "No quota was spent within the hour: nothing has gone upstream." }
            } @else {
                div.charts { @for chart in &charts { (chart.html()) } }
            }
        }
    }

    /// How full the quotas were, in one chart.
    fn quotas(&self) -> Chart {
        let line = |organization: Option<u64>| {
            let name = format!("{}, of {} a minute", cells::quota_name(organization), self.limit(organization));
            self.line(name, |charted| {
                used(&charted.point, organization).map(|one| f64::from(one.used) / f64::from(one.limit.max(1)))
            })
        };
        self.chart(
            "quota",
            "Quota used, of each organization's limit",
            Scale::Percent,
            self.fullest().into_iter().map(line).collect(),
            "No quota was spent within the hour: nothing has gone upstream.",
        )
    }

    /// One quota: what was used of it, and its limit.
    fn quota(&self, organization: Option<u64>) -> Chart {
        let limit = self.limit(organization);
        let place = organization.map_or_else(|| "account".to_owned(), |id| id.to_string());
        let lines = vec![
            self.line("used", |charted| used(&charted.point, organization).map(|one| f64::from(one.used))),
            self.line("limit", |_| Some(f64::from(limit))),
        ];
        let title = format!("Quota of {}", cells::quota_name(organization));
        self.chart(&format!("quota-{place}"), &title, Scale::Count("a minute"), lines, "")
    }

    /// The quotas that were among the fullest lately, as many as a chart has lines.
    fn fullest(&self) -> Vec<Option<u64>> {
        let mut names: Vec<_> =
            self.points.iter().rev().flat_map(|charted| &charted.point.quota).map(|one| one.organization).collect();
        let mut seen = BTreeSet::new();
        names.retain(|name| seen.insert(*name));
        names.truncate(LINES_MAX);
        names.sort_unstable();
        names
    }

    fn limit(&self, organization: Option<u64>) -> u32 {
        let all = self.points.iter().rev().flat_map(|charted| &charted.point.quota);
        all.filter(|one| one.organization == organization).map(|one| one.limit).next().unwrap_or(0)
    }

    fn line(&self, name: impl Into<String>, value: impl Fn(&ChartedPoint) -> Option<f64>) -> ChartLine {
        let Some(newest) = self.points.last() else { return ChartLine { name: name.into(), points: Vec::new() } };
        let at = |charted: &ChartedPoint| {
            let ago = newest.point.at.saturating_duration_since(charted.point.at);
            1.0 - ago.as_secs_f64() / self.span.as_secs_f64()
        };
        ChartLine {
            name: name.into(),
            points: self.points.iter().map(|charted| (at(charted), value(charted))).collect(),
        }
    }

    fn chart(&self, id: &str, title: &str, scale: Scale, lines: Vec<ChartLine>, hint: &str) -> Chart {
        let (id, title, hint) = (format!("chart-{id}"), title.to_owned(), hint.to_owned());
        Chart { id, title, span: ChartSpan::until_now(self.span), scale, lines, hint }
    }

    fn answers(&self) -> Chart {
        let of = |place: usize| move |point: &HistoryPoint| point.answers.get(place).copied().unwrap_or(0);
        let is_there = |place: usize| self.points.iter().any(|charted| of(place)(&charted.point) > 0);
        let lines = Answer::ALL.iter().enumerate().filter(|(place, _)| is_there(*place)).map(|(place, answer)| {
            self.line(answer.as_str(), |charted| Some(per_minute(of(place)(&charted.point), &charted.point)))
        });
        self.chart(
            "answers",
            "Requests by answer",
            Scale::Count("per minute"),
            lines.collect(),
            "Nobody asked anything within the hour. Send a request to the gateway's address with a caller's key.",
        )
    }

    fn ratios(&self) -> Chart {
        let of_those =
            |charted: &ChartedPoint| cells::ratio(charted.point.hits, charted.point.hits + charted.point.misses);
        let lines = vec![
            self.line("of all answers", |charted| from_memory(&charted.point)),
            self.line("of those that could", of_those),
        ];
        self.chart(
            "memory",
            "From memory",
            Scale::Percent,
            lines,
            "No answer within the hour could come from memory. Reads of a class with a lifetime can: see cache.lifetime.",
        )
    }

    fn latency(&self, id: &str, title: &str, of: impl Fn(&ChartedPoint) -> &Latency) -> Chart {
        let value = |bound: fn(&Latency) -> Option<u64>| {
            let of = &of;
            move |charted: &ChartedPoint| {
                let latency = of(charted);
                (latency.samples > 0).then(|| bound(latency).map_or(BEYOND_US, |us| us as f64))
            }
        };
        let lines = vec![
            self.line("p50", value(|latency| latency.p50_us)),
            self.line("p95", value(|latency| latency.p95_us)),
            self.line("p99", value(|latency| latency.p99_us)),
        ];
        self.chart(id, title, Scale::Duration, lines, "Nothing was measured within the hour: there was no such answer.")
    }

    fn errors(&self) -> Chart {
        let mut sums = BTreeMap::<ErrorKind, u64>::new();
        for (kind, count) in self.points.iter().flat_map(|charted| &charted.point.errors) {
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
        let line = |kind: &ErrorKind| {
            self.line(name(*kind), |charted| Some(per_minute(count(&charted.point, *kind), &charted.point)))
        };
        let mut lines: Vec<_> = kept.iter().map(line).collect();
        if self.points.iter().any(|charted| others(&charted.point) > 0) {
            lines.push(self.line("others", |charted| Some(per_minute(others(&charted.point), &charted.point))));
        }
        self.chart(
            "errors",
            "Refusals by code, and Make's errors by status",
            Scale::Count("per minute"),
            lines,
            "Nothing was refused within the hour, and Make answered without an error.",
        )
    }
}

/// The part of all answers that came from memory.
pub(super) fn from_memory(point: &HistoryPoint) -> Option<f64> {
    let part = |wanted: &[Answer]| {
        let counts = Answer::ALL.iter().zip(point.answers);
        counts.filter(|(answer, _)| wanted.contains(answer)).map(|(_, count)| count).sum()
    };
    cells::ratio(part(&[Answer::Hit, Answer::Stale]), part(Answer::ALL))
}

/// What was used of a quota. A point has the fullest ones alone: nobody knows of another, unless the point has all that were used.
fn used(point: &HistoryPoint, organization: Option<u64>) -> Option<QuotaUse> {
    let known = point.quota.iter().find(|one| one.organization == organization).copied();
    known.or_else(|| (point.quota.len() < QUOTAS_MAX).then_some(QuotaUse { organization, used: 0, limit: 1 }))
}

fn none_yet() -> Markup {
    html! {
        p.empty { "There is no history yet. The first point comes 10 s after the start, and shows what callers asked in between." }
    }
}

fn per_minute(count: u64, point: &HistoryPoint) -> f64 {
    count as f64 * 60.0 / point.length.as_secs_f64().max(1.0)
}
