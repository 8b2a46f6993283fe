//! An answer's body: read whole, bounded by itself and together with all others under way.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::ending::{Ending, ProxyError, Why};

/// What one permit of the answers' memory stands for, in bytes.
const PERMIT_BYTES: usize = 1024;
/// Reserved before anything is sent: a small answer never has to be given up for want of memory.
const RESERVED_BYTES: usize = 64 * 1024;

/// A whole body. Its memory counts against `limits.answers_bytes` until it is dropped.
pub struct Body {
    bytes: Bytes,
    _room: Room,
}

impl Body {
    /// Its bytes. A clone of them is no longer counted: it belongs to whoever counts it next (the cache, say).
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Its bytes, counted until the last clone of them is dropped: what goes to a caller, however slow.
    #[must_use]
    pub fn into_counted(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

#[cfg(test)]
impl Body {
    /// An empty body that counts against nothing.
    pub(super) fn empty() -> Self {
        Self { bytes: Bytes::new(), _room: Room { permits: Arc::new(Semaphore::new(0)), held: None, bytes: 0 } }
    }
}

impl AsRef<[u8]> for Body {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Body({} B)", self.bytes.len())
    }
}

/// The memory of all answers under way.
pub(super) struct Memory {
    permits: Arc<Semaphore>,
    reserved: usize,
    /// The largest single answer, in bytes.
    answer_bytes: usize,
}

impl Memory {
    pub(super) fn new(answers_bytes: usize, answer_bytes: usize) -> Self {
        let permits = answers_bytes.div_ceil(PERMIT_BYTES).min(Semaphore::MAX_PERMITS);
        Self { permits: Arc::new(Semaphore::new(permits)), reserved: RESERVED_BYTES.min(answer_bytes), answer_bytes }
    }

    /// Room for a small answer, taken before anything is sent. `None`: there is none.
    pub(super) fn reserve(&self) -> Option<Room> {
        let mut room = Room { permits: self.permits.clone(), held: None, bytes: 0 };
        room.grow(self.reserved).then_some(room)
    }

    /// Reads `body` whole into `room`.
    ///
    /// Errors: [`Spoiled`], where it cannot be had whole or cannot go on.
    pub(super) async fn read(&self, headers: &HeaderMap, mut body: Incoming, mut room: Room) -> Result<Body, Spoiled> {
        if headers.contains_key(header::TRANSFER_ENCODING) && !is_chunked_alone(headers) {
            let text = "the answer has a transfer coding beside chunked";
            return Err(Spoiled::Unusable(Why::new(ProxyError::HttpResponseTransferCoding, text)));
        }
        let mut whole = Vec::new();
        self.make_room(&mut whole, &mut room, body.size_hint().lower())?;
        while let Some(frame) = body.frame().await {
            let cut = |_| Spoiled::Cut(Why::new(ProxyError::HttpResponseIncomplete, "the body ended before its end"));
            // Trailers say nothing that goes on.
            let Ok(data) = frame.map_err(cut)?.into_data() else { continue };
            self.make_room(&mut whole, &mut room, u64::try_from(data.len()).unwrap_or(u64::MAX))?;
            whole.extend_from_slice(&data);
        }
        if !whole.is_empty() && is_encoded(headers) {
            let text = "the answer is encoded, though identity was asked for";
            return Err(Spoiled::Unusable(Why::new(ProxyError::HttpResponseContentCoding, text)));
        }
        whole.shrink_to_fit();
        room.shrink(whole.len());
        Ok(Body { bytes: Bytes::from(whole), _room: room })
    }

    /// Makes `whole` able to take `more` bytes, and `room` cover what that allocates.
    fn make_room(&self, whole: &mut Vec<u8>, room: &mut Room, more: u64) -> Result<(), Spoiled> {
        let needed = usize::try_from(more).ok().and_then(|more| whole.len().checked_add(more));
        let Some(needed) = needed.filter(|needed| *needed <= self.answer_bytes) else {
            let text = "the answer is larger than limits.answer_bytes";
            return Err(Spoiled::Unusable(Why::new(ProxyError::HttpResponseBodySize, text)));
        };
        if needed > whole.capacity() {
            let capacity = needed.max(whole.capacity().saturating_mul(2)).min(self.answer_bytes);
            if !room.grow(capacity) {
                return Err(Spoiled::NoRoom);
            }
            whole.reserve_exact(capacity - whole.len());
        }
        Ok(())
    }
}

/// Why a body that began did not become an answer's.
pub(super) enum Spoiled {
    /// It did not come whole.
    Cut(Why),
    /// It came, but cannot go on.
    Unusable(Why),
    /// There is no memory left for it.
    NoRoom,
}

impl Spoiled {
    /// The ending of the attempt whose answer had this status.
    pub(super) fn ending(self, status: StatusCode) -> Ending {
        match self {
            Self::Cut(why) => Ending::Cut { status, why },
            Self::Unusable(why) => Ending::Unusable { status: Some(status), why },
            Self::NoRoom => Ending::NoRoom { status: Some(status) },
        }
    }
}

/// Is the transfer coding chunked and nothing else? hyper takes off the last coding only.
fn is_chunked_alone(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    let alone = codings.next().is_some_and(|value| value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked"));
    alone && codings.next().is_none()
}

/// An encoded body could hide the token, and is for nobody who asked for identity.
fn is_encoded(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(header::CONTENT_ENCODING).iter();
    codings.any(|coding| !coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"identity"))
}

/// What one answer may hold of the answers' memory; given back when dropped.
pub(super) struct Room {
    permits: Arc<Semaphore>,
    held: Option<OwnedSemaphorePermit>,
    bytes: usize,
}

impl Room {
    /// Covers `bytes` in all. `false`: there is no room for so many; it holds what it held.
    ///
    /// Never waits: two answers that wait for each other's room would both wait until their time is up.
    fn grow(&mut self, bytes: usize) -> bool {
        let more = bytes.div_ceil(PERMIT_BYTES).saturating_sub(self.bytes.div_ceil(PERMIT_BYTES));
        let Ok(more) = u32::try_from(more) else { return false };
        let Ok(permit) = self.permits.clone().try_acquire_many_owned(more) else { return false };
        match &mut self.held {
            Some(held) => held.merge(permit),
            None => self.held = Some(permit),
        }
        self.bytes = self.bytes.max(bytes);
        true
    }

    /// Gives back all but what covers `bytes`.
    fn shrink(&mut self, bytes: usize) {
        let surplus = self.bytes.div_ceil(PERMIT_BYTES).saturating_sub(bytes.div_ceil(PERMIT_BYTES));
        drop(self.held.as_mut().and_then(|held| held.split(surplus)));
        self.bytes = bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_taken_given_back_and_bounded() {
        let memory = Memory::new(256 * 1024, 128 * 1024);
        let mut first = memory.reserve().unwrap();
        assert_eq!(memory.permits.available_permits(), 192);
        assert!(first.grow(100 * 1024));
        assert_eq!(memory.permits.available_permits(), 156);
        let mut second = memory.reserve().unwrap();
        assert!(!second.grow(200 * 1024), "beyond what is left");
        assert_eq!(memory.permits.available_permits(), 92, "a refusal takes nothing");
        first.shrink(1);
        assert_eq!(memory.permits.available_permits(), 191);
        drop((first, second));
        assert_eq!(memory.permits.available_permits(), 256);
    }

    #[test]
    fn counted_bytes_hold_their_room_until_the_last_clone_is_gone() {
        let memory = Memory::new(128 * 1024, 1024);
        let body = Body { bytes: Bytes::from_static(b"{}"), _room: memory.reserve().unwrap() };
        let uncounted = body.bytes().clone();
        let counted = body.into_counted();
        let clone = counted.clone();
        drop(counted);
        assert_eq!(memory.permits.available_permits(), 127);
        drop(clone);
        assert_eq!(memory.permits.available_permits(), 128);
        assert_eq!(uncounted, "{}");
    }
}
