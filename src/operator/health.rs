//! Whether makegate is alive, and whether it is ready: for probes, which have no key.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use http::StatusCode;

use super::problems::{Check, Problem, Severity, problems, readiness_problems};
use super::query::PageQuery;
use super::refusal::OperatorRefusal;
use super::render::typed;
use super::state::OperatorState;
use crate::upstream::TokenVerdict;

/// `/livez`: an answer is all that it says.
pub(super) async fn livez() -> Response {
    typed("text/plain; charset=utf-8", "ok\n")
}

/// `/readyz`: 200 while reads can be answered, else 503. It lists what is wrong that probes should know; `?verbose` lists everything that the
/// overview calls failed or degraded, some warnings, and what is well, too. It needs no key, so it names nobody: the overview does.
///
/// # Errors
/// A fault of makegate's own.
pub(super) async fn readyz(
    State(state): State<Arc<OperatorState>>,
    query: PageQuery,
) -> Result<Response, OperatorRefusal> {
    let ready = state.gateway.is_ready();
    let mut words = if query.has("verbose") {
        let walked = state.walk(|state| (problems(state, &state.gateway.quota.buckets()), token_word(state)));
        let (problems, token) = walked.await?;
        let well = |check| {
            let word = if check == Check::Token { token } else { "ok" };
            (check != Check::Replicas || state.gateway.replicas.is_some()).then_some(word)
        };
        Check::ALL.map(|check| lines(check, &problems, well(check))).concat()
    } else {
        let problems = readiness_problems(&state);
        Check::ALL.map(|check| lines(check, &problems, None)).concat()
    };
    words.push_str(if ready { "ready\n" } else { "not ready\n" });
    let mut response = typed("text/plain; charset=utf-8", words);
    if !ready {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    Ok(response)
}

/// What is wrong with this, a line each; or how well it is, if that is to be said.
fn lines(check: Check, problems: &[Problem], well: Option<&str>) -> String {
    let name = check.as_str();
    let mut lines: Vec<String> = Vec::new();
    for problem in problems {
        let Some((_, why)) = problem.readiness.filter(|(of, _)| *of == check) else { continue };
        let mark = if problem.severity == Severity::Failed { '-' } else { '!' };
        let line = format!("[{mark}] {name}: {}: {why}\n", problem.severity.as_str());
        if !lines.contains(&line) {
            lines.push(line);
        }
    }
    match well {
        Some(well) if lines.is_empty() => format!("[+] {name}: {well}\n"),
        _ => lines.concat(),
    }
}

/// How well the token is.
fn token_word(state: &OperatorState) -> &'static str {
    match state.gateway.upstream().token_verdict() {
        TokenVerdict::Untried => "not tried yet",
        TokenVerdict::Accepted | TokenVerdict::Refused(_) | TokenVerdict::Replaced(_) => "ok",
    }
}
