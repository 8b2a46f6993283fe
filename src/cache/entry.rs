//! Entries: stored answers, with their age and weight.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use super::fence::FetchStamp;
use super::storable::Lifetime;
use crate::ids::RequestId;
use crate::list_index::ListIndex;

/// Memory cost of an entry besides itself: the map's node, its place in the queues, the timer, and allocation
/// headers.
const OVERHEAD_BYTES: usize = 200;
/// Memory cost of a header field besides its bytes.
const FIELD_BYTES: usize = 112;
/// Divisor of an entry's freshness that gives its last part, in which a request shows that the entry will still be
/// wanted afterwards.
const REFRESH_AHEAD_DIVISOR: u32 = 5;

/// An answer to be stored.
#[derive(Debug)]
pub struct NewEntry {
    /// The canonical target under which it is found.
    pub key: Arc<str>,
    /// 200, or 404 if those are remembered.
    pub status: StatusCode,
    /// The allow-listed header fields sent with the body.
    pub headers: HeaderMap,
    /// The whole body.
    pub body: Bytes,
    /// Its entity tag.
    pub etag: HeaderValue,
    /// Where the rows are in the body, if it is a list that can be narrowed.
    pub(crate) list: Option<ListIndex>,
    /// The path for records (canonical, no query).
    pub path: Arc<str>,
    /// The request that fetched it.
    pub filled_by: RequestId,
    /// How long it may be used.
    pub lifetime: Lifetime,
    /// When its request left, from [`FetchHandle::mark_sent`](super::FetchHandle::mark_sent).
    pub stamp: FetchStamp,
}

/// A stored answer. Immutable, and usable only while [`Entry::is_usable`] returns true.
#[derive(Debug)]
pub struct Entry {
    /// 200, or 404.
    pub status: StatusCode,
    /// The header fields sent with the body.
    pub headers: HeaderMap,
    /// The body, in its own allocation.
    pub body: Bytes,
    /// Its entity tag.
    pub etag: HeaderValue,
    /// Where the rows are in the body, if it is a list that can be narrowed.
    pub(crate) list: Option<ListIndex>,
    /// The path for records.
    pub path: Arc<str>,
    /// The request whose fetch filled it.
    pub filled_by: RequestId,
    stamp: FetchStamp,
    /// The age that the upstream stated on arrival. The response's delay is counted from the stamp.
    age_before: Duration,
    fresh_for: Duration,
    stale_for: Duration,
    weight: u32,
    /// Whether someone has already undertaken to refresh this entry before it is stale.
    is_refresh_claimed: AtomicBool,
}

impl Entry {
    /// Copies everything: hyper's small answers are slices of its read buffers, which an entry must not keep alive.
    pub(super) fn new(new_entry: NewEntry) -> Self {
        let NewEntry { key, status, headers, body, etag, list, path, filled_by, lifetime, stamp } = new_entry;
        let until = stamp.until().map(|end| lifetime.age.saturating_add(end.saturating_duration_since(stamp.at())));
        let mut entry = Self {
            status,
            headers: copied(&headers),
            body: Bytes::copy_from_slice(&body),
            etag: copied_value(&etag),
            list,
            path,
            filled_by,
            age_before: lifetime.age,
            // The end of the window in which it was born also ends its freshness.
            fresh_for: until.map_or(lifetime.fresh, |end| lifetime.fresh.min(end)),
            stale_for: lifetime.stale,
            weight: 0,
            is_refresh_claimed: AtomicBool::new(false),
            stamp,
        };
        entry.weight = entry.weigh(key.len());
        entry
    }

    fn weigh(&self, key_bytes: usize) -> u32 {
        let fields: usize =
            self.headers.iter().map(|(name, value)| FIELD_BYTES + name.as_str().len() + value.len()).sum();
        let fences = self.stamp.fence_set().len() * size_of::<usize>();
        let bytes = OVERHEAD_BYTES
            + size_of::<Self>()
            + key_bytes
            + self.path.len()
            + self.etag.len()
            + fields
            + fences
            + self.list.as_ref().map_or(0, ListIndex::bytes)
            + self.body.len();
        u32::try_from(bytes).unwrap_or(u32::MAX)
    }

    /// The tags that it can be invalidated by.
    pub fn tags(&self) -> impl Iterator<Item = &Arc<str>> {
        self.stamp.fence_set().tags()
    }

    /// The bytes it counts against the capacity.
    #[must_use]
    pub fn weight(&self) -> u32 {
        self.weight
    }

    pub(super) fn stamp(&self) -> &FetchStamp {
        &self.stamp
    }

    /// The answer's age (RFC 9111, section 4.2.3): the upstream's `Age`, the response's delay and the time here.
    /// Leaves out the apparent age, so that a skewed clock does not end caching.
    #[must_use]
    pub fn age(&self, now: Instant) -> Duration {
        self.age_before.saturating_add(self.since_fetch(now))
    }

    /// Time since its request left.
    pub(super) fn since_fetch(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.stamp.at())
    }

    /// How much longer it is fresh.
    ///
    /// # Errors
    /// It is stale, and has been for this long.
    pub fn freshness(&self, now: Instant) -> Result<Duration, Duration> {
        let age = self.age(now);
        if age < self.fresh_for { Ok(self.fresh_for - age) } else { Err(age - self.fresh_for) }
    }

    /// Whether it should be refreshed already, because it was requested in the last fifth of its freshness. Returns
    /// true only once, to the caller that must do it.
    #[must_use]
    pub fn claim_refresh_ahead(&self, now: Instant) -> bool {
        let late = self.freshness(now).is_ok_and(|left| left < self.fresh_for / REFRESH_AHEAD_DIVISOR);
        late && !self.is_refresh_claimed.swap(true, Ordering::Relaxed)
    }

    /// Remaining freshness in whole seconds, for `Cache-Status` (RFC 9211, section 2.5); negative once stale.
    #[must_use]
    pub fn ttl(&self, now: Instant) -> i64 {
        match self.freshness(now) {
            Ok(left) => i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            Err(over) => -i64::try_from(over.as_nanos().div_ceil(1_000_000_000)).unwrap_or(i64::MAX),
        }
    }

    /// Whether a reader who arrives now may get it at all, either fresh or because the upstream fails. Ask again
    /// before sending an answer that has waited.
    #[must_use]
    pub fn is_usable(&self, now: Instant) -> bool {
        self.left(now).is_some() && self.stamp.is_usable(now)
    }

    /// How much longer it can be of any use.
    #[must_use]
    pub fn left(&self, now: Instant) -> Option<Duration> {
        let left = self.fresh_for.saturating_add(self.stale_for).checked_sub(self.age(now))?;
        let left = self.stamp.until().map_or(left, |end| left.min(end.saturating_duration_since(now)));
        (!left.is_zero()).then_some(left)
    }
}

fn copied(headers: &HeaderMap) -> HeaderMap {
    let mut copy = HeaderMap::with_capacity(headers.keys_len());
    for (name, value) in headers {
        // The name of a non-standard field may be a slice of a read buffer too.
        let name = HeaderName::from_bytes(name.as_str().as_bytes()).unwrap_or_else(|_| name.clone());
        copy.append(name, copied_value(value));
    }
    copy
}

fn copied_value(value: &HeaderValue) -> HeaderValue {
    HeaderValue::from_bytes(value.as_bytes()).unwrap_or_else(|_| value.clone())
}
