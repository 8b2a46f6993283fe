//! Whether makegate is alive, and whether it is ready: for probes, which have no key.

use std::fmt::Write as _;
use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use http::StatusCode;

use super::problems::{Check, Severity, readiness_problems};
use super::query::PageQuery;
use super::render::typed;
use super::state::OperatorState;

/// `/livez`: an answer is all that it says.
pub(super) async fn livez() -> Response {
    typed("text/plain; charset=utf-8", "ok\n")
}

/// `/readyz`: 200 while reads can be answered, else 503. It lists what is wrong; `?verbose` lists what is well, too. It needs no key, so
/// it names nobody: the overview does.
pub(super) async fn readyz(State(state): State<Arc<OperatorState>>, query: PageQuery) -> Response {
    let problems = readiness_problems(&state);
    let ready = state.gateway.is_ready();
    let mut words = String::new();
    for check in Check::ALL {
        let name = check.as_str();
        let problem = problems
            .iter()
            .find_map(|problem| problem.readiness.filter(|(of, _)| *of == check).zip(Some(problem.severity)));
        let _infallible = match problem {
            None if query.has("verbose") => writeln!(words, "[+] {name}: ok"),
            None => Ok(()),
            Some(((_, why), Severity::Failed)) => writeln!(words, "[-] {name}: failed: {why}"),
            Some(((_, why), Severity::Degraded | Severity::Warning)) => writeln!(words, "[!] {name}: degraded: {why}"),
        };
    }
    words.push_str(if ready { "ready\n" } else { "not ready\n" });
    let mut response = typed("text/plain; charset=utf-8", words);
    if !ready {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    response
}
