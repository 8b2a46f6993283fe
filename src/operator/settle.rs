//! Settling a write in doubt by hand: the operator has looked, and says what became of it.

use std::net::IpAddr;

use bytes::Bytes;
use http::Response;
use http::request::Parts;
use http_body::Body;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::body::read;
use super::refusal::OperatorRefusal;
use super::render::{PageBody, text};
use super::routes::DOUBT;
use super::state::OperatorState;
use crate::audit::Peer;
use crate::ids::RequestId;
use crate::reconcile::settle::{self, NotSettled, Settlement};

const EXPECTED: &str = "write {\"as\": \"done\" or \"not-done\", \"note\": \"how you know\"}";
/// No note is longer.
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

/// `POST /doubts/REQUEST`: the doubt is over when its settlement is on disk; equal writes are held no more.
///
/// # Errors
/// No such doubt; a body that says nothing of the kind; a log that cannot record it.
pub(super) async fn settle<B>(
    state: &OperatorState,
    peer: Option<IpAddr>,
    head: &Parts,
    body: B,
) -> Result<Response<PageBody>, OperatorRefusal>
where
    B: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send,
{
    let request = head.uri.path().strip_prefix(DOUBT).and_then(|id| RequestId::parse(id.as_bytes()));
    let request = request.ok_or(OperatorRefusal::NoDoubt)?;
    let intent = state.gateway.log.doubts().named(&request).ok_or(OperatorRefusal::NoDoubt)?;
    let body = read(body).await?;
    let asked: SettleRequest = serde_json::from_slice(&body)
        .map_err(|error| OperatorRefusal::BadBody { why: format!("{error}: {EXPECTED}") })?;
    if asked.note.len() > NOTE_BYTES_MAX {
        return Err(OperatorRefusal::BadBody { why: format!("a note has at most {NOTE_BYTES_MAX} bytes") });
    }
    let verdict = Settlement {
        done: matches!(asked.r#as, SettledAs::Done),
        peer: Some(Peer::of(peer)),
        detail: (!asked.note.is_empty()).then(|| asked.note.into()),
        upstream_status: None,
    };
    settle::settle(&state.gateway, intent, verdict).await.map_err(|not| match not {
        NotSettled::NoDoubt => OperatorRefusal::NoDoubt,
        NotSettled::CannotRecord => OperatorRefusal::CannotRecord,
    })?;
    Ok(text("application/json", json!({"request": request.as_str(), "as": asked.r#as}).to_string()))
}
