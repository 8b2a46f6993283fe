//! `/quota/ledger`: what each caller asked for in each hour of the last 30 days, and what that cost of the quota.

use std::sync::Arc;

use axum::extract::{Extension, State};
use axum::response::Response;
use jiff::{SignedDuration, Timestamp};
use maud::{Markup, html};
use serde::Serialize;

use super::super::operators::Operator;
use super::super::query::{PageQuery, encode};
use super::super::refusal::OperatorRefusal;
use super::super::render::{Page, PageFormat, PageView};
use super::super::rich::{self, RichCell};
use super::super::state::OperatorState;
use super::super::table::{PageTable, members};
use super::super::{cells, html};
use super::replica_records::{AskedReplica, REPLICA, remarks};
use crate::audit::{LedgerColumn, LedgerOrganization, LedgerPage, LedgerQuery, LedgerRow, ReplicaBehind};

/// What people see first: hours, with who spent most in each.
const OVERVIEW: [LedgerColumn; 1] = [LedgerColumn::Hour];
/// What scripts get, and what an hour opens.
const DETAILS: [LedgerColumn; 3] = [LedgerColumn::Hour, LedgerColumn::Caller, LedgerColumn::Operation];
/// What the form offers for `by`.
const CHOICES: [(&str, &str); 7] = [
    ("hour", "hour"),
    ("hour,caller,operation", "hour, caller and operation"),
    ("hour,caller", "hour and caller"),
    ("caller", "caller"),
    ("operation", "operation"),
    ("organization", "organization"),
    ("hour,caller,operation,organization", "everything"),
];
/// Spans that are a click away.
const SPANS: [(&str, &str); 3] = [("24h", "24 hours"), ("7d", "7 days"), ("30d", "30 days")];
/// The most rows that the page for people shows.
const ROWS_MAX: usize = 720;
/// What narrows the ledger.
const FILTERS: [&str; 3] = ["caller", "operation", "organization"];

#[derive(Debug, Serialize)]
struct LedgerView {
    #[serde(flatten)]
    page: LedgerPage,
    /// How far each replica is behind, if all were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    behind: Option<Vec<ReplicaBehind>>,
    /// Why the sums may lack something.
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<String>,
    /// There are several replicas.
    #[serde(skip)]
    has_replicas: bool,
    #[serde(skip)]
    query: PageQuery,
    #[serde(skip)]
    callers: Vec<Arc<str>>,
    #[serde(skip)]
    operations: Vec<Arc<str>>,
}

/// The hours that the query asks for.
///
/// # Errors
/// A parameter is unknown or invalid; the index is not ready.
pub(crate) async fn ledger(
    State(state): State<Arc<OperatorState>>,
    Extension(operator): Extension<Arc<Operator>>,
    view: PageView,
) -> Result<Response, OperatorRefusal> {
    let by: &[LedgerColumn] = if view.format == PageFormat::Html { &OVERVIEW } else { &DETAILS };
    let whose = AskedReplica::of(&state, &view.query)?;
    let filters = view.query.iter().filter(|(name, _)| *name != REPLICA || matches!(whose, AskedReplica::Only));
    let asked = LedgerQuery::parse(filters, by, state.gateway.clock.wall())?;
    let policy = state.gateway.policy();
    let callers: Vec<_> = policy.callers.iter().map(|caller| caller.config.name.clone()).collect();
    let operations: Vec<_> = policy.catalogue().rows().iter().map(|row| row.id.clone()).collect();
    let has_replicas = !matches!(whose, AskedReplica::Only);
    let log = &state.gateway.log;
    log.flush().await;
    let view = Arc::new(view);
    let show = |note: Option<String>| {
        let (view, callers, operations) = (view.clone(), callers.clone(), operations.clone());
        move |page, behind| {
            let query = view.query.clone();
            view.show(&LedgerView { page, behind, note, has_replicas, query, callers, operations })
        }
    };
    let mut note = None;
    if let AskedReplica::Shared(replicas, replica) = &whose {
        let (shared, show) = ((asked.clone(), replica.clone()), show(None));
        let show = move |page, behind| show(page, Some(behind));
        match log.ledger_of_replicas(replicas, operator.name(), shared, show).await {
            Ok(page) => return Ok(page),
            Err(error) => note = Some(whose.note_on_own(error)?),
        }
    }
    let show = show(note);
    Ok(log.ledger(operator.name(), asked, move |page| show(page, None)).await?)
}

impl Page for LedgerView {
    const TITLE: &str = "Quota ledger";

    fn table(&self) -> PageTable {
        PageTable::of(
            &[
                "hour", "caller", "operation", "organization", "requests", "spent", "saved", "waited_us", "refused",
                "out_of_quota",
            ],
            &self.page.rows,
        )
    }

    fn html(&self, now: Timestamp) -> Markup {
        let total = &self.page.total;
        let figures = [
            ("Spent", total.spent.to_string()),
            ("Saved", total.saved.to_string()),
            ("Waited", cells::duration(total.waited_us.unsigned_abs())),
            ("Refused", total.refused.to_string()),
            ("For want of quota", total.out_of_quota.to_string()),
        ];
        let LedgerPage { since, until, rows, next, .. } = &self.page;
        let (columns, rows): (_, Vec<_>) =
            (self.columns(), rows.iter().take(ROWS_MAX).map(|row| self.cells(row)).collect());
        html! {
            p.quiet { a href="/quota" { "Quota now" } " · Hours are in UTC, kept for 30 days." }
            (self.form())
            (remarks(self.behind.as_deref(), self.note.as_deref()))
            p {
                "The last "
                @for (at, (span, name)) in SPANS.iter().enumerate() {
                    @if at > 0 { " · " }
                    a href={ "/quota/ledger" (self.address(&[("since", span)])) } { (name) }
                }
            }
            (html::figures(&figures))
            p.quiet { "From " (cells::hour(*since)) " to " (cells::hour(*until)) "." }
            (rich::table(&columns, &rows, "Nobody asked for anything in these hours.", now))
            @if self.page.rows.len() > ROWS_MAX { p.quiet { (self.page.rows.len() - ROWS_MAX) " more rows: see the JSON or CSV." } }
            @if let Some(next) = next {
                p { a href={ "/quota/ledger" (self.query.with("until", &next.to_string())) } { "Earlier hours" } }
            }
            p.quiet {
                "Spent: attempts that took a slot. Saved: answers from memory, or from another request's fetch, that would have taken one. "
                "Refused: for whatever reason. It is counted from the records of callers' requests; refreshes ahead of time, looks at writes "
                "in doubt, and attempts that went on after their caller had hung up count at /quota alone."
            }
        }
    }
}

impl LedgerView {
    fn is_by(&self, column: LedgerColumn) -> bool {
        self.page.by.contains(&column)
    }

    /// Are there rows of hours alone, which name who spent most?
    fn is_overview(&self) -> bool {
        self.page.by == OVERVIEW
    }

    fn columns(&self) -> Vec<&'static str> {
        let by = LedgerColumn::ALL.iter().filter(|column| self.is_by(**column)).map(|column| column.as_str());
        let spenders = self.is_overview().then_some("who spent most");
        let sums = ["requests", "spent", "saved", "waited", "refused", "out of quota", "records"];
        by.chain(spenders).chain(sums).collect()
    }

    fn cells(&self, row: &LedgerRow) -> Vec<RichCell> {
        let own = self.filters_of(row);
        let mut narrowed: Vec<_> = own.iter().map(|(name, value)| (*name, &**value)).collect();
        let records = format!("/audit{}", suffix(&narrowed));
        narrowed.push(("by", "hour,caller,operation"));
        let details = format!("/quota/ledger{}", suffix(&narrowed));
        let hour = row.hour.map(|hour| RichCell::Hour(hour, details));
        let caller = row.caller.as_deref().map(|name| match name {
            "" => RichCell::text("(others)"),
            name => RichCell::caller(name),
        });
        let operation = row.operation.as_deref().map(|id| RichCell::text(if id.is_empty() { "–" } else { id }));
        let organization = row.organization.map(|_| RichCell::organization(&members(row, &["organization"]).concat()));
        let spenders = || {
            let most: Vec<_> = row.spenders.iter().map(|one| format!("{} {}", one.caller, one.spent)).collect();
            RichCell::text(most.join(", "))
        };
        let sums = &row.sums;
        let waited = RichCell::Duration(sums.waited_us.unsigned_abs());
        let [requests, spent, saved, refused, out] =
            [sums.requests, sums.spent, sums.saved, sums.refused, sums.out_of_quota].map(RichCell::text);
        [hour, caller, operation, organization]
            .into_iter()
            .flatten()
            .chain(self.is_overview().then(spenders))
            .chain([requests, spent, saved, waited, refused, out, RichCell::link("show", records)])
            .collect()
    }

    /// What selects the records of this row, at this page and at the audit page.
    fn filters_of(&self, row: &LedgerRow) -> Vec<(&'static str, String)> {
        let since = row.hour.unwrap_or(self.page.since);
        let until = row.hour.map_or(self.page.until, |hour| hour + SignedDuration::from_hours(1));
        let one = |text: &Option<Box<str>>| text.as_deref().filter(|text| !text.is_empty()).map(str::to_owned);
        let organization = row.organization.filter(|one| matches!(one, LedgerOrganization::Id(_)));
        let organization = organization.map(|_| members(row, &["organization"]).concat());
        let own = [one(&row.caller), one(&row.operation), organization];
        let of = |(name, own): (&'static str, Option<String>)| {
            // Records without an organization cannot be asked for.
            let asked = self.query.get(name).filter(|asked| !matches!(*asked, "account" | "other"));
            Some((name, own.or_else(|| asked.map(str::to_owned))?))
        };
        let replica = self.query.get(REPLICA).map(|name| (REPLICA, name.to_owned()));
        let span = [("since", since), ("until", until)].map(|(name, at): (_, Timestamp)| (name, at.to_string()));
        FILTERS.into_iter().zip(own).filter_map(of).chain(replica).chain(span).collect()
    }

    /// The query of this page with the filters as they are, and these parameters.
    fn address(&self, with: &[(&str, &str)]) -> String {
        let kept = FILTERS.into_iter().chain([REPLICA, "by"]).filter_map(|name| Some((name, self.query.get(name)?)));
        suffix(&kept.chain(with.iter().copied()).collect::<Vec<_>>())
    }

    fn form(&self) -> Markup {
        let value = |name: &str| self.query.get(name).unwrap_or_default();
        let by = self.page.by.iter().map(|column| column.as_str()).collect::<Vec<_>>().join(",");
        let is_known = CHOICES.iter().any(|(choice, _)| *choice == by);
        html! {
            form method="get" action="/quota/ledger" {
                (select("caller", value("caller"), &self.callers))
                (select("operation", value("operation"), &self.operations))
                label { "organization" input name="organization" value=(value("organization")) placeholder="11 or account" size="10"; }
                @if self.has_replicas { label { "replica" input name=(REPLICA) value=(value(REPLICA)) placeholder="all" size="10"; } }
                label { "since" input name="since" value=(value("since")) placeholder="24h or 2026-07-01" size="17"; }
                label { "until" input name="until" value=(value("until")) placeholder="1h or 2026-07-02" size="17"; }
                label {
                    "rows by"
                    select name="by" {
                        @for (choice, name) in CHOICES { option value=(choice) selected[choice == by] { (name) } }
                        @if !is_known { option value=(by) selected { (by) } }
                    }
                }
                button type="submit" { "Show" }
                a href="/quota/ledger" { "All" }
            }
        }
    }
}

fn select(name: &str, chosen: &str, choices: &[Arc<str>]) -> Markup {
    let is_gone = !chosen.is_empty() && !choices.iter().any(|choice| **choice == *chosen);
    html! {
        label {
            (name)
            select name=(name) {
                option value="" { "any" }
                @for choice in choices { option value=(choice) selected[**choice == *chosen] { (choice) } }
                @if is_gone { option value=(chosen) selected { (chosen) } }
            }
        }
    }
}

fn suffix(pairs: &[(&str, &str)]) -> String {
    let pairs: Vec<_> = pairs.iter().map(|(name, value)| format!("{name}={}", encode(value))).collect();
    if pairs.is_empty() { String::new() } else { format!("?{}", pairs.join("&")) }
}
