//! Tests of the cache as a whole: storing and finding here; shared fetches, all interleavings, and a seeded
//! simulation in submodules.

mod interleavings;
mod shared_fetches;
mod simulation;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};

use super::*;
use crate::ids::RequestId;

const LIFETIME: Duration = Duration::from_secs(300);
const STALE: Duration = Duration::from_secs(3_600);
const SETTLE: Duration = Duration::from_secs(10);
const DOUBT: Duration = Duration::from_secs(120);
const SETTLED: Invalidation = Invalidation::Settled { settle: SETTLE };
const IN_DOUBT: Invalidation = Invalidation::InDoubt { settle: SETTLE, doubt: DOUBT };
const REFRESH_POLICY: RefreshPolicy = RefreshPolicy { refresh_floor: Duration::from_secs(1), may_refresh: true };
const FOREVER: Lifetime = Lifetime { fresh: LIFETIME, stale: STALE, age: Duration::ZERO, overruled: false };

fn cache_of(capacity_bytes: u64, clock: &Clock) -> Cache {
    let config = config::CacheConfig {
        capacity_bytes,
        stale_if_error: STALE,
        settle: SETTLE,
        doubt: DOUBT,
        negative: Duration::ZERO,
        refresh_floor: REFRESH_POLICY.refresh_floor,
        refresh_ahead: false,
        lifetime: BTreeMap::new(),
    };
    Cache::new(&config, 4 << 20, clock.clone())
}

fn cache() -> (Cache, Clock) {
    let clock = Clock::movable();
    (cache_of(64 << 20, &clock), clock)
}

fn new_entry(key: &str, body: Bytes, stamp: FetchStamp) -> NewEntry {
    NewEntry {
        key: key.into(),
        status: StatusCode::OK,
        headers: HeaderMap::new(),
        body,
        etag: HeaderValue::from_static("\"e\""),
        list: None,
        path: "/p".into(),
        filled_by: RequestId::parse(b"filler").unwrap(),
        lifetime: FOREVER,
        stamp,
    }
}

/// A fetch with these tags that is sent and answered at once.
fn fill(cache: &Cache, key: &str, tags: &[&str]) -> Option<Arc<Entry>> {
    cache.store(new_entry(key, Bytes::from_static(b"{}"), cache.fetch_handle(cache.fence_set(tags)).mark_sent()))
}

fn request_directives(directives: &'static str) -> RequestDirectives {
    let mut headers = HeaderMap::new();
    headers.insert(http::header::CACHE_CONTROL, HeaderValue::from_static(directives));
    RequestDirectives::of(&headers)
}

/// A short form of what a read with these directives is told.
fn told(cache: &Cache, clock: &Clock, key: &str, directives: &'static str) -> String {
    told_on(cache, clock, key, directives, &REFRESH_POLICY)
}

fn told_on(
    cache: &Cache,
    clock: &Clock,
    key: &str,
    directives: &'static str,
    refresh_policy: &RefreshPolicy,
) -> String {
    let found = cache.lookup(key, &request_directives(directives), refresh_policy, clock.now());
    cache.count(&found);
    match found {
        Lookup::Hit(entry) => format!("hit {}", entry.ttl(clock.now())),
        Lookup::Fetch { why, fallback: Some(_), .. } => format!("{} or stale", why.as_str()),
        Lookup::Fetch { why, fallback: None, .. } => why.as_str().to_owned(),
        Lookup::Bypass => "bypass".to_owned(),
        Lookup::NotHeld => "not held".to_owned(),
    }
}

/// The clock moves along with the machine's, so whole seconds are approached from half a second above.
fn pass(clock: &Clock, millis: u64) {
    clock.advance(Duration::from_millis(millis));
}

#[test]
fn whom_memory_must_not_answer_only_a_fetch_from_now_on_will_do() {
    let now = Clock::system().now();
    let found = |directives| Cache::lookup_nothing(&directives, now);
    let plain = RequestDirectives::default();
    assert!(matches!(found(plain), Lookup::Fetch { fallback: None, since: Some(since), .. } if since == now));
    assert!(matches!(found(RequestDirectives { no_store: true, ..plain }), Lookup::Bypass));
    assert!(matches!(found(RequestDirectives { only_if_cached: true, no_store: true, ..plain }), Lookup::NotHeld));
}

#[test]
fn an_entry_is_fresh_then_stale_then_gone() {
    let (cache, clock) = cache();
    assert_eq!(told(&cache, &clock, "k", ""), "miss");
    fill(&cache, "k", &["a"]).unwrap();
    assert_eq!(told(&cache, &clock, "k", ""), "hit 299");
    pass(&clock, 299_000);
    assert_eq!(told(&cache, &clock, "k", ""), "hit 0");
    pass(&clock, 1_000);
    assert_eq!(told(&cache, &clock, "k", ""), "stale or stale");
    pass(&clock, 3_598_000);
    assert_eq!(told(&cache, &clock, "k", ""), "stale or stale");
    pass(&clock, 2_000);
    assert_eq!(told(&cache, &clock, "k", ""), "miss");
    assert_eq!((cache.size().hits, cache.size().misses), (2, 4));
}

#[test]
fn age_counts_the_upstreams_age_the_delay_and_the_time_here() {
    let (cache, clock) = cache();
    let stamp = cache.fetch_handle(cache.fence_set(&["a"])).mark_sent();
    pass(&clock, 3_000);
    let lifetime = Lifetime { age: Duration::from_secs(100), ..FOREVER };
    let entry = cache.store(NewEntry { lifetime, ..new_entry("k", Bytes::new(), stamp) }).unwrap();
    pass(&clock, 20_000);
    assert_eq!(entry.age(clock.now()).as_secs(), 123);
    assert_eq!(entry.ttl(clock.now()), 176);
    pass(&clock, 177_000);
    assert_eq!(entry.ttl(clock.now()), -1, "slightly over counts as a whole second over");
}

#[test]
fn directives_narrow_and_widen_what_will_do() {
    let (cache, clock) = cache();
    fill(&cache, "k", &["a"]).unwrap();
    pass(&clock, 10_000);
    let told = |directives| told(&cache, &clock, "k", directives);
    assert_eq!(told("no-cache"), "request");
    assert_eq!(told("max-age=0"), "request");
    assert_eq!(told("max-age=9"), "request");
    assert_eq!(told("max-age=11"), "hit 289");
    assert_eq!(told("max-age=11, max-age=5"), "request");
    assert_eq!(told("max-age=soon"), "request");
    assert_eq!(told("min-fresh=289"), "hit 289");
    assert_eq!(told("min-fresh=291"), "request or stale");
    assert_eq!(told("min-fresh=much"), "request or stale");
    assert_eq!(told("only-if-cached"), "hit 289");
    assert_eq!(told("only-if-cached, no-cache"), "not held");
    assert_eq!(told("no-store"), "bypass");
    assert_eq!(told("no-store, only-if-cached"), "not held");
    assert_eq!(told("x-new, public, stale-if-error=1"), "hit 289");
    pass(&clock, 300_000);
    assert_eq!(told(""), "stale or stale");
    assert_eq!(told("max-stale"), "hit -11");
    assert_eq!(told("max-stale=11"), "hit -11");
    assert_eq!(told("max-stale=9"), "stale or stale");
    assert_eq!(told("max-stale=11, max-stale"), "hit -11");
    assert_eq!(told("max-stale, max-stale=9"), "stale or stale");
    assert_eq!(told("max-stale=any"), "stale or stale");
    assert_eq!(told("max-stale, min-fresh=0"), "stale or stale");
    assert_eq!(told("max-stale, max-age=9"), "request");
    assert_eq!(told("max-stale, no-cache"), "request");
    assert_eq!(told("only-if-cached"), "not held");
    assert_eq!(told("only-if-cached, max-stale"), "hit -11");
}

#[test]
fn no_cache_alone_is_content_with_a_young_entry() {
    let (cache, clock) = cache();
    let floor = RefreshPolicy { refresh_floor: Duration::from_secs(60), may_refresh: true };
    let old = Lifetime { age: Duration::from_secs(200), ..FOREVER };
    let stamp = cache.fetch_handle(cache.fence_set(&["a"])).mark_sent();
    cache.store(NewEntry { lifetime: old, ..new_entry("k", Bytes::new(), stamp) }).unwrap();
    assert_eq!(told_on(&cache, &clock, "k", "no-cache", &floor), "hit 99");
    assert_eq!(told_on(&cache, &clock, "k", "max-age=0", &floor), "request");
    assert_eq!(told_on(&cache, &clock, "k", "min-fresh=1000", &floor), "request or stale");
    pass(&clock, 61_000);
    for directives in ["no-cache", "max-age=0"] {
        assert_eq!(told_on(&cache, &clock, "k", directives, &floor), "request", "{directives}");
    }
}

#[test]
fn a_caller_who_may_not_refresh_gets_what_is_in_memory() {
    let (cache, clock) = cache();
    let refresh_policy = RefreshPolicy { may_refresh: false, ..REFRESH_POLICY };
    fill(&cache, "k", &["a"]).unwrap();
    pass(&clock, 10_000);
    for directives in ["no-cache", "max-age=0", "min-fresh=1000", "no-store"] {
        assert_eq!(told_on(&cache, &clock, "k", directives, &refresh_policy), "hit 289", "{directives}");
    }
    assert_eq!(told_on(&cache, &clock, "other", "no-store", &refresh_policy), "bypass");
    assert_eq!(request_directives("no-cache").oldest_acceptable_fetch(&refresh_policy, clock.now()), None);
}

#[test]
fn a_maximum_age_applies_to_shared_fetches_as_to_entries() {
    let now = Clock::system().now() + Duration::from_secs(1_000);
    let since = |directives| {
        request_directives(directives)
            .oldest_acceptable_fetch(&REFRESH_POLICY, now)
            .map(|since| (now - since).as_secs())
    };
    assert_eq!(since(""), None);
    assert_eq!(since("min-fresh=5, max-stale"), None);
    assert_eq!(since("no-cache"), Some(1));
    assert_eq!(since("max-age=0"), Some(0));
    assert_eq!(since("max-age=30"), Some(30));
    assert_eq!(since("max-age=30, no-cache"), Some(1));
}

#[test]
fn an_entry_born_in_a_window_is_fresh_for_the_window_and_never_stale_after_it() {
    let (cache, clock) = cache();
    cache.raise(&["a"], SETTLED);
    pass(&clock, 4_000);
    fill(&cache, "k", &["a"]).unwrap();
    assert_eq!(told(&cache, &clock, "k", ""), "hit 5");
    assert_eq!(told(&cache, &clock, "k", "min-fresh=7"), "request or stale");
    pass(&clock, 6_000);
    assert_eq!(told(&cache, &clock, "k", ""), "miss");
    assert_eq!(told(&cache, &clock, "k", "max-stale"), "miss");
    fill(&cache, "k", &["a"]).unwrap();
    assert_eq!(told(&cache, &clock, "k", ""), "hit 299");
}

#[test]
fn after_a_doubt_what_was_born_meanwhile_is_gone() {
    let (cache, clock) = cache();
    cache.raise(&["a"], IN_DOUBT);
    for (wait, left) in [(0, "hit 9"), (10_000, "hit 109"), (110_000, "hit 9"), (10_000, "hit 299")] {
        pass(&clock, wait);
        assert_eq!(told(&cache, &clock, "k", ""), "miss");
        fill(&cache, "k", &["a"]).unwrap();
        assert_eq!(told(&cache, &clock, "k", ""), left);
    }
}

#[test]
fn a_404_is_remembered_only_outside_windows_and_dies_by_the_same_tags() {
    let (cache, clock) = cache();
    let short = Lifetime { fresh: Duration::from_secs(20), stale: Duration::ZERO, ..FOREVER };
    let store = || {
        let stamp = cache.fetch_handle(cache.fence_set(&["a"])).mark_sent();
        let new_entry = new_entry("k", Bytes::new(), stamp);
        cache.store(NewEntry { status: StatusCode::NOT_FOUND, lifetime: short, ..new_entry }).is_some()
    };
    cache.raise(&["a"], SETTLED);
    assert!(!store());
    pass(&clock, 10_000);
    assert!(store());
    assert_eq!(told(&cache, &clock, "k", ""), "hit 19");
    cache.raise(&["a"], SETTLED);
    assert_eq!(told(&cache, &clock, "k", ""), "miss");
}

#[test]
fn an_older_answer_does_not_replace_a_younger() {
    let (cache, clock) = cache();
    let old = cache.fetch_handle(cache.fence_set(&["a"])).mark_sent();
    pass(&clock, 1);
    let young = cache.fetch_handle(cache.fence_set(&["a"])).mark_sent();
    assert!(cache.store(new_entry("k", Bytes::from_static(b"young"), young)).is_some());
    assert!(cache.store(new_entry("k", Bytes::from_static(b"old"), old)).is_none());
    let Lookup::Hit(entry) = cache.lookup("k", &RequestDirectives::default(), &REFRESH_POLICY, clock.now()) else {
        panic!("a hit")
    };
    assert_eq!(entry.body, "young");
}

#[test]
fn an_answer_that_is_too_large_is_not_stored() {
    let clock = Clock::movable();
    let cache = cache_of(64 << 10, &clock);
    let store = |cache: &Cache, bytes: usize| {
        cache
            .store(new_entry("k", vec![b'1'; bytes].into(), cache.fetch_handle(cache.fence_set(&["a"])).mark_sent()))
            .is_some()
    };
    assert!(store(&cache, 3 << 10) && !store(&cache, 4 << 10));
    let large = cache_of(1 << 30, &clock);
    assert!(store(&large, 4 << 20) && !store(&large, (4 << 20) + 1));
}

#[test]
fn a_crowd_of_entries_stays_within_the_capacity() {
    let clock = Clock::movable();
    let cache = cache_of(1 << 20, &clock);
    for n in 0..5_000 {
        let stamp = cache.fetch_handle(cache.fence_set(&[format!("org:{n}")])).mark_sent();
        cache.store(new_entry(&format!("k{n}"), vec![b'1'; 1_000].into(), stamp));
    }
    cache.maintain();
    let (size, tags) = cache.count_by_tag();
    assert!(size.bytes <= size.capacity_bytes && size.entries > 100, "{size:?}");
    assert_eq!(tags.len() as u64, size.entries);
    assert_eq!(cache.size().bytes, size.bytes);
}

#[test]
fn a_purge_counts_and_drops_what_carries_the_tag() {
    let (cache, clock) = cache();
    for (key, tags) in [("11", ["org:11", "organizations"]), ("12", ["org:12", "organizations"])] {
        fill(&cache, key, &tags).unwrap();
    }
    fill(&cache, "usage", &["org:11"]).unwrap();
    fill(&cache, "untagged", &[]).unwrap();
    let (size, tags) = cache.count_by_tag();
    assert_eq!(size.entries, 4);
    let tags: Vec<_> = tags.iter().map(|(tag, count)| (&**tag, *count)).collect();
    assert_eq!(tags, [("org:11", 2), ("org:12", 1), ("organizations", 2)]);
    assert_eq!(cache.purge("org:11"), 2);
    assert_eq!(cache.purge("org:11"), 0);
    assert_eq!(cache.purge("org:99"), 0);
    assert_eq!(told(&cache, &clock, "11", ""), "miss");
    assert_eq!(told(&cache, &clock, "12", ""), "hit 299");
    fill(&cache, "11", &["org:11"]).unwrap();
    assert_eq!(told(&cache, &clock, "11", ""), "hit 299", "a purge opens no window");
    assert_eq!(cache.purge_all(), 3);
    assert_eq!(told(&cache, &clock, "untagged", ""), "miss");
    assert_eq!(cache.count_by_tag().0.entries, 0);
}

#[test]
fn the_purge_of_an_entry_drops_it_and_holds_up_only_fetches_of_its_key() {
    let (cache, clock) = cache();
    for key in ["k", "other"] {
        fill(&cache, key, &["a"]).unwrap();
    }
    let held = cache.entries.get("k").unwrap();
    let send = || cache.fetch_handle(cache.fence_set(&["a"])).mark_sent();
    let arrive = |key: &str, stamp| cache.store(new_entry(key, Bytes::from_static(b"{}"), stamp)).is_some();
    let under_way = send();
    // A newer entry than the one that was looked at goes, too.
    fill(&cache, "k", &["a"]).unwrap();
    cache.purge_entry("k");
    assert_eq!([told(&cache, &clock, "k", ""), told(&cache, &clock, "other", "")], ["miss", "hit 299"]);
    assert!(cache.is_purged("k", &held), "nor does it stand in when Make fails");
    assert!(!arrive("k", under_way.clone()), "it was fetched before the purge");
    let others = (0..200).filter(|number| arrive(&number.to_string(), under_way.clone())).count();
    assert!(others >= 190, "keys share fences by their hashes, but {others} of 200 is too few");
    assert!(arrive("k", send()), "a purge opens no window");
    assert_eq!(told(&cache, &clock, "k", ""), "hit 299");
}

/// Promise 3 between real threads: whoever comes after the answer to write n finds nothing older than n.
#[test]
fn threads_that_read_and_write_agree_on_what_is_old() {
    const WRITES: u64 = 2_000;
    let (cache, clock) = cache();
    let (upstream, answered) = (AtomicU64::new(0), AtomicU64::new(0));
    let read = || {
        let known = answered.load(SeqCst);
        if let Lookup::Hit(entry) = cache.lookup("k", &RequestDirectives::default(), &REFRESH_POLICY, clock.now()) {
            assert!(u64::from_le_bytes(entry.body[..].try_into().unwrap()) >= known);
        } else {
            let stamp = cache.fetch_handle(cache.fence_set(&["a"])).mark_sent();
            let body = upstream.load(SeqCst).to_le_bytes();
            cache.store(new_entry("k", Bytes::copy_from_slice(&body), stamp));
        }
        known
    };
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| while read() < WRITES {});
        }
        for n in 1..=WRITES {
            upstream.store(n, SeqCst);
            cache.raise(&["a"], Invalidation::Purge);
            answered.store(n, SeqCst);
            thread::yield_now();
        }
    });
}

/// Bytes that note when their memory is freed.
struct Lent(Vec<u8>, Arc<AtomicUsize>);

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.1.fetch_add(1, SeqCst);
    }
}

#[test]
fn an_entry_keeps_no_read_buffer_alive() {
    let (cache, _) = cache();
    let freed = Arc::new(AtomicUsize::new(0));
    let lent = |text: &str| Bytes::from_owner(Lent([text.as_bytes(), &[b' '; 8192]].concat(), freed.clone()));
    let name = HeaderName::from_bytes(&lent("x-make-thing").slice(..12)).unwrap();
    let mut headers = HeaderMap::new();
    headers.insert(name, HeaderValue::from_maybe_shared(lent("one").slice(..3)).unwrap());
    headers.append("x-make-thing", HeaderValue::from_maybe_shared(lent("two").slice(..3)).unwrap());
    let etag = HeaderValue::from_maybe_shared(lent("\"tag\"").slice(..5)).unwrap();
    let stamp = cache.fetch_handle(cache.fence_set(&["a"])).mark_sent();
    let body = lent("{\"a\":1}").slice(..7);
    let entry = cache.store(NewEntry { headers, etag, ..new_entry("k", body, stamp) }).unwrap();
    assert_eq!(freed.load(SeqCst), 5, "all five buffers were freed");
    assert_eq!(entry.body, "{\"a\":1}");
    assert_eq!(entry.etag, "\"tag\"");
    assert_eq!(entry.headers.get_all("x-make-thing").iter().collect::<Vec<_>>(), ["one", "two"]);
}
