//! `/config`: every setting in force and where it comes from, and how the last reload ended.

use std::sync::Arc;

use axum::extract::{Extension, State};
use axum::response::Response;
use jiff::Timestamp;
use maud::{Markup, html};
use serde::Serialize;
use serde_json::{Map, Value};

use super::super::cells;
use super::super::operators::Operator;
use super::super::render::{Page, PageFormat, PageView};
use super::super::rich::{self, RichCell};
use super::super::state::OperatorState;
use super::super::table::{PageTable, json_cell};
use crate::config::ShownSetting;
use crate::ids::escape_invisible;

/// The most reloads of a kind that the page looks back to.
const RELOADS_MAX: &str = "5";
const RELOADS: [&[(&str, &str)]; 2] = [
    &[("kind", "event"), ("event", "reload"), ("limit", RELOADS_MAX)],
    &[("kind", "event"), ("event", "reload-failed"), ("limit", RELOADS_MAX)],
];

/// It shows no secrets, because the configuration has none.
#[derive(Debug, Serialize)]
struct ConfigPage {
    file: Option<String>,
    settings: Vec<ShownSetting>,
    reload: LastReload,
    /// What is valid but probably not intended.
    warnings: Vec<ConfigWarning>,
    /// The last reloads with what they changed, the newest first; for people alone: scripts find them at `/audit?event=reload`.
    #[serde(skip)]
    reloads: Vec<Map<String, Value>>,
}

#[derive(Debug, Serialize)]
struct ConfigWarning {
    line: usize,
    message: String,
    help: Option<String>,
}

#[derive(Debug, Serialize)]
struct LastReload {
    time: Timestamp,
    error: Option<Arc<str>>,
}

/// The configuration in force.
pub(crate) async fn config(
    State(state): State<Arc<OperatorState>>,
    Extension(operator): Extension<Arc<Operator>>,
    view: PageView,
) -> Response {
    let reloads =
        if view.format == PageFormat::Html { state.newest_records(&operator, &RELOADS).await } else { Vec::new() };
    let in_force = state.in_force();
    let warnings = in_force.origins.warnings.iter().map(|one| ConfigWarning {
        line: one.line,
        message: one.message.clone(),
        help: one.help.clone(),
    });
    view.show(&ConfigPage {
        file: state.file.as_ref().map(|file| file.display().to_string()),
        settings: in_force.origins.shown(),
        reload: LastReload { time: in_force.loaded, error: in_force.error.clone() },
        warnings: warnings.collect(),
        reloads,
    })
}

impl Page for ConfigPage {
    const TITLE: &str = "Configuration";

    fn table(&self) -> PageTable {
        PageTable::of(&["key", "value", "origin"], &self.settings)
    }

    fn html(&self, now: Timestamp) -> Markup {
        html! {
            @if let Some(error) = &self.reload.error {
                p.warn { "The last reload failed (" (cells::time(self.reload.time, now)) "), and the configuration before it is in force:" }
                pre.warn { (escape_invisible(error)) }
            } @else {
                p { "Loaded " (cells::time(self.reload.time, now)) @if let Some(file) = &self.file { " from " code { (escape_invisible(file)) } } "." }
            }
            @if !self.warnings.is_empty() {
                h2 { "Warnings" }
                ul {
                    @for ConfigWarning { line, message, help } in &self.warnings {
                        li.warn { "Line " (line) ": " (escape_invisible(message)) @if let Some(help) = help { "; " (escape_invisible(help)) } }
                    }
                }
            }
            h2 { "Last reloads" }
            (rich::table(&["seq", "time", "event", "what changed"], &self.reload_rows(), "It has not been reloaded since the log began, or the log cannot be read now.", now))
            h2 { "For programs" }
            p { "What callers may ask, as an OpenAPI document with the schemas of all answers: " a href="/openapi.json" { "/openapi.json" } ". The same of this door: " a href="/operator/openapi.json" { "/operator/openapi.json" } "." }
            h2 { "Settings in force" }
            p.quiet {
                "After a reload these wait for the next start, although the table has them at once: of the limits those on connections ("
                (cells::sentence("`connections`, `handshake`, `first_byte`, `head…`, `linger…`, `idle`, `age…`, `write_stall`, `h2_…`"))
                "), " code { "stored_bytes" } " and " code { "idempotency_…" } "."
            }
            (rich::table_of(&self.table(), "Nothing was configured: all settings are defaults of the demo.", now))
        }
    }
}

impl ConfigPage {
    fn reload_rows(&self) -> Vec<Vec<RichCell>> {
        let row = |record: &Map<String, Value>| {
            let get = |name: &str| json_cell(record.get(name));
            let link = RichCell::link(get("seq"), format!("/audit/record?seq={}", get("seq")));
            vec![link, RichCell::text(get("time")), RichCell::text(get("event")), RichCell::text(get("detail"))]
        };
        self.reloads.iter().map(row).collect()
    }
}
