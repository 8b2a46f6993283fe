//! Bodies of actions: small, whole and in time.

use std::fmt::Display;
use std::sync::Arc;

use axum::extract::{Form, FromRequest, Request};
use axum::response::IntoResponse as _;
use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use serde::de::DeserializeOwned;

use super::super::query::PageQuery;
use super::super::refusal::OperatorRefusal;
use super::super::state::OperatorState;

const FORM: &str = "application/x-www-form-urlencoded";

/// What axum reads from the body, if the body comes within `limits.body`.
pub(in crate::operator) struct InTime<T>(pub(super) T);

impl<T: FromRequest<Arc<OperatorState>>> FromRequest<Arc<OperatorState>> for InTime<T> {
    type Rejection = OperatorRefusal;

    async fn from_request(request: Request, state: &Arc<OperatorState>) -> Result<Self, OperatorRefusal> {
        let limit = state.gateway.policy().limits().body;
        let read = state.gateway.clock.timeout(limit, T::from_request(request, state)).await;
        let read = read.ok_or(OperatorRefusal::BodySlow)?;
        read.map(Self).map_err(|rejection| match rejection.into_response().status() {
            StatusCode::PAYLOAD_TOO_LARGE => OperatorRefusal::BodyTooLarge,
            _ => bad_body("the body was cut off", "send it again"),
        })
    }
}

/// The body of an action that a page has a form for.
pub(super) enum ActionBody {
    Json(Bytes),
    Form(PageQuery),
}

/// Reads it. What begins like a JSON object is one: `curl -d` calls whatever it sends a form.
///
/// # Errors
/// It is too large, or does not come whole or in time; a form is not UTF-8.
pub(super) async fn read(request: Request, state: &Arc<OperatorState>) -> Result<ActionBody, OperatorRefusal> {
    let (head, body) = request.into_parts();
    let is_form = media_type(&head.headers) == FORM;
    let InTime(body) = InTime::<Bytes>::from_request(Request::from_parts(head.clone(), body), state).await?;
    if !is_form || body.trim_ascii_start().starts_with(b"{") {
        return Ok(ActionBody::Json(body));
    }
    let InTime(Form(form)) =
        InTime::<Form<PageQuery>>::from_request(Request::from_parts(head, body.into()), state).await?;
    form.require_utf8().map(ActionBody::Form)
}

/// Refuses bodies that are neither JSON nor a form. Without `Content-Type` it is taken for JSON.
///
/// # Errors
/// [`OperatorRefusal::NotJson`].
pub(super) fn require_json_or_form(headers: &HeaderMap) -> Result<(), OperatorRefusal> {
    if matches!(&*media_type(headers), "application/json" | FORM) { Ok(()) } else { Err(OperatorRefusal::NotJson) }
}

fn media_type(headers: &HeaderMap) -> String {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("application/json");
    value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// Reads a JSON body; `instead` is what to write if it has another shape.
///
/// # Errors
/// What is wrong with it.
pub(super) fn parse<T: DeserializeOwned>(body: &[u8], instead: &str) -> Result<T, OperatorRefusal> {
    // serde_json names line, column and fields, which are the operator's own.
    serde_json::from_slice(body).map_err(|wrong| bad_body(wrong, instead))
}

/// Says what is wrong with a body, and what to write instead.
pub(super) fn bad_body(wrong: impl Display, instead: &str) -> OperatorRefusal {
    OperatorRefusal::BadBody { why: format!("{wrong}; {instead}") }
}
