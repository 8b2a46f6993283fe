//! Reads an HTTP/2 connection for h2: the client's bytes, and between them what [`RequestFrames`] inserts.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, ReadBuf};

use super::request_frames::{Followed, RequestFrames};

/// Reads an HTTP/2 connection. Most bytes are followed where h2 reads them; only what must wait is kept: at most one frame, and what came
/// behind it in the same read.
pub(super) struct FrameReader {
    pub(super) frames: RequestFrames,
    /// What arrived and was not handed over.
    kept: BytesMut,
    /// So many of these bytes were followed.
    followed: usize,
    /// What h2 gets behind the bytes that were followed.
    insertion: Bytes,
}

impl FrameReader {
    pub(super) fn new(frames: RequestFrames) -> Self {
        Self { frames, kept: BytesMut::new(), followed: 0, insertion: Bytes::new() }
    }

    /// Hands over the next bytes. `on_read` is called when some arrived.
    pub(super) fn poll_read<T: AsyncRead + Unpin>(
        &mut self,
        stream: &mut T,
        cx: &mut Context<'_>,
        (buf, on_read): (&mut ReadBuf<'_>, impl Fn()),
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        loop {
            if self.hand_over_kept(buf)? {
                return Poll::Ready(Ok(()));
            }
            ready!(Pin::new(&mut *stream).poll_read(cx, buf))?;
            let new = buf.filled_mut().get_mut(before..).unwrap_or_default();
            if new.is_empty() {
                self.followed = self.kept.len(); // the connection ends within a frame
                if self.followed == 0 {
                    return Poll::Ready(Ok(()));
                }
                continue;
            }
            on_read();
            if !self.kept.is_empty() {
                self.kept.extend_from_slice(new);
                buf.set_filled(before);
                continue;
            }
            let passed = match self.frames.follow(new) {
                Followed::Passed(passed) => passed,
                Followed::NeedsMore => 0,
                Followed::Refused => {
                    buf.set_filled(before);
                    return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
                }
            };
            self.kept.extend_from_slice(new.get(passed..).unwrap_or_default());
            self.insertion = self.frames.take_insertion().into();
            buf.set_filled(before + passed);
            if passed > 0 {
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// Hands over what is kept, as far as it was or can be followed. Returns false if there is none.
    fn hand_over_kept(&mut self, buf: &mut ReadBuf<'_>) -> io::Result<bool> {
        loop {
            if self.followed > 0 {
                let now = self.followed.min(buf.remaining());
                buf.put_slice(&self.kept.split_to(now));
                self.followed -= now;
                return Ok(true);
            }
            if !self.insertion.is_empty() {
                let now = self.insertion.len().min(buf.remaining());
                buf.put_slice(&self.insertion.split_to(now));
                return Ok(true);
            }
            if self.kept.is_empty() {
                self.kept = BytesMut::new(); // frees its memory
                return Ok(false);
            }
            match self.frames.follow(&mut self.kept) {
                Followed::Passed(passed) => self.followed = passed,
                Followed::NeedsMore => return Ok(false),
                Followed::Refused => return Err(io::ErrorKind::InvalidData.into()),
            }
            self.insertion = self.frames.take_insertion().into();
        }
    }
}
