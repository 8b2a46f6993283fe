//! The cache: entries by canonical target, guarded by fences, and fetches shared by several readers.
//!
//! It stores, judges and joins. The gateway decides what a key is, which tags it carries, who may see it and what is
//! sent upstream. Lookups come after authorization, and the caller is not part of any key.

mod directives;
mod entry;
mod fence;
mod freshness;
mod shared_fetch;
mod status;
mod storable;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use http::StatusCode;
use moka::notification::RemovalCause;
use serde::Serialize;

pub use entry::{Entry, NewEntry};
pub use fence::{FenceSet, FetchStamp, Invalidation};
pub use freshness::{RefreshPolicy, RequestDirectives};
pub use shared_fetch::{FetchHandle, FetchLost, FetchWaiter, JoinGroup, JoinRequest, SharedFetches};
pub use status::{CacheDetail, CacheStatus, ForwardReason};
pub use storable::{Lifetime, StorePolicy, storable};

use crate::clock::Clock;
use crate::config;
use fence::Fences;
use freshness::EntryVerdict;

/// An entry heavier than this fraction of the capacity is not stored, because it would push out too many others.
const CAPACITY_SHARE: u64 = 16;
/// Bytes of capacity per initial slot of the table. The table starts large because growing it delays requests for a
/// fraction of a millisecond.
const PLACE_BYTES: u64 = 4096;
const PLACES_MAX: u64 = 1 << 18;
/// Nothing is kept longer than this, whatever its lifetime.
const KEPT_MAX: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// The result of a lookup.
#[derive(Clone, Debug)]
pub enum Lookup {
    /// This entry answers. Its [`Entry::ttl`] is negative if it is stale and the caller accepts that.
    Hit(Arc<Entry>),
    /// The upstream must be asked.
    Fetch {
        /// Why.
        why: ForwardReason,
        /// An entry that may answer if the upstream fails, while [`Entry::is_usable`] still returns true.
        fallback: Option<Arc<Entry>>,
        /// Only a shared fetch begun at this instant or later will do.
        since: Option<Instant>,
    },
    /// The upstream must be asked for this caller alone, and nothing is stored (`no-store`).
    Bypass,
    /// The caller only accepts an answer from the cache, which has none (`only-if-cached`).
    NotHeld,
}

/// All entries, their fences and counters.
#[derive(Debug)]
pub struct Cache {
    clock: Clock,
    fences: Arc<Fences>,
    entries: moka::sync::Cache<Arc<str>, Arc<Entry>>,
    /// Held while an entry is inserted, so that an older entry never replaces a newer one.
    storing: Mutex<()>,
    capacity_bytes: u64,
    body_bytes_max: usize,
    hits: AtomicU64,
    misses: AtomicU64,
    evictions: Arc<AtomicU64>,
}

impl Cache {
    /// Creates an empty cache with this capacity. Bodies larger than `stored_bytes` (`[limits]`) are not stored.
    #[must_use]
    pub fn new(config: &config::CacheConfig, stored_bytes: usize, clock: Clock) -> Self {
        let places = (config.capacity_bytes / PLACE_BYTES).min(PLACES_MAX);
        let evictions = Arc::<AtomicU64>::default();
        let entries = moka::sync::Cache::builder()
            .max_capacity(config.capacity_bytes)
            .initial_capacity(usize::try_from(places).unwrap_or(0))
            .weigher(|_: &Arc<str>, entry: &Arc<Entry>| entry.weight())
            .expire_after(EntryExpiry { clock: clock.clone() })
            .eviction_listener({
                let evictions = evictions.clone();
                move |_, _, why| {
                    if why == RemovalCause::Size {
                        evictions.fetch_add(1, Ordering::Relaxed);
                    }
                }
            })
            .build();
        Self {
            clock,
            fences: Arc::new(Fences::new()),
            entries,
            storing: Mutex::new(()),
            capacity_bytes: config.capacity_bytes,
            body_bytes_max: stored_bytes,
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            evictions,
        }
    }

    /// Counts the result of a lookup.
    pub fn count(&self, found: &Lookup) {
        let counted = if matches!(found, Lookup::Hit(_)) { &self.hits } else { &self.misses };
        counted.fetch_add(1, Ordering::Relaxed);
    }

    /// Looks up an answer for a reader who arrives now (step 8 of a request's life).
    #[must_use]
    pub fn lookup(
        &self,
        key: &str,
        request_directives: &RequestDirectives,
        refresh_policy: &RefreshPolicy,
        now: Instant,
    ) -> Lookup {
        if request_directives.no_store && refresh_policy.may_refresh {
            return if request_directives.only_if_cached { Lookup::NotHeld } else { Lookup::Bypass };
        }
        let held = self.entries.get(key).filter(|entry| entry.is_usable(now));
        let (why, fallback) = match held {
            None => (ForwardReason::Miss, None),
            Some(entry) => match freshness::judge(&entry, request_directives, refresh_policy, now) {
                EntryVerdict::Hit => return Lookup::Hit(entry),
                EntryVerdict::Fetch { why, fallback } => (why, fallback.then_some(entry)),
            },
        };
        if request_directives.only_if_cached {
            Lookup::NotHeld
        } else if request_directives.no_store {
            Lookup::Bypass
        } else {
            Lookup::Fetch { why, fallback, since: request_directives.oldest_acceptable_fetch(refresh_policy, now) }
        }
    }

    /// As [`Self::lookup`], for a reader whom nothing may answer that was fetched before it came: fences may be missing here.
    #[must_use]
    pub fn lookup_nothing(request_directives: &RequestDirectives, now: Instant) -> Lookup {
        if request_directives.only_if_cached {
            Lookup::NotHeld
        } else if request_directives.no_store {
            Lookup::Bypass
        } else {
            Lookup::Fetch { why: ForwardReason::Miss, fallback: None, since: Some(now) }
        }
    }

    /// The fences of a fetch whose answer will carry these tags.
    #[must_use]
    pub fn fence_set<S: AsRef<str>>(&self, tags: &[S]) -> FenceSet {
        self.fences.fence_set(tags, self.clock.now())
    }

    /// A handle for a fetch that nobody can join but whose answer is stored.
    #[must_use]
    pub fn fetch_handle(&self, fence_set: FenceSet) -> FetchHandle {
        FetchHandle::unshared(self.fences.clone(), self.clock.clone(), fence_set)
    }

    /// Stores an answer. Returns `None` if it is too large, already fenced, expired, older than the present entry, or
    /// a 404 within a window after a write.
    pub fn store(&self, new_entry: NewEntry) -> Option<Arc<Entry>> {
        let now = self.clock.now();
        let unsure = new_entry.status == StatusCode::NOT_FOUND && new_entry.stamp.until().is_some();
        if unsure || new_entry.body.len() > self.body_bytes_max {
            return None;
        }
        let key = new_entry.key.clone();
        let entry = Arc::new(Entry::new(new_entry));
        self.put(key, &entry, now).then_some(entry)
    }

    /// Drops this entry, because its body is of no use after all, unless another one has taken its place.
    pub fn drop_entry(&self, key: &str, entry: &Arc<Entry>) {
        let _one_at_a_time = lock(&self.storing);
        if self.entries.get(key).is_some_and(|held| Arc::ptr_eq(&held, entry)) {
            self.entries.invalidate(key);
        }
    }

    /// Inserts an entry, unless it is too large, unusable, purged meanwhile, or older than the present one.
    fn put(&self, key: Arc<str>, entry: &Arc<Entry>, now: Instant) -> bool {
        if u64::from(entry.weight()) > self.capacity_bytes / CAPACITY_SHARE || !entry.is_usable(now) {
            return false;
        }
        let _one_at_a_time = lock(&self.storing);
        if self.fences.is_key_fenced(&key, entry.stamp()) {
            return false;
        }
        let held = self.entries.get(&*key);
        if held.is_some_and(|held| held.stamp().at() > entry.stamp().at() && held.is_usable(now)) {
            return false;
        }
        self.entries.insert(key, entry.clone());
        true
    }

    /// Raises the fences of `tags`, or the global one if there are none. Must be called when a write is settled,
    /// before its answer is sent: once it returns, nothing fetched before is found or joined.
    pub fn raise<S: AsRef<str>>(&self, tags: &[S], after: Invalidation) {
        self.fences.raise(tags, after, self.clock.now());
    }

    /// Drops the entries with this tag and returns their number.
    pub fn purge(&self, tag: &str) -> usize {
        self.purge_where(&[tag], |entry| entry.stamp().fence_set().tags().any(|held| **held == *tag))
    }

    /// Drops the entry under this key. As after the purge of a tag, no fetch that was sent before fills its place or is joined.
    pub fn purge_entry(&self, key: &str) {
        let _one_at_a_time = lock(&self.storing);
        self.fences.raise_key(key);
        self.entries.invalidate(key);
    }

    /// Whether this entry was purged as the one under this key, though a read may still hold it.
    #[must_use]
    pub fn is_purged(&self, key: &str, entry: &Entry) -> bool {
        self.fences.is_key_fenced(key, entry.stamp())
    }

    /// Drops everything (after a purge, or for a new token or upstream) and returns the number of entries.
    pub fn purge_all(&self) -> usize {
        self.purge_where::<&str>(&[], |_| true)
    }

    fn purge_where<S: AsRef<str>>(&self, tags: &[S], carries: impl Fn(&Entry) -> bool) -> usize {
        let now = self.clock.now();
        let carrying: Vec<_> = self.entries.iter().filter(|(_, entry)| carries(entry)).collect();
        let live = carrying.iter().filter(|(_, entry)| entry.is_usable(now)).count();
        self.raise(tags, Invalidation::Purge);
        for (key, _) in carrying {
            self.entries.invalidate(&**key);
        }
        live
    }

    /// Lets the map evict and expire entries. Must be called every second, because the map otherwise does this only
    /// when used.
    pub fn maintain(&self) {
        self.entries.run_pending_tasks();
    }

    /// All usable entries with their keys. Walks all entries; for operators.
    #[must_use]
    pub fn usable_entries(&self) -> Vec<(Arc<str>, Arc<Entry>)> {
        let now = self.clock.now();
        let usable = self.entries.iter().filter(|(_, entry)| entry.is_usable(now));
        usable.map(|(key, entry)| (Arc::clone(&*key), entry)).collect()
    }

    /// Approximate entries and bytes, with hits and misses. Cheap; for metrics.
    #[must_use]
    pub fn size(&self) -> CacheSize {
        CacheSize {
            entries: self.entries.entry_count(),
            bytes: self.entries.weighted_size(),
            capacity_bytes: self.capacity_bytes,
            hits: self.hits.load(Ordering::Relaxed),
            misses: self.misses.load(Ordering::Relaxed),
            evictions: self.evictions.load(Ordering::Relaxed),
        }
    }

    /// The exact numbers for usable entries, with their tags, sorted. Walks all entries; for operators.
    #[must_use]
    pub fn count_by_tag(&self) -> (CacheSize, Vec<(Arc<str>, usize)>) {
        let now = self.clock.now();
        let (mut size, mut tags) =
            (CacheSize { entries: 0, bytes: 0, ..self.size() }, HashMap::<Arc<str>, usize>::new());
        for (_, entry) in self.entries.iter().filter(|(_, entry)| entry.is_usable(now)) {
            size.entries += 1;
            size.bytes += u64::from(entry.weight());
            for tag in entry.stamp().fence_set().tags() {
                *tags.entry(tag.clone()).or_default() += 1;
            }
        }
        let mut tags: Vec<_> = tags.into_iter().collect();
        tags.sort_unstable();
        (size, tags)
    }
}

/// How full the cache is, and its hits and misses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct CacheSize {
    /// Number of entries.
    pub entries: u64,
    /// Weight of the entries, in bytes.
    pub bytes: u64,
    /// Maximum weight, in bytes.
    pub capacity_bytes: u64,
    /// Reads answered from the cache.
    pub hits: u64,
    /// Reads not answered from the cache.
    pub misses: u64,
    /// Entries that were evicted to make room for others.
    pub evictions: u64,
}

/// When the map may drop an entry. The map uses its own clock, so this only bounds memory; the entry itself decides
/// whether it is usable.
struct EntryExpiry {
    clock: Clock,
}

impl EntryExpiry {
    fn left(&self, entry: &Entry) -> Option<Duration> {
        Some(entry.left(self.clock.now()).unwrap_or_default().min(KEPT_MAX))
    }
}

impl moka::Expiry<Arc<str>, Arc<Entry>> for EntryExpiry {
    fn expire_after_create(&self, _: &Arc<str>, entry: &Arc<Entry>, _: Instant) -> Option<Duration> {
        self.left(entry)
    }

    fn expire_after_update(
        &self,
        _: &Arc<str>,
        entry: &Arc<Entry>,
        _: Instant,
        _: Option<Duration>,
    ) -> Option<Duration> {
        self.left(entry)
    }
}

/// Locks, ignoring poison: no code under these locks can panic between two related changes.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
