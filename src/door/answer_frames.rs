//! Follows the frames that h2 writes, for what h2 refuses by itself on one stream and for what it cannot write.
//!
//! h2 resets a stream, or answers a head that is too large with a bare 431. Reading its frames is the only way to learn of that. They are
//! counted, and the 431 becomes a whole answer. Between two of h2's frames, `100 Continue` is written where it was asked for.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use http::{HeaderValue, header};
use tokio::io::AsyncWrite;

use super::client_window::ClientWindow;
use super::continues::Continues;
use super::request_frames::{CONTINUATION, END_HEADERS, FRAME_HEAD_BYTES, FrameHead, HEADERS, PUSH_PROMISE};
use super::unread::{UnreadKind, UnreadRequests, Unreadable};
use crate::clock::Clock;

const DATA: u8 = 0;
const RST_STREAM: u8 = 3;
const END_STREAM: u8 = 1;

/// Follows the frames that h2 writes. h2 encodes each head of a frame, and each frame that matters here, as a whole before it writes.
pub(super) struct AnswerFrames {
    requests: Arc<UnreadRequests>,
    continues: Arc<Continues>,
    /// How much of the next write was read already, and whether that ends within a field block.
    read_bytes: usize,
    is_read_within_block: bool,
    /// How much is missing of the frame that is being written, and whether it ends within a field block.
    frame_left: usize,
    is_within_block: bool,
    /// What is left to write of the door's own frames.
    own: Bytes,
    /// So many bytes of h2's are not written, because the own frames take their place.
    replaced: usize,
    /// The last stream that was answered with 431. h2 may also reset it, which does not count again.
    answered: u32,
}

/// Why a frame is not written as it is.
#[derive(Clone, Copy)]
enum WriteStop<'b> {
    /// It is an answer that gets a body.
    Bare431(&'b [u8]),
    /// The client does not take so much yet.
    Window,
}

impl AnswerFrames {
    pub(super) fn new(requests: Arc<UnreadRequests>, continues: Arc<Continues>) -> Self {
        Self {
            requests,
            continues,
            read_bytes: 0,
            is_read_within_block: false,
            frame_left: 0,
            is_within_block: false,
            own: Bytes::new(),
            replaced: 0,
            answered: 0,
        }
    }

    /// Writes some of these bytes, or other ones in place of a bare 431.
    pub(super) fn poll_write<T: AsyncWrite + Unpin>(
        &mut self,
        stream: &mut T,
        cx: &mut Context<'_>,
        (bytes, window, clock): (&[u8], &mut ClientWindow, &Clock),
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_own(stream, cx))?;
        if self.replaced == 0 {
            let stop = self.read_to_stop(bytes, window);
            match stop {
                // What the client grants wakes the connection, which reads that and writes again.
                Some(WriteStop::Window) if self.read_bytes == 0 => return Poll::Pending,
                Some(WriteStop::Bare431(bare)) if self.read_bytes == 0 => {
                    self.replace(bare, window, clock);
                    ready!(self.poll_own(stream, cx))?;
                }
                Some(_) | None => {
                    let most = if stop.is_some() { self.read_bytes } else { bytes.len() };
                    let most = if self.continues.is_any_asked() { most.min(self.until_between(bytes)) } else { most };
                    let written = ready!(Pin::new(stream).poll_write(cx, bytes.get(..most).unwrap_or(bytes)))?;
                    self.on_written(bytes, written);
                    return Poll::Ready(Ok(written));
                }
            }
        }
        Poll::Ready(Ok(std::mem::take(&mut self.replaced)))
    }

    /// Writes the door's own frames, if there are any and h2's permit.
    pub(super) fn poll_own<T: AsyncWrite + Unpin>(
        &mut self,
        stream: &mut T,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        let is_between = self.frame_left == 0 && !self.is_within_block;
        loop {
            if self.own.is_empty() && is_between && self.replaced == 0 && self.continues.is_any_asked() {
                self.own = self.continues.take_frames();
            }
            if self.own.is_empty() {
                return Poll::Ready(Ok(()));
            }
            match ready!(Pin::new(&mut *stream).poll_write(cx, &self.own))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.own.advance(written),
            }
        }
    }

    /// Reads the frames up to the first that is not written as it is now, and returns why not.
    fn read_to_stop<'b>(&mut self, bytes: &'b [u8], window: &mut ClientWindow) -> Option<WriteStop<'b>> {
        while let Some(head) = bytes.get(self.read_bytes..).and_then(FrameHead::of) {
            let begin = self.read_bytes + FRAME_HEAD_BYTES;
            let end = begin + head.length;
            match (head.kind, bytes.get(begin..end)) {
                (HEADERS, Some(block)) if head.has(END_STREAM) && head.has(END_HEADERS) && has_one_field(block) => {
                    return bytes.get(self.read_bytes..end).map(WriteStop::Bare431);
                }
                (DATA, _) if !window.take(head.length) => return Some(WriteStop::Window),
                (RST_STREAM, Some(code)) if head.stream != self.answered => {
                    reset_kind(code).into_iter().for_each(|kind| self.requests.count(kind));
                }
                _ => {}
            }
            self.read_bytes = end;
            self.is_read_within_block = is_within_block(head);
        }
        None
    }

    /// Puts a whole answer in the place of a bare 431. It has a body if the client's windows permit.
    fn replace(&mut self, bare: &[u8], window: &mut ClientWindow, clock: &Clock) {
        let Some(head) = FrameHead::of(bare) else { return };
        let unread = Unreadable::HeadTooLarge;
        self.requests.count(unread.kind());
        let mut answer = self.requests.answer(unread);
        if !window.spend(head.stream, answer.body().len()) {
            answer.headers_mut().remove(header::CONTENT_TYPE);
            *answer.body_mut() = Bytes::new();
        }
        self.own = whole_answer(bare, answer, clock);
        self.replaced = bare.len();
        self.answered = head.stream;
    }

    /// How many of the bytes come before the next place between two frames where another one may be.
    fn until_between(&self, bytes: &[u8]) -> usize {
        let (mut at, mut is_within) = (self.frame_left, self.is_within_block);
        while at == 0 || is_within {
            let Some(head) = bytes.get(at..).and_then(FrameHead::of) else { break };
            (at, is_within) = (at + FRAME_HEAD_BYTES + head.length, is_within_block(head));
        }
        at.min(bytes.len())
    }

    fn on_written(&mut self, bytes: &[u8], written: usize) {
        let read = self.read_bytes;
        self.read_bytes = read.saturating_sub(written);
        if written == bytes.len() {
            (self.frame_left, self.is_within_block) = (self.read_bytes, self.is_read_within_block);
            return;
        }
        while self.frame_left < written {
            let Some(head) = bytes.get(self.frame_left..).and_then(FrameHead::of) else { break };
            self.frame_left += FRAME_HEAD_BYTES + head.length;
            self.is_within_block = is_within_block(head);
        }
        self.frame_left = self.frame_left.saturating_sub(written);
    }
}

/// Does another part of the same field block follow this frame?
const fn is_within_block(head: FrameHead) -> bool {
    matches!(head.kind, HEADERS | PUSH_PROMISE | CONTINUATION) && !head.has(END_HEADERS)
}

/// Why h2 resets a stream, by the error's code; `None` if it was told to.
fn reset_kind(code: &[u8]) -> Option<UnreadKind> {
    match h2::Reason::from(u32::from_be_bytes(code.try_into().ok()?)) {
        h2::Reason::NO_ERROR | h2::Reason::CANCEL | h2::Reason::INTERNAL_ERROR => None,
        h2::Reason::REFUSED_STREAM => Some(UnreadKind::Http2Streams),
        h2::Reason::FLOW_CONTROL_ERROR => Some(UnreadKind::Http2Window),
        h2::Reason::ENHANCE_YOUR_CALM => Some(UnreadKind::Http2Flood),
        _ => Some(UnreadKind::Http2Stream),
    }
}

/// Is this field block a bare status? hyper adds `Date` to every answer of the service, so none of those has one field only.
fn has_one_field(block: &[u8]) -> bool {
    fn after_one_field(mut block: &[u8]) -> Option<&[u8]> {
        // Changes of the table's size come first (RFC 7541 section 6.3).
        while block.first()? & 0xe0 == 0x20 {
            block = integer(block, 5)?.1;
        }
        let index_bits = match block.first()? {
            0x80.. => return integer(block, 7).map(|(_, rest)| rest),
            0x40.. => 6,
            _ => 4,
        };
        let (name, rest) = integer(block, index_bits)?;
        let (length, rest) = integer(rest, 7)?;
        if name == 0 { None } else { rest.get(length..) }
    }
    after_one_field(block).is_some_and(<[u8]>::is_empty)
}

/// Reads an integer whose prefix has so many bits (RFC 7541 section 5.1), and returns it with what follows. `None` if it is cut, or larger
/// than a status needs.
fn integer(block: &[u8], prefix_bits: u8) -> Option<(usize, &[u8])> {
    let (first, rest) = block.split_first()?;
    let most = (1 << prefix_bits) - 1;
    match first & most {
        all if all == most => {
            let length = rest.iter().position(|byte| byte & 0x80 == 0)?;
            let value = rest
                .get(..=length)?
                .iter()
                .rev()
                .try_fold(0_usize, |value, byte| value.checked_mul(128)?.checked_add(usize::from(byte & 0x7f)))?;
            Some((value.checked_add(usize::from(most))?, rest.get(length + 1..)?))
        }
        value => Some((usize::from(value), rest)),
    }
}

/// The frames of an answer whose bare status h2 has encoded. The fields stay out of the tables that compress fields: h2 keeps those.
fn whole_answer(bare: &[u8], answer: http::Response<Bytes>, clock: &Clock) -> Bytes {
    let (mut head, body) = answer.into_parts();
    head.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
    let date = HeaderValue::from_str(&clock.wall().strftime("%a, %d %b %Y %H:%M:%S GMT").to_string());
    date.into_iter().for_each(|date| drop(head.headers.insert(header::DATE, date)));
    let mut frames = BytesMut::from(bare);
    for (name, value) in &head.headers {
        frames.put_u8(0); // neither the name nor the field is in a table
        put_text(&mut frames, name.as_str().as_bytes());
        put_text(&mut frames, value.as_bytes());
    }
    let Some(bare) = FrameHead::of(bare) else { return Bytes::new() };
    let flags = if body.is_empty() { bare.flags } else { bare.flags & !END_STREAM };
    let whole = FrameHead { length: frames.len() - FRAME_HEAD_BYTES, flags, ..bare };
    frames.iter_mut().zip(whole.bytes()).for_each(|(to, byte)| *to = byte);
    if !body.is_empty() {
        let data = FrameHead { length: body.len(), kind: DATA, flags: END_STREAM, stream: bare.stream };
        frames.put_slice(&data.bytes());
        frames.put_slice(&body);
    }
    frames.freeze()
}

/// A text without compression, behind its length (RFC 7541 section 5.2).
fn put_text(frame: &mut BytesMut, text: &[u8]) {
    const MOST: u8 = 0x7f;
    match u8::try_from(text.len()) {
        Ok(length) if length < MOST => frame.put_u8(length),
        _ => {
            frame.put_u8(MOST);
            let mut rest = text.len() - usize::from(MOST);
            while rest > usize::from(MOST) {
                frame.put_u8(rest.to_le_bytes()[0] | 0x80);
                rest >>= 7;
            }
            frame.put_u8(rest.to_le_bytes()[0]);
        }
    }
    frame.put_slice(text);
}

#[cfg(test)]
#[path = "answer_frames_tests.rs"]
mod tests;
