//! The log as operators read it: pages of records, and new ones as they come.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream;
use http::Response;
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use maud::{Markup, html};
use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::html;
use super::query::PageQuery;
use super::refusal::OperatorRefusal;
use super::render::{self, Page, PageBody, PageTable, with_body};
use super::routes::PageFormat;
use super::state::OperatorState;
use crate::audit::{self, Answer, Filter, FollowEvent, Kind, csv, csv_header};

/// What people see of a record at a glance; the rest is in JSON and CSV.
const COLUMNS: [&str; 12] = [
    "time",
    "kind",
    "caller",
    "operation",
    "organization",
    "method",
    "path",
    "status",
    "answer",
    "duration_us",
    "request",
    "note",
];
/// What the note is made of.
const NOTE: [&str; 6] = ["refusal", "outcome", "event", "count", "codes", "detail"];

/// `/audit`: records, newest first.
#[derive(Debug, Serialize)]
pub(super) struct RecordsPage {
    records: Vec<Box<RawValue>>,
    next: Option<u64>,
    #[serde(skip)]
    asked: PageQuery,
    #[serde(skip)]
    choices: FormChoices,
}

/// What the search form offers.
#[derive(Debug)]
struct FormChoices {
    callers: Vec<Arc<str>>,
    operations: Vec<Arc<str>>,
}

/// The page that the query asks for, in this form; everything recorded before it is in it.
///
/// # Errors
/// A parameter that is no filter; a query that has no answer.
pub(super) async fn page(
    state: &OperatorState,
    form: PageFormat,
    query: &PageQuery,
) -> Result<Response<PageBody>, OperatorRefusal> {
    let filter = Filter::parse(query.iter(), state.gateway.clock.wall())?;
    let policy = state.gateway.policy();
    let choices = FormChoices {
        callers: policy.members.iter().map(|member| member.config.name.clone()).collect(),
        operations: policy.catalogue().rows().iter().map(|row| row.id.clone()).collect(),
    };
    state.gateway.log.flush().await;
    let asked = query.clone();
    let show = move |found: audit::RecordPage| {
        let records = RecordsPage { records: found.records, next: found.next, asked, choices };
        render::page(&records, form, &records.asked)
    };
    Ok(state.gateway.log.query_as(filter, show).await?)
}

impl Page for RecordsPage {
    const TITLE: &str = "Audit";
    const PATH: &str = "/audit";

    fn table(&self) -> PageTable {
        let row = |line: &RawValue| {
            let record: Map<String, Value> = serde_json::from_str(line.get()).unwrap_or_default();
            let note: Vec<_> =
                NOTE.iter().filter_map(|name| record.get(*name)).map(|value| shown(Some(value))).collect();
            let is_counted = record.contains_key("count");
            let cell = |column: &&str| match *column {
                "note" => note.join(": "),
                "caller" if is_counted => shown(record.get("caller").or_else(|| record.get("peer"))),
                column => shown(record.get(column)),
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
                p { a href={ "/audit" (self.asked.with("after", &next.to_string())) } { "Older records" } }
            }
        }
    }
}

impl RecordsPage {
    fn form(&self) -> Markup {
        let words = |all: &[&'static str]| all.iter().map(|word| Arc::from(*word)).collect::<Vec<_>>();
        let kinds = words(&Kind::ALL.iter().map(|kind| kind.as_str()).collect::<Vec<_>>());
        let answers = words(&Answer::ALL.iter().map(|answer| answer.as_str()).collect::<Vec<_>>());
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
        let chosen = self.asked.get(name);
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
        let value = self.asked.get(name).unwrap_or_default();
        html! { label { (name) input name=(name) value=(value) placeholder=(example) size=(example.len().max(6)); } }
    }
}

fn shown(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(other @ (Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_))) => other.to_string(),
    }
}

/// `/audit/follow`: new records as JSON lines until the client leaves, the operator key is replaced or shutdown begins. Records that came faster than
/// they were taken are counted in a line of their own: `{"missed": n}`.
///
/// # Errors
/// A parameter that is no filter; too many followers.
pub(super) fn follow(state: &OperatorState, query: &PageQuery) -> Result<Response<PageBody>, OperatorRefusal> {
    let filter = Filter::parse(query.iter(), state.gateway.clock.wall())?;
    let turn = state.followers.clone().try_acquire_owned().map_err(|_| OperatorRefusal::TooManyFollowers)?;
    let start = (state.gateway.log.follow(filter), [state.gateway.tasks.stopping(), state.key_replaced()], turn);
    let lines = stream::unfold(start, |(mut follow, ends, turn)| async move {
        let [stopping, replaced] = &ends;
        let next = tokio::select! {
            next = follow.next() => next,
            () = stopping.cancelled() => None,
            () = replaced.cancelled() => None,
        };
        let line = match next? {
            FollowEvent::Line(line) => format!("{}\n", line.trim_end()),
            FollowEvent::Missed(missed) => format!("{{\"missed\":{missed}}}\n"),
        };
        Some((Ok(Frame::data(Bytes::from(line))), (follow, ends, turn)))
    });
    Ok(with_body("application/x-ndjson", StreamBody::new(lines).boxed_unsync()))
}
