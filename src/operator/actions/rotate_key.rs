//! Another key for the log's heads.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use serde_json::json;

use super::super::refusal::OperatorRefusal;
use super::super::render::typed;
use super::super::state::OperatorState;

/// `POST /audit/rotate`: from now on another key signs, introduced by the present one. Leaves an `event` record.
///
/// # Errors
/// The key cannot be stored, or the event not recorded.
pub(crate) async fn rotate_key(State(state): State<Arc<OperatorState>>) -> Result<Response, OperatorRefusal> {
    let key = state.gateway.log.rotate_head_key().await.map_err(|error| {
        tracing::error!(%error, "the key of signed heads could not be rotated");
        OperatorRefusal::CannotRecord
    })?;
    Ok(typed("application/json", json!({"key": key.to_string()}).to_string()))
}
