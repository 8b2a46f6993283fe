//! Purging the cache by hand.

use std::net::IpAddr;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderValue, Response, StatusCode, header};
use http_body::Body;
use serde::Deserialize;
use serde_json::json;

use super::body::read;
use super::query::{PageQuery, encode};
use super::refusal::OperatorRefusal;
use super::render::{PageBody, text};
use super::state::OperatorState;
use crate::audit::{Peer, Record};

/// No tag is longer.
const TAG_BYTES_MAX: usize = 256;
const EXPECTED: &str = "write {\"tag\": \"org:11\"} or {\"all\": true}";

/// What is to go.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PurgeRequest {
    tag: Option<String>,
    all: Option<bool>,
}

/// `POST /cache/purge`: drops entries and says how many. Leaves an `event` record. A form's answer is the cache's page.
///
/// # Errors
/// A body that says nothing of the kind; a log without room for the record.
pub(super) async fn purge<B>(
    state: &OperatorState,
    peer: Option<IpAddr>,
    head: &Parts,
    body: B,
) -> Result<Response<PageBody>, OperatorRefusal>
where
    B: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send,
{
    let kind =
        head.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("application/json");
    let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let is_form = kind == "application/x-www-form-urlencoded";
    if !is_form && kind != "application/json" {
        return Err(OperatorRefusal::NotJson);
    }
    let body = read(body).await?;
    let tag = what(if is_form { of_form(&body)? } else { of_json(&body)? })?;
    let room = state.gateway.log.reserve().ok_or(OperatorRefusal::CannotRecord)?;
    let purged = match &tag {
        Some(tag) => state.gateway.cache.purge(tag),
        None => state.gateway.cache.purge_all(),
    };
    let named = tag.as_deref().map_or_else(|| "everything".to_owned(), |tag| format!("the tag {tag}"));
    let event =
        Record::event(state.gateway.clock.wall(), "purge", format!("an operator purged {named}: {purged} entries"));
    room.fill(Record { peer: Some(Peer::of(peer)), ..event });
    Ok(if is_form {
        see_cache(purged, &named)
    } else {
        text("application/json", json!({"purged": purged}).to_string())
    })
}

fn of_json(body: &[u8]) -> Result<PurgeRequest, OperatorRefusal> {
    // serde_json's message names line and column, and fields by name, which are the operator's own.
    serde_json::from_slice(body).map_err(|error| OperatorRefusal::BadBody { why: format!("{EXPECTED}: {error}") })
}

fn of_form(body: &[u8]) -> Result<PurgeRequest, OperatorRefusal> {
    let text = str::from_utf8(body).map_err(|_| OperatorRefusal::BadBody { why: EXPECTED.to_owned() })?;
    let form = PageQuery::parse(Some(text))?;
    Ok(PurgeRequest { tag: form.get("tag").map(str::to_owned), all: form.get("all").map(|all| all == "true") })
}

/// The tag, or `None`: everything.
fn what(asked: PurgeRequest) -> Result<Option<String>, OperatorRefusal> {
    match (asked.tag, asked.all) {
        (None, Some(true)) => Ok(None),
        (Some(tag), None | Some(false)) if !tag.is_empty() && tag.len() <= TAG_BYTES_MAX => Ok(Some(tag)),
        (Some(_), _) | (None, Some(false) | None) => Err(OperatorRefusal::BadBody { why: EXPECTED.to_owned() }),
    }
}

fn see_cache(purged: usize, named: &str) -> Response<PageBody> {
    let mut response = text("text/plain; charset=utf-8", "");
    *response.status_mut() = StatusCode::SEE_OTHER;
    if let Ok(place) = HeaderValue::try_from(format!("/cache?purged={purged}&of={}", encode(named))) {
        response.headers_mut().insert(header::LOCATION, place);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_purge_is_of_one_tag_or_of_everything() {
        let of = |body: &str| of_json(body.as_bytes()).and_then(what);
        assert_eq!(of(r#"{"tag": "org:11"}"#).unwrap(), Some("org:11".to_owned()));
        assert_eq!(of(r#"{"all": true}"#).unwrap(), None);
        for bad in [
            "",
            "{}",
            "[]",
            r#"{"all": false}"#,
            r#"{"tag": ""}"#,
            r#"{"tag": "a", "all": true}"#,
            r#"{"tags": ["a"]}"#,
        ] {
            assert!(matches!(of(bad), Err(OperatorRefusal::BadBody { why }) if why.starts_with(EXPECTED)), "{bad}");
        }
        assert_eq!(of_form(b"tag=org%3A11").and_then(what).unwrap(), Some("org:11".to_owned()));
        assert_eq!(of_form(b"all=true&tag=").and_then(what).unwrap(), None);
    }
}
