//! Fences stop a read that began before a write was settled from filling the cache after it.
//!
//! One counter orders everything. A fetch's [`FetchStamp`] is the counter's value before its request leaves. Settling
//! a write raises the fences of its tags to a new value of the counter before its answer is sent. A body whose stamp
//! is below one of its fences may predate the write and is not used; this is checked at every lookup and every join.
//! So storing never has to win a race, there is no index from tags to entries, and a check is a few atomic loads.
//!
//! Ordering: stamps load the counter before their request leaves, raises use read-modify-writes (globally visible
//! when they return) before the answer leaves, and checks load after the reader's request came in. All are `SeqCst`,
//! so they agree on one order with the sockets in between.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::lock;

/// Maximum number of known tags. Beyond it all tagged entries are given up, but never a fence.
const TAGS_MAX: usize = 100_000;
/// With fewer tags than this, nothing is swept.
const SWEEP_MIN: usize = 1_024;
/// Maximum number of open windows that one fence tells apart. Beyond it, windows that end close together are merged.
const WINDOWS_MAX: usize = 64;
/// Fences that keys share by their hashes.
const KEY_FENCES: usize = 1_024;
/// The generation of a fence that the map has given up: nothing behind it ever becomes usable again.
const ORPHANED: u64 = u64::MAX;

/// Why fences are raised, which determines how long a body born afterwards may live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Invalidation {
    /// An operator's purge, or a new token: whatever is born afterwards is good.
    Purge,
    /// A write took effect. The upstream may lag behind it by `settle`.
    Settled {
        /// `[cache] settle`.
        settle: Duration,
    },
    /// A write may still take effect during `doubt`, and the upstream may lag behind that.
    InDoubt {
        /// `[cache] settle`.
        settle: Duration,
        /// `[cache] doubt`, or what is left of it.
        doubt: Duration,
    },
}

impl Invalidation {
    /// When bodies born since the raise expire.
    fn ends(self, now: Instant) -> Vec<Instant> {
        let lengths = match self {
            Self::Purge => vec![],
            Self::Settled { settle } => vec![settle],
            Self::InDoubt { settle, doubt } => vec![settle, doubt, doubt.saturating_add(settle)],
        };
        lengths.into_iter().filter_map(|length| now.checked_add(length)).collect()
    }
}

#[derive(Debug)]
pub(super) struct Fence {
    tag: Arc<str>,
    /// The counter at its last raise; 0 if never raised.
    generation: AtomicU64,
    /// Ends of windows that may still be open, ascending.
    ends: Mutex<Vec<Instant>>,
}

impl Fence {
    fn new(tag: &str) -> Arc<Self> {
        Arc::new(Self { tag: tag.into(), generation: AtomicU64::new(0), ends: Mutex::default() })
    }

    fn open_windows(&self, more: &[Instant], now: Instant) {
        let mut ends = lock(&self.ends);
        ends.extend(more);
        ends.retain(|end| *end > now);
        ends.sort_unstable();
        ends.dedup();
        while ends.len() > WINDOWS_MAX {
            // Drop an end between two close ones. The later end replaces it, so a window may grow by a gap, but none
            // is lost.
            let gaps = ends.iter().zip(ends.iter().skip(2)).map(|(before, after)| *after - *before);
            let Some((before, _)) = gaps.enumerate().min_by_key(|(_, gap)| *gap) else { break };
            ends.remove(before + 1);
        }
    }

    /// The earliest end of the windows open at `at`. Every window must be honoured, so the first to close decides.
    fn first_end_after(&self, at: Instant) -> Option<Instant> {
        lock(&self.ends).iter().copied().find(|end| *end > at)
    }
}

/// The fences of an entry or a fetch: first the global one, then those of its tags.
#[derive(Clone, Debug)]
pub struct FenceSet(Arc<[Arc<Fence>]>);

impl FenceSet {
    /// The tags, without the global fence.
    pub(super) fn tags(&self) -> impl Iterator<Item = &Arc<str>> {
        self.0.iter().skip(1).map(|fence| &fence.tag)
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

/// When a fetch's request left, by both the counter and the clock, with the fences that can make its body unusable.
#[derive(Clone, Debug)]
pub struct FetchStamp {
    generation: u64,
    at: Instant,
    until: Option<Instant>,
    fence_set: FenceSet,
}

impl FetchStamp {
    /// The time when the request left, or earlier.
    #[must_use]
    pub fn at(&self) -> Instant {
        self.at
    }

    /// The end of the window it was born in, from which on it is unusable.
    #[must_use]
    pub fn until(&self) -> Option<Instant> {
        self.until
    }

    /// Whether a reader who arrives now may get this body (promise 3).
    #[must_use]
    pub fn is_usable(&self, now: Instant) -> bool {
        self.until.is_none_or(|end| now < end) && self.is_unfenced()
    }

    fn is_unfenced(&self) -> bool {
        self.fence_set.0.iter().all(|fence| self.generation >= fence.generation.load(SeqCst))
    }

    pub(super) fn fence_set(&self) -> &FenceSet {
        &self.fence_set
    }
}

/// The counter, and the fences by tag.
#[derive(Debug)]
pub(super) struct Fences {
    counter: AtomicU64,
    /// The global fence, behind which every entry and shared fetch stands.
    global: Arc<Fence>,
    /// Held for the whole of a raise, so that no window is opened on a fence that the map is giving up.
    tags: Mutex<FenceTable>,
    keys: KeyFences,
}

/// Fences for single keys, which hold up only fetches under way: the entry itself is dropped. Keys whose hashes are alike share one, which
/// may cost the other a second fetch, so there are a fixed number of fences and never one to forget.
#[derive(Debug)]
struct KeyFences {
    hasher: RandomState,
    /// The newest generation of all: what is at least as young needs no further look.
    newest: AtomicU64,
    generations: Box<[AtomicU64]>,
}

impl KeyFences {
    fn new() -> Self {
        let generations = (0..KEY_FENCES).map(|_| AtomicU64::new(0)).collect();
        Self { hasher: RandomState::new(), newest: AtomicU64::new(0), generations }
    }

    fn of(&self, key: &str) -> Option<&AtomicU64> {
        let place = self.hasher.hash_one(key) % KEY_FENCES as u64;
        self.generations.get(usize::try_from(place).unwrap_or(0))
    }
}

#[derive(Debug)]
struct FenceTable {
    fences: HashMap<Arc<str>, Arc<Fence>>,
    tags_max: usize,
    sweep_at: usize,
}

impl Fences {
    pub(super) fn new() -> Self {
        Self::with_tags_max(TAGS_MAX)
    }

    fn with_tags_max(tags_max: usize) -> Self {
        let tags = FenceTable { fences: HashMap::new(), tags_max, sweep_at: SWEEP_MIN.min(tags_max) };
        Self { counter: AtomicU64::new(0), global: Fence::new(""), tags: Mutex::new(tags), keys: KeyFences::new() }
    }

    /// The fences of an answer with these tags.
    pub(super) fn fence_set<S: AsRef<str>>(&self, tags: &[S], now: Instant) -> FenceSet {
        let mut known = lock(&self.tags);
        self.make_room(&mut known, tags.len(), now);
        let everything = std::iter::once(self.global.clone());
        FenceSet(everything.chain(tags.iter().map(|tag| known.fence(tag.as_ref()))).collect())
    }

    /// Stamps a fetch before its request leaves. `now` must have been read before this call.
    pub(super) fn stamp(&self, fence_set: &FenceSet, now: Instant) -> FetchStamp {
        // Load the counter first: a raise opens its windows before it moves the counter, so a stamp above it sees
        // them.
        let generation = self.counter.load(SeqCst);
        let until = fence_set.0.iter().filter_map(|fence| fence.first_end_after(now)).min();
        FetchStamp { generation, at: now, until, fence_set: fence_set.clone() }
    }

    /// Raises the fences of `tags`, or the global one if there are none. When it returns, whatever was born before is
    /// unusable.
    pub(super) fn raise<S: AsRef<str>>(&self, tags: &[S], after: Invalidation, now: Instant) {
        let mut known = lock(&self.tags);
        let raised: Vec<_> = if tags.is_empty() {
            vec![self.global.clone()]
        } else {
            self.make_room(&mut known, tags.len(), now);
            tags.iter().map(|tag| known.fence(tag.as_ref())).collect()
        };
        let ends = after.ends(now);
        raised.iter().for_each(|fence| fence.open_windows(&ends, now));
        let generation = self.counter.fetch_add(1, SeqCst) + 1;
        for fence in raised {
            fence.generation.fetch_max(generation, SeqCst);
        }
    }

    /// Raises the fence of one key. When it returns, no fetch that was sent before may fill its place.
    pub(super) fn raise_key(&self, key: &str) {
        let generation = self.counter.fetch_add(1, SeqCst) + 1;
        if let Some(fence) = self.keys.of(key) {
            fence.fetch_max(generation, SeqCst);
        }
        // Last: whoever sees it sees the key's own fence, too.
        self.keys.newest.fetch_max(generation, SeqCst);
    }

    /// Whether what was fetched with this stamp is behind the fence of its key.
    pub(super) fn is_key_fenced(&self, key: &str, stamp: &FetchStamp) -> bool {
        stamp.generation < self.keys.newest.load(SeqCst)
            && self.keys.of(key).is_some_and(|fence| stamp.generation < fence.load(SeqCst))
    }

    /// Drops fences with nothing behind them and no open windows. If that is not enough, gives up all of them: what
    /// is behind them becomes unusable, and the global fence takes over their open windows.
    fn make_room(&self, known: &mut FenceTable, more: usize, now: Instant) {
        if known.fences.len() + more <= known.sweep_at {
            return;
        }
        // Clones are made only under this lock, so a count of one cannot grow meanwhile.
        known.fences.retain(|_, fence| Arc::strong_count(fence) > 1 || fence.first_end_after(now).is_some());
        if known.fences.len() + more > known.tags_max / 8 * 7 {
            for (_, fence) in known.fences.drain() {
                self.global.open_windows(&lock(&fence.ends), now);
                fence.generation.store(ORPHANED, SeqCst);
            }
        }
        known.sweep_at = (known.fences.len() * 2).clamp(SWEEP_MIN.min(known.tags_max), known.tags_max);
    }
}

impl FenceTable {
    fn fence(&mut self, tag: &str) -> Arc<Fence> {
        if let Some(fence) = self.fences.get(tag) {
            return fence.clone();
        }
        let fence = Fence::new(tag);
        self.fences.insert(fence.tag.clone(), fence.clone());
        fence
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    const SETTLE: Duration = Duration::from_secs(10);
    const DOUBT: Duration = Duration::from_secs(120);
    const SETTLED: Invalidation = Invalidation::Settled { settle: SETTLE };
    const IN_DOUBT: Invalidation = Invalidation::InDoubt { settle: SETTLE, doubt: DOUBT };

    fn seconds(from: Instant, n: u64) -> Instant {
        from + Duration::from_secs(n)
    }

    #[test]
    fn a_raise_kills_what_was_born_before_it_and_carries_the_tag() {
        let (fences, t0) = (Fences::new(), Clock::system().now());
        let usage = fences.stamp(&fences.fence_set(&["org:11", "org:11/usage"], t0), t0);
        let detail = fences.stamp(&fences.fence_set(&["org:11", "org:11/detail"], t0), t0);
        fences.raise(&["org:11/usage"], Invalidation::Purge, t0);
        assert!(!usage.is_usable(t0) && detail.is_usable(t0));
        let usage = fences.stamp(usage.fence_set(), t0);
        assert!(usage.is_usable(t0));
        fences.raise(&["org:11"], Invalidation::Purge, t0);
        assert!(!usage.is_usable(t0) && !detail.is_usable(t0));
    }

    #[test]
    fn a_write_without_tags_fences_everything() {
        let (fences, t0) = (Fences::new(), Clock::system().now());
        let stamps: Vec<_> =
            [vec![], vec!["a"], vec!["b"]].iter().map(|tags| fences.stamp(&fences.fence_set(tags, t0), t0)).collect();
        fences.raise::<&str>(&[], SETTLED, t0);
        assert!(stamps.iter().all(|stamp| !stamp.is_usable(t0)));
        assert_eq!(fences.stamp(stamps[1].fence_set(), t0).until(), Some(t0 + SETTLE));
    }

    #[test]
    fn what_is_born_in_a_window_dies_with_it_and_no_later() {
        let (fences, t0) = (Fences::new(), Clock::system().now());
        let fence_set = fences.fence_set(&["a", "b"], t0);
        fences.raise(&["a"], SETTLED, t0);
        let inside = fences.stamp(&fence_set, seconds(t0, 9));
        assert!(inside.is_usable(seconds(t0, 9)) && !inside.is_usable(seconds(t0, 10)));
        assert_eq!(fences.stamp(&fence_set, seconds(t0, 10)).until(), None);
    }

    /// A lagging body must not survive because a later write or a doubt opened a longer window.
    #[test]
    fn each_of_several_windows_is_honoured() {
        let (fences, t0) = (Fences::new(), Clock::system().now());
        let fence_set = fences.fence_set(&["a", "b"], t0);
        fences.raise(&["a"], SETTLED, t0);
        fences.raise(&["b"], IN_DOUBT, seconds(t0, 3));
        fences.raise(&["a"], SETTLED, seconds(t0, 8));
        let until = |at| fences.stamp(&fence_set, seconds(t0, at)).until();
        assert_eq!(until(9), Some(seconds(t0, 10)));
        assert_eq!(until(10), Some(seconds(t0, 13)));
        assert_eq!(until(13), Some(seconds(t0, 18)));
        assert_eq!(until(18), Some(seconds(t0, 123)));
        assert_eq!(until(123), Some(seconds(t0, 133)));
        assert_eq!(until(133), None);
    }

    #[test]
    fn a_burst_of_writes_keeps_few_windows_and_loses_none() {
        let (fences, t0) = (Fences::new(), Clock::system().now());
        let fence_set = fences.fence_set(&["a"], t0);
        for step in 0..1_000 {
            fences.raise(&["a"], SETTLED, t0 + Duration::from_millis(10 * step));
        }
        assert!(lock(&fence_set.0[1].ends).len() <= WINDOWS_MAX);
        for step in 0..1_999 {
            // From 10 s on, a window ends every 10 ms.
            let at = t0 + Duration::from_millis(10 * step);
            let exact = (t0 + SETTLE).max(at + Duration::from_millis(10));
            let until = fences.stamp(&fence_set, at).until().unwrap();
            assert!(until >= exact && until - exact <= Duration::from_millis(500), "{:?} at {step}", until - exact);
        }
    }

    #[test]
    fn tags_that_nobody_holds_leave_once_their_windows_are_over() {
        let (fences, t0) = (Fences::with_tags_max(64), Clock::system().now());
        let held = fences.fence_set(&["held"], t0);
        fences.raise(&["window"], SETTLED, t0);
        for n in 0..1_000 {
            fences.fence_set(&[format!("passing {n}")], seconds(t0, 1));
        }
        let known = |tag: &str| lock(&fences.tags).fences.contains_key(tag);
        assert!(known("held") && known("window"));
        assert!(lock(&fences.tags).fences.len() <= 64);
        for n in 0..1_000 {
            fences.fence_set(&[format!("passing {n}")], seconds(t0, 10));
        }
        assert!(known("held") && !known("window"));
        assert!(fences.stamp(&held, t0).is_usable(t0));
    }

    /// With too many held tags, what was held becomes unusable, including fetches not stamped yet; open windows stay
    /// open, and nothing is unfenced.
    #[test]
    fn past_the_bound_entries_are_given_up_not_fences() {
        let (fences, t0) = (Fences::with_tags_max(64), Clock::system().now());
        let early = fences.fence_set(&["early"], t0);
        let born = fences.stamp(&early, t0);
        fences.raise(&["other"], SETTLED, t0);
        let crowd: Vec<_> = (0..100).map(|n| fences.fence_set(&[format!("held {n}")], t0)).collect();
        assert!(lock(&fences.tags).fences.len() <= 64);
        assert!(!born.is_usable(t0));
        assert!(!fences.stamp(&early, t0).is_usable(t0), "the next raise of its tag would not reach this fence");
        let last = fences.stamp(crowd.last().unwrap(), t0);
        assert!(last.is_usable(t0));
        assert_eq!(last.until(), Some(t0 + SETTLE), "the window of `other` has moved to everything");
    }
}
