//! Bodies of actions: small, whole and in time.

use std::time::Duration;

use axum::extract::{FromRequest, Request};
use axum::response::IntoResponse as _;
use http::StatusCode;

use super::super::refusal::OperatorRefusal;

/// A body that takes longer is given up.
const BODY_TIME_MAX: Duration = Duration::from_secs(10);

/// What axum reads from the body, if the body comes in time.
pub(in crate::operator) struct InTime<T>(pub(super) T);

impl<S: Send + Sync, T: FromRequest<S>> FromRequest<S> for InTime<T> {
    type Rejection = OperatorRefusal;

    async fn from_request(request: Request, state: &S) -> Result<Self, OperatorRefusal> {
        let read = tokio::time::timeout(BODY_TIME_MAX, T::from_request(request, state)).await;
        let read = read.map_err(|_| OperatorRefusal::BodySlow)?;
        read.map(Self).map_err(|rejection| match rejection.into_response().status() {
            StatusCode::PAYLOAD_TOO_LARGE => OperatorRefusal::BodyTooLarge,
            _ => OperatorRefusal::BadBody { why: "the body was cut off: send it again".to_owned() },
        })
    }
}
