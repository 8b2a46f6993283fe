//! hyper drives a connection until its state says to leave or to drop it.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tower::ServiceExt as _;

use super::connections::{ConnectionOrder, ConnectionState};
use super::service::ConnectionService;
use super::streams::{ProgressBody, Streams};
use super::watched_stream::{ConnectionEnds, WatchedStream};
use crate::config::Limits;

const H2_WINDOW_BYTES: u32 = 64 * 1024;
const H2_HEADER_LIST_BYTES: u32 = 16 * 1024;
const H2_PENDING_RESETS: usize = 20;
const H2_LOCAL_RESETS: usize = 64;
const H2_PING_EVERY: Duration = Duration::from_secs(20);
const H2_PING_WAIT: Duration = Duration::from_secs(10);

/// A socket that a door accepts, with or without TLS.
pub(super) trait Socket: AsyncRead + AsyncWrite + ConnectionEnds + Unpin + Send + 'static {}

impl<T> Socket for T where T: AsyncRead + AsyncWrite + ConnectionEnds + Unpin + Send + 'static {}

/// Serves HTTP/1.1 until the connection ends.
pub(super) async fn http1<T: Socket, S: ConnectionService<Incoming>>(
    stream: WatchedStream<T>,
    state: &ConnectionState,
    limits: &Limits,
    service: S,
) {
    let connection = hyper::server::conn::http1::Builder::new()
        .max_buf_size(limits.head_bytes)
        .max_header_size(limits.head_bytes)
        .max_headers(limits.head_fields)
        .header_read_timeout(None)
        .half_close(true)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
    drive(connection, state, |connection| connection.graceful_shutdown(), || false).await;
}

/// Serves HTTP/2 until the connection ends. `streams` runs the requests.
pub(super) async fn http2<T: Socket, S: ConnectionService<Incoming>>(
    stream: WatchedStream<T>,
    state: &ConnectionState,
    limits: &Limits,
    streams: Streams,
    service: S,
) {
    state.mark_multiplexed();
    let service = service.map_response(|response| response.map(ProgressBody::new));
    let connection = hyper::server::conn::http2::Builder::new(streams.clone())
        .max_concurrent_streams(limits.h2_streams)
        .max_header_list_size(H2_HEADER_LIST_BYTES)
        .initial_stream_window_size(H2_WINDOW_BYTES)
        .initial_connection_window_size(H2_WINDOW_BYTES * 4)
        .max_pending_accept_reset_streams(H2_PENDING_RESETS)
        .max_local_error_reset_streams(H2_LOCAL_RESETS)
        .timer(TokioTimer::new())
        .keep_alive_interval(H2_PING_EVERY)
        .keep_alive_timeout(H2_PING_WAIT)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
    drive(connection, state, |connection| connection.graceful_shutdown(), || streams.run()).await;
}

/// Polls a connection to its end, unless its state says to leave or to drop it. `more` does the work that a poll left, if any; then the
/// connection is polled again.
async fn drive<C>(connection: C, state: &ConnectionState, leave: impl FnOnce(Pin<&mut C>), more: impl Fn() -> bool)
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
    if let Err(error) = ended.await {
        tracing::debug!(%error, "a connection ended early");
    }
}
