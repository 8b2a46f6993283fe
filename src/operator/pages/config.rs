//! `/config`: every setting in force and where it comes from, and how the last reload ended.

use std::sync::Arc;

use jiff::Timestamp;
use maud::{Markup, html};
use serde::Serialize;

use super::super::html;
use super::super::render::{Page, PageTable};
use super::super::state::OperatorState;
use crate::config::ShownSetting;
use crate::ids::escape_invisible;

/// The page. It holds no secret: the configuration holds none.
#[derive(Debug, Serialize)]
pub(crate) struct ConfigPage {
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
pub(crate) fn config(state: &OperatorState) -> ConfigPage {
    let in_force = state.in_force();
    ConfigPage {
        file: state.file.as_ref().map(|file| file.display().to_string()),
        settings: in_force.origins.shown(),
        reload: LastReload { time: in_force.loaded, error: in_force.error.clone() },
    }
}

impl Page for ConfigPage {
    const TITLE: &str = "Configuration";
    const PATH: &str = "/config";

    fn table(&self) -> PageTable {
        let row = |setting: &ShownSetting| vec![setting.key.clone(), setting.value.clone(), setting.origin.clone()];
        PageTable { columns: &["key", "value", "origin"], rows: self.settings.iter().map(row).collect() }
    }

    fn html(&self) -> Markup {
        html! {
            @if let Some(error) = &self.reload.error {
                p.warn { "The reload at " (format!("{:.0}", self.reload.time)) " failed; the configuration before it is in force:" }
                pre.warn { (escape_invisible(error)) }
            } @else {
                p { "Loaded at " (format!("{:.0}", self.reload.time)) @if let Some(file) = &self.file { " from " code { (escape_invisible(file)) } } "." }
            }
            (html::table(&self.table(), "Nothing was configured: all settings are defaults of the demo."))
        }
    }
}
