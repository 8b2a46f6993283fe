//! `/doubts`: writes that may or may not have taken effect.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use maud::{Markup, html};
use serde::Serialize;

use super::super::html;
use super::super::render::{Page, PageView};
use super::super::state::OperatorState;
use super::super::table::PageTable;
use crate::audit::Doubt;
use crate::reconcile::DoubtProgress;

#[derive(Debug, Serialize)]
struct DoubtsPage {
    doubts: Vec<DoubtRow>,
}

#[derive(Debug, Serialize)]
struct DoubtRow {
    intent: u64,
    request: String,
    /// With microseconds, as in records.
    time: String,
    caller: Arc<str>,
    operation: Arc<str>,
    organization: Option<u64>,
    path: Arc<str>,
    looks: u32,
    why: &'static str,
}

/// All writes in doubt, the oldest first.
pub(crate) async fn doubts(State(state): State<Arc<OperatorState>>, view: PageView) -> Response {
    let policy = state.gateway.policy();
    let of = |doubt: Doubt| {
        let DoubtProgress { looks, why } = state.reconciler.progress(&policy, &doubt);
        DoubtRow {
            intent: doubt.intent,
            request: doubt.request.to_string(),
            time: format!("{:.6}", doubt.time),
            caller: doubt.caller,
            operation: doubt.operation,
            organization: doubt.organization,
            path: doubt.path,
            looks,
            why: why.as_str(),
        }
    };
    view.show(&DoubtsPage { doubts: state.gateway.log.doubts().list().into_iter().map(of).collect() })
}

impl Page for DoubtsPage {
    const TITLE: &str = "Writes in doubt";

    fn table(&self) -> PageTable {
        let columns = &["request", "time", "caller", "operation", "organization", "path", "looks", "why"];
        PageTable::of(columns, &self.doubts)
    }

    fn html(&self) -> Markup {
        html! {
            (html::table(&self.table(), "No write is in doubt: of every write it is known whether it took effect."))
            @if !self.doubts.is_empty() {
                p.quiet { "Look in Make what became of it, then: " code { "makegate doubts settle REQUEST --as done|not-done" } }
            }
        }
    }
}
