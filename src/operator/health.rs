//! Is it alive, is it ready? For probes, which have no key.

use std::fmt::Write as _;

use http::{Response, StatusCode};

use super::query::Query;
use super::render::{Whole, text};
use super::state::OperatorState;
use crate::upstream::BreakerStatus;

/// How one thing that readiness looks at is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Ok,
    /// Worth a look; requests are answered all the same.
    Degraded(&'static str),
    /// No reason to send requests here.
    Failed(&'static str),
}

/// Whether requests should come here.
pub(super) fn is_ready(state: &OperatorState) -> bool {
    !checks(state).iter().any(|(_, state)| matches!(state, State::Failed(_)))
}

/// `/readyz`: 200 while reads can be answered, else 503. It says what is not well; `?verbose` also what is.
pub(super) fn readyz(state: &OperatorState, query: &Query) -> Response<Whole> {
    let checks = checks(state);
    let ready = is_ready(state);
    let mut words = String::new();
    for (name, state) in checks {
        let _infallible = match state {
            State::Ok if query.has("verbose") => writeln!(words, "[+] {name}: ok"),
            State::Ok => Ok(()),
            State::Degraded(why) => writeln!(words, "[!] {name}: degraded: {why}"),
            State::Failed(why) => writeln!(words, "[-] {name}: failed: {why}"),
        };
    }
    words.push_str(if ready { "ready\n" } else { "not ready\n" });
    let mut response = text("text/plain; charset=utf-8", words);
    if !ready {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    response
}

fn checks(state: &OperatorState) -> [(&'static str, State); 5] {
    let gateway = &state.gateway;
    let config = match state.in_force().error {
        None => State::Ok,
        Some(_) => State::Degraded("the last reload failed and the configuration before it is in force; see /config"),
    };
    let log = match (gateway.log.writable(), gateway.log.has_room()) {
        (true, true) if gateway.log.has_lost() => {
            State::Degraded("a segment was damaged while it was written to; see the process log")
        }
        (true, true) => State::Ok,
        (false, true) => State::Degraded("it cannot be written, and writes are refused; see the process log"),
        (_, false) => State::Failed("it cannot be written, and its buffer is full; see the process log"),
    };
    let draining = if gateway.draining() { State::Failed("it is shutting down") } else { State::Ok };
    let upstream = gateway.upstream();
    let upstream = match (upstream.breaker().status(), upstream.breaker().silent()) {
        (BreakerStatus::Closed, 0) => State::Ok,
        (BreakerStatus::Closed, _) => {
            State::Degraded("Make has not answered some operations lately; see the process log")
        }
        (BreakerStatus::Open | BreakerStatus::Probing, _) => State::Degraded("Make could not be reached lately"),
    };
    let token = if gateway.upstream().refuses_token() {
        State::Degraded("Make refuses the gateway's token: replace it")
    } else {
        State::Ok
    };
    [("config", config), ("log", log), ("draining", draining), ("upstream", upstream), ("token", token)]
}
