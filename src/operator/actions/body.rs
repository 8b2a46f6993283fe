//! Bodies of actions: small, whole and in time.

use std::sync::Arc;

use axum::extract::{FromRequest, Request};
use axum::response::IntoResponse as _;
use http::StatusCode;

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
            _ => OperatorRefusal::BadBody { why: "the body was cut off: send it again".to_owned() },
        })
    }
}
