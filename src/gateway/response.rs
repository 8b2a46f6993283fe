//! Step 13, answer: turns a reply into a response. Answers that may come from the cache carry the headers that the caller's own cache
//! needs.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName};
use http::{HeaderValue, Response, StatusCode};
use http_body::{Frame, SizeHint};
use jiff::Timestamp;

use super::etag::{lists_weakly, strong_etag};
use super::header_value::{self, HeaderValueWriter};
use super::refusal::{Refusal, seconds};
use crate::cache::{CacheStatus, Entry};
use crate::door::BusyGuard;
use crate::ids::RequestId;
use crate::shares::HeldShare;
use crate::upstream::UpstreamAnswer;
use crate::upstream::retry_after;
use crate::vocabulary::{Answer, Outcome};

/// Headers of an upstream answer that are stored with its body: those that describe the body rather than one exchange.
const STORED: [HeaderName; 5] =
    [header::CONTENT_TYPE, header::CONTENT_LANGUAGE, header::CONTENT_DISPOSITION, header::DATE, header::LAST_MODIFIED];

/// An answer has its type and date, and seldom more of these.
const STORED_USUALLY: usize = 3;

/// Headers of an upstream answer that are passed on when it is not stored. All others (caching, cookies, hop-by-hop fields, claims in the
/// gateway's name) are between the upstream and the gateway.
const PASSED: [HeaderName; 7] = [
    header::CONTENT_TYPE,
    header::CONTENT_LANGUAGE,
    header::CONTENT_DISPOSITION,
    header::DATE,
    header::LAST_MODIFIED,
    header::LOCATION,
    header::RETRY_AFTER,
];

/// Default wait after a 429: Make's text says one minute.
const RETRY_AFTER: Duration = Duration::from_secs(60);

const PRIVATE: HeaderValue = HeaderValue::from_static("private, no-cache");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
/// Start of the header value for a fresh hit ([`CacheStatus`]); the ttl follows.
const HIT: &str = "makegate; hit; ttl=";
const OUTCOME: HeaderName = HeaderName::from_static("makegate-outcome");
/// Maximum size of a piece of a body. A large body is sent in pieces, so that the request for the next piece shows that the client is
/// reading.
pub(crate) const PIECE_BYTES: usize = 32 * 1024;
/// Stored headers that a 304 also carries (RFC 9110 section 15.4.5).
const KEPT_ON_304: [HeaderName; 3] = [header::DATE, header::ETAG, header::VARY];

/// What happened upstream.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ForwardFacts {
    pub(crate) attempts: u32,
    /// Of these, those that gave their slot of quota back, because Make got nothing.
    pub(crate) unsent: u32,
    pub(crate) upstream_status: Option<StatusCode>,
    pub(crate) quota_wait: Duration,
}

/// An upstream answer, ready to pass on.
#[derive(Debug)]
pub(crate) struct PassedAnswer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) etag: Option<HeaderValue>,
    /// Does the body already count against its only reader's share of answers?
    pub(crate) is_counted: bool,
}

/// Prepares an upstream answer to be passed on. A shared one counts against the share of each reader, no longer against that of the
/// caller that started the fetch.
pub(crate) fn passed_answer(answered: UpstreamAnswer, is_read: bool, is_shared: bool) -> PassedAnswer {
    let UpstreamAnswer { status, headers, body, .. } = answered;
    let etag = (is_read && status == StatusCode::OK).then(|| strong_etag(&headers, body.bytes()));
    let body = if is_shared { body.bytes().clone() } else { body.into_counted() };
    let mut headers = allowed_headers(&headers, &PASSED, PASSED.len());
    if !status.is_success() {
        headers.remove(header::LOCATION); // it belongs to a created resource
    }
    PassedAnswer { status, headers, body, etag, is_counted: !is_shared }
}

/// Where a body comes from.
#[derive(Clone, Debug)]
pub(crate) enum ReplyBody {
    /// The cache.
    Entry(Arc<Entry>),
    /// The upstream.
    Passed(Arc<PassedAnswer>),
    /// Made by the gateway from one of the above.
    Made { passed: Arc<PassedAnswer>, of: Option<Arc<Entry>> },
}

impl ReplyBody {
    pub(crate) fn parts(&self) -> (StatusCode, &HeaderMap, &Bytes) {
        match self {
            Self::Entry(entry) => (entry.status, &entry.headers, &entry.body),
            Self::Passed(passed) | Self::Made { passed, .. } => (passed.status, &passed.headers, &passed.body),
        }
    }

    pub(crate) fn status(&self) -> StatusCode {
        let (status, ..) = self.parts();
        status
    }

    /// Does it already count against its reader's share of answers?
    pub(crate) fn is_counted(&self) -> bool {
        match self {
            Self::Entry(_) => false,
            Self::Passed(passed) | Self::Made { passed, .. } => passed.is_counted,
        }
    }

    fn etag(&self) -> Option<&HeaderValue> {
        match self {
            Self::Entry(entry) => Some(&entry.etag),
            Self::Passed(passed) | Self::Made { passed, .. } => passed.etag.as_ref(),
        }
    }

    /// The cache entry that it is.
    pub(crate) fn as_entry(&self) -> Option<&Arc<Entry>> {
        match self {
            Self::Entry(entry) => Some(entry),
            Self::Passed(_) | Self::Made { .. } => None,
        }
    }

    /// The cache entry that it is, or was made from.
    pub(crate) fn entry(&self) -> Option<&Arc<Entry>> {
        match self {
            Self::Entry(entry) => Some(entry),
            Self::Passed(_) => None,
            Self::Made { of, .. } => of.as_ref(),
        }
    }
}

/// All that the answer and the record need. A shared fetch hands each request that waits for it a copy.
#[derive(Clone, Debug)]
pub struct Reply {
    pub(crate) body: ReplyBody,
    pub(crate) cache: Option<CacheStatus>,
    pub(crate) answer: Answer,
    /// The request whose fetch this answer comes from, if it is another one.
    pub(crate) filled_by: Option<RequestId>,
    pub(crate) facts: ForwardFacts,
    /// May it be answered with 304?
    pub(crate) may_be_not_modified: bool,
}

/// The parts of a request that its answer depends on.
pub(crate) struct ResponseContext<'a> {
    pub(crate) if_none_match: Option<&'a HeaderValue>,
    pub(crate) is_read: bool,
    pub(crate) now: Instant,
}

impl Reply {
    /// Writes the response into an empty map, without the headers that every answer has.
    pub(crate) fn response(&self, context: &ResponseContext<'_>, mut headers: HeaderMap) -> Response<Bytes> {
        let (status, stored, body) = self.body.parts();
        let etag = self.body.etag();
        let matches = || etag.zip(context.if_none_match).is_some_and(|(etag, wanted)| lists_weakly(wanted, etag));
        let is_not_modified = self.may_be_not_modified && status == StatusCode::OK && matches();
        for (name, value) in stored {
            if !is_not_modified || !STORED.contains(name) || KEPT_ON_304.contains(name) {
                headers.append(name, value.clone());
            }
        }
        if let Some(etag) = etag {
            headers.insert(header::ETAG, etag.clone());
        }
        if context.is_read {
            headers.insert(header::CACHE_CONTROL, PRIVATE);
        }
        if let Some(entry) = self.body.entry() {
            put_header(&mut headers, &header::AGE, |writer| writer.number(entry.age(context.now).as_secs()));
        }
        if let Some(cache) = self.cache {
            put_header(&mut headers, &CACHE_STATUS, |writer| match cache {
                CacheStatus::Hit { ttl: ttl @ 0.., detail: None } => writer.text(HIT).number(ttl.unsigned_abs()),
                CacheStatus::Hit { .. } | CacheStatus::Forward { .. } => writer.written(|out| cache.write(out)),
            });
        }
        if is_not_modified {
            response_of(StatusCode::NOT_MODIFIED, headers, Bytes::new())
        } else {
            response_of(status, headers, body.clone())
        }
    }
}

/// The headers to store with a body.
pub(crate) fn stored_headers(headers: &HeaderMap) -> HeaderMap {
    allowed_headers(headers, &STORED, STORED_USUALLY)
}

/// Those of the headers that are allowed; there is room for `usually`.
fn allowed_headers(headers: &HeaderMap, allowed: &[HeaderName], usually: usize) -> HeaderMap {
    let mut out = HeaderMap::with_capacity(usually);
    for name in allowed {
        if let Some(value) = headers.get(name) {
            out.insert(name, value.clone());
        }
    }
    out
}

fn response_of(status: StatusCode, headers: HeaderMap, body: Bytes) -> Response<Bytes> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

/// The response for a refusal; `headers` is an empty map.
pub(crate) fn refused(
    refusal: &Refusal,
    id: &RequestId,
    outcome: Option<Outcome>,
    mut headers: HeaderMap,
) -> Response<Bytes> {
    refusal.add_headers(&mut headers);
    response_of(refusal.row().status, headers, Bytes::from(refusal.problem(id, outcome)))
}

/// A refusal with its own request id, for a request that has no recorder.
pub(crate) fn unrecorded(refusal: &Refusal, id: &RequestId) -> Response<Bytes> {
    let mut response = refused(refusal, id, None, HeaderMap::new());
    put_header(response.headers_mut(), &REQUEST_ID, |writer| writer.text(id.as_str()));
    response
}

/// A response that consists of its status.
pub(crate) fn status_alone(status: StatusCode, id: &RequestId, busy: BusyGuard) -> Response<AnswerBody> {
    let headers = HeaderMap::from_iter([(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))]);
    complete(response_of(status, headers, Bytes::new()), id, busy, None)
}

/// For HEAD. Over HTTP/2 nothing else drops the body.
pub(crate) fn leave_out_body(response: &mut Response<Bytes>) {
    if response.status() != StatusCode::NOT_MODIFIED && response.status() != StatusCode::NO_CONTENT {
        let length = HeaderValue::from(response.body().len());
        response.headers_mut().insert(header::CONTENT_LENGTH, length);
    }
    response.body_mut().clear();
}

/// Completes the response with the request id. `room` is the body's part of its reader's share of answers.
pub(crate) fn complete(
    mut response: Response<Bytes>,
    id: &RequestId,
    busy: BusyGuard,
    room: Option<HeldShare>,
) -> Response<AnswerBody> {
    put_header(response.headers_mut(), &REQUEST_ID, |writer| writer.text(id.as_str()));
    response.map(|body| AnswerBody { bytes: Some(body).filter(|body| !body.is_empty()), _busy: busy, _room: room })
}

/// Adds `Makegate-Outcome`. Removes `Retry-After` from a write in doubt, which must not be retried blindly.
pub(crate) fn set_outcome(headers: &mut HeaderMap, outcome: Outcome) {
    headers.insert(OUTCOME, HeaderValue::from_static(outcome.as_str()));
    if outcome == Outcome::InDoubt {
        headers.remove(header::RETRY_AFTER);
    }
}

/// Sets `Retry-After` on a 429, in whole seconds and at least 1: the upstream's value if it is one, else one minute.
pub(crate) fn set_retry_after(headers: &mut HeaderMap, now: Timestamp) {
    let wait = retry_after(headers, now).unwrap_or(RETRY_AFTER);
    headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds(wait)));
}

pub(crate) fn put_header(
    headers: &mut HeaderMap,
    name: &HeaderName,
    write: impl FnOnce(HeaderValueWriter<'_>) -> HeaderValueWriter<'_>,
) {
    if let Some(value) = header_value::value(write) {
        headers.insert(name, value);
    }
}

/// The body of an answer. Until its last piece is handed over, it keeps the connection busy and holds its part of the reader's share.
pub struct AnswerBody {
    bytes: Option<Bytes>,
    _busy: BusyGuard,
    _room: Option<HeldShare>,
}

impl http_body::Body for AnswerBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let piece = match &mut self.bytes {
            Some(bytes) if bytes.len() > PIECE_BYTES => Some(bytes.split_to(PIECE_BYTES)),
            bytes => bytes.take(),
        };
        Poll::Ready(piece.map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.bytes.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
    }
}
