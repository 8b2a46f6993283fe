//! Limits what may precede a response head. hyper skips interim responses (1xx) one after another without ever yielding
//! the thread, so a flood of them must be stopped where bytes are read.

use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};

use futures_util::task::AtomicWaker;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::connect::HEAD_BYTES_MAX;

/// The largest head, plus the same amount for interim responses before it.
const BEFORE_HEAD_BYTES: usize = 2 * HEAD_BYTES_MAX;
const UNBOUNDED: usize = usize::MAX;

/// How many bytes a connection may still read. Limited only between a request and its response head.
pub(super) struct Allowance {
    left: AtomicUsize,
    /// The allowance ran out and there was more to read.
    is_exhausted: AtomicBool,
    reader: AtomicWaker,
    waiter: AtomicWaker,
}

impl Allowance {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            left: UNBOUNDED.into(),
            is_exhausted: false.into(),
            reader: AtomicWaker::new(),
            waiter: AtomicWaker::new(),
        })
    }

    /// Waits for a response head. `None` if too much came before it; nothing more is read then.
    pub(super) async fn limit_until_head<F: Future>(&self, head: F) -> Option<F::Output> {
        self.is_exhausted.store(false, Ordering::Relaxed);
        self.left.store(BEFORE_HEAD_BYTES, Ordering::Release);
        let mut head = pin!(head);
        let came = std::future::poll_fn(|cx| {
            self.waiter.register(cx.waker());
            // Checked before polling for the head, because any body bytes read with it come after the head.
            let is_exhausted = self.is_exhausted.load(Ordering::Acquire);
            match head.as_mut().poll(cx) {
                Poll::Ready(head) => Poll::Ready(Some(head)),
                Poll::Pending if is_exhausted => Poll::Ready(None),
                Poll::Pending => Poll::Pending,
            }
        });
        let came = came.await?;
        self.left.store(UNBOUNDED, Ordering::Release);
        self.reader.wake();
        Some(came)
    }

    /// Whether more may be read; if not, the reader is woken when it may.
    fn may_read(&self, cx: &Context<'_>) -> bool {
        if self.left.load(Ordering::Acquire) > 0 {
            return true;
        }
        self.reader.register(cx.waker());
        if self.left.load(Ordering::Acquire) > 0 {
            return true;
        }
        self.is_exhausted.store(true, Ordering::Release);
        self.waiter.wake();
        false
    }

    fn consume(&self, bytes: usize) {
        let less = |left| (left != UNBOUNDED).then(|| usize::saturating_sub(left, bytes));
        let _unbounded = self.left.fetch_update(Ordering::AcqRel, Ordering::Acquire, less);
    }
}

/// A connection whose reads are limited by an [`Allowance`].
pub(super) struct Allowed<T> {
    pub(super) wire: T,
    pub(super) allowance: Arc<Allowance>,
}

impl<T: AsyncRead + Unpin> AsyncRead for Allowed<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.allowance.may_read(cx) {
            return Poll::Pending;
        }
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.wire).poll_read(cx, buf);
        self.allowance.consume(buf.filled().len() - before);
        polled
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Allowed<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.wire).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.wire).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.wire.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire).poll_shutdown(cx)
    }
}
