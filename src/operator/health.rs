//! Whether makegate is alive, and whether it is ready: for probes, which have no key.

use std::fmt::Write as _;
use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use http::StatusCode;

use super::query::PageQuery;
use super::render::typed;
use super::state::OperatorState;
use crate::upstream::BreakerStatus;

/// The state of one thing that readiness depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CheckState {
    Ok,
    /// Worth a look; requests are answered all the same.
    Degraded(&'static str),
    /// No reason to send requests here; see [`Gateway::is_ready`](crate::gateway::Gateway::is_ready).
    Failed(&'static str),
}

/// `/livez`: an answer is all that it says.
pub(super) async fn livez() -> Response {
    typed("text/plain; charset=utf-8", "ok\n")
}

/// `/readyz`: 200 while reads can be answered, else 503. It lists what is wrong; `?verbose` lists what is well, too.
pub(super) async fn readyz(State(state): State<Arc<OperatorState>>, query: PageQuery) -> Response {
    let checks = checks(&state);
    let ready = state.gateway.is_ready();
    let mut words = String::new();
    for (name, state) in checks {
        let _infallible = match state {
            CheckState::Ok if query.has("verbose") => writeln!(words, "[+] {name}: ok"),
            CheckState::Ok => Ok(()),
            CheckState::Degraded(why) => writeln!(words, "[!] {name}: degraded: {why}"),
            CheckState::Failed(why) => writeln!(words, "[-] {name}: failed: {why}"),
        };
    }
    words.push_str(if ready { "ready\n" } else { "not ready\n" });
    let mut response = typed("text/plain; charset=utf-8", words);
    if !ready {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    response
}

fn checks(state: &OperatorState) -> [(&'static str, CheckState); 6] {
    let gateway = &state.gateway;
    let config = match state.in_force().error {
        None => CheckState::Ok,
        Some(_) => {
            CheckState::Degraded("the last reload failed and the configuration before it is in force; see /config")
        }
    };
    let log = match (gateway.log.writable(), gateway.log.has_room()) {
        (true, true) if gateway.log.has_lost() => {
            CheckState::Degraded("a segment was damaged while it was written to; see the process log")
        }
        (true, true) => CheckState::Ok,
        (false, true) => CheckState::Degraded("it cannot be written, and writes are refused; see the process log"),
        (_, false) => CheckState::Failed("it cannot be written, and its buffer is full; see the process log"),
    };
    let doubts = if gateway.log.doubts().room().is_nearly_full() {
        CheckState::Degraded(
            "writes in doubt use up most of limits.doubts, and callers beyond their share are refused writes: settle \
             some; see /doubts",
        )
    } else {
        CheckState::Ok
    };
    let draining = if gateway.is_draining() { CheckState::Failed("it is shutting down") } else { CheckState::Ok };
    let upstream = gateway.upstream();
    let upstream = match (upstream.breaker().status(), upstream.breaker().silent_operations()) {
        (BreakerStatus::Closed, 0) => CheckState::Ok,
        (BreakerStatus::Closed, _) => {
            CheckState::Degraded("Make has not answered some operations lately; see the process log")
        }
        (BreakerStatus::Open | BreakerStatus::Probing, _) => CheckState::Degraded("Make could not be reached lately"),
    };
    let token = if gateway.upstream().refuses_token() {
        CheckState::Degraded("Make refuses the gateway's token: replace it")
    } else {
        CheckState::Ok
    };
    [
        ("config", config),
        ("log", log),
        ("draining", draining),
        ("upstream", upstream),
        ("token", token),
        ("doubts", doubts),
    ]
}
