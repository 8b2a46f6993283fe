//! Settling a write in doubt by hand: the operator has looked, and says what became of it.

use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Extension, FromRequest, Path, Request, State};
use axum::response::{IntoResponse as _, Redirect, Response};
use bytes::Bytes;
use futures_util::{StreamExt as _, future, stream};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::super::operators::Operator;
use super::super::query::encode;
use super::super::refusal::OperatorRefusal;
use super::super::render::typed;
use super::super::state::OperatorState;
use super::body::{self, ActionBody, InTime, bad_body};
use crate::audit::{Doubt, Peer};
use crate::door::PeerConnection;
use crate::ids::RequestId;
use crate::reconcile::elsewhere::{doubt_elsewhere_of, doubts_elsewhere, settle_elsewhere};
use crate::reconcile::settle::{self, NotSettled, Settlement};

const EXPECTED: &str = "write {\"as\": \"done\" or \"not-done\", \"note\": \"how you know\"}";
const EXPECTED_OF_ALL: &str = "write {\"caller\": \"NAME\", \"as\": \"done\" or \"not-done\", \"note\": \"how you know\"}, and \"operation\" or \"before\" (a time) to settle only some";
const NOTE_BYTES_MAX: usize = 4096;
/// Number of settlements that wait for the disk together.
const SETTLED_AT_ONCE: usize = 64;

/// What became of the write.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
enum SettledAs {
    Done,
    NotDone,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::operator) struct SettleRequest {
    r#as: SettledAs,
    note: Option<String>,
    /// It came from the form of the page of doubts.
    #[serde(skip)]
    is_form: bool,
}

impl FromRequest<Arc<OperatorState>> for SettleRequest {
    type Rejection = OperatorRefusal;

    async fn from_request(request: Request, state: &Arc<OperatorState>) -> Result<Self, OperatorRefusal> {
        match body::read(request, state).await? {
            ActionBody::Form(form) => {
                let settled_as = match form.get("as") {
                    Some("done") => SettledAs::Done,
                    Some("not-done") => SettledAs::NotDone,
                    Some(_) | None => return Err(bad_body("the form says neither done nor not-done", EXPECTED)),
                };
                Ok(Self { r#as: settled_as, note: form.get("note").map(str::to_owned), is_form: true })
            }
            ActionBody::Json(body) => body::parse(&body, EXPECTED),
        }
    }
}

/// Which writes in doubt to settle, and as what.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SettleAllRequest {
    caller: String,
    operation: Option<String>,
    before: Option<Timestamp>,
    r#as: SettledAs,
    note: Option<String>,
}

impl SettleAllRequest {
    fn is_meant(&self, doubt: &Doubt) -> bool {
        *doubt.caller == *self.caller
            && self.operation.as_ref().is_none_or(|operation| *doubt.operation == **operation)
            && self.before.is_none_or(|before| doubt.time < before)
    }
}

fn verdict(
    (peer, operator): (&PeerConnection, &Operator),
    settled_as: SettledAs,
    note: Option<String>,
) -> Result<Settlement, OperatorRefusal> {
    let note = note.unwrap_or_default();
    if note.len() > NOTE_BYTES_MAX {
        return Err(bad_body(format!("the note has more than {NOTE_BYTES_MAX} bytes"), "write a shorter one"));
    }
    Ok(Settlement {
        done: matches!(settled_as, SettledAs::Done),
        operator: Some(operator.name().clone()),
        key: Some(operator.key_id()),
        peer: Some(Peer::of(peer.address)),
        detail: (!note.is_empty()).then(|| note.into()),
        upstream_status: None,
    })
}

const fn refusal(not: NotSettled) -> OperatorRefusal {
    match not {
        NotSettled::NoDoubt => OperatorRefusal::NoDoubt,
        NotSettled::CannotRecord => OperatorRefusal::CannotRecord,
        NotSettled::NoEngine => OperatorRefusal::NoEngine,
    }
}

/// `POST /doubts`: ends all doubts of a caller, or those of one operation or from before a time. Each has a settlement
/// of its own on disk. The answer says how many were settled, and how many are left because the log could not record
/// it.
///
/// # Errors
/// A body of another shape.
pub(in crate::operator) async fn settle_all(
    State(state): State<Arc<OperatorState>>,
    Extension(peer): Extension<PeerConnection>,
    Extension(operator): Extension<Arc<Operator>>,
    InTime(body): InTime<Bytes>,
) -> Result<Response, OperatorRefusal> {
    let asked: SettleAllRequest = body::parse(&body, EXPECTED_OF_ALL)?;
    let verdict = verdict((&peer, &operator), asked.r#as, asked.note.clone())?;
    let doubts = state.gateway.log.doubts();
    let meant = doubts.list().into_iter().filter(|doubt| asked.is_meant(doubt)).map(|doubt| doubt.intent);
    // Many at once, because those that wait together share a write to the disk.
    let settled = stream::iter(meant.collect::<Vec<_>>())
        .map(|intent| settle::settle(&state.gateway, intent, verdict.clone()))
        .buffer_unordered(SETTLED_AT_ONCE)
        .filter(|settled| future::ready(settled.is_ok()))
        .count()
        .await;
    let left = doubts.list().iter().filter(|doubt| asked.is_meant(doubt)).count();
    let elsewhere = doubts_elsewhere(&state.gateway).await.map_err(refusal)?;
    let elsewhere: Vec<_> = elsewhere.into_iter().filter(|doubt| asked.is_meant(doubt)).collect();
    let meant = elsewhere.len();
    let settled_elsewhere = stream::iter(elsewhere)
        .map(|doubt| settle_elsewhere(&state.gateway, doubt, verdict.clone()))
        .buffer_unordered(SETTLED_AT_ONCE)
        .filter(|settled| future::ready(settled.is_ok()))
        .count()
        .await;
    let (settled, left) = (settled + settled_elsewhere, left + meant - settled_elsewhere);
    Ok(typed("application/json", json!({"settled": settled, "left": left, "as": asked.r#as}).to_string()))
}

/// `POST /doubts/REQUEST`: ends the doubt once its settlement is on disk. From then on equal writes pass again. A form is answered with
/// the page of doubts, which says who settled it.
///
/// # Errors
/// No such doubt; a body of another shape; a log that cannot record it.
pub(in crate::operator) async fn settle(
    State(state): State<Arc<OperatorState>>,
    Extension(peer): Extension<PeerConnection>,
    Extension(operator): Extension<Arc<Operator>>,
    request: Result<Path<String>, PathRejection>,
    asked: SettleRequest,
) -> Result<Response, OperatorRefusal> {
    let request = request.ok().and_then(|Path(id)| RequestId::parse(id.as_bytes())).ok_or(OperatorRefusal::NoDoubt)?;
    let (settled_as, is_form) = (asked.r#as, asked.is_form);
    let verdict = verdict((&peer, &operator), settled_as, asked.note)?;
    let settled = match state.gateway.log.doubts().find_by_request(&request) {
        Some(intent) => settle::settle(&state.gateway, intent, verdict).await,
        None => {
            let doubt = doubt_elsewhere_of(&state.gateway, &request).await.map_err(refusal)?;
            settle_elsewhere(&state.gateway, doubt, verdict).await
        }
    };
    settled.map_err(refusal)?;
    if is_form {
        return Ok(Redirect::to(&format!("/doubts?settled={}", encode(request.as_str()))).into_response());
    }
    Ok(typed("application/json", json!({"request": request.as_str(), "as": settled_as}).to_string()))
}
