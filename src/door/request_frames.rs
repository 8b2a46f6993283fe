//! Follows the frames that an HTTP/2 client sends (RFC 9113 section 4), to find the field blocks in them.
//!
//! h2 reads the same bytes, and what this reads differently could hide a `#`. So after a frame that cannot be followed h2 gets nothing more:
//! it refuses the frame itself, which ends the connection, or the connection ends when h2 reads on.

use super::field_blocks::FieldBlocks;

/// What a client sends first (RFC 9113 section 3.4).
const PREFACE_BYTES: usize = 24;
/// Length of a frame's head: payload length, type, flags, stream.
pub(super) const FRAME_HEAD_BYTES: usize = 9;
/// Length of what may come between the head of a HEADERS frame and its block: padding length, priority.
const PREFIX_BYTES_MAX: usize = 6;

pub(super) const HEADERS: u8 = 1;
const PUSH_PROMISE: u8 = 5;
const CONTINUATION: u8 = 9;

const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;

/// The bits of a stream's number.
const STREAM_MASK: u32 = u32::MAX >> 1;

/// Follows the frames of an HTTP/2 connection, and marks the `#` in the `:path` of their requests.
#[derive(Debug)]
pub(crate) struct RequestFrames {
    place: Place,
    /// The head of a frame and what is before its block, as far as they have arrived.
    begun: [u8; FRAME_HEAD_BYTES + PREFIX_BYTES_MAX],
    blocks: FieldBlocks,
}

/// Where the next byte stands.
#[derive(Clone, Copy, Debug)]
enum Place {
    /// In what has no block: so many bytes are left of it.
    Other(usize),
    /// In the head of a frame or, behind it, before the block: so many bytes have arrived of so many.
    Head { arrived: usize, length: usize },
    /// In a part of a block.
    Block(BlockPart),
    /// In the last frame that h2 gets: so many bytes are left of it.
    Last(usize),
}

#[derive(Clone, Copy, Debug)]
struct BlockPart {
    left: usize,
    padding: usize,
    ends_block: bool,
}

impl RequestFrames {
    /// `table_bytes_max`: the size that the client is told for the table of its recent fields.
    pub(crate) fn new(table_bytes_max: usize) -> Self {
        Self {
            place: Place::Other(PREFACE_BYTES),
            begun: [0; FRAME_HEAD_BYTES + PREFIX_BYTES_MAX],
            blocks: FieldBlocks::new(table_bytes_max),
        }
    }

    /// Replaces each `#` that is in a `:path`, and returns how many of the bytes h2 may read. `bytes` are the next ones of the connection.
    pub(crate) fn mark_fragments(&mut self, bytes: &mut [u8]) -> usize {
        let mut rest = &mut *bytes;
        while !rest.is_empty() {
            match self.advance(rest).min(rest.len()) {
                0 => break,
                length => rest = rest.split_at_mut(length).1,
            }
        }
        let held_back = rest.len();
        bytes.len() - held_back
    }

    /// Follows some of the bytes, and returns how many; 0 if h2 may read nothing more.
    fn advance(&mut self, bytes: &mut [u8]) -> usize {
        match self.place {
            Place::Other(left) => {
                let now = left.min(bytes.len());
                self.place = Self::other(left - now);
                now
            }
            Place::Last(left) => {
                let now = left.min(bytes.len());
                self.place = Place::Last(left - now);
                now
            }
            Place::Head { arrived, length } => {
                let missing = self.begun.iter_mut().take(length).skip(arrived);
                let now = missing.zip(bytes).map(|(to, byte)| *to = *byte).count();
                self.place = match arrived + now {
                    all if all < length => Place::Head { arrived: all, length },
                    all => self.on_head(all - FRAME_HEAD_BYTES),
                };
                now
            }
            Place::Block(part) => {
                let now = part.left.min(bytes.len());
                let followed = self.blocks.mark_fragments(bytes.split_at_mut(now).0);
                let part = BlockPart { left: part.left - now, ..part };
                self.place = match followed {
                    Ok(()) => self.block(part),
                    Err(_) => Place::Last(part.left + part.padding),
                };
                now
            }
        }
    }

    fn other(left: usize) -> Place {
        if left > 0 { Place::Other(left) } else { Place::Head { arrived: 0, length: FRAME_HEAD_BYTES } }
    }

    fn block(&self, part: BlockPart) -> Place {
        match part {
            BlockPart { left: 1.., .. } => Place::Block(part),
            BlockPart { ends_block: true, padding, .. } if !self.blocks.is_between_fields() => Place::Last(padding),
            BlockPart { padding, .. } => Self::other(padding),
        }
    }

    /// Returns what comes behind the head of a frame and so many bytes before its block.
    fn on_head(&self, prefix_arrived: usize) -> Place {
        let [high, middle, low, kind, flags, s0, s1, s2, s3, prefix @ ..] = self.begun;
        let length = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
        let ends_block = flags & END_HEADERS != 0;
        match kind {
            HEADERS => {}
            CONTINUATION => return self.block(BlockPart { left: length, padding: 0, ends_block }),
            // No client may send one.
            PUSH_PROMISE => return Place::Last(length),
            _ => return Self::other(length),
        }
        let (is_padded, has_priority) = (flags & PADDED != 0, flags & PRIORITY != 0);
        let prefix_length = usize::from(is_padded) + if has_priority { 5 } else { 0 };
        if prefix_arrived < prefix_length && prefix_length <= length {
            return Place::Head { arrived: FRAME_HEAD_BYTES, length: FRAME_HEAD_BYTES + prefix_length };
        }
        let left = length.saturating_sub(prefix_arrived);
        let [p0, p1, p2, p3, p4, _] = prefix;
        let (padding, dependency) = if is_padded { (p0, [p1, p2, p3, p4]) } else { (0, [p0, p1, p2, p3]) };
        let stream = u32::from_be_bytes([s0, s1, s2, s3]);
        // h2 skips the block of a stream that depends on itself, and with it the entries for the table.
        let depends_on_itself = has_priority && (u32::from_be_bytes(dependency) ^ stream) & STREAM_MASK == 0;
        match left.checked_sub(usize::from(padding)) {
            Some(block) if prefix_length <= length && !depends_on_itself && self.blocks.is_between_fields() => {
                self.block(BlockPart { left: block, padding: padding.into(), ends_block })
            }
            _ => Place::Last(left),
        }
    }
}

#[cfg(test)]
#[path = "request_frames_tests.rs"]
mod tests;
