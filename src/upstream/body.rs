//! Response bodies: read whole, with a limit per body and a limit for all of them together.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};

use super::ending::{AttemptError, Ending, ProxyError};
use crate::shares::{CountedBytes, HeldShare, ShareHolder, Shortage, amount};

/// Reserved before anything is sent, so that a small response never has to be dropped for lack of memory.
const RESERVED_BYTES: usize = 64 * 1024;

/// A complete body. Its memory counts against its caller's share of `limits.answers_bytes` until it is dropped.
pub struct UpstreamBody {
    bytes: Bytes,
    _room: Option<HeldShare>,
}

impl UpstreamBody {
    /// The bytes. A clone is no longer counted; whoever keeps it (such as the cache) must count it.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The bytes, counted until the last clone is dropped; for sending to a caller, however slow.
    #[must_use]
    pub fn into_counted(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

#[cfg(test)]
impl UpstreamBody {
    /// An empty body that counts against nothing.
    pub(super) fn empty() -> Self {
        Self::of(b"")
    }

    /// A body that counts against nothing.
    pub(super) fn of(bytes: &'static [u8]) -> Self {
        Self { bytes: Bytes::from_static(bytes), _room: None }
    }
}

impl AsRef<[u8]> for UpstreamBody {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl fmt::Debug for UpstreamBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Body({} B)", self.bytes.len())
    }
}

/// Accounts for the memory of responses.
pub(super) struct BodyMemory {
    /// Size limit of a single response, in bytes.
    answer_bytes: usize,
}

impl BodyMemory {
    pub(super) const fn new(answer_bytes: usize) -> Self {
        Self { answer_bytes }
    }

    /// Reserves room for a small response before anything is sent.
    ///
    /// Errors: the share that is used up. Nobody waits for room, because two responses waiting for each other's would
    /// both time out.
    pub(super) fn reserve(&self, holder: &Arc<ShareHolder>) -> Result<HeldShare, Shortage> {
        holder.take(amount(RESERVED_BYTES.min(self.answer_bytes)))
    }

    /// Reads all of `body` into `room`.
    ///
    /// Errors: [`BodyError`] if it is incomplete or cannot be passed on.
    pub(super) async fn read(
        &self,
        headers: &HeaderMap,
        mut body: Incoming,
        room: HeldShare,
    ) -> Result<UpstreamBody, BodyError> {
        if headers.contains_key(header::TRANSFER_ENCODING) && !is_chunked_alone(headers) {
            let text = "the response has a transfer coding other than chunked";
            return Err(BodyError::Unusable(AttemptError::new(ProxyError::HttpResponseTransferCoding, text)));
        }
        let mut whole = CountedBytes::new(room);
        self.make_room(&mut whole, body.size_hint().lower())?;
        while let Some(frame) = body.frame().await {
            let cut = |_| {
                BodyError::Cut(AttemptError::new(ProxyError::HttpResponseIncomplete, "the body ended before its end"))
            };
            // Trailers are not passed on.
            let Ok(data) = frame.map_err(cut)?.into_data() else { continue };
            self.make_room(&mut whole, amount(data.len()))?;
            whole.extend(&data);
        }
        if !whole.is_empty() && is_encoded(headers) {
            let text = "the answer is encoded, though identity was asked for";
            return Err(BodyError::Unusable(AttemptError::new(ProxyError::HttpResponseContentCoding, text)));
        }
        let (bytes, room) = whole.into_parts();
        Ok(UpstreamBody { bytes: Bytes::from(bytes), _room: Some(room) })
    }

    /// Makes room for `more` bytes in `whole`.
    fn make_room(&self, whole: &mut CountedBytes, more: u64) -> Result<(), BodyError> {
        let needed = usize::try_from(more).ok().and_then(|more| whole.len().checked_add(more));
        let Some(needed) = needed.filter(|needed| *needed <= self.answer_bytes) else {
            let text = "the response is larger than limits.answer_bytes";
            return Err(BodyError::Unusable(AttemptError::new(ProxyError::HttpResponseBodySize, text)));
        };
        whole.make_room(needed, needed, self.answer_bytes).map_err(BodyError::NoRoom)
    }
}

/// Why a body could not be used.
pub(super) enum BodyError {
    /// It was cut short.
    Cut(AttemptError),
    /// It arrived but cannot be passed on.
    Unusable(AttemptError),
    /// There is no memory left for it.
    NoRoom(Shortage),
}

impl BodyError {
    /// The ending of an attempt whose response had this status.
    pub(super) fn ending(self, status: StatusCode) -> Ending {
        match self {
            Self::Cut(why) => Ending::Cut { status, why },
            Self::Unusable(why) => Ending::Unusable { status: Some(status), why },
            Self::NoRoom(short) => Ending::NoRoom { status: Some(status), short },
        }
    }
}

/// Whether chunked is the only transfer coding. hyper removes only the last coding.
fn is_chunked_alone(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    let alone = codings.next().is_some_and(|value| value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked"));
    alone && codings.next().is_none()
}

/// An encoded body could hide the token, and callers who asked for identity cannot use it. An empty list of codings is none.
fn is_encoded(headers: &HeaderMap) -> bool {
    let lists = headers.get_all(header::CONTENT_ENCODING).iter();
    let mut codings = lists.flat_map(|list| list.as_bytes().split(|byte| *byte == b',')).map(<[u8]>::trim_ascii);
    codings.any(|coding| !coding.is_empty() && !coding.eq_ignore_ascii_case(b"identity"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shares::SharedLimit;

    #[test]
    fn an_empty_list_of_codings_is_none() {
        let encoded = |value: &'static str| {
            is_encoded(&HeaderMap::from_iter([(header::CONTENT_ENCODING, http::HeaderValue::from_static(value))]))
        };
        for plain in ["", " ", ",", "identity", "Identity", "identity, ", ", identity,identity"] {
            assert!(!encoded(plain), "{plain:?}");
        }
        for coded in ["gzip", "identity, gzip", ",br", "x"] {
            assert!(encoded(coded), "{coded:?}");
        }
    }

    #[test]
    fn counted_bytes_hold_their_room_until_the_last_clone_is_gone() {
        let answers = SharedLimit::new(1024 * 1024);
        let mut room = BodyMemory::new(128 * 1024).reserve(&answers.holder()).unwrap();
        assert_eq!(answers.taken(), 64 * 1024);
        room.shrink(2);
        let body = UpstreamBody { bytes: Bytes::from_static(b"{}"), _room: Some(room) };
        let uncounted = body.bytes().clone();
        let counted = body.into_counted();
        let clone = counted.clone();
        drop(counted);
        assert_eq!(answers.taken(), 2);
        drop(clone);
        assert_eq!(answers.taken(), 0);
        assert_eq!(uncounted, "{}");
    }
}
