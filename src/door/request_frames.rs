//! Follows the frames that an HTTP/2 client sends (RFC 9113 section 4), for what h2 does not do or tell.
//!
//! A request that has a `#` in its target, or that expects `100 Continue`, gets a [`StreamMark`], because the service learns of neither,
//! nor of the stream's number. What the client takes is counted for answers that h2 does not know of ([`ClientWindow`]).
//!
//! h2 reads the same bytes, and what this reads differently could hide a `#`. So after a frame that cannot be followed h2 gets nothing more:
//! it refuses the frame itself, which ends the connection, or the connection ends when h2 reads on.

use super::client_window::ClientWindow;
use super::field_blocks::{BlockNotes, FieldBlocks, Unfollowable};
use super::stream_mark::StreamMark;

/// What a client sends first (RFC 9113 section 3.4).
const PREFACE_BYTES: usize = 24;
/// Length of a frame's head: payload length, type, flags, stream.
pub(super) const FRAME_HEAD_BYTES: usize = 9;

pub(super) const HEADERS: u8 = 1;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PUSH_PROMISE: u8 = 5;
const WINDOW_UPDATE: u8 = 8;
pub(super) const CONTINUATION: u8 = 9;

const ACK: u8 = 0x1;
pub(super) const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;

/// The bits of a stream's number.
const STREAM_MASK: u32 = u32::MAX >> 1;

/// Follows the frames of an HTTP/2 connection.
#[derive(Debug)]
pub(crate) struct RequestFrames {
    place: Place,
    blocks: FieldBlocks,
    /// The largest payload that the client is told.
    payload_bytes_max: usize,
    /// What h2 gets behind the bytes that were followed.
    insertion: Vec<u8>,
    window: ClientWindow,
}

/// Where the next byte stands.
#[derive(Clone, Copy, Debug)]
enum Place {
    /// In what does not matter: so many bytes are left of it, then comes a frame.
    Other(usize),
    /// In the last frame that h2 gets: so many bytes are left of it.
    Last(usize),
}

/// How far some bytes were followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Followed {
    /// h2 may read so many of them, then the insertion, and then the rest once that was followed, too.
    Passed(usize),
    /// They are the begin of a frame that can only be followed whole.
    NeedsMore,
    /// h2 may read nothing more.
    Refused,
}

/// The head of a frame.
#[derive(Clone, Copy, Debug)]
pub(super) struct FrameHead {
    /// Length of what follows it.
    pub(super) length: usize,
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: u32,
}

impl FrameHead {
    /// The head that these bytes begin with.
    pub(super) fn of(bytes: &[u8]) -> Option<Self> {
        let [high, middle, low, kind, flags, s0, s1, s2, s3] = *bytes.first_chunk::<FRAME_HEAD_BYTES>()?;
        let length = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
        Some(Self { length, kind, flags, stream: u32::from_be_bytes([s0, s1, s2, s3]) & STREAM_MASK })
    }

    pub(super) fn bytes(self) -> [u8; FRAME_HEAD_BYTES] {
        let [_, high, middle, low] = u32::try_from(self.length).unwrap_or_default().to_be_bytes();
        let [s0, s1, s2, s3] = self.stream.to_be_bytes();
        [high, middle, low, self.kind, self.flags, s0, s1, s2, s3]
    }

    pub(super) const fn has(self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Is it a frame that only whole ones can be followed of?
    fn matters(self) -> bool {
        match self.kind {
            HEADERS | CONTINUATION => true,
            WINDOW_UPDATE => self.stream == 0,
            SETTINGS => !self.has(ACK),
            _ => false,
        }
    }
}

impl RequestFrames {
    /// `table_bytes_max`, `payload_bytes_max`: the sizes that the client is told for the table of its recent fields and for a frame.
    pub(crate) fn new(table_bytes_max: usize, payload_bytes_max: usize) -> Self {
        Self {
            place: Place::Other(PREFACE_BYTES),
            blocks: FieldBlocks::new(table_bytes_max),
            payload_bytes_max,
            insertion: Vec::new(),
            window: ClientWindow::default(),
        }
    }

    /// What h2 gets behind the bytes that were followed last.
    pub(super) fn take_insertion(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.insertion)
    }

    pub(super) fn window_mut(&mut self) -> &mut ClientWindow {
        &mut self.window
    }

    /// Follows the next bytes of the connection, and changes some of them. Those behind what passes come again, with more.
    pub(super) fn follow(&mut self, bytes: &mut [u8]) -> Followed {
        let mut passed = 0;
        while let Some(rest) = bytes.get_mut(passed..).filter(|rest| !rest.is_empty()) {
            match self.advance(rest) {
                Followed::Passed(length) => passed += length,
                stopped if passed == 0 => return stopped,
                Followed::NeedsMore | Followed::Refused => break,
            }
            if !self.insertion.is_empty() {
                break;
            }
        }
        Followed::Passed(passed)
    }

    /// What h2 gets of bytes that arrive in these pieces, and how much of that was inserted.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn pass<'p>(&mut self, pieces: impl IntoIterator<Item = &'p [u8]>) -> (Vec<u8>, usize) {
        let (mut kept, mut all, mut inserted) = (Vec::new(), Vec::new(), 0);
        for piece in pieces {
            kept.extend_from_slice(piece);
            while let Followed::Passed(length @ 1..) = self.follow(&mut kept) {
                let insertion = self.take_insertion();
                inserted += insertion.len();
                all.extend(kept.drain(..length).chain(insertion));
            }
        }
        (all, inserted)
    }

    /// Follows the bytes that come first, at least one.
    fn advance(&mut self, bytes: &mut [u8]) -> Followed {
        match self.place {
            Place::Other(left @ 1..) => {
                let now = left.min(bytes.len());
                self.place = Place::Other(left - now);
                Followed::Passed(now)
            }
            Place::Last(0) => Followed::Refused,
            Place::Last(left) => {
                let now = left.min(bytes.len());
                self.place = Place::Last(left - now);
                Followed::Passed(now)
            }
            Place::Other(0) => match FrameHead::of(bytes) {
                Some(head) => self.on_frame(head, bytes),
                None => Followed::NeedsMore,
            },
        }
    }

    fn on_frame(&mut self, head: FrameHead, bytes: &mut [u8]) -> Followed {
        let end = FRAME_HEAD_BYTES + head.length;
        // No client may send a promise. h2 refuses what is larger than it was told, and takes a head as the begin of it.
        let is_refused = head.kind == PUSH_PROMISE || head.length > self.payload_bytes_max;
        if is_refused || !head.matters() {
            self.place = if is_refused { Place::Last(end) } else { Place::Other(end) };
            return self.advance(bytes);
        }
        let Some((start, payload)) = bytes.get_mut(..end).and_then(<[u8]>::split_first_chunk_mut) else {
            return Followed::NeedsMore;
        };
        let passed = match head.kind {
            HEADERS | CONTINUATION => self.block(head, payload).map(|block_end| self.mark(head, block_end, start)),
            WINDOW_UPDATE => {
                self.window.on_grant(payload);
                Ok(end)
            }
            _ => {
                self.window.on_settings(payload);
                Ok(end)
            }
        };
        let (passed, place) = match passed {
            Ok(passed) => (passed, Place::Other(end - passed)),
            Err(Unfollowable) => (end, Place::Last(0)),
        };
        self.place = place;
        Followed::Passed(passed)
    }

    /// Follows the part of a block that is in this frame, and returns where that ends in the payload.
    fn block(&mut self, head: FrameHead, payload: &[u8]) -> Result<usize, Unfollowable> {
        let block = if head.kind == HEADERS { self.block_of(head, payload)? } else { 0..payload.len() };
        let end = block.end;
        self.blocks.follow(payload.get(block).ok_or(Unfollowable)?)?;
        if head.has(END_HEADERS) && !self.blocks.is_between_fields() {
            return Err(Unfollowable);
        }
        Ok(end)
    }

    /// Where the block stands in the payload of HEADERS.
    fn block_of(&self, head: FrameHead, payload: &[u8]) -> Result<std::ops::Range<usize>, Unfollowable> {
        let (padding, before) = match payload.first() {
            _ if !head.has(PADDED) => (0, 0),
            Some(padding) => (usize::from(*padding), 1),
            None => return Err(Unfollowable),
        };
        let mut start = before;
        if head.has(PRIORITY) {
            let dependency = payload.get(before..).and_then(<[u8]>::first_chunk::<4>).ok_or(Unfollowable)?;
            // h2 skips the block of a stream that depends on itself, and with it the entries for the table.
            if u32::from_be_bytes(*dependency) & STREAM_MASK == head.stream {
                return Err(Unfollowable);
            }
            start += dependency.len() + 1;
        }
        let end = payload.len().checked_sub(padding).filter(|end| start <= *end && self.blocks.is_between_fields());
        end.map(|end| start..end).ok_or(Unfollowable)
    }

    /// Marks the request if this frame ends its block and it must be marked. Returns how much of the frame comes before the insertion.
    fn mark(&mut self, head: FrameHead, block_end: usize, start: &mut [u8; FRAME_HEAD_BYTES]) -> usize {
        let end = FRAME_HEAD_BYTES + head.length;
        if !head.has(END_HEADERS) {
            return end;
        }
        let BlockNotes { has_fragment, has_expect, is_head } = self.blocks.take_notes();
        if is_head {
            self.window.forbid_body(head.stream);
        }
        if !has_fragment && !has_expect {
            return end;
        }
        let field = StreamMark { stream: head.stream, has_fragment }.field();
        let length = head.length + field.len();
        if length <= self.payload_bytes_max {
            *start = FrameHead { length, ..head }.bytes();
            self.insertion = field;
            return FRAME_HEAD_BYTES + block_end;
        }
        // The frame cannot grow, so another one ends the block.
        *start = FrameHead { flags: head.flags & !END_HEADERS, ..head }.bytes();
        let more = FrameHead { length: field.len(), kind: CONTINUATION, flags: END_HEADERS, stream: head.stream };
        self.insertion = [&more.bytes()[..], &field].concat();
        end
    }
}

#[cfg(test)]
#[path = "request_frames_tests.rs"]
mod tests;
