//! Settling a write in doubt by hand: the operator has looked, and says what became of it.

use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Extension, Path, State};
use axum::response::Response;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::super::operators::Operator;
use super::super::refusal::OperatorRefusal;
use super::super::render::typed;
use super::super::state::OperatorState;
use super::body::InTime;
use crate::audit::Peer;
use crate::door::PeerConnection;
use crate::ids::RequestId;
use crate::reconcile::settle::{self, NotSettled, Settlement};

const EXPECTED: &str = "write {\"as\": \"done\" or \"not-done\", \"note\": \"how you know\"}";
const NOTE_BYTES_MAX: usize = 4096;

/// What became of the write.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
enum SettledAs {
    Done,
    NotDone,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SettleRequest {
    r#as: SettledAs,
    #[serde(default)]
    note: String,
}

/// `POST /doubts/REQUEST`: ends the doubt once its settlement is on disk. From then on equal writes pass again.
///
/// # Errors
/// No such doubt; a body of another shape; a log that cannot record it.
pub(in crate::operator) async fn settle(
    State(state): State<Arc<OperatorState>>,
    Extension(peer): Extension<PeerConnection>,
    Extension(operator): Extension<Arc<Operator>>,
    request: Result<Path<String>, PathRejection>,
    InTime(body): InTime<Bytes>,
) -> Result<Response, OperatorRefusal> {
    let request = request.ok().and_then(|Path(id)| RequestId::parse(id.as_bytes())).ok_or(OperatorRefusal::NoDoubt)?;
    let intent = state.gateway.log.doubts().find_by_request(&request).ok_or(OperatorRefusal::NoDoubt)?;
    let asked: SettleRequest = serde_json::from_slice(&body)
        .map_err(|error| OperatorRefusal::BadBody { why: format!("{error}: {EXPECTED}") })?;
    if asked.note.len() > NOTE_BYTES_MAX {
        return Err(OperatorRefusal::BadBody { why: format!("a note has at most {NOTE_BYTES_MAX} bytes") });
    }
    let verdict = Settlement {
        done: matches!(asked.r#as, SettledAs::Done),
        operator: Some(operator.name().clone()),
        key: Some(operator.key_id()),
        peer: Some(Peer::of(peer.address)),
        detail: (!asked.note.is_empty()).then(|| asked.note.into()),
        upstream_status: None,
    };
    settle::settle(&state.gateway, intent, verdict).await.map_err(|not| match not {
        NotSettled::NoDoubt => OperatorRefusal::NoDoubt,
        NotSettled::CannotRecord => OperatorRefusal::CannotRecord,
    })?;
    Ok(typed("application/json", json!({"request": request.as_str(), "as": asked.r#as}).to_string()))
}
