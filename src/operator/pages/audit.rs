//! `/audit`: records of the log, newest first, as the query filters them.

use std::fmt;
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
use super::replica_records::{AskedReplica, REPLICA, remarks};
use crate::audit::{
    FIELD_FILTERS, Filter, FilterName, Kind, RecordPage, ReplicaBehind, ReplicasPage, ReplicasQuery, csv, csv_header,
    with_replica,
};
use crate::config;
use crate::door::PeerConnection;
use crate::gateway::refusal::capital;
use crate::replicas::records::RecordPlace;
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

/// The same with several replicas.
const COLUMNS_OF_REPLICAS: [&str; 14] = [
    "seq", "replica", "time", "kind", "caller", "operation", "path", "status", "answer", "refusal", "outcome", "note",
    "duration_us", "request",
];

#[derive(Debug, Serialize)]
struct RecordsPage {
    records: Vec<Box<RawValue>>,
    next: Option<PageCursor>,
    /// How far each replica is behind, if all were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    behind: Option<Vec<ReplicaBehind>>,
    /// Why not all records are here that were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<String>,
    #[serde(skip)]
    query: PageQuery,
    #[serde(skip)]
    choices: Arc<FormChoices>,
}

/// Where the next page begins: in this replica's log, or among all replicas' records.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum PageCursor {
    Number(u64),
    Place(String),
}

impl fmt::Display for PageCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Place(place) => place.fmt(f),
        }
    }
}

/// What the search form offers.
#[derive(Debug)]
struct FormChoices {
    callers: Vec<Arc<str>>,
    operations: Vec<Arc<str>>,
    /// This replica's name, if it is one of several.
    own_replica: Option<Arc<str>>,
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
    let asked = AskedReplica::of_records(&state, &view.query)?;
    let filters = || view.query.iter().filter(|(name, _)| *name != EXPORT);
    let is_table = view.format == PageFormat::Csv;
    let exported = (is_table || view.query.has(EXPORT)).then(|| {
        let selecting = filters().filter(|(name, _)| !matches!(*name, "limit" | "after"));
        selecting.map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
    });
    let policy = state.gateway.policy();
    let choices = Arc::new(FormChoices {
        callers: policy.callers.iter().map(|caller| caller.config.name.clone()).collect(),
        operations: policy.catalogue().rows().iter().map(|row| row.id.clone()).collect(),
        own_replica: asked.own_name(),
    });
    let answer = found(&state, &operator, (asked, choices), Arc::new(view)).await?;
    if let Some(asked) = exported {
        state.note_export(&operator, &peer, &asked, is_table);
    }
    Ok(answer)
}

/// The page of whoever was asked; of this replica, if the others' records cannot be had.
async fn found(
    state: &OperatorState,
    operator: &Operator,
    (asked, choices): (AskedReplica, Arc<FormChoices>),
    view: Arc<PageView>,
) -> Result<Response, OperatorRefusal> {
    let now = state.gateway.clock.wall();
    let is_cursor = |name: &str| name == "after" && !matches!(asked, AskedReplica::Only);
    let filters = view.query.iter().filter(|(name, _)| *name != EXPORT && *name != REPLICA && !is_cursor(name));
    let mut filter = Filter::parse(filters, now)?;
    // A page of this replica's own records goes on as it began.
    let after = view.query.get("after").filter(|_| is_cursor("after"));
    let number = after.and_then(|after| after.parse::<u64>().ok());
    filter.after = filter.after.or(number);
    let log = &state.gateway.log;
    log.flush().await;
    let mut note = asked.note();
    if let AskedReplica::Shared(replicas, replica) = &asked
        && number.is_none()
    {
        let after = after.map(|after| RecordPlace::parse(after).ok_or_else(bad_cursor)).transpose()?;
        let goes_on = after.is_some();
        let query = ReplicasQuery { filter: filter.clone(), replica: replica.clone(), after };
        let (shown, shown_choices) = (view.clone(), choices.clone());
        let show = move |found: ReplicasPage| {
            let (query, choices) = (shown.query.clone(), shown_choices);
            let next = found.next.map(PageCursor::Place);
            shown.show(&RecordsPage {
                records: found.records,
                next,
                behind: Some(found.behind),
                note: None,
                query,
                choices,
            })
        };
        match log.query_replicas(replicas, operator.name(), query, show).await {
            Ok(page) => return Ok(page),
            Err(error) if goes_on => return Err(error.into()),
            Err(error) => note = Some(asked.note_on_own(error)?),
        }
    }
    let show = move |found: RecordPage| {
        let next = found.next.map(PageCursor::Number);
        let records = named(found.records, choices.own_replica.as_deref());
        view.show(&RecordsPage { records, next, behind: None, note, query: view.query.clone(), choices })
    };
    Ok(log.query_as(operator.name(), filter, show).await?)
}

fn bad_cursor() -> OperatorRefusal {
    OperatorRefusal::BadParameter { why: "after: write the previous page's next".to_owned() }
}

/// The records with the replica's name, if there are several.
pub(super) fn named(records: Vec<Box<RawValue>>, replica: Option<&str>) -> Vec<Box<RawValue>> {
    let Some(replica) = replica else { return records };
    records.iter().filter_map(|line| with_replica(line.get(), replica)).collect()
}

/// Records as CSV, with a header; with several replicas the last column says whose they are.
pub(super) fn records_csv(records: &[Box<RawValue>], has_replicas: bool) -> String {
    let last = |cell: String| if has_replicas { format!(",{cell}\r\n") } else { "\r\n".to_owned() };
    let mut text = csv_header() + &last(REPLICA.to_owned());
    for line in records {
        text.push_str(&csv(line.get()));
        text.push_str(&last(json_cell(record_of(line).get(REPLICA))));
    }
    text
}

impl Page for RecordsPage {
    const TITLE: &str = "Audit";

    fn table(&self) -> PageTable {
        let row = |line: &RawValue| {
            let record = record_of(line);
            self.columns().iter().map(|column| cell_of(&record, column)).collect()
        };
        PageTable { columns: self.columns(), rows: self.records.iter().map(|line| row(line)).collect() }
    }

    fn csv(&self) -> String {
        records_csv(&self.records, self.choices.own_replica.is_some())
    }

    fn html(&self, now: Timestamp) -> Markup {
        html! {
            (self.form())
            p.quiet { a href="/audit/head" { "The signed head" } " shows later that nothing was altered or taken out." }
            p.quiet {
                "New records as they come: " code { "makegate audit follow" } " or " a href={ "/audit/follow.json" (self.query.suffix()) } { "as JSON lines" } "."
            }
            (remarks(self.behind.as_deref(), self.note.as_deref()))
            (rich::table(self.columns(), &self.rich_rows(), &self.hint(), now))
            @if let Some(next) = &self.next {
                p { a href={ "/audit" (self.query.with("after", &next.to_string())) } { "Older records" } }
            }
        }
    }
}

impl RecordsPage {
    fn columns(&self) -> &'static [&'static str] {
        if self.choices.own_replica.is_some() { &COLUMNS_OF_REPLICAS } else { &COLUMNS }
    }

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
                "seq" => RichCell::link(&text, record_address(record)),
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
            self.columns().iter().map(|column| cell(&record, column)).collect()
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
                @if self.choices.own_replica.is_some() { (self.input(REPLICA, "all", "Only records of this replica")) }
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

/// The page of this record; another replica's is found by its time.
fn record_address(record: &Map<String, Value>) -> String {
    let of = |name: &str| format!("{name}={}", encode(&json_cell(record.get(name))));
    let names: &[&str] = if record.contains_key(REPLICA) { &["seq", REPLICA, "time"] } else { &["seq"] };
    format!("/audit/record?{}", names.iter().map(|name| of(name)).collect::<Vec<_>>().join("&"))
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
