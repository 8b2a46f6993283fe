//! `/explain`: what the gateway would do with a request, and why. Spends nothing.

use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use http::StatusCode;
use jiff::Timestamp;
use maud::{Markup, html};
use serde::Serialize;

use super::super::query::PageQuery;
use super::super::refusal::OperatorRefusal;
use super::super::render::{Page, PageFormat, PageView};
use super::super::state::OperatorState;
use super::super::table::PageTable;
use super::titles::title_of;
use crate::config;
use crate::gateway::explain::{self, ExplainedStep, Explanation};
use crate::gateway::refusal::capital;
use crate::ids::escape_invisible;

/// The methods of operations; HEAD is answered as its GET.
const METHODS: [&str; 5] = ["GET", "POST", "PATCH", "PUT", "DELETE"];
const PARAMETERS: [&str; 3] = ["caller", "method", "target"];

#[derive(Debug, Serialize)]
struct ExplainPage {
    /// `None`: the form is still empty.
    #[serde(flatten)]
    explanation: Option<Explanation>,
    #[serde(skip)]
    query: PageQuery,
    #[serde(skip)]
    callers: Vec<Arc<str>>,
    /// What is said of a caller that nobody knows.
    #[serde(skip)]
    unknown: Option<String>,
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
    let policy = state.gateway.policy();
    let callers: Vec<_> = policy.callers.iter().map(|caller| caller.config.name.clone()).collect();
    if let Some(caller) = caller.filter(|caller| policy.caller(caller).is_none()) {
        let why = config::unknown_caller(caller, callers.iter().map(|known| &**known));
        if view.format != PageFormat::Html {
            return Err(OperatorRefusal::UnknownCaller { why });
        }
        let page = ExplainPage { explanation: None, query: query.clone(), callers, unknown: Some(why) };
        return Ok((StatusCode::BAD_REQUEST, view.show(&page)).into_response());
    }
    let explanation = match (caller, method.or(Some("GET")), target) {
        (Some(caller), Some(method), Some(target)) => {
            Some(explain::explain(&policy, Some(&state.gateway), caller, method, target))
        }
        _ if view.format == PageFormat::Html => None,
        _ => {
            let why = "write ?caller=NAME&method=GET&target=/api/v2/…, with the target percent-encoded";
            return Err(OperatorRefusal::BadParameter { why: why.to_owned() });
        }
    };
    Ok(view.show(&ExplainPage { explanation, query: query.clone(), callers, unknown: None }))
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

    fn html(&self, _: Timestamp) -> Markup {
        html! {
            (self.form())
            @if let Some(explanation) = &self.explanation {
                (verdict(explanation))
                ol.steps {
                    @for (at, step) in explanation.steps.iter().enumerate() {
                        (step_item(step, at + 1 == explanation.steps.len()))
                    }
                }
            } @else if let Some(unknown) = &self.unknown {
                p.warn { (escape_invisible(&capital(unknown))) }
            } @else {
                p.empty { "Name a caller and a request: its steps appear here. Nothing is sent or spent." }
            }
        }
    }
}

impl ExplainPage {
    fn form(&self) -> Markup {
        let parameter = |name: &str| self.query.get(name).unwrap_or_default();
        let (caller, method) = (parameter("caller"), parameter("method"));
        let is_gone = !caller.is_empty() && !self.callers.iter().any(|known| **known == *caller);
        let is_odd = !method.is_empty() && !METHODS.contains(&method);
        html! {
            form method="get" action="/explain" {
                label {
                    "caller"
                    select name="caller" required {
                        @if caller.is_empty() { option value="" selected { "choose one" } }
                        @for known in &self.callers { option value=(known) selected[**known == *caller] { (known) } }
                        @if is_gone { option value=(caller) selected { (caller) " (unknown)" } }
                    }
                }
                label {
                    "method"
                    select name="method" {
                        @for known in METHODS { option value=(known) selected[known == method] { (known) } }
                        @if is_odd { option value=(method) selected { (method) } }
                    }
                }
                label { "target" input name="target" value=(parameter("target")) placeholder="/api/v2/organizations" size="48" required; }
                button type="submit" { "Explain" }
            }
        }
    }
}

fn verdict(explanation: &Explanation) -> Markup {
    html! {
        p {
            "Verdict: " strong { (explanation.verdict) }
            @if let (Some(status), Some(code)) = (explanation.status, explanation.code) {
                ", " (status) " " a href={ "/audit?refusal=" (code) } { (code) } " (" (title_of(code)) ")"
            }
        }
    }
}

/// `decides`: it is the last step that the request comes to.
fn step_item(step: &ExplainedStep, decides: bool) -> Markup {
    let class = match step.verdict {
        "refuse" => "warn",
        _ => "quiet",
    };
    html! {
        li.decides[decides] aria-current=[decides.then_some("step")] {
            strong { (step.step) } " " span class=(class) { (step.verdict) } ": " (escape_invisible(&step.why))
            @if decides { " " em { "This step decides." } }
        }
    }
}
