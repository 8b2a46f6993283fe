//! Bytes read from elsewhere that count for the memory they take.

use super::{HeldShare, Shortage};

/// A growing buffer whose memory counts against a holder's share until it is dropped.
#[derive(Debug)]
pub struct CountedBytes {
    bytes: Vec<u8>,
    room: HeldShare,
}

impl CountedBytes {
    /// Creates an empty buffer. What `room` already covers is used first.
    #[must_use]
    pub fn new(room: HeldShare) -> Self {
        Self { bytes: Vec::new(), room }
    }

    /// Makes room for `length` bytes in total, preferably `expected`, but never more than `most`. The buffer doubles,
    /// so that a long body is not copied for every piece.
    ///
    /// # Errors
    /// The holder's share is used up; what it holds stays unchanged.
    pub fn make_room(&mut self, length: usize, expected: usize, most: usize) -> Result<(), Shortage> {
        if length <= self.bytes.capacity() {
            return Ok(());
        }
        let capacity = length.max(expected).max(self.bytes.capacity().saturating_mul(2)).min(most);
        self.room.grow(amount(capacity))?;
        self.bytes.reserve_exact(capacity - self.bytes.len());
        Ok(())
    }

    /// Appends bytes for which room was made.
    pub fn extend(&mut self, more: &[u8]) {
        self.bytes.extend_from_slice(more);
    }

    /// Number of bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there are no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The bytes and the share they count against, both trimmed to size.
    #[must_use]
    pub fn into_parts(mut self) -> (Vec<u8>, HeldShare) {
        self.bytes.shrink_to_fit();
        self.room.shrink(amount(self.bytes.len()));
        (self.bytes, self.room)
    }
}

impl AsRef<[u8]> for CountedBytes {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// A number of bytes as an amount.
#[must_use]
pub fn amount(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}
