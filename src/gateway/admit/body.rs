//! Step 7: read the whole body, within limits, before anything is spent on the request. Its memory counts against its caller's share of
//! `limits.bodies_bytes` until the last reference to it is dropped.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue};
use http_body_util::BodyExt as _;

use crate::callers::SharedKind;
use crate::catalogue::{BodyKind, Operation};
use crate::clock::Clock;
use crate::config::Limits;
use crate::door::RequestBody;
use crate::gateway::admit::policy::Caller;
use crate::gateway::large_work::LargeWork;
use crate::gateway::refusal::Refusal;
use crate::gateway::request_trace::{RequestTrace, WaitStep};
use crate::json_members::{JsonMembers, is_unambiguous};
use crate::shares::CountedBytes;

/// The byte order mark in UTF-8.
const BOM: &[u8] = b"\xef\xbb\xbf";
/// Maximum depth of nested arrays and objects in a body.
const DEPTH_MAX: usize = 128;

/// What is wrong with an object that one reader may understand differently from another, or not at all.
const AMBIGUOUS: &str = "it can be read in more than one way: an object has a member twice, a text has half of a surrogate pair, or a number \
                         is too large";

pub(crate) struct BodyReader<'r> {
    pub(crate) row: &'r Operation,
    pub(crate) headers: &'r HeaderMap,
    pub(crate) limits: &'r Limits,
    pub(crate) caller: &'r Caller,
    pub(crate) large_work: &'r LargeWork,
    /// If the request's trace is sent.
    pub(crate) trace: Option<&'r Arc<RequestTrace>>,
}

impl BodyReader<'_> {
    /// Reads the body and checks that the operation takes it.
    ///
    /// # Errors
    /// If it is too large, too slow, cut off, unwanted or of the wrong type, or if there is no memory for it or no turn to check it.
    pub(crate) async fn read_and_check(self, body: impl RequestBody, clock: &Clock) -> Result<Bytes, Refusal> {
        let Self { row, headers, .. } = self;
        if body.is_end_stream() {
            return check(row, headers, Bytes::new());
        }
        let _waiting = self.trace.map(|trace| trace.step(WaitStep::Body));
        let announced = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
        if announced.is_some_and(|bytes| bytes > self.limits.body_bytes) {
            return Err(Refusal::BodyTooLarge { bytes_max: self.limits.body_bytes });
        }
        if row.body != BodyKind::None {
            check_type(row, headers)?;
        }
        let bytes = self.read(body, announced.unwrap_or(0), clock).await?;
        let checked = self.large_work.run(&self.caller.config.name, bytes.len(), || check(row, headers, bytes));
        tokio::time::timeout(self.limits.body, checked).await.map_err(|_| Refusal::Busy)?
    }

    async fn read(&self, mut body: impl RequestBody, announced: usize, clock: &Clock) -> Result<Bytes, Refusal> {
        let Self { limits, caller, .. } = *self;
        let began = clock.now();
        let short = |short| Refusal::Short { of: SharedKind::Bodies, short };
        let mut whole = CountedBytes::new(caller.state.share_holders.bodies.take(0).map_err(short)?);
        loop {
            let left = limits.body.saturating_sub(clock.now().saturating_duration_since(began)).min(limits.body_gap);
            if left == Duration::ZERO {
                return Err(Refusal::BodySlow);
            }
            let frame = match clock.timeout(left, body.frame()).await {
                None => return Err(Refusal::BodySlow),
                Some(None) => break,
                Some(Some(Err(_))) => return Err(Refusal::BodyCut),
                Some(Some(Ok(frame))) => frame,
            };
            let Ok(data) = frame.into_data() else { continue };
            let length = whole.len() + data.len();
            if length > limits.body_bytes {
                return Err(Refusal::BodyTooLarge { bytes_max: limits.body_bytes });
            }
            whole.make_room(length, announced, limits.body_bytes).map_err(short)?;
            whole.extend(&data);
        }
        Ok(if whole.is_empty() { Bytes::new() } else { Bytes::from_owner(whole) })
    }
}

fn check(row: &Operation, headers: &HeaderMap, body: Bytes) -> Result<Bytes, Refusal> {
    match row.body {
        BodyKind::None if !body.is_empty() => return Err(Refusal::UnwantedBody),
        BodyKind::Any if !body.is_empty() => {
            check_type(row, headers)?;
            // The log tells what is in it.
            if !row.record.is_empty() && serde_json::from_slice::<JsonMembers<'_>>(&body).is_ok() {
                check_object(&body)?;
            }
        }
        BodyKind::None | BodyKind::Any => {}
        BodyKind::Object if body.is_empty() => return Err(Refusal::NotAnObject { why: "there is no body".to_owned() }),
        BodyKind::Object => {
            check_type(row, headers)?;
            check_object(&body)?;
            // RFC 8259 section 8.1 lets a reader ignore a byte order mark, and forbids to send one.
            return Ok(if body.starts_with(BOM) { body.slice(BOM.len()..) } else { body });
        }
    }
    Ok(body)
}

/// The body must be JSON if the operation takes an object. It must not be encoded, because `Content-Encoding` is not forwarded.
fn check_type(row: &Operation, headers: &HeaderMap) -> Result<(), Refusal> {
    let is_none = |coding: &[u8]| matches!(coding.trim_ascii().to_ascii_lowercase().as_slice(), b"" | b"identity");
    let plain = headers
        .get_all(CONTENT_ENCODING)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .all(is_none);
    let fits = row.body == BodyKind::Any || headers.get_all(CONTENT_TYPE).iter().all(is_json);
    if plain && fits { Ok(()) } else { Err(Refusal::NotJson) }
}

/// Whether this `Content-Type` is JSON.
pub(super) fn is_json(content_type: &HeaderValue) -> bool {
    let kind =
        content_type.to_str().unwrap_or_default().split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    kind == "application/json" || kind.ends_with("+json")
}

fn check_object(body: &[u8]) -> Result<(), Refusal> {
    let wrong = |why: String| Err(Refusal::NotAnObject { why });
    let Ok(text) = std::str::from_utf8(body) else { return wrong("it is not UTF-8".to_owned()) };
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if is_too_deep(text) {
        return wrong(format!("it is nested more than {DEPTH_MAX} deep"));
    }
    let members = match serde_json::from_str::<JsonMembers<'_>>(text) {
        Ok(members) => members,
        Err(error) if error.is_data() => return wrong("the body is JSON, but not an object".to_owned()),
        // serde_json's message contains line and column, but never the text.
        Err(error) => return wrong(error.to_string()),
    };
    if is_unambiguous(&members) { Ok(()) } else { wrong(AMBIGUOUS.to_owned()) }
}

/// Whether arrays and objects are nested deeper than allowed. Brackets in strings do not count.
fn is_too_deep(json: &str) -> bool {
    let (mut depth, mut in_string, mut is_escaped) = (0_usize, false, false);
    json.bytes().any(|byte| {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if in_string => is_escaped = true,
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => depth += 1,
            b']' | b'}' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
        depth > DEPTH_MAX
    })
}
