//! A socket that reports what it sees to the state of its connection: bytes that come, writing that is stuck, and that its client is gone.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::FutureExt as _;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf, Ready};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::server::TlsStream;

use super::connections::{ClientEnd, ConnectionState};
use crate::clock::Clock;

/// A head and a body that are together no larger are copied into one piece: the kernel takes that for less than two pieces.
const TOGETHER_BYTES: usize = 2048;

/// A connection that knows, without reading or writing, how much of it has ended.
pub(super) trait ConnectionEnds {
    fn ended(&self) -> ClientEnd;
}

impl ConnectionEnds for TcpStream {
    fn ended(&self) -> ClientEnd {
        ended(self.ready(Interest::READABLE), self.ready(Interest::WRITABLE))
    }
}

impl ConnectionEnds for UnixStream {
    fn ended(&self) -> ClientEnd {
        ended(self.ready(Interest::READABLE), self.ready(Interest::WRITABLE))
    }
}

/// What the two halves say of themselves, if they say anything at once.
fn ended(read: impl Future<Output = io::Result<Ready>>, write: impl Future<Output = io::Result<Ready>>) -> ClientEnd {
    if write.now_or_never().is_some_and(|ready| ready.is_ok_and(|ready| ready.is_write_closed())) {
        return ClientEnd::Whole;
    }
    let half = read.now_or_never().is_some_and(|ready| ready.is_ok_and(|ready| ready.is_read_closed()));
    if half { ClientEnd::Half } else { ClientEnd::Nothing }
}

impl<T: ConnectionEnds> ConnectionEnds for Box<TlsStream<T>> {
    fn ended(&self) -> ClientEnd {
        self.get_ref().0.ended()
    }
}

pub(super) struct WatchedStream<T> {
    stream: T,
    state: Arc<ConnectionState>,
    clock: Clock,
    in_pieces: bool,
}

impl<T> WatchedStream<T> {
    pub(super) fn new(stream: T, state: Arc<ConnectionState>, clock: Clock) -> Self {
        Self { stream, state, clock, in_pieces: true }
    }

    /// Written to in one piece: h2 then copies small bodies into what it writes at once, where else each would be a write (and
    /// a TLS record) of its own.
    pub(super) fn in_one_piece(self) -> Self {
        Self { in_pieces: false, ..self }
    }

    fn wrote<R>(&self, result: Poll<R>) -> Poll<R> {
        self.state.wrote(result.is_pending(), &self.clock);
        result
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for WatchedStream<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.state.heard(&self.clock);
        }
        result
    }
}

impl<T: AsyncWrite + ConnectionEnds + Unpin> AsyncWrite for WatchedStream<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.wrote(result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut together = [0; TOGETHER_BYTES];
        let result = match joined(bufs, &mut together) {
            Some(bytes) => Pin::new(&mut self.stream).poll_write(cx, bytes),
            None => Pin::new(&mut self.stream).poll_write_vectored(cx, bufs),
        };
        self.wrote(result)
    }

    fn is_write_vectored(&self) -> bool {
        self.in_pieces && self.stream.is_write_vectored()
    }

    /// Called whenever its connection is polled, a request under way or not: the one place where hyper, which reads nothing while it
    /// owes an answer, can be told that nobody waits for that.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.state.is_doubted() && self.stream.ended() >= self.state.is_left_at() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let result = Pin::new(&mut self.stream).poll_flush(cx);
        self.wrote(result)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.wrote(result)
    }
}

/// The pieces in one; `None`: they are too large.
fn joined<'t>(bufs: &[io::IoSlice<'_>], together: &'t mut [u8; TOGETHER_BYTES]) -> Option<&'t [u8]> {
    let mut length = 0;
    for buf in bufs {
        together.get_mut(length..length + buf.len())?.copy_from_slice(buf);
        length += buf.len();
    }
    together.get(..length)
}
