//! A socket that tells the state of its connection when bytes arrive, when writing is stuck and when the client is gone.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use futures_util::FutureExt as _;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf, Ready};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::server::TlsStream;

use super::answer_frames::AnswerFrames;
use super::connections::ConnectionState;
use super::frame_reader::FrameReader;
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
    protocol: Protocol,
}

/// What is read in the bytes of a connection.
enum Protocol {
    Http1 {
        request_lines: RequestLines,
        /// Gives hyper's own answers a body.
        unread: UnreadWriter,
    },
    Http2 {
        answers: Box<AnswerFrames>,
        requests: Box<FrameReader>,
    },
}

impl<T> WatchedStream<T> {
    pub(super) fn http1(stream: T, state: Arc<ConnectionState>, clock: Clock, unread: UnreadWriter) -> Self {
        Self { stream, state, clock, protocol: Protocol::Http1 { request_lines: RequestLines::default(), unread } }
    }

    pub(super) fn http2(
        stream: T,
        state: Arc<ConnectionState>,
        clock: Clock,
        (answers, requests): (AnswerFrames, FrameReader),
    ) -> Self {
        let protocol = Protocol::Http2 { answers: Box::new(answers), requests: Box::new(requests) };
        Self { stream, state, clock, protocol }
    }

    fn note_write<R>(&self, result: Poll<R>) -> Poll<R> {
        self.state.on_write(result.is_pending(), &self.clock);
        result
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for WatchedStream<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        match &mut this.protocol {
            Protocol::Http1 { request_lines, .. } => {
                let before = buf.filled().len();
                let result = Pin::new(&mut this.stream).poll_read(cx, buf);
                if let Some(bytes) = buf.filled_mut().get_mut(before..).filter(|bytes| !bytes.is_empty()) {
                    this.state.on_read(&this.clock);
                    request_lines.mark_fragments(bytes);
                    this.state.head_begun.store(request_lines.is_within_head(), Ordering::Relaxed);
                }
                result
            }
            Protocol::Http2 { requests, .. } => {
                requests.poll_read(&mut this.stream, cx, (buf, || this.state.on_read(&this.clock)))
            }
        }
    }
}

impl<T: AsyncRead + AsyncWrite + ConnectionEnds + Unpin> AsyncWrite for WatchedStream<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let result = match &mut this.protocol {
            // hyper answers by itself only between two answers of the service, whose bodies may look like its own.
            Protocol::Http1 { unread, .. } if !this.state.is_answering() => {
                unread.poll_write(&mut this.stream, cx, buf)
            }
            Protocol::Http1 { .. } => None,
            Protocol::Http2 { answers, requests } => {
                let window = requests.frames.window_mut();
                Some(answers.poll_write(&mut this.stream, cx, (buf, window, &this.clock)))
            }
        };
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

    /// HTTP/2 is written from one buffer: h2 then copies small bodies into it, instead of one write (and one TLS record) for each.
    fn is_write_vectored(&self) -> bool {
        matches!(self.protocol, Protocol::Http1 { .. }) && self.stream.is_write_vectored()
    }

    /// hyper flushes whenever it polls the connection, with or without a request in progress. It reads nothing while it owes an answer,
    /// so this is the only place to tell it that the client is gone.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.state.take_client_check() && self.stream.client_end() >= self.state.client_gone_at() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let this = &mut *self;
        let result = match &mut this.protocol {
            Protocol::Http1 { .. } => {
                this.state.on_flush(); // hyper has written all that it had
                Poll::Ready(Ok(()))
            }
            // A body may be asked for while h2 has nothing to write.
            Protocol::Http2 { answers, .. } => answers.poll_own(&mut this.stream, cx),
        };
        let result = match result {
            Poll::Ready(Ok(())) => Pin::new(&mut this.stream).poll_flush(cx),
            stuck @ (Poll::Pending | Poll::Ready(Err(_))) => stuck,
        };
        self.note_write(result)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_shutdown(cx);
        let result = self.note_write(result);
        let this = &mut *self;
        if let (Poll::Ready(Ok(())), Protocol::Http1 { unread, .. }) = (&result, &mut this.protocol) {
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
