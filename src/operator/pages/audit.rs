//! `/audit`: records of the log, newest first, as the query filters them.

use std::sync::Arc;

use axum::extract::{Extension, State};
use axum::response::Response;
use jiff::Timestamp;
use maud::{Markup, html};
use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::super::operators::Operator;
use super::super::query::{PageQuery, encode};
use super::super::refusal::OperatorRefusal;
use super::super::render::{Page, PageFormat, PageView};
use super::super::rich::{self, RichCell};
use super::super::state::OperatorState;
use super::super::table::{PageTable, json_cell};
use super::links;
use crate::audit::{FIELD_FILTERS, Filter, FilterName, Kind, RecordPage, csv, csv_header};
use crate::config;
use crate::door::PeerConnection;
use crate::gateway::refusal::capital;
use crate::vocabulary::{Answer, CredentialKind, Outcome};

/// The parameter by which a client says that it takes the records out, which is recorded.
const EXPORT: &str = "export";

/// What people see of a record at a glance; the rest is in JSON and CSV. The path has the method before it, and the organization in it,
/// so that the note is seen in a window of usual width.
const COLUMNS: [&str; 13] = [
    "seq", "time", "kind", "caller", "operation", "path", "status", "answer", "refusal", "outcome", "note",
    "duration_us", "request",
];
/// What the note is made of.
const NOTE: [&str; 4] = ["event", "count", "codes", "detail"];
/// The filters that most searches use; the others are behind a click.
const USUAL: [&str; 9] =
    ["caller", "operation", "organization", "status", "answer", "kind", "request", "refusal", "outcome"];
/// The filters by time and number, with what is written for them.
const BOUNDS: [(&str, &str); 3] = [("since", "1h or 2026-07-01"), ("until", "15m or 2026-07-02"), ("limit", "100")];

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
    let answer = state.gateway.log.query_as(operator.name(), filter, show).await?;
    if let Some(asked) = exported {
        state.note_export(&operator, &peer, &asked, is_table);
    }
    Ok(answer)
}

/// Records as CSV, with a header.
pub(super) fn records_csv(records: &[Box<RawValue>]) -> String {
    let mut text = csv_header() + "\r\n";
    for line in records {
        text.push_str(&csv(line.get()));
        text.push_str("\r\n");
    }
    text
}

impl Page for RecordsPage {
    const TITLE: &str = "Audit";

    fn table(&self) -> PageTable {
        let row = |line: &RawValue| {
            let record = record_of(line);
            COLUMNS.iter().map(|column| cell_of(&record, column)).collect()
        };
        PageTable { columns: &COLUMNS, rows: self.records.iter().map(|line| row(line)).collect() }
    }

    fn csv(&self) -> String {
        records_csv(&self.records)
    }

    fn html(&self, now: Timestamp) -> Markup {
        html! {
            (self.form())
            p.quiet { a href="/audit/head" { "The signed head" } " shows later that nothing was altered or taken out." }
            p.quiet {
                "New records as they come: " code { "makegate audit follow" } " or " a href={ "/audit/follow.json" (self.query.suffix()) } { "as JSON lines" } "."
            }
            (rich::table(&COLUMNS, &self.rich_rows(), &self.hint(), now))
            @if let Some(next) = self.next {
                p { a href={ "/audit" (self.query.with("after", &next.to_string())) } { "Older records" } }
            }
        }
    }
}

impl RecordsPage {
    /// What to do if there are no records. A caller that was once configured may have some.
    fn hint(&self) -> String {
        let known = self.choices.callers.iter().map(|caller| &**caller);
        let unknown = self.query.get("caller").filter(|given| !known.clone().any(|known| known == *given));
        let said = unknown.map(|given| format!(" {}", capital(&config::unknown_caller(given, known))));
        format!("No record is like that. Take a filter away, or look further back.{}", said.unwrap_or_default())
    }

    /// The table's rows, whose cells lead to what they name.
    fn rich_rows(&self) -> Vec<Vec<RichCell>> {
        let cell = |record: &Map<String, Value>, column: &str| {
            let text = cell_of(record, column);
            match column {
                _ if text.is_empty() => RichCell::text(""),
                "seq" => RichCell::link(&text, format!("/audit/record?seq={}", encode(&text))),
                "request" => RichCell::request(text),
                "caller" if record.contains_key("caller") => RichCell::caller(&text),
                "refusal" => {
                    links::explain(record).map_or_else(|| RichCell::text(&text), |to| RichCell::link(&text, to))
                }
                "duration_us" => text.parse().map_or_else(|_| RichCell::text(&text), RichCell::Duration),
                _ => RichCell::text(text),
            }
        };
        let row = |line: &RawValue| {
            let record = record_of(line);
            COLUMNS.iter().map(|column| cell(&record, column)).collect()
        };
        self.records.iter().map(|line| row(line)).collect()
    }

    fn form(&self) -> Markup {
        let (usual, others): (Vec<&FilterName>, Vec<&FilterName>) =
            FIELD_FILTERS.iter().partition(|filter| USUAL.contains(&filter.name));
        let is_used = others.iter().any(|filter| self.query.get(filter.name).is_some());
        html! {
            form method="get" action="/audit" {
                @for filter in usual { (self.field(filter)) }
                @for (name, example) in BOUNDS { (self.input(name, example, "")) }
                button type="submit" { "Search" }
                a href="/audit" { "All" }
                details open[is_used] {
                    summary { "More filters" }
                    @for filter in others { (self.field(filter)) }
                }
            }
        }
    }

    fn field(&self, filter: &FilterName) -> Markup {
        let words = |words: Vec<&'static str>| -> Vec<Arc<str>> { words.into_iter().map(Arc::from).collect() };
        let choices = match filter.name {
            "caller" => self.choices.callers.clone(),
            "operation" => self.choices.operations.clone(),
            "answer" => words(Answer::ALL.iter().map(|one| one.as_str()).collect()),
            "kind" => words(Kind::ALL.iter().map(|one| one.as_str()).collect()),
            "outcome" => words(Outcome::ALL.iter().map(|one| one.as_str()).collect()),
            "credential" => words(CredentialKind::ALL.iter().map(|one| one.as_str()).collect()),
            _ => return self.input(filter.name, filter.value, filter.help),
        };
        self.select(filter.name, &choices)
    }

    fn select(&self, name: &str, choices: &[Arc<str>]) -> Markup {
        let chosen = self.query.get(name);
        html! {
            label {
                (name.replace('_', " "))
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

    fn input(&self, name: &str, example: &str, help: &str) -> Markup {
        let (value, label) = (self.query.get(name).unwrap_or_default(), name.replace('_', " "));
        html! {
            label title=[(!help.is_empty()).then_some(help)] {
                (label) input name=(name) value=(value) placeholder=(example) size=(example.len().max(6));
            }
        }
    }
}

fn record_of(line: &RawValue) -> Map<String, Value> {
    serde_json::from_str(line.get()).unwrap_or_default()
}

/// What the table says of a record.
fn cell_of(record: &Map<String, Value>, column: &str) -> String {
    match column {
        "note" => {
            let parts = NOTE.iter().filter_map(|name| record.get(*name)).map(|value| json_cell(Some(value)));
            parts.collect::<Vec<_>>().join(": ")
        }
        "path" => {
            let parts =
                ["method", "path"].iter().filter_map(|name| record.get(*name)).map(|value| json_cell(Some(value)));
            parts.collect::<Vec<_>>().join(" ")
        }
        "caller" if record.contains_key("count") => json_cell(record.get("caller").or_else(|| record.get("peer"))),
        column => json_cell(record.get(column)),
    }
}
