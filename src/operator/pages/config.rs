//! `/config`: every setting in force and where it comes from, and how the last reload ended.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use jiff::Timestamp;
use maud::{Markup, html};
use serde::Serialize;

use super::super::render::{Page, PageView};
use super::super::state::OperatorState;
use super::super::table::PageTable;
use super::super::{cells, html};
use crate::config::ShownSetting;
use crate::ids::escape_invisible;

/// It shows no secrets, because the configuration has none.
#[derive(Debug, Serialize)]
struct ConfigPage {
    file: Option<String>,
    settings: Vec<ShownSetting>,
    reload: LastReload,
}

#[derive(Debug, Serialize)]
struct LastReload {
    time: Timestamp,
    error: Option<Arc<str>>,
}

/// The configuration in force.
pub(crate) async fn config(State(state): State<Arc<OperatorState>>, view: PageView) -> Response {
    let in_force = state.in_force();
    view.show(&ConfigPage {
        file: state.file.as_ref().map(|file| file.display().to_string()),
        settings: in_force.origins.shown(),
        reload: LastReload { time: in_force.loaded, error: in_force.error.clone() },
    })
}

impl Page for ConfigPage {
    const TITLE: &str = "Configuration";

    fn table(&self) -> PageTable {
        PageTable::of(&["key", "value", "origin"], &self.settings)
    }

    fn html(&self) -> Markup {
        html! {
            @if let Some(error) = &self.reload.error {
                p.warn { "The reload at " (cells::time(self.reload.time)) " failed; the configuration before it is in force:" }
                pre.warn { (escape_invisible(error)) }
            } @else {
                p { "Loaded at " (cells::time(self.reload.time)) @if let Some(file) = &self.file { " from " code { (escape_invisible(file)) } } "." }
            }
            (html::table(&self.table(), "Nothing was configured: all settings are defaults of the demo."))
        }
    }
}
