//! Bytes that are read from somewhere, and count for the memory that they take.

use super::{HeldShare, Shortage};

/// Bytes that grow as they come. Their memory counts against a holder's share until they are gone.
#[derive(Debug)]
pub struct CountedBytes {
    bytes: Vec<u8>,
    room: HeldShare,
}

impl CountedBytes {
    /// None yet. What `room` covers already is used first.
    #[must_use]
    pub fn new(room: HeldShare) -> Self {
        Self { bytes: Vec::new(), room }
    }

    /// Becomes able to hold `length` bytes in all, better `expected`, but never more than `most`. It grows by doubling, so that a
    /// long body is not copied for each of its pieces.
    ///
    /// # Errors
    /// The holder's share is used up: it holds what it held.
    pub fn make_room(&mut self, length: usize, expected: usize, most: usize) -> Result<(), Shortage> {
        if length <= self.bytes.capacity() {
            return Ok(());
        }
        let capacity = length.max(expected).max(self.bytes.capacity().saturating_mul(2)).min(most);
        self.room.grow(amount(capacity))?;
        self.bytes.reserve_exact(capacity - self.bytes.len());
        Ok(())
    }

    /// Appends what room was made for.
    pub fn extend(&mut self, more: &[u8]) {
        self.bytes.extend_from_slice(more);
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Are there none?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The bytes and what they count for, neither more than it has to be.
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

/// So many bytes as an amount.
#[must_use]
pub fn amount(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}
