//! `/history?hours=24`: what the log's index knows of more than the last hour, by hour.

use std::sync::Arc;

use axum::response::Response;
use jiff::{SignedDuration, Timestamp};
use maud::{Markup, html};
use serde::Serialize;

use super::super::chart::{Chart, ChartLine, ChartSpan, Scale};
use super::super::operators::Operator;
use super::super::query::{PageQuery, encode};
use super::super::refusal::OperatorRefusal;
use super::super::render::{Page, PageView};
use super::super::state::OperatorState;
use super::super::table::PageTable;
use super::super::{cells, html};
use crate::audit::{LEDGER_HOURS, LedgerColumn, LedgerPage, LedgerQuery, LedgerSums};

/// Spans that are a click away.
const SPANS: [(u32, &str); 3] = [(24, "24 hours"), (168, "7 days"), (720, "30 days")];
const PARAMETERS: [&str; 3] = ["hours", "since", "until"];
const HOUR: SignedDuration = SignedDuration::from_hours(1);

/// What a line of a chart shows of an hour.
type HourValue = fn(&LedgerSums) -> f64;

#[derive(Debug, Serialize)]
struct HoursPage {
    /// When the first hour begins.
    since: Timestamp,
    /// When the last hour ends.
    until: Timestamp,
    /// The oldest first, from the first hour on of which the index knows something.
    hours: Vec<HourRow>,
    total: LedgerSums,
    #[serde(skip)]
    query: PageQuery,
}

#[derive(Debug, Serialize)]
struct HourRow {
    hour: Timestamp,
    #[serde(flatten)]
    sums: LedgerSums,
}

/// What the query asks of the log's index: `hours`, or `since` and `until`. `None`: it asks for the last hour, which is in memory.
///
/// # Errors
/// A parameter is unknown or invalid.
pub(super) fn asked(query: &PageQuery, now: Timestamp) -> Result<Option<LedgerQuery>, OperatorRefusal> {
    query.allow_only(&PARAMETERS)?;
    let (hours, span) = (query.get("hours"), ["since", "until"].map(|name| Some((name, query.get(name)?))));
    let refuse = |why: String| Err(OperatorRefusal::BadParameter { why });
    let first = match hours.map(str::parse::<i64>) {
        None if span == [None, None] => return Ok(None),
        None => None,
        Some(_) if span != [None, None] => {
            return refuse("write hours, or since and until, not both".to_owned());
        }
        Some(Ok(hours)) if (1..=LEDGER_HOURS).contains(&hours) => {
            // The hour that is not over counts as one.
            Some((now - SignedDuration::from_hours(hours - 1)).to_string())
        }
        Some(_) => return refuse(format!("hours: write a number from 1 to {LEDGER_HOURS}")),
    };
    let first = first.as_deref().map(|first| ("since", first));
    let pairs = span.into_iter().flatten().chain(first);
    Ok(Some(LedgerQuery::parse(pairs, &[LedgerColumn::Hour], now)?))
}

/// The page of these hours.
///
/// # Errors
/// The index is not ready.
pub(super) async fn hours(
    state: &Arc<OperatorState>,
    operator: &Operator,
    asked: LedgerQuery,
    view: PageView,
) -> Result<Response, OperatorRefusal> {
    state.gateway.log.flush().await;
    let show = move |page: LedgerPage| view.show(&HoursPage::of(page, view.query.clone()));
    Ok(state.gateway.log.ledger(operator.name(), asked, show).await?)
}

/// Links to what the log's index knows.
pub(super) fn longer_spans() -> Markup {
    html! {
        @for (at, (hours, name)) in SPANS.iter().enumerate() {
            @if at > 0 { " · " }
            a href={ "/history?hours=" (hours) } { (name) }
        }
    }
}

impl HoursPage {
    fn of(page: LedgerPage, query: PageQuery) -> Self {
        let LedgerPage { since, until, rows, total, .. } = page;
        // The newest is first, and hours of which there is nothing are missing.
        let mut known: Vec<_> = rows.into_iter().filter_map(|row| Some((row.hour?, row.sums))).collect();
        known.reverse();
        let first = known.first().map_or(until, |(hour, _)| *hour);
        let mut known = known.into_iter().peekable();
        let mut sums = |hour| known.next_if(|(at, _)| *at == hour).map_or_else(LedgerSums::default, |(_, sums)| sums);
        let all = std::iter::successors(Some(first), |hour| Some(*hour + HOUR)).take_while(|hour| *hour < until);
        let hours = all.map(|hour| HourRow { hour, sums: sums(hour) }).collect();
        Self { since, until, hours, total, query }
    }

    fn chart(&self, id: &str, title: &str, unit: &'static str, lines: &[(&str, HourValue)]) -> Chart {
        let length = self.until.duration_since(self.since).as_secs_f64().max(1.0);
        // An hour is drawn at its middle.
        let at = |hour: Timestamp| ((hour + HOUR / 2).duration_since(self.since)).as_secs_f64() / length;
        let line = |(name, of): &(&str, HourValue)| ChartLine {
            name: (*name).to_owned(),
            points: self.hours.iter().map(|row| (at(row.hour), Some(of(&row.sums)))).collect(),
        };
        let middle = self.since + self.until.duration_since(self.since) / 2;
        let marks = [self.since, middle, self.until].map(cells::hour_text);
        let [begin, _, end] = &marks;
        Chart {
            id: format!("chart-{id}"),
            title: title.to_owned(),
            span: ChartSpan { words: format!("from {begin} to {end} (UTC)"), marks },
            scale: Scale::Count(unit),
            lines: lines.iter().map(line).collect(),
            hint: "The log's index knows of no request in these hours.".to_owned(),
        }
    }

    fn charts(&self) -> [Chart; 4] {
        [
            self.chart("requests", "Requests", "an hour", &[("requests", |sums| sums.requests as f64)]),
            self.chart(
                "spent",
                "Quota",
                "an hour",
                &[("spent", |sums| sums.spent as f64), ("saved", |sums| sums.saved as f64)],
            ),
            self.chart(
                "refused",
                "Refused",
                "an hour",
                &[
                    ("refused", |sums| sums.refused as f64),
                    ("of these, for want of quota", |sums| sums.out_of_quota as f64),
                ],
            ),
            self.chart(
                "waited",
                "Waited for quota, all requests together",
                "seconds an hour",
                &[("waited", |sums| sums.waited_us as f64 / 1e6)],
            ),
        ]
    }

    fn form(&self) -> Markup {
        let value = |name: &str| self.query.get(name).unwrap_or_default();
        html! {
            form method="get" action="/history" {
                label { "since" input name="since" value=(value("since")) placeholder="24h or 2026-07-01" size="17"; }
                label { "until" input name="until" value=(value("until")) placeholder="1h or 2026-07-02" size="17"; }
                button type="submit" { "Show" }
            }
        }
    }
}

impl Page for HoursPage {
    const TITLE: &str = "History by hour";

    fn table(&self) -> PageTable {
        let columns = &["hour", "requests", "spent", "saved", "waited_us", "refused", "out_of_quota"];
        PageTable::of(columns, &self.hours)
    }

    fn is_live(&self) -> bool {
        false
    }

    fn html(&self, _: Timestamp) -> Markup {
        let total = &self.total;
        let figures = [
            ("Requests", total.requests.to_string()),
            ("Spent", total.spent.to_string()),
            ("Saved", total.saved.to_string()),
            ("Waited", cells::duration(total.waited_us.unsigned_abs())),
            ("Refused", total.refused.to_string()),
            ("For want of quota", total.out_of_quota.to_string()),
        ];
        let [since, until] = [self.since, self.until].map(|at| encode(&at.to_string()));
        html! {
            p.quiet { a href="/history" { "The last hour" } " · The last " (longer_spans()) }
            (self.form())
            p.quiet {
                "From " (cells::hour(self.since)) " to " (cells::hour(self.until)) ", by hours in UTC, from the log's index, which knows 30 days. "
                "The newest hour is not over. "
                a href={ "/quota/ledger?since=" (since) "&until=" (until) } { "Who spent it: the ledger" } "."
            }
            (html::figures(&figures))
            div.charts { @for chart in self.charts() { (chart.html()) } }
        }
    }
}
