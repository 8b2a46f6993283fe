//! Purging the cache by hand.

use std::sync::Arc;

use axum::extract::{Extension, FromRequest, Request, State};
use axum::response::{IntoResponse as _, Redirect, Response};
use serde::Deserialize;
use serde_json::json;

use super::super::operators::Operator;
use super::super::pages::cached_entry;
use super::super::query::encode;
use super::super::refusal::OperatorRefusal;
use super::super::render::typed;
use super::super::state::OperatorState;
use super::body::{self, ActionBody, bad_body};
use crate::door::PeerConnection;
use crate::gateway::fences::RaisedFence;
use crate::gateway::recorded;

const TAG_BYTES_MAX: usize = 256;
const EXPECTED: &str = "write {\"tag\": \"org:11\"}, {\"entry\": \"…\"} or {\"all\": true}";

/// What a request asks to be purged.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::operator) struct PurgeRequest {
    tag: Option<String>,
    /// An entry by its id.
    entry: Option<String>,
    all: Option<bool>,
    /// It came from the form of the cache's page.
    #[serde(skip)]
    is_form: bool,
}

impl FromRequest<Arc<OperatorState>> for PurgeRequest {
    type Rejection = OperatorRefusal;

    async fn from_request(request: Request, state: &Arc<OperatorState>) -> Result<Self, OperatorRefusal> {
        body::require_json_or_form(request.headers())?;
        match body::read(request, state).await? {
            ActionBody::Form(form) => {
                let all = form.get("all").map(|all| all == "true");
                let text = |name| form.get(name).map(str::to_owned);
                Ok(Self { tag: text("tag"), entry: text("entry"), all, is_form: true })
            }
            ActionBody::Json(body) => body::parse(&body, EXPECTED),
        }
    }
}

impl PurgeRequest {
    /// The tag, or `None` for everything.
    fn tag(self) -> Result<Option<String>, OperatorRefusal> {
        if self.entry.is_some() {
            return Err(bad_body("this names an entry and more than that", EXPECTED));
        }
        match (self.tag, self.all) {
            (None, Some(true)) => Ok(None),
            (Some(tag), None | Some(false)) if !tag.is_empty() && tag.len() <= TAG_BYTES_MAX => Ok(Some(tag)),
            (Some(_), Some(true)) => Err(bad_body("this names a tag and all of them", EXPECTED)),
            (Some(tag), None | Some(false)) if tag.is_empty() => Err(bad_body("the tag is empty", EXPECTED)),
            (Some(_), None | Some(false)) => {
                Err(bad_body(format!("no tag is longer than {TAG_BYTES_MAX} bytes"), EXPECTED))
            }
            (None, Some(false) | None) => Err(bad_body("this names nothing to purge", EXPECTED)),
        }
    }
}

/// `POST /cache/purge`: drops entries and says how many. Leaves an `event` record. A form is answered with the cache's page.
///
/// # Errors
/// A body of another shape; a log without room for the record.
pub(in crate::operator) async fn purge(
    State(state): State<Arc<OperatorState>>,
    Extension(peer): Extension<PeerConnection>,
    Extension(operator): Extension<Arc<Operator>>,
    asked: PurgeRequest,
) -> Result<Response, OperatorRefusal> {
    let is_form = asked.is_form;
    if let (Some(id), None, None | Some(false)) = (&asked.entry, &asked.tag, asked.all) {
        return purge_entry(&state, &peer, &operator, id.clone(), is_form).await;
    }
    let tag = asked.tag()?;
    let room = state.gateway.log.reserve().ok_or(OperatorRefusal::CannotRecord)?;
    let (purged, fence) = state.gateway.purge(tag.as_deref());
    let named = tag.as_deref().map_or_else(|| "everything".to_owned(), |tag| format!("the tag {tag}"));
    room.fill(state.record(&operator, &peer, "purge", &format!("purged {named}: {purged} entries")));
    everywhere(&state, fence).await?;
    Ok(if is_form {
        Redirect::to(&format!("/cache?purged={purged}&of={}", encode(&named))).into_response()
    } else {
        typed("application/json", json!({"purged": purged}).to_string())
    })
}

/// Drops one entry.
async fn purge_entry(
    state: &Arc<OperatorState>,
    peer: &PeerConnection,
    operator: &Operator,
    id: String,
    is_form: bool,
) -> Result<Response, OperatorRefusal> {
    let room = state.gateway.log.reserve().ok_or(OperatorRefusal::CannotRecord)?;
    let wanted = id.clone();
    let found = state.walk(move |state| cached_entry(state, &wanted)).await?;
    let purged = u8::from(found.is_some());
    if let Some((key, entry)) = found {
        let fence = state.gateway.purge_entry(&key, &entry);
        let what = format!("purged the entry of {}: 1 entry", &*recorded::path(&state.gateway.log, &entry.path));
        room.fill(state.record(operator, peer, "purge", &what));
        everywhere(state, fence).await?;
    }
    Ok(if is_form {
        Redirect::to(&format!("/cache?purged={purged}&of={}", encode(&format!("the entry {id}")))).into_response()
    } else {
        typed("application/json", json!({"purged": purged}).to_string())
    })
}

/// The other replicas purge as well.
///
/// # Errors
/// They cannot be told now. They purge as soon as they can be.
async fn everywhere(state: &OperatorState, fence: RaisedFence) -> Result<(), OperatorRefusal> {
    let told = fence.everywhere_or_later(&state.gateway.tasks).await;
    if told { Ok(()) } else { Err(OperatorRefusal::OthersNotTold) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operator::tests::World;

    async fn of(kind: &str, body: &'static str) -> Result<Option<String>, OperatorRefusal> {
        let request = Request::post("/").header("content-type", kind).body(body.into()).unwrap();
        PurgeRequest::from_request(request, &World::new().state).await?.tag()
    }

    #[tokio::test]
    async fn a_purge_is_of_one_tag_or_of_everything() {
        let json = "application/json; charset=utf-8";
        assert_eq!(of(json, r#"{"tag": "org:11"}"#).await.unwrap(), Some("org:11".to_owned()));
        assert_eq!(of(json, r#"{"all": true}"#).await.unwrap(), None);
        for bad in [
            "",
            "{}",
            "[]",
            r#"{"all": false}"#,
            r#"{"tag": ""}"#,
            r#"{"tag": "a", "all": true}"#,
            r#"{"tags": ["a"]}"#,
            r#"{"all": true, "is_form": true}"#,
        ] {
            let refused = of(json, bad).await;
            assert!(
                matches!(refused, Err(OperatorRefusal::BadBody { why }) if why.ends_with(&format!("; {EXPECTED}"))),
                "{bad}"
            );
        }
        let form = "application/x-www-form-urlencoded";
        assert_eq!(of(form, "tag=org%3A11").await.unwrap(), Some("org:11".to_owned()));
        assert_eq!(of(form, "all=true&tag=").await.unwrap(), None);
        assert!(matches!(of(form, "tag=%ff").await, Err(OperatorRefusal::BadParameter { .. })));
    }
}
