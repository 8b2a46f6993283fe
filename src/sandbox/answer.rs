//! The sandbox's answers: JSON, Make's errors in Make's shapes, and its plain-text 429.

use bytes::Bytes;
use http::StatusCode;
use serde_json::{Value, json};

/// Make's text for a 429, from its "Rate limiting" page; plain text as measured on the live API.
const QUOTA_TEXT: &str = "Requests limit for organization exceeded, please try again later.";

const JSON: &str = "application/json; charset=utf-8";

/// A complete answer, before faults change how it is sent.
#[derive(Clone, Debug)]
pub(super) struct SandboxAnswer {
    pub(super) status: StatusCode,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Bytes,
}

impl SandboxAnswer {
    pub(super) fn json(status: StatusCode, body: &Value) -> Self {
        Self::text(status, JSON, body.to_string())
    }

    pub(super) fn text(status: StatusCode, content_type: &str, body: String) -> Self {
        Self { status, headers: vec![("content-type".to_owned(), content_type.to_owned())], body: Bytes::from(body) }
    }

    /// Make's 429: plain text, or JSON if the settings say so. No `Retry-After`, because Make documents none.
    pub(super) fn over_quota(as_json: bool) -> Self {
        let status = StatusCode::TOO_MANY_REQUESTS;
        if as_json {
            return Self::error(status, QUOTA_TEXT, QUOTA_TEXT, "SC429");
        }
        Self::text(status, "text/plain; charset=utf-8", QUOTA_TEXT.to_owned())
    }

    /// The answer of Make's edge to a body above 2.1 MB: one field, no code.
    pub(super) fn too_large() -> Self {
        Self::json(StatusCode::PAYLOAD_TOO_LARGE, &json!({ "detail": "request entity too large" }))
    }

    /// A body in Make's error shape for any status, for faults that define none.
    pub(super) fn shaped(status: StatusCode) -> Self {
        let reason = status.canonical_reason().unwrap_or("Error");
        Self::error(status, reason, reason, &format!("SC{}", status.as_u16()))
    }

    fn error(status: StatusCode, detail: &str, message: &str, code: &str) -> Self {
        Self::json(status, &json!({ "detail": detail, "message": message, "code": code }))
    }
}

/// Why an operation was refused, in Make's terms. The codes are those of Make's document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum MakeError {
    /// 401: no token, another token, or a scheme that is neither `Token` nor `Bearer`.
    NotLoggedIn,
    /// 400 `SC400` with one suberror per mistake in the request.
    Invalid(Vec<String>),
    /// 403 `IM002`: the token may not do this, such as delete something in another zone.
    Denied(&'static str),
    /// 404: absent, hidden, or not part of the plan.
    NotFound(String),
    /// 406 `IM004`: `confirmed=true` is missing.
    Unconfirmed(&'static str),
    /// 400 `IM011`: a collection has reached the sandbox's limit.
    Full(&'static str),
}

impl MakeError {
    pub(super) fn not_found(what: &str) -> Self {
        Self::NotFound(what.to_owned())
    }

    pub(super) fn invalid(why: impl Into<String>) -> Self {
        Self::Invalid(vec![why.into()])
    }

    pub(super) fn answer(&self) -> SandboxAnswer {
        let (status, detail, message, code) = match self {
            Self::NotLoggedIn => {
                let body = json!({ "message": "User is not logged in.", "code": "IM015" });
                return SandboxAnswer::json(StatusCode::UNAUTHORIZED, &body);
            }
            Self::Invalid(errors) => {
                let suberrors: Vec<Value> =
                    errors.iter().map(|error| json!({ "message": error, "name": "Error" })).collect();
                let detail = format!("Validation failed for {} parameter(s).", errors.len());
                let body =
                    json!({ "detail": detail, "message": "Bad Request", "code": "SC400", "suberrors": suberrors });
                return SandboxAnswer::json(StatusCode::BAD_REQUEST, &body);
            }
            Self::Denied(why) => (StatusCode::FORBIDDEN, (*why).to_owned(), "Permission denied", "IM002"),
            Self::NotFound(what) => (StatusCode::NOT_FOUND, format!("{what} was not found."), "Not Found", "SC404"),
            Self::Unconfirmed(why) => {
                let message = "The action must be confirmed with confirmed=true.";
                (StatusCode::NOT_ACCEPTABLE, (*why).to_owned(), message, "IM004")
            }
            Self::Full(what) => {
                let detail = format!("The sandbox cannot hold more {what}.");
                (StatusCode::BAD_REQUEST, detail, "Limit exceeded", "IM011")
            }
        };
        SandboxAnswer::error(status, &detail, message, code)
    }
}
