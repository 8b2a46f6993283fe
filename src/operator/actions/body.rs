//! Bodies of actions: small, whole and in time.

use std::fmt::Display;
use std::sync::Arc;

use axum::extract::{FromRequest, Request};
use axum::response::IntoResponse as _;
use http::StatusCode;
use serde::de::DeserializeOwned;

use super::super::refusal::OperatorRefusal;
use super::super::state::OperatorState;

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
