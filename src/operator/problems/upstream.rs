//! Make, and the token that it wants.

use super::super::state::OperatorState;
use super::problem::{Check, Problem, Severity};
use crate::upstream::{BreakerStatus, TokenVerdict};

/// So many 5xx in a row are more than a hiccup.
const ERROR_RUN_MIN: u64 = 5;
/// The most operations that a line names.
const NAMED_MAX: usize = 5;

pub(super) fn upstream(state: &OperatorState) -> Option<Problem> {
    let upstream = state.gateway.upstream();
    let (status, silent) = (upstream.breaker().status(), upstream.breaker().silent_operations());
    match status {
        BreakerStatus::Open | BreakerStatus::Probing => {
            let what = if status == BreakerStatus::Open {
                "Make cannot be reached: nothing is sent for a while (the breaker is open). Reads are answered from memory where they may be, \
                 and everything else is refused."
            } else {
                "Make could not be reached when it was tried last. Nothing tries it before the next request that memory cannot answer (the \
                 breaker is probing)."
            };
            let spoils = (Check::Upstream, "Make could not be reached lately");
            let problem = Problem::spoiling(spoils, Severity::Degraded, "upstream-down", what);
            let problem = problem.since(upstream.unreachable_since().map(|since| state.wall_at(since)));
            Some(problem.todo(upstream_todo(state), "/audit?refusal=MG209"))
        }
        BreakerStatus::Closed if silent > 0 => {
            let parts: Vec<_> =
                upstream.breaker().some_silent_operations(NAMED_MAX).iter().map(ToString::to_string).collect();
            let more = if silent > parts.len() { format!(" and {} more", silent - parts.len()) } else { String::new() };
            let what = format!(
                "Make has not answered these lately, and they are not sent for a while: {}{more}.",
                parts.join(", ")
            );
            let why = "Make has not answered some operations lately; see the process log";
            let todo =
                "Look at Make's status page. makegate asks again by itself; what the requests got is in the log.";
            let problem = Problem::spoiling((Check::Upstream, why), Severity::Degraded, "operations-silent", what);
            Some(problem.todo(todo, "/audit?refusal=MG209"))
        }
        BreakerStatus::Closed => None,
    }
}

fn upstream_todo(state: &OperatorState) -> String {
    format!(
        "Look at Make's status page, then at this machine's way to {} (DNS, network, firewall). Once it is back, send a read that is not in \
         memory: the first request that Make answers ends this.",
        state.gateway.policy().config.upstream.url.authority
    )
}

pub(super) fn token(state: &OperatorState) -> Option<Problem> {
    let (since, what, why, todo) = match state.gateway.upstream().token_verdict() {
        TokenVerdict::Untried | TokenVerdict::Accepted => return None,
        TokenVerdict::Refused(since) => (
            since,
            "Make refuses the gateway's token with 401: reads are answered from memory where they may be, and everything else gets 502 \
             (MG204). The callers' keys are fine.",
            "Make refuses the gateway's token: replace it",
            "Make a new API token in Make and put it where upstream.token_file or upstream.token_env says; a changed file is read again \
             within 5 s.",
        ),
        TokenVerdict::Replaced(since) => (
            since,
            "Make refused the gateway's token with 401. Another token is in force now, and has not been tried yet.",
            "Make refused the token before this one, which was not tried yet: send a read",
            "Send a read (another token has emptied the cache), and see whether Make takes it.",
        ),
    };
    let problem = Problem::spoiling((Check::Token, why), Severity::Degraded, "token-refused", what);
    Some(problem.since(Some(state.wall_at(since))).todo(todo, "/audit?refusal=MG204"))
}

/// What the breaker has not noticed.
pub(super) fn warnings(state: &OperatorState) -> Option<Problem> {
    let upstream = state.gateway.upstream();
    if upstream.breaker().status() != BreakerStatus::Closed {
        return None;
    }
    if let Some(run) = state.gateway.metrics.error_run().filter(|run| run.attempts >= ERROR_RUN_MIN) {
        let what = format!(
            "Make answers with errors: the last {} answers were 5xx, the last one {}.",
            run.attempts,
            run.status.as_u16()
        );
        let todo = "Look at Make's status page. Reads are answered from memory where they may be; writes that got a 5xx may be in doubt.";
        let spoils = (Check::Upstream, "Make answers with errors (5xx)");
        let problem = Problem::spoiling(spoils, Severity::Degraded, "upstream-errors", what);
        return Some(problem.since(Some(state.wall_at(run.since))).todo(todo, "/audit?upstream_status=5xx"));
    }
    let since = upstream.unreachable_since()?;
    let what = "No connection to Make could be opened when it was tried last.";
    let spoils = (Check::Upstream, "no connection to Make could be opened when it was tried last");
    let problem = Problem::spoiling(spoils, Severity::Warning, "upstream-unreachable", what);
    Some(problem.since(Some(state.wall_at(since))).todo(upstream_todo(state), "/audit?refusal=MG201"))
}
