//! All 25 operations: one table that maps method and path to the operation, as Make's document lists them.

mod billing;
mod invitations;
mod organizations;
mod usage;
mod variables;

use std::time::Instant;

use jiff::Timestamp;
use percent_encoding::percent_decode_str;
use serde_json::{Map, Value, json};

use super::answer::MakeError;
use super::fields::BodyFields;
use super::query::ListQuery;
use super::state::{MakeState, View};

pub(super) use organizations::detail;

/// The prefix of every path that the sandbox answers for Make.
const ROOT: &str = "/api/v2/organizations";

/// One request as the operations see it.
#[derive(Debug)]
pub(super) struct OperationCall {
    pub(super) query: ListQuery,
    /// The object in its body, or why there is none.
    pub(super) body: Result<Map<String, Value>, MakeError>,
    pub(super) now: Instant,
    pub(super) wall: Timestamp,
    /// `license.apiLimit` of organizations without their own.
    pub(super) api_limit: u32,
}

impl OperationCall {
    /// The state a read sees: the zone's, or the current one with `wait=true`.
    fn view(&self) -> View {
        if self.query.flag("wait") { View::Current } else { View::Zone(self.now) }
    }

    fn fields(&self) -> Result<BodyFields<'_>, MakeError> {
        self.body.as_ref().map(BodyFields::new).map_err(MakeError::clone)
    }
}

/// The object in a body. Make reads only what the request declares as JSON.
pub(super) fn object(body: &[u8], is_json: bool) -> Result<Map<String, Value>, MakeError> {
    if body.is_empty() {
        return Err(MakeError::invalid("Missing request body: send a JSON object."));
    }
    if !is_json {
        return Err(MakeError::invalid("The body needs the header content-type: application/json."));
    }
    serde_json::from_slice(body).map_err(|error| MakeError::invalid(format!("The body is not a JSON object: {error}.")))
}

/// A time as Make writes it: UTC with milliseconds.
fn stamp(time: Timestamp) -> String {
    format!("{time:.3}")
}

fn ok() -> Value {
    json!({ "ok": 1 })
}

/// The bucket that a path counts against: an organization's, or the account's (`None`).
pub(super) fn organization_of(path: &str) -> Option<u64> {
    segments(path)?.first().and_then(|segment| id(segment).ok())
}

/// Finds and runs the operation.
pub(super) fn run(state: &mut MakeState, method: &str, path: &str, call: &OperationCall) -> Result<Value, MakeError> {
    let segments = segments(path).ok_or_else(|| MakeError::not_found("The path"))?;
    match (method, segments.as_slice()) {
        ("GET", []) => organizations::list(state, call),
        ("POST", []) => organizations::create(state, call),
        ("GET", ["invitation"]) => invitations::get(state, call),
        ("POST", ["accept-invitation"]) => invitations::accept(state, call),
        ("GET", [org]) => organizations::get(state, call, id(org)?),
        ("PATCH", [org]) => organizations::update(state, call, id(org)?),
        ("DELETE", [org]) => organizations::delete(state, call, id(org)?),
        ("GET", [org, "apps"]) => organizations::apps(state, call, id(org)?),
        ("POST", [org, "invite"]) => invitations::invite(state, call, id(org)?),
        ("GET", [org, "payments"]) => billing::payments(state, call, id(org)?),
        ("POST", [org, "single-payment-create"]) => billing::pay(state, call, id(org)?),
        ("GET", [org, "subscription"]) => billing::subscription(state, call, id(org)?),
        ("POST", [org, "subscription"]) => billing::subscribe(state, call, id(org)?),
        ("PATCH", [org, "subscription"]) => billing::change(state, call, id(org)?),
        ("DELETE", [org, "subscription"]) => billing::cancel(state, call, id(org)?),
        ("POST", [org, "subscription-free"]) => billing::subscribe_free(state, call, id(org)?),
        ("POST", [org, "subscription", "coupon-apply"]) => billing::apply_coupon(state, call, id(org)?),
        ("GET", [org, "variables"]) => variables::list(state, call, id(org)?),
        ("POST", [org, "variables"]) => variables::create(state, call, id(org)?),
        ("PATCH", [org, "variables", name]) => variables::update(state, call, id(org)?, &decoded(name)),
        ("DELETE", [org, "variables", name]) => variables::delete(state, call, id(org)?, &decoded(name)),
        ("GET", [org, "variables", name, "history"]) => variables::history(state, call, id(org)?, &decoded(name)),
        ("GET", [org, "usage"]) => usage::days(state, call, id(org)?),
        ("GET", [org, "feature-controls"]) => usage::feature_controls(state, call, id(org)?),
        ("PATCH", [org, "feature-controls"]) => usage::switch(state, call, id(org)?),
        _ => Err(MakeError::NotFound(format!("{method} {path}"))),
    }
}

/// The segments after [`ROOT`]; `None` for other paths and for a trailing slash, which Make refuses.
fn segments(path: &str) -> Option<Vec<&str>> {
    let rest = path.strip_prefix(ROOT)?;
    match rest.strip_prefix('/') {
        None => rest.is_empty().then(Vec::new),
        Some(rest) => {
            let segments: Vec<&str> = rest.split('/').collect();
            segments.iter().all(|segment| !segment.is_empty()).then_some(segments)
        }
    }
}

/// Parses an id as JavaScript servers do: `011` is 11. What the gateway lets through is judged by this laxer reading.
fn id(segment: &str) -> Result<u64, MakeError> {
    let digits = segment.bytes().all(|b| b.is_ascii_digit());
    segment.parse().ok().filter(|_| digits).ok_or_else(|| MakeError::NotFound(format!("Organization {segment}")))
}

fn decoded(segment: &str) -> String {
    percent_decode_str(segment).decode_utf8_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_taken_apart_strictly() {
        assert_eq!(segments("/api/v2/organizations"), Some(vec![]));
        assert_eq!(segments("/api/v2/organizations/11/usage"), Some(vec!["11", "usage"]));
        for refused in ["/api/v2/organizations/", "/api/v2/organizations/11/", "/api/v2/organizationsx", "/", "/api/v2"]
        {
            assert_eq!(segments(refused), None, "{refused}");
        }
    }

    #[test]
    fn the_bucket_is_the_organization_in_the_path() {
        assert_eq!(organization_of("/api/v2/organizations/11/variables/x"), Some(11));
        assert_eq!(organization_of("/api/v2/organizations/011"), Some(11));
        assert_eq!(organization_of("/api/v2/organizations/invitation"), None);
        assert_eq!(organization_of("/api/v2/organizations"), None);
    }
}
