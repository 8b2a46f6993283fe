//! Entries: stored answers, how old they are, and what they weigh.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use super::fence::FetchStamp;
use super::storable::Lifetime;
use crate::ids::RequestId;

/// What one entry costs besides itself: the map's node, its place in the queues, the timer, allocations' heads.
const OVERHEAD_BYTES: usize = 200;
/// What a header map holds for one field besides its bytes.
const FIELD_BYTES: usize = 112;
/// The part of an entry's freshness in which who asks for it shows that it will be wanted afterwards.
const AHEAD_DIVISOR: u32 = 5;

/// An answer to be stored, as the gateway has it.
#[derive(Debug)]
pub struct NewEntry {
    /// The canonical target that finds it again.
    pub key: Arc<str>,
    /// 200, or 404 where those are remembered.
    pub status: StatusCode,
    /// The allow-listed header fields that are answered with the body.
    pub headers: HeaderMap,
    /// The whole body.
    pub body: Bytes,
    /// Its entity tag.
    pub etag: HeaderValue,
    /// The path for records (canonical, no query).
    pub path: Arc<str>,
    /// The request whose fetch this is.
    pub filled_by: RequestId,
    /// How long it may be used.
    pub lifetime: Lifetime,
    /// When its request left; from [`FetchHandle::mark_sent`](super::FetchHandle::mark_sent).
    pub stamp: FetchStamp,
}

/// A stored answer. Immutable; usable only while [`Entry::usable`] says so.
#[derive(Debug)]
pub struct Entry {
    /// 200, or 404.
    pub status: StatusCode,
    /// The header fields that are answered with the body.
    pub headers: HeaderMap,
    /// The body, in an allocation of its own.
    pub body: Bytes,
    /// Its entity tag.
    pub etag: HeaderValue,
    /// The path for records.
    pub path: Arc<str>,
    /// The request whose fetch filled it.
    pub filled_by: RequestId,
    stamp: FetchStamp,
    /// Age upon arrival, as the upstream said. The response's delay is counted from the stamp.
    age_before: Duration,
    fresh_for: Duration,
    stale_for: Duration,
    weight: u32,
    /// Has somebody taken it on to fetch this anew before it is stale?
    ahead: AtomicBool,
}

impl Entry {
    /// Everything is copied: small answers of hyper are slices of its read buffers, which an entry must not keep alive.
    pub(super) fn new(new_entry: NewEntry) -> Self {
        let NewEntry { key, status, headers, body, etag, path, filled_by, lifetime, stamp } = new_entry;
        let until = stamp.until().map(|end| lifetime.age.saturating_add(end.saturating_duration_since(stamp.at())));
        let mut entry = Self {
            status,
            headers: copied(&headers),
            body: Bytes::copy_from_slice(&body),
            etag: copied_value(&etag),
            path,
            filled_by,
            age_before: lifetime.age,
            // An age at which the window that it was born in closes ends its freshness too.
            fresh_for: until.map_or(lifetime.fresh, |end| lifetime.fresh.min(end)),
            stale_for: lifetime.stale,
            weight: 0,
            ahead: AtomicBool::new(false),
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
            + self.body.len();
        u32::try_from(bytes).unwrap_or(u32::MAX)
    }

    /// What it counts against the capacity, in bytes.
    pub(super) fn weight(&self) -> u32 {
        self.weight
    }

    pub(super) fn stamp(&self) -> &FetchStamp {
        &self.stamp
    }

    /// How old the answer is (RFC 9111 section 4.2.3, without the apparent age: a skewed clock must not end caching):
    /// what the upstream's `Age` said, the response's delay and the time here.
    #[must_use]
    pub fn age(&self, now: Instant) -> Duration {
        self.age_before.saturating_add(self.since_fetch(now))
    }

    /// The time since its request left.
    pub(super) fn since_fetch(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.stamp.at())
    }

    /// How long it is still fresh.
    ///
    /// # Errors
    /// It is stale, for so long.
    pub fn freshness(&self, now: Instant) -> Result<Duration, Duration> {
        let age = self.age(now);
        if age < self.fresh_for { Ok(self.fresh_for - age) } else { Err(age - self.fresh_for) }
    }

    /// Is it worth being fetched anew already: asked for in the last fifth of its freshness? `true` once, to who is to do it.
    #[must_use]
    pub fn goes_ahead(&self, now: Instant) -> bool {
        let late = self.freshness(now).is_ok_and(|left| left < self.fresh_for / AHEAD_DIVISOR);
        late && !self.ahead.swap(true, Ordering::Relaxed)
    }

    /// The freshness left in whole seconds, as `Cache-Status` has it (RFC 9211 section 2.5); negative once stale.
    #[must_use]
    pub fn ttl(&self, now: Instant) -> i64 {
        match self.freshness(now) {
            Ok(left) => i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            Err(over) => -i64::try_from(over.as_nanos().div_ceil(1_000_000_000)).unwrap_or(i64::MAX),
        }
    }

    /// May a reader who arrives now be given it at all, be it fresh or as the answer to an upstream that fails?
    /// Ask again before an answer that waited.
    #[must_use]
    pub fn usable(&self, now: Instant) -> bool {
        self.left(now).is_some() && self.stamp.usable(now)
    }

    /// How long it can be of any use yet.
    pub(super) fn left(&self, now: Instant) -> Option<Duration> {
        let left = self.fresh_for.saturating_add(self.stale_for).checked_sub(self.age(now))?;
        let left = self.stamp.until().map_or(left, |end| left.min(end.saturating_duration_since(now)));
        (!left.is_zero()).then_some(left)
    }
}

fn copied(headers: &HeaderMap) -> HeaderMap {
    let mut copy = HeaderMap::with_capacity(headers.keys_len());
    for (name, value) in headers {
        // A name that is not of the standard ones may be a slice of a read buffer too.
        let name = HeaderName::from_bytes(name.as_str().as_bytes()).unwrap_or_else(|_| name.clone());
        copy.append(name, copied_value(value));
    }
    copy
}

fn copied_value(value: &HeaderValue) -> HeaderValue {
    HeaderValue::from_bytes(value.as_bytes()).unwrap_or_else(|_| value.clone())
}
