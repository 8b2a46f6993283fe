//! hyper drives a connection until its state says to leave or to drop it.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::Poll;

use http::request::Parts;
use http::{HeaderMap, Version, header};
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tower::ServiceExt as _;

use super::connections::ConnectionState;
use super::order::ConnectionOrder;
use super::service::ConnectionService;
use super::streams::{ProgressBody, Streams};
use super::unread::UnreadRequests;
use super::watched_stream::{ConnectionEnds, WatchedStream};
use crate::config::Limits;

/// h2 reads header lists up to this many times `limits.head_bytes`. What is larger it answers with a bare 431; what is smaller, but too
/// large, reaches the service and gets a whole answer.
const H2_HEAD_FACTOR: usize = 2;

/// hyper reads up to this many fields, unless it is told another number; then it prepares memory for them with every request.
const H1_FIELDS_MAX: usize = 100;

/// A socket that a door accepts, with or without TLS.
pub(super) trait Socket: AsyncRead + AsyncWrite + ConnectionEnds + Unpin + Send + 'static {}

impl<T> Socket for T where T: AsyncRead + AsyncWrite + ConnectionEnds + Unpin + Send + 'static {}

/// Serves HTTP/1.1 until the connection ends.
pub(super) async fn http1<T: Socket, S: ConnectionService<Incoming>>(
    stream: WatchedStream<T>,
    state: &ConnectionState,
    limits: &Limits,
    unread: &UnreadRequests,
    service: S,
) {
    let mut http1 = hyper::server::conn::http1::Builder::new();
    if limits.head_fields > H1_FIELDS_MAX {
        http1.max_headers(limits.head_fields);
    }
    let connection = http1
        .max_buf_size(limits.head_bytes)
        .max_header_size(limits.head_bytes)
        .header_read_timeout(None)
        .half_close(true)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
    if let Err(error) = drive(connection, state, |connection| connection.graceful_shutdown(), || false).await
        && state.is_within_head()
    {
        unread.on_http1_end(&error);
    }
}

/// Serves HTTP/2 until the connection ends. `streams` runs the requests.
pub(super) async fn http2<T: Socket, S: ConnectionService<Incoming>>(
    stream: WatchedStream<T>,
    state: &ConnectionState,
    limits: &Limits,
    unread: &UnreadRequests,
    streams: Streams,
    service: S,
) {
    state.mark_multiplexed();
    let service = service.map_response(|response| response.map(ProgressBody::new));
    let connection = hyper::server::conn::http2::Builder::new(streams.clone())
        .max_concurrent_streams(limits.h2_streams)
        .max_header_list_size(u32::try_from(limits.head_bytes * H2_HEAD_FACTOR).unwrap_or(u32::MAX))
        .header_table_size(limits.h2_header_table_bytes)
        .max_frame_size(limits.h2_frame_bytes)
        .initial_stream_window_size(limits.h2_window_bytes)
        .initial_connection_window_size(limits.h2_connection_window_bytes)
        .max_send_buf_size(limits.h2_send_bytes)
        .max_pending_accept_reset_streams(limits.h2_pending_resets)
        .max_local_error_reset_streams(limits.h2_local_resets)
        .timer(TokioTimer::new())
        .keep_alive_interval(limits.h2_ping)
        .keep_alive_timeout(limits.h2_ping_wait)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
    let ended = drive(connection, state, |connection| connection.graceful_shutdown(), || streams.run()).await;
    ended.unwrap_or_else(|error| unread.on_http2_end(&error));
}

/// Polls a connection to its end, unless its state says to leave or to drop it. `more` does the work that a poll left, if any; then the
/// connection is polled again.
async fn drive<C>(
    connection: C,
    state: &ConnectionState,
    leave: impl FnOnce(Pin<&mut C>),
    more: impl Fn() -> bool,
) -> Result<(), hyper::Error>
where
    C: Future<Output = Result<(), hyper::Error>>,
{
    let (mut connection, mut leave) = (pin!(connection), Some(leave));
    let ended = poll_fn(|cx| {
        match state.poll_order(cx) {
            ConnectionOrder::KeepOpen => {}
            ConnectionOrder::Close => leave.take().into_iter().for_each(|leave| leave(connection.as_mut())),
            ConnectionOrder::Drop => return Poll::Ready(Ok(())),
        }
        loop {
            let polled = connection.as_mut().poll(cx);
            if polled.is_ready() || !more() {
                return polled;
            }
        }
    });
    ended.await.inspect_err(|error| tracing::debug!(%error, "a connection ended early"))
}

/// Does the head of a request exceed `limits.head_fields` or, over HTTP/2, `limits.head_bytes`? Over HTTP/1.1 hyper has counted the bytes.
#[must_use]
pub fn is_head_too_large(head: &Parts, limits: &Limits) -> bool {
    if head.version != Version::HTTP_2 || head.headers.len() > limits.head_fields {
        return head.headers.len() > limits.head_fields;
    }
    let fields = head.headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum::<usize>();
    let target = head.uri.path_and_query().map_or(0, |target| target.as_str().len());
    fields + target > limits.head_bytes
}

/// Does a request's body have a transfer coding that is not undone here? Only a single `chunked` is (RFC 9112 section 6.1).
#[must_use]
pub fn has_unknown_transfer_coding(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    codings.next().is_some_and(|first| {
        !first.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked") || codings.next().is_some()
    })
}
