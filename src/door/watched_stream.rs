//! A socket that tells the state of its connection when bytes arrive, when writing is stuck and when the client is gone.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::FutureExt as _;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf, Ready};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::server::TlsStream;

use super::connections::ConnectionState;
use super::order::ClientEnd;
use super::request_line::RequestLines;
use super::unread::UnreadWriter;
use crate::clock::Clock;

/// A head and a body of at most this size together are copied into one buffer: for the kernel that is cheaper than two.
const COALESCED_BYTES_MAX: usize = 2048;

/// Tells, without reading or writing, which directions of a connection are closed.
pub(super) trait ConnectionEnds {
    fn client_end(&self) -> ClientEnd;
}

impl ConnectionEnds for TcpStream {
    fn client_end(&self) -> ClientEnd {
        client_end(self.ready(Interest::READABLE), self.ready(Interest::WRITABLE))
    }
}

impl ConnectionEnds for UnixStream {
    fn client_end(&self) -> ClientEnd {
        client_end(self.ready(Interest::READABLE), self.ready(Interest::WRITABLE))
    }
}

/// Reads the readiness of both directions without waiting.
fn client_end(
    read: impl Future<Output = io::Result<Ready>>,
    write: impl Future<Output = io::Result<Ready>>,
) -> ClientEnd {
    if write.now_or_never().is_some_and(|ready| ready.is_ok_and(|ready| ready.is_write_closed())) {
        return ClientEnd::Closed;
    }
    let half = read.now_or_never().is_some_and(|ready| ready.is_ok_and(|ready| ready.is_read_closed()));
    if half { ClientEnd::HalfClosed } else { ClientEnd::Open }
}

impl<T: ConnectionEnds> ConnectionEnds for Box<TlsStream<T>> {
    fn client_end(&self) -> ClientEnd {
        self.get_ref().0.client_end()
    }
}

pub(super) struct WatchedStream<T> {
    stream: T,
    state: Arc<ConnectionState>,
    clock: Clock,
    /// `None` over HTTP/2.
    request_lines: Option<RequestLines>,
    is_vectored: bool,
    /// HTTP/1.1: gives hyper's own answers a body.
    unread: Option<UnreadWriter>,
}

impl<T> WatchedStream<T> {
    pub(super) fn new(stream: T, state: Arc<ConnectionState>, clock: Clock) -> Self {
        Self { stream, state, clock, request_lines: Some(RequestLines::default()), is_vectored: true, unread: None }
    }

    pub(super) fn with_unread(self, unread: UnreadWriter) -> Self {
        Self { unread: Some(unread), ..self }
    }

    /// For HTTP/2. Writes from one buffer: h2 then copies small bodies into it, instead of one write (and one TLS record) for each.
    pub(super) fn for_http2(self) -> Self {
        Self { is_vectored: false, request_lines: None, ..self }
    }

    fn note_write<R>(&self, result: Poll<R>) -> Poll<R> {
        self.state.on_write(result.is_pending(), &self.clock);
        result
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for WatchedStream<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buf.filled().len();
        let result = Pin::new(&mut this.stream).poll_read(cx, buf);
        if let Some(bytes) = buf.filled_mut().get_mut(before..).filter(|bytes| !bytes.is_empty()) {
            this.state.on_read(&this.clock);
            if let Some(lines) = &mut this.request_lines {
                lines.mark_fragments(bytes);
            }
        }
        result
    }
}

impl<T: AsyncRead + AsyncWrite + ConnectionEnds + Unpin> AsyncWrite for WatchedStream<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        // hyper answers by itself only between two answers of the service, whose bodies may look like its own.
        let unread = this.unread.as_mut().filter(|_| !this.state.is_answering());
        let result = unread.and_then(|unread| unread.poll_write(&mut this.stream, cx, buf));
        let result = result.unwrap_or_else(|| Pin::new(&mut this.stream).poll_write(cx, buf));
        self.note_write(result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut buffer = [0; COALESCED_BYTES_MAX];
        if let Some(bytes) = coalesce(bufs, &mut buffer) {
            return self.poll_write(cx, bytes);
        }
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.note_write(result)
    }

    fn is_write_vectored(&self) -> bool {
        self.is_vectored && self.stream.is_write_vectored()
    }

    /// hyper flushes whenever it polls the connection, with or without a request in progress. It reads nothing while it owes an answer,
    /// so this is the only place to tell it that the client is gone.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.state.take_client_check() && self.stream.client_end() >= self.state.client_gone_at() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if self.unread.is_some() {
            self.state.on_flush(); // hyper has written all that it had
        }
        let result = Pin::new(&mut self.stream).poll_flush(cx);
        self.note_write(result)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_shutdown(cx);
        let result = self.note_write(result);
        let this = &mut *self;
        if let (Poll::Ready(Ok(())), Some(unread)) = (&result, &mut this.unread) {
            return unread.poll_linger(&mut this.stream, cx).map(Ok);
        }
        result
    }
}

/// Copies the buffers into one; returns `None` if they are too large together.
fn coalesce<'t>(bufs: &[io::IoSlice<'_>], buffer: &'t mut [u8; COALESCED_BYTES_MAX]) -> Option<&'t [u8]> {
    let mut length = 0;
    for buf in bufs {
        buffer.get_mut(length..length + buf.len())?.copy_from_slice(buf);
        length += buf.len();
    }
    buffer.get(..length)
}
