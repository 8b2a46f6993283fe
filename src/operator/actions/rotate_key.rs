//! Another key for the log's heads.

use std::sync::Arc;

use axum::extract::{Extension, State};
use axum::response::Response;
use serde_json::json;

use super::super::operators::Operator;
use super::super::refusal::OperatorRefusal;
use super::super::render::typed;
use super::super::state::OperatorState;
use crate::door::PeerConnection;

/// `POST /audit/rotate`: from now on another key signs, introduced by the present one. Leaves `event` records.
///
/// # Errors
/// The key cannot be stored, or the event not recorded.
pub(crate) async fn rotate_key(
    State(state): State<Arc<OperatorState>>,
    Extension(peer): Extension<PeerConnection>,
    Extension(operator): Extension<Arc<Operator>>,
) -> Result<Response, OperatorRefusal> {
    let room = state.gateway.log.reserve().ok_or(OperatorRefusal::CannotRecord)?;
    let key = state.gateway.log.rotate_head_key().await.map_err(|error| {
        tracing::error!(%error, "the key of signed heads could not be rotated");
        OperatorRefusal::CannotRecord
    })?;
    let what = format!("had the key of the log's heads rotated; the new one is {key}");
    room.fill(state.record(&operator, &peer, "rotate", &what));
    Ok(typed("application/json", json!({"key": key.to_string()}).to_string()))
}
