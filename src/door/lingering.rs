//! What is left of a request's body when the answer is ready. A client that is still sending would lose the answer: over HTTP/1.1 the
//! kernel resets a connection that is closed with unread bytes, over HTTP/2 the stream is reset. So the rest is read and thrown away,
//! within bounds; where it may be more than that, `Connection: close` is announced.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::TryFutureExt as _;
use http::{HeaderMap, HeaderValue, Request, StatusCode, header};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::runtime::Handle;

use super::connections::{BusyGuard, ConnectionState};
use super::continues::{ContinueAsker, Continues};
use super::service::ConnectionService;
use super::stream_mark::{self, StreamMark};
use crate::clock::Clock;
use crate::config::Limits;
use crate::tasks::Tasks;

/// What is needed to read the rest of a body and throw it away.
pub(super) struct Linger {
    pub(super) limits: Arc<Limits>,
    pub(super) state: Arc<ConnectionState>,
    pub(super) clock: Clock,
    pub(super) tasks: Tasks,
}

/// Answers as `service` does, and reads what a request's body still brings. Over HTTP/1.1 (`continues` is `None`) a connection ends with a
/// body that is not read to its end, and its last answer says so.
pub(super) fn lingering<S: ConnectionService<IncomingBody>>(
    mut service: S,
    linger: Linger,
    continues: Option<Arc<Continues>>,
) -> impl ConnectionService<Incoming, AnswerBody = S::AnswerBody> {
    let linger = Arc::new(linger); // hyper clones the service for each request
    tower::service_fn(move |request: Request<Incoming>| {
        let (mut head, body) = request.into_parts();
        let mark = continues.as_ref().and_then(|_| StreamMark::take(&mut head.headers));
        if mark.is_some_and(|mark| mark.has_fragment) {
            head.uri = stream_mark::with_fragment(head.uri);
        }
        let rest = (!body.is_end_stream()).then(|| {
            let expects_continue = head.headers.contains_key(header::EXPECT);
            let asks = continues.as_ref().zip(mark.filter(|_| is_continue_expected(&head.headers)));
            let asker = asks.map(|(continues, mark)| ContinueAsker::new(continues, mark.stream));
            BodyRest { linger: linger.clone(), expects_continue, asker, must_close: Arc::default() }
        });
        let is_http1 = continues.is_none();
        let must_close = rest.as_ref().filter(|_| is_http1).map(|rest| rest.must_close.clone());
        let answer = service.call(Request::from_parts(head, IncomingBody { inner: Some(body), rest }));
        // No async block: it would have room for the answer's future twice, and hyper moves it.
        answer.map_ok(move |mut response| {
            // What follows a method that is not implemented (CONNECT) may be no request.
            let is_unknown = is_http1 && response.status() == StatusCode::NOT_IMPLEMENTED;
            if is_unknown || must_close.is_some_and(|must_close| must_close.load(Ordering::Acquire)) {
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            response
        })
    })
}

fn is_continue_expected(headers: &HeaderMap) -> bool {
    headers.get_all(header::EXPECT).iter().any(|one| one.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

/// The body of a request. If it is dropped before its end, the rest is read and thrown away.
pub struct IncomingBody {
    /// `None` once it is dropped.
    inner: Option<Incoming>,
    /// `None` if the request has no body.
    rest: Option<BodyRest>,
}

struct BodyRest {
    linger: Arc<Linger>,
    /// The client sends the body only if it is asked to (`Expect: 100-continue`); over HTTP/1.1 hyper asks when the body is first polled.
    expects_continue: bool,
    /// Asks over HTTP/2.
    asker: Option<ContinueAsker>,
    /// The rest may be more than is thrown away.
    must_close: Arc<AtomicBool>,
}

impl Body for IncomingBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let is_first = self.rest.as_mut().is_some_and(|rest| std::mem::take(&mut rest.expects_continue));
        let polled = match &mut self.inner {
            Some(inner) => Pin::new(inner).poll_frame(cx),
            None => Poll::Ready(None),
        };
        // What has arrived need not be asked for.
        if let Some(asker) =
            self.rest.as_ref().and_then(|rest| rest.asker.as_ref()).filter(|_| is_first && polled.is_pending())
        {
            asker.ask();
        }
        if matches!(polled, Poll::Ready(None)) {
            self.rest = None; // hyper does not say of a chunked body that it is over
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.as_ref().map_or_else(SizeHint::default, Body::size_hint)
    }
}

impl Drop for IncomingBody {
    fn drop(&mut self) {
        let (Some(inner), Some(rest)) = (self.inner.take(), self.rest.take()) else { return };
        if inner.is_end_stream() {
            return;
        }
        let BodyRest { linger, expects_continue, must_close, .. } = rest;
        let bytes_max = linger.limits.linger_bytes as u64;
        let fits = inner.size_hint().upper().is_some_and(|bytes| bytes <= bytes_max);
        must_close.store(expects_continue || !fits, Ordering::Release);
        if !expects_continue && Handle::try_current().is_ok() {
            let guard = LingerGuard::new(&linger);
            let limits = linger.limits.clone();
            drop(linger.tasks.spawn(async move {
                throw_away(inner, &limits).await;
                drop(guard);
            }));
        }
    }
}

/// Marks a connection busy with a body that is thrown away, so that the body is not taken for the next request.
struct LingerGuard {
    state: Arc<ConnectionState>,
    _busy: BusyGuard,
}

impl LingerGuard {
    fn new(linger: &Linger) -> Self {
        let (state, clock) = (linger.state.clone(), &linger.clock);
        let busy = state.busy(clock);
        state.on_linger(clock);
        Self { state, _busy: busy }
    }
}

impl Drop for LingerGuard {
    fn drop(&mut self) {
        self.state.lingering.fetch_sub(1, Ordering::AcqRel);
    }
}

async fn throw_away(mut body: Incoming, limits: &Limits) {
    let mut left = limits.linger_bytes;
    let all = async {
        while let Ok(Some(Ok(frame))) = tokio::time::timeout(limits.linger, body.frame()).await {
            let bytes = frame.data_ref().map_or(0, Bytes::len);
            let Some(less) = left.checked_sub(bytes) else { break };
            left = less;
        }
    };
    let _elapsed = tokio::time::timeout(limits.body, all).await;
}
