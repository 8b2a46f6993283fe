//! Header values that are written for every answer: cut off one block, so that none is an allocation of its own, and without
//! the formatting machinery, which would cost more than the rest of the answer.

use std::cell::RefCell;
use std::fmt::Write as _;

use bytes::BytesMut;
use http::HeaderValue;

use crate::hash;
use crate::ids::write_decimal;

/// How much of a thread's ink is mixed at once, in bytes.
const INK_BYTES: usize = 4096;

thread_local! {
    static BLOCK: RefCell<BytesMut> = RefCell::default();
}

/// A value under way.
pub(super) struct HeaderValueWriter<'i>(&'i mut BytesMut);

impl HeaderValueWriter<'_> {
    pub(super) fn text(self, text: &str) -> Self {
        self.0.extend_from_slice(text.as_bytes());
        self
    }

    pub(super) fn number(self, number: u64) -> Self {
        self.0.extend_from_slice(write_decimal(number, &mut [0; 20]));
        self
    }

    pub(super) fn hex(self, bytes: &[u8]) -> Self {
        self.0.extend(hash::hex_digits(bytes));
        self
    }

    /// Anything, for what it costs.
    pub(super) fn shown(self, value: impl std::fmt::Display) -> Self {
        let _infallible = write!(self.0, "{value}");
        self
    }
}

/// The value that this writes; `None`: it holds what no header may.
pub(super) fn value(write: impl FnOnce(HeaderValueWriter<'_>) -> HeaderValueWriter<'_>) -> Option<HeaderValue> {
    BLOCK.with_borrow_mut(|block| {
        if block.capacity() < INK_BYTES / 16 {
            block.reserve(INK_BYTES);
        }
        write(HeaderValueWriter(block));
        HeaderValue::from_maybe_shared(block.split().freeze()).ok()
    })
}
