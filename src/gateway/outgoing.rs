//! The part of a request that goes upstream.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};

use crate::catalogue::{BodyKind, Operation};
use crate::shares::ShareHolder;
use crate::upstream::Outgoing;

/// Headers that are forwarded in addition to the body's type: none that could change the answer of a stored operation.
const TRACE_HEADERS: [HeaderName; 2] = [HeaderName::from_static("traceparent"), HeaderName::from_static("tracestate")];

pub(crate) fn outgoing(
    row: &Operation,
    target: String,
    headers: &HeaderMap,
    body: Bytes,
    answers: &Arc<ShareHolder>,
) -> Outgoing {
    let headers = outgoing_headers(row.body, headers, !body.is_empty());
    Outgoing { method: row.method.clone(), target, headers, body, answers: answers.clone() }
}

/// The headers that go upstream with a request. What was checked as JSON goes as JSON: with the caller's own `charset`, Make could read
/// another text than the one that was checked and recorded.
pub(crate) fn outgoing_headers(kind: BodyKind, headers: &HeaderMap, has_body: bool) -> HeaderMap {
    let mut out = HeaderMap::with_capacity(4);
    out.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
    if has_body {
        let own = headers.get(header::CONTENT_TYPE).filter(|_| kind == BodyKind::Any).cloned();
        out.insert(header::CONTENT_TYPE, own.unwrap_or(HeaderValue::from_static("application/json")));
    }
    if headers.get(&TRACE_HEADERS[0]).is_some_and(|value| is_traceparent(value.as_bytes())) {
        for name in TRACE_HEADERS {
            if let Some(value) = headers.get(&name).filter(|value| value.len() <= 512) {
                out.insert(name, value.clone());
            }
        }
    }
    out
}

/// Checks for W3C trace context, version 00: `00-<32 hex>-<16 hex>-<2 hex>`, lower case.
pub(crate) fn is_traceparent(text: &[u8]) -> bool {
    let hex = |b: &u8| b.is_ascii_digit() || matches!(b, b'a'..=b'f');
    text.len() == 55
        && text.iter().enumerate().all(|(place, b)| if matches!(place, 2 | 35 | 52) { *b == b'-' } else { hex(b) })
}
