//! What the h2 library refuses by itself on one HTTP/2 stream: it resets the stream, or answers a head that is too large with a bare 431.
//! Reading the frames that it writes is the only way to learn of that. They are counted, and the 431 gets an answer's usual fields. It
//! gets no body: h2 would not know that it used up a part of the client's window.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, header};
use tokio::io::AsyncWrite;

use super::request_frames::{FRAME_HEAD_BYTES, HEADERS};
use super::unread::{UnreadKind, UnreadRequests, Unreadable};
use crate::clock::Clock;

const RST_STREAM: u8 = 3;
/// END_STREAM and END_HEADERS.
const WHOLE: u8 = 5;

/// Reads the frames that h2 writes. h2 encodes each head of a frame, and each frame that matters here, as a whole before it writes.
pub(super) struct StreamRefusals {
    requests: Arc<UnreadRequests>,
    /// How much of the next write was read already.
    read_bytes: usize,
    /// What is left to write of the frame that takes the place of a bare 431.
    instead: Option<Bytes>,
    /// The last stream that was answered with 431. h2 may also reset it, which does not count again.
    answered: [u8; 4],
}

impl StreamRefusals {
    pub(super) fn new(requests: Arc<UnreadRequests>) -> Self {
        Self { requests, read_bytes: 0, instead: None, answered: [0; 4] }
    }

    /// Writes some of these bytes, or other ones in place of a bare 431.
    pub(super) fn poll_write<T: AsyncWrite + Unpin>(
        &mut self,
        stream: &mut T,
        cx: &mut Context<'_>,
        (bytes, clock): (&[u8], &Clock),
    ) -> Poll<io::Result<usize>> {
        let bare = self.read_to_bare_431(bytes);
        if let Some(bare) = bare.filter(|_| self.read_bytes == 0) {
            return self.poll_write_instead(stream, cx, (bare, clock));
        }
        let before = bare.and_then(|_| bytes.get(..self.read_bytes));
        let written = ready!(Pin::new(stream).poll_write(cx, before.unwrap_or(bytes)))?;
        self.read_bytes = self.read_bytes.saturating_sub(written);
        Poll::Ready(Ok(written))
    }

    /// Reads the frames up to the first bare 431, and returns that.
    fn read_to_bare_431<'b>(&mut self, bytes: &'b [u8]) -> Option<&'b [u8]> {
        while let Some((head, rest)) = bytes.get(self.read_bytes..)?.split_first_chunk::<FRAME_HEAD_BYTES>() {
            let [high, middle, low, kind, flags, stream @ ..] = *head;
            let length = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
            let end = self.read_bytes + FRAME_HEAD_BYTES + length;
            match (kind, rest.get(..length)) {
                (HEADERS, Some(block)) if flags & WHOLE == WHOLE && has_one_field(block) => {
                    return bytes.get(self.read_bytes..end);
                }
                (RST_STREAM, Some(code)) if stream != self.answered => {
                    reset_kind(code).into_iter().for_each(|kind| self.requests.count(kind));
                }
                _ => {}
            }
            self.read_bytes = end;
        }
        None
    }

    fn poll_write_instead<T: AsyncWrite + Unpin>(
        &mut self,
        stream: &mut T,
        cx: &mut Context<'_>,
        (bare, clock): (&[u8], &Clock),
    ) -> Poll<io::Result<usize>> {
        let requests = &self.requests;
        let instead = self.instead.get_or_insert_with(|| {
            requests.count(Unreadable::HeadTooLarge.kind());
            with_fields(bare, requests.answer(Unreadable::HeadTooLarge).into_parts().0.headers, clock)
        });
        while !instead.is_empty() {
            match ready!(Pin::new(&mut *stream).poll_write(cx, instead))? {
                0 => return Poll::Ready(Ok(0)),
                written => instead.advance(written),
            }
        }
        self.instead = None;
        self.answered = bare.get(5..FRAME_HEAD_BYTES).and_then(|stream| stream.try_into().ok()).unwrap_or_default();
        Poll::Ready(Ok(bare.len()))
    }
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

/// Adds these fields to a frame with a status, for an answer without a body. They stay out of the tables that compress fields: h2 keeps
/// those.
fn with_fields(bare: &[u8], mut fields: HeaderMap, clock: &Clock) -> Bytes {
    fields.remove(header::CONTENT_TYPE);
    fields.insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
    let date = HeaderValue::from_str(&clock.wall().strftime("%a, %d %b %Y %H:%M:%S GMT").to_string());
    date.into_iter().for_each(|date| drop(fields.insert(header::DATE, date)));
    let mut frame = BytesMut::from(bare);
    for (name, value) in &fields {
        frame.put_u8(0); // neither the name nor the field is in a table
        put_text(&mut frame, name.as_str().as_bytes());
        put_text(&mut frame, value.as_bytes());
    }
    let length = u32::try_from(frame.len() - FRAME_HEAD_BYTES).unwrap_or_default().to_be_bytes();
    frame.iter_mut().zip(length.iter().skip(1)).for_each(|(to, byte)| *to = *byte);
    frame.freeze()
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
