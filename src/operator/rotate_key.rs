//! Another key for the log's heads.

use http::Response;
use serde_json::json;

use super::refusal::OperatorRefusal;
use super::render::{PageBody, text};
use super::state::OperatorState;

/// `POST /audit/rotate`: from now on another key signs, introduced by the present one. Leaves an `event` record.
///
/// # Errors
/// The key cannot be stored, or the event not recorded.
pub(super) async fn rotate(state: &OperatorState) -> Result<Response<PageBody>, OperatorRefusal> {
    let key = state.gateway.log.rotate_head_key().await.map_err(|error| {
        tracing::error!(%error, "the key of signed heads could not be rotated");
        OperatorRefusal::CannotRecord
    })?;
    Ok(text("application/json", json!({"key": key.to_string()}).to_string()))
}
