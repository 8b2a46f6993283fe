//! `/explain`: what the gateway would do with a request, and why. Spends nothing.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use maud::{Markup, html};
use serde::Serialize;

use super::super::html;
use super::super::query::PageQuery;
use super::super::refusal::OperatorRefusal;
use super::super::render::{Page, PageFormat, PageView};
use super::super::state::OperatorState;
use super::super::table::PageTable;
use crate::gateway::explain::{self, Explanation};

const PARAMETERS: [&str; 3] = ["caller", "method", "target"];

#[derive(Debug, Serialize)]
struct ExplainPage {
    /// `None`: the form is still empty.
    #[serde(flatten)]
    explanation: Option<Explanation>,
    #[serde(skip)]
    query: PageQuery,
}

/// Explains what the query asks for.
///
/// # Errors
/// A parameter is unknown or missing. People get the form instead of the latter.
pub(crate) async fn explain(
    State(state): State<Arc<OperatorState>>,
    view: PageView,
) -> Result<Response, OperatorRefusal> {
    let query = &view.query;
    query.allow_only(&PARAMETERS)?;
    let [caller, method, target] = PARAMETERS.map(|name| query.get(name));
    let explanation = match (caller, method.or(Some("GET")), target) {
        (Some(caller), Some(method), Some(target)) => {
            Some(explain::explain(&state.gateway.policy(), Some(&state.gateway), caller, method, target))
        }
        _ if view.format == PageFormat::Html => None,
        _ => {
            let why = "write ?caller=NAME&method=GET&target=/api/v2/…, with the target percent-encoded";
            return Err(OperatorRefusal::BadParameter { why: why.to_owned() });
        }
    };
    Ok(view.show(&ExplainPage { explanation, query: query.clone() }))
}

impl Page for ExplainPage {
    const TITLE: &str = "Explain";

    fn table(&self) -> PageTable {
        let steps = self.explanation.as_ref().map_or(&[][..], |explanation| &explanation.steps);
        PageTable::of(&["step", "verdict", "why"], steps)
    }

    fn has_data(&self) -> bool {
        self.explanation.is_some()
    }

    fn html(&self) -> Markup {
        let parameter = |name: &str| self.query.get(name).unwrap_or_default();
        html! {
            form method="get" action="/explain" {
                label { "caller" input name="caller" value=(parameter("caller")) required; }
                label { "method" input name="method" value=(parameter("method")) placeholder="GET" size="8"; }
                label { "target" input name="target" value=(parameter("target")) placeholder="/api/v2/organizations" size="40" required; }
                button type="submit" { "Explain" }
            }
            @if let Some(explanation) = &self.explanation {
                p {
                    "Verdict: " strong { (explanation.verdict) }
                    @if let (Some(status), Some(code)) = (explanation.status, explanation.code) { ", " (status) " " (code) }
                }
            }
            (html::table(&self.table(), "Name a caller and a request: its steps appear here. Nothing is sent or spent."))
        }
    }
}
