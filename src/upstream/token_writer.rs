//! Writes the token in the place of what stands for it. hyper keeps the bytes of a head in buffers that are freed unwiped, so it never gets
//! the token: its requests carry a stand-in, which becomes the token only on the way to the socket, in a buffer of which its place is wiped.

use std::io::{self, IoSlice};
use std::ops::Range;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use secrecy::zeroize::Zeroize as _;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::HeldToken;

/// So much of a request is written together with its token: for the kernel one piece is cheaper than two.
const TOGETHER_BYTES: usize = 16 * 1024;

/// The token of the request that a connection is about to write.
#[derive(Default)]
pub(super) struct TokenSlot(Mutex<Option<Arc<HeldToken>>>);

impl TokenSlot {
    /// The next request goes out with this token.
    pub(super) fn put(&self, held: Arc<HeldToken>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(held);
    }

    /// Takes the token, if this is where it has to stand: how many bytes come before its stand-in.
    fn take_for(&self, bytes: &[u8]) -> Option<(usize, Arc<HeldToken>)> {
        let mut slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = slot.as_ref()?.token.find_stand_in(bytes)?;
        slot.take().map(|held| (before, held))
    }
}

/// A connection on which the stand-in of the slot's token is written as the token.
pub(super) struct TokenWriter<T> {
    wire: T,
    slot: Arc<TokenSlot>,
    /// What is left to write of a request with its token.
    written: Option<WithToken>,
}

/// The beginning of a request with its token.
struct WithToken {
    bytes: Vec<u8>,
    /// Where the token stands in them: this part is wiped.
    token: Range<usize>,
    done: usize,
    /// So many bytes of hyper's it takes the place of.
    replaces: usize,
}

impl WithToken {
    /// The first bytes of these pieces, in the first of which the stand-in begins behind `before` bytes.
    fn new(pieces: &[IoSlice<'_>], before: usize, held: &HeldToken) -> Self {
        let (stand_in, exposed) = (held.token.stand_in().len(), held.token.exposed());
        let all = pieces.iter().map(|piece| piece.len()).sum::<usize>();
        let replaces = all.min(TOGETHER_BYTES.max(before + stand_in));
        // All of its room at once: a vector that grows would leave a copy behind.
        let token = before..before + exposed.iter().map(|part| part.len()).sum::<usize>();
        let mut bytes = Vec::with_capacity(replaces + token.len());
        let mut left = replaces;
        for piece in pieces {
            let piece = piece.get(..left.min(piece.len())).unwrap_or_default();
            left -= piece.len();
            let Some((head, rest)) = piece.split_at_checked(before).filter(|_| bytes.is_empty()) else {
                bytes.extend_from_slice(piece);
                continue;
            };
            bytes.extend_from_slice(head);
            exposed.iter().for_each(|part| bytes.extend_from_slice(part));
            bytes.extend_from_slice(rest.get(stand_in..).unwrap_or_default());
        }
        Self { bytes, token, done: 0, replaces }
    }
}

impl Drop for WithToken {
    fn drop(&mut self) {
        if let Some(token) = self.bytes.get_mut(self.token.clone()) {
            token.zeroize();
        }
    }
}

impl<T> TokenWriter<T> {
    pub(super) fn new(wire: T, slot: Arc<TokenSlot>) -> Self {
        Self { wire, slot, written: None }
    }
}

impl<T: AsyncWrite + Unpin> TokenWriter<T> {
    /// Writes the beginning of a request with its token; `None`: these pieces have no stand-in.
    fn poll_with_token(&mut self, cx: &mut Context<'_>, pieces: &[IoSlice<'_>]) -> Poll<Option<io::Result<usize>>> {
        if self.written.is_none() {
            let first = pieces.first().map_or(&[][..], |first| first);
            self.written = self.slot.take_for(first).map(|(before, held)| WithToken::new(pieces, before, &held));
        }
        let Some(written) = &mut self.written else { return Poll::Ready(None) };
        while let Some(rest) = written.bytes.get(written.done..).filter(|rest| !rest.is_empty()) {
            match ready!(Pin::new(&mut self.wire).poll_write(cx, rest)) {
                Ok(0) => return Poll::Ready(Some(Err(io::ErrorKind::WriteZero.into()))),
                Ok(bytes) => written.done += bytes,
                Err(error) => return Poll::Ready(Some(Err(error))),
            }
        }
        Poll::Ready(self.written.take().map(|written| Ok(written.replaces)))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for TokenWriter<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire).poll_read(cx, buf)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for TokenWriter<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match ready!(self.poll_with_token(cx, &[IoSlice::new(buf)])) {
            Some(written) => Poll::Ready(written),
            None => Pin::new(&mut self.wire).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match ready!(self.poll_with_token(cx, bufs)) {
            Some(written) => Poll::Ready(written),
            None => Pin::new(&mut self.wire).poll_write_vectored(cx, bufs),
        }
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
