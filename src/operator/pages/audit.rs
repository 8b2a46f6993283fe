//! `/audit`: records of the log, newest first, as the query filters them.

use std::sync::Arc;

use axum::extract::{Extension, State};
use axum::response::Response;
use maud::{Markup, html};
use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::super::html;
use super::super::operators::Operator;
use super::super::query::PageQuery;
use super::super::refusal::OperatorRefusal;
use super::super::render::{Page, PageFormat, PageView};
use super::super::state::OperatorState;
use super::super::table::{PageTable, json_cell};
use crate::audit::{Filter, Kind, RecordPage, csv, csv_header};
use crate::door::PeerConnection;
use crate::vocabulary::Answer;

/// The parameter by which a client says that it takes the records out, which is recorded.
const EXPORT: &str = "export";

/// What people see of a record at a glance; the rest is in JSON and CSV.
const COLUMNS: [&str; 12] = [
    "time", "kind", "caller", "operation", "organization", "method", "path", "status", "answer", "duration_us",
    "request", "note",
];
/// What the note is made of.
const NOTE: [&str; 6] = ["refusal", "outcome", "event", "count", "codes", "detail"];

#[derive(Debug, Serialize)]
struct RecordsPage {
    records: Vec<Box<RawValue>>,
    next: Option<u64>,
    #[serde(skip)]
    query: PageQuery,
    #[serde(skip)]
    choices: FormChoices,
}

/// What the search form offers.
#[derive(Debug)]
struct FormChoices {
    callers: Vec<Arc<str>>,
    operations: Vec<Arc<str>>,
}

/// The records that the query asks for, among all that were recorded before.
///
/// # Errors
/// A parameter is not a filter; the query finds no end.
pub(crate) async fn audit(
    State(state): State<Arc<OperatorState>>,
    Extension(peer): Extension<PeerConnection>,
    Extension(operator): Extension<Arc<Operator>>,
    view: PageView,
) -> Result<Response, OperatorRefusal> {
    let filters = || view.query.iter().filter(|(name, _)| *name != EXPORT);
    let filter = Filter::parse(filters(), state.gateway.clock.wall())?;
    let is_table = view.format == PageFormat::Csv;
    let exported = (is_table || view.query.has(EXPORT)).then(|| {
        let selecting = filters().filter(|(name, _)| !matches!(*name, "limit" | "after"));
        selecting.map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
    });
    let policy = state.gateway.policy();
    let choices = FormChoices {
        callers: policy.callers.iter().map(|caller| caller.config.name.clone()).collect(),
        operations: policy.catalogue().rows().iter().map(|row| row.id.clone()).collect(),
    };
    state.gateway.log.flush().await;
    let show = move |found: RecordPage| {
        let query = view.query.clone();
        view.show(&RecordsPage { records: found.records, next: found.next, query, choices })
    };
    let answer = state.gateway.log.query_as(filter, show).await?;
    if let Some(asked) = exported {
        state.note_export(&operator, &peer, &asked, is_table);
    }
    Ok(answer)
}

impl Page for RecordsPage {
    const TITLE: &str = "Audit";

    fn table(&self) -> PageTable {
        let row = |line: &RawValue| {
            let record: Map<String, Value> = serde_json::from_str(line.get()).unwrap_or_default();
            let note: Vec<_> =
                NOTE.iter().filter_map(|name| record.get(*name)).map(|value| json_cell(Some(value))).collect();
            let is_counted = record.contains_key("count");
            let cell = |column: &&str| match *column {
                "note" => note.join(": "),
                "caller" if is_counted => json_cell(record.get("caller").or_else(|| record.get("peer"))),
                column => json_cell(record.get(column)),
            };
            COLUMNS.iter().map(cell).collect()
        };
        PageTable { columns: &COLUMNS, rows: self.records.iter().map(|line| row(line)).collect() }
    }

    fn csv(&self) -> String {
        let mut text = csv_header() + "\r\n";
        for line in &self.records {
            text.push_str(&csv(line.get()));
            text.push_str("\r\n");
        }
        text
    }

    fn html(&self) -> Markup {
        html! {
            (self.form())
            p.quiet { a href="/audit/head" { "The signed head" } " shows later that nothing was altered or taken out." }
            (html::table(&self.table(), "No record is like that. Take a filter away, or look further back."))
            @if let Some(next) = self.next {
                p { a href={ "/audit" (self.query.with("after", &next.to_string())) } { "Older records" } }
            }
        }
    }
}

impl RecordsPage {
    fn form(&self) -> Markup {
        let kinds: Vec<_> = Kind::ALL.iter().map(|kind| Arc::from(kind.as_str())).collect();
        let answers: Vec<_> = Answer::ALL.iter().map(|answer| Arc::from(answer.as_str())).collect();
        html! {
            form method="get" action="/audit" {
                (self.select("caller", &self.choices.callers))
                (self.select("operation", &self.choices.operations))
                (self.input("organization", "11"))
                (self.input("status", "404 or 4xx"))
                (self.select("answer", &answers))
                (self.select("kind", &kinds))
                (self.input("request", "X-Request-Id"))
                (self.input("since", "1h or 2026-07-01"))
                (self.input("until", "15m or 2026-07-02"))
                (self.input("limit", "100"))
                button type="submit" { "Search" }
                a href="/audit" { "All" }
            }
        }
    }

    fn select(&self, name: &str, choices: &[Arc<str>]) -> Markup {
        let chosen = self.query.get(name);
        html! {
            label {
                (name)
                select name=(name) {
                    option value="" { "any" }
                    @for choice in choices { option value=(choice) selected[chosen == Some(choice)] { (choice) } }
                    @if let Some(gone) = chosen.filter(|chosen| !choices.iter().any(|choice| **choice == **chosen)) {
                        option value=(gone) selected { (gone) }
                    }
                }
            }
        }
    }

    fn input(&self, name: &str, example: &str) -> Markup {
        let value = self.query.get(name).unwrap_or_default();
        html! { label { (name) input name=(name) value=(value) placeholder=(example) size=(example.len().max(6)); } }
    }
}
