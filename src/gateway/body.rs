//! Step 7: read the body, bounded and whole, before anything is spent on the request.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde::de::IgnoredAny;

use super::refusal::Refusal;
use crate::catalogue::{Body, Operation};
use crate::clock::Clock;
use crate::config::Limits;

/// The body, if the operation takes one like it.
///
/// # Errors
/// Too large, too slow, cut, unwanted, or not what the operation takes.
pub(super) async fn read(
    row: &Operation,
    headers: &HeaderMap,
    body: Incoming,
    limits: &Limits,
    clock: &Clock,
) -> Result<Bytes, Refusal> {
    if body.is_end_stream() {
        return check(row, headers, Bytes::new());
    }
    let announced = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    if announced.is_some_and(|bytes| bytes > limits.body_bytes) {
        return Err(Refusal::BodyTooLarge { bytes_max: limits.body_bytes });
    }
    if row.body != Body::None {
        check_type(row, headers)?;
    }
    let bytes = whole(body, limits, clock).await?;
    check(row, headers, bytes)
}

async fn whole(mut body: Incoming, limits: &Limits, clock: &Clock) -> Result<Bytes, Refusal> {
    let began = clock.now();
    let mut first = Bytes::new();
    let mut all = BytesMut::new();
    loop {
        let left = limits.body.saturating_sub(clock.now().saturating_duration_since(began)).min(limits.body_gap);
        if left == Duration::ZERO {
            return Err(Refusal::BodySlow);
        }
        let frame = match tokio::time::timeout(left, body.frame()).await {
            Err(_) => return Err(Refusal::BodySlow),
            Ok(None) => break,
            Ok(Some(Err(_))) => return Err(Refusal::BodyCut),
            Ok(Some(Ok(frame))) => frame,
        };
        let Ok(data) = frame.into_data() else { continue };
        if first.len() + all.len() + data.len() > limits.body_bytes {
            return Err(Refusal::BodyTooLarge { bytes_max: limits.body_bytes });
        }
        if first.is_empty() && all.is_empty() {
            first = data;
        } else {
            all.extend_from_slice(&std::mem::take(&mut first));
            all.extend_from_slice(&data);
        }
    }
    Ok(if all.is_empty() { first } else { all.freeze() })
}

fn check(row: &Operation, headers: &HeaderMap, body: Bytes) -> Result<Bytes, Refusal> {
    match row.body {
        Body::None if !body.is_empty() => return Err(Refusal::UnwantedBody),
        Body::Any if !body.is_empty() => check_type(row, headers)?,
        Body::None | Body::Any => {}
        Body::Object if body.is_empty() => return Err(Refusal::NotAnObject { why: "there is no body".to_owned() }),
        Body::Object => {
            check_type(row, headers)?;
            check_object(&body)?;
        }
    }
    Ok(body)
}

/// JSON where an object is taken, and never encoded: `Content-Encoding` does not go upstream.
fn check_type(row: &Operation, headers: &HeaderMap) -> Result<(), Refusal> {
    let plain = headers.get(CONTENT_ENCODING).is_none_or(|coding| coding.as_bytes().eq_ignore_ascii_case(b"identity"));
    let json = |value: &HeaderValue| {
        let kind = value.to_str().unwrap_or_default().split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        kind == "application/json" || kind.ends_with("+json")
    };
    let fits = row.body == Body::Any || headers.get(CONTENT_TYPE).is_none_or(json);
    if plain && fits { Ok(()) } else { Err(Refusal::NotJson) }
}

fn check_object(body: &[u8]) -> Result<(), Refusal> {
    let wrong = |why: String| Err(Refusal::NotAnObject { why });
    let Ok(text) = std::str::from_utf8(body) else { return wrong("it is no UTF-8".to_owned()) };
    match serde_json::from_str::<IgnoredAny>(text) {
        // serde_json's message names line and column, never the text.
        Err(error) => wrong(error.to_string()),
        Ok(_) if body.trim_ascii_start().first() != Some(&b'{') => wrong("the body is JSON, but no object".to_owned()),
        Ok(_) => Ok(()),
    }
}
