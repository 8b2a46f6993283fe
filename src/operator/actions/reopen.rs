//! Opening a quota bucket that a 429 has closed, before its time.

use std::sync::Arc;

use axum::extract::{Extension, State};
use axum::response::Response;
use bytes::Bytes;
use serde::{Deserialize, Deserializer};
use serde_json::json;

use super::super::cells;
use super::super::operators::Operator;
use super::super::refusal::OperatorRefusal;
use super::super::render::typed;
use super::super::state::OperatorState;
use super::body::{self, InTime};
use crate::audit::Record;
use crate::door::PeerConnection;
use crate::quota::BucketId;

const EXPECTED: &str = "write {\"organization\": 11}, or null for the account";

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ReopenRequest {
    /// `null` is the account, so it must be there.
    #[serde(deserialize_with = "required")]
    organization: Option<u64>,
}

fn required<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    Option::deserialize(deserializer)
}

/// `POST /quota/reopen`: one attempt may go at once; if it ends well, twice as many, and so on. Leaves an `event` record.
///
/// # Errors
/// A body of another shape; a log without room for the record.
pub(in crate::operator) async fn reopen(
    State(state): State<Arc<OperatorState>>,
    Extension(peer): Extension<PeerConnection>,
    Extension(operator): Extension<Arc<Operator>>,
    InTime(body): InTime<Bytes>,
) -> Result<Response, OperatorRefusal> {
    let ReopenRequest { organization } = body::parse(&body, EXPECTED)?;
    let room = state.gateway.log.reserve().ok_or(OperatorRefusal::CannotRecord)?;
    let bucket = organization.map_or(BucketId::Account, BucketId::Organization);
    let why = state.gateway.quota.reopen(bucket);
    let named = cells::quota_name(organization);
    let found = why.as_deref().map_or_else(|| "it was not closed".to_owned(), |why| format!("closed because {why}"));
    let event = state.record(&operator, &peer, "reopen", &format!("reopened the quota of {named}: {found}"));
    room.fill(Record { organization, ..event });
    let reopened = json!({"organization": organization, "reopened": why.is_some(), "closed_because": why});
    Ok(typed("application/json", reopened.to_string()))
}
