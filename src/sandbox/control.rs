//! `/sandbox/…`: the sandbox's own HTTP interface, next to Make's paths and without a token.

use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::answer::SandboxAnswer;
use super::exchange::{ReceivedRequest, SandboxCore};
use super::faults::Fault;
use super::query::ListQuery;

/// Default number of requests per page of the list.
const LISTED_DEFAULT: usize = 1_000;
const LISTED_MAX: usize = 100_000;

pub(super) fn is_control(path: &str) -> bool {
    path == "/sandbox" || path.starts_with("/sandbox/")
}

/// Answers one request of the control interface.
pub(super) fn answer(core: &SandboxCore, request: &ReceivedRequest) -> SandboxAnswer {
    let answered = match (&request.method, request.path.as_str()) {
        (&Method::GET, "/sandbox") => Ok(what_it_is(core)),
        (&Method::GET, "/sandbox/received") => received(core, &request.query),
        (&Method::GET, "/sandbox/invitations") => Ok(invitations(core)),
        (&Method::GET, "/sandbox/faults") => Ok(json!({ "faults": core.lock().faults.armed() })),
        (&Method::POST, "/sandbox/faults") => arm(core, request.body.as_deref().unwrap_or_default()),
        (&Method::DELETE, "/sandbox/faults") => {
            core.clear_faults();
            Ok(json!({ "faults": [] }))
        }
        (&Method::POST, "/sandbox/reset") => {
            core.reset();
            Ok(json!({ "reset": true }))
        }
        (method, path) => Err((StatusCode::NOT_FOUND, format!("{method} {path} does not exist: see GET /sandbox."))),
    };
    match answered {
        Ok(body) => SandboxAnswer::json(StatusCode::OK, &body),
        Err((status, why)) => SandboxAnswer::json(status, &json!({ "message": why, "example": example() })),
    }
}

/// A valid body for `POST /sandbox/faults`.
fn example() -> Value {
    json!({ "method": "GET", "path": "/api/v2/organizations/*", "times": 1, "kind": { "latency": { "ms": 500 } } })
}

fn what_it_is(core: &SandboxCore) -> Value {
    let inner = core.lock();
    let ids: Vec<u64> = inner.state.organizations(super::state::View::Current).map(|org| org.id).collect();
    json!({
        "what": "A simulated Make.com Organizations API. Make's paths are below /api/v2/organizations and need the token.",
        "organizations": ids,
        "endpoints": {
            "GET /sandbox/received?after=NUMBER&limit=N": "the received requests, oldest first",
            "GET /sandbox/invitations": "pending invitations with their hashes, which Make sends only by e-mail",
            "GET /sandbox/faults": "the armed faults, with how often they still apply",
            "POST /sandbox/faults": "arm a fault, see fault",
            "DELETE /sandbox/faults": "clear all faults and end hanging requests",
            "POST /sandbox/reset": "reset state, token, quota, faults and the list",
        },
        "fault": {
            "example": example(),
            "method": "a method, or * (the default)",
            "path": "without query; * matches one segment, ** at the end matches any rest",
            "times": "how many requests it applies to (default 1); null: until cleared",
            "kind": [
                { "latency": { "ms": 500 } },
                { "answer": { "status": 503, "body": "…", "content_type": "text/plain", "headers": { "retry-after": "2" }, "effect": false } },
                { "reset": { "effect": true } },
                { "close": { "effect": true } },
                { "cut": { "after_bytes": 20 } },
                { "drip": { "bytes": 10, "every_ms": 100 } },
                { "hang": { "effect": false } },
            ],
            "effect": "true: the request is handled first, so that a write takes effect (default false)",
            "{authorization}": "in an answer's body or headers: replaced by what the request sent as Authorization",
        },
    })
}

fn received(core: &SandboxCore, query: &str) -> Result<Value, (StatusCode, String)> {
    let query = ListQuery::parse(query);
    let number = |name: &str| {
        query
            .get(name)
            .map(str::parse::<u64>)
            .transpose()
            .map_err(|_| (StatusCode::BAD_REQUEST, format!("{name} must be an integer, as in ?after=99&limit=10.")))
    };
    let after = number("after")?;
    let limit = number("limit")?.map_or(LISTED_DEFAULT, |limit| usize::try_from(limit).unwrap_or(LISTED_MAX));
    Ok(json!({ "received": core.lock().log.after(after, limit.min(LISTED_MAX)) }))
}

fn invitations(core: &SandboxCore) -> Value {
    let inner = core.lock();
    let shown = |(hash, invitation): (&String, &super::state::Invitation)| json!({ "hash": hash, "organization": invitation.organization, "email": invitation.user.email });
    json!({ "invitations": inner.state.invitations().map(shown).collect::<Vec<_>>() })
}

fn arm(core: &SandboxCore, body: &[u8]) -> Result<Value, (StatusCode, String)> {
    let fault: Fault = serde_json::from_slice(body).map_err(|error| {
        (StatusCode::BAD_REQUEST, format!("This is not a valid fault: {error}. Write it like the example."))
    })?;
    fault.check().map_err(|why| (StatusCode::BAD_REQUEST, format!("This is not a valid fault: {why}.")))?;
    let mut inner = core.lock();
    inner.faults.arm(fault);
    Ok(json!({ "faults": inner.faults.armed() }))
}
