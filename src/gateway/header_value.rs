//! Header values that are written for every answer. They are cut from one block, so that none needs its own allocation, and avoid
//! `std::fmt`, which would cost more than the rest of the answer.

use std::cell::RefCell;
use std::fmt;

use bytes::BytesMut;
use http::HeaderValue;

use crate::hash;
use crate::ids::write_decimal;

/// Bytes that a thread's buffer grows by.
const GROWTH_BYTES: usize = 4096;

thread_local! {
    static BLOCK: RefCell<BytesMut> = RefCell::default();
}

/// Appends to a header value.
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

    /// Appends what something else writes.
    pub(super) fn written(self, write: impl FnOnce(&mut BytesMut) -> fmt::Result) -> Self {
        let _infallible = write(self.0);
        self
    }
}

/// The value that `write` writes; `None` if it is not a valid header value.
pub(super) fn value(write: impl FnOnce(HeaderValueWriter<'_>) -> HeaderValueWriter<'_>) -> Option<HeaderValue> {
    BLOCK.with_borrow_mut(|block| {
        if block.capacity() < GROWTH_BYTES / 16 {
            block.reserve(GROWTH_BYTES);
        }
        write(HeaderValueWriter(block));
        HeaderValue::from_maybe_shared(block.split().freeze()).ok()
    })
}
