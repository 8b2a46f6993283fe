//! What is known of each caller beyond its configuration: its rate limiter, what it has under way, what it did. By name, so
//! that it outlives reloads.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use governor::clock::{Clock as GovernorClock, Reference as _};
use governor::middleware::StateInformationMiddleware;
use governor::nanos::Nanos;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};

use crate::clock::Clock;
use crate::config::{self, Rate};
use crate::words::{KeyHash, KeyId};

/// A limiter's burst lasts no longer than this: governor counts in 64 bits of nanoseconds.
const BURST_NS_MAX: u64 = u64::MAX / 4;

type Limiter = RateLimiter<NotKeyed, InMemoryState, LimiterClock, StateInformationMiddleware>;

/// All callers that are or were configured and not yet dropped.
#[derive(Debug)]
pub struct Callers {
    clock: Clock,
    opened: Instant,
    callers: RwLock<HashMap<Arc<str>, Arc<CallerState>>>,
}

/// One caller's state. Silent callers cost little: what counts is made when there is something to count.
pub struct CallerState {
    /// Its name.
    pub name: Arc<str>,
    terms: ArcSwap<Terms>,
    in_flight: AtomicUsize,
    counts: Counts,
}

/// What a configuration says of it, and what belongs to exactly that.
struct Terms {
    rate: Rate,
    burst: u32,
    limiter: Arc<Limiter>,
    keys: Box<[KeyUse]>,
}

struct KeyUse {
    key: KeyId,
    /// Milliseconds since 1970; 0: never.
    last_used: AtomicI64,
}

/// What one operation's requests came to, and after it the next operation's: a list that only grows, by as many as there are
/// operations in the catalogue.
#[derive(Default)]
struct Counts(OnceLock<Box<Count>>);

struct Count {
    /// `None`: requests that are no operation.
    operation: Option<Arc<str>>,
    by_answer: [AtomicU64; Answer::ALL.len()],
    next: Counts,
}

/// How a request was answered, in the words of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Answer {
    /// From memory.
    Hit,
    /// From memory, past its lifetime.
    Stale,
    /// By the upstream, and kept.
    Miss,
    /// By the upstream.
    Forwarded,
    /// As an earlier request with the same Idempotency-Key was.
    Replayed,
    /// By the gateway.
    Refused,
}

/// What can be sent at once now, and when it is the whole burst again (rounded up by less than one interval of the rate).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remaining {
    /// Requests.
    pub left: u32,
    /// From now.
    pub whole_in: Duration,
}

/// A request over the rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooFast {
    /// From now on until the next request is admitted.
    pub retry_after: Duration,
    /// Nothing is left.
    pub remaining: Remaining,
}

/// A request under way; dropping it says that it is over.
#[derive(Debug)]
pub struct InFlight {
    caller: Arc<CallerState>,
}

/// [`Clock`] as governor wants it: nanoseconds since the callers were opened.
#[derive(Clone, Debug)]
struct LimiterClock {
    clock: Clock,
    opened: Instant,
}

impl Callers {
    /// Nobody yet.
    #[must_use]
    pub fn new(clock: Clock) -> Self {
        Self { opened: clock.now(), clock, callers: RwLock::default() }
    }

    /// The state of this caller. One that is known keeps it; with another rate or burst it gets a new limiter, which has its
    /// whole burst.
    pub fn get_or_make(&self, config: &config::Caller) -> Arc<CallerState> {
        let mut callers = self.callers.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = callers.get(&config.name) {
            known.change(config, || self.limiter(config));
            return known.clone();
        }
        let terms = Terms::new(config, Arc::new(self.limiter(config)), None);
        let state = Arc::new(CallerState {
            name: config.name.clone(),
            terms: ArcSwap::from_pointee(terms),
            in_flight: 0.into(),
            counts: Counts::default(),
        });
        callers.insert(config.name.clone(), state.clone());
        state
    }

    /// Drops all callers but those of these names.
    pub fn retain(&self, names: &HashSet<Arc<str>>) {
        self.callers.write().unwrap_or_else(PoisonError::into_inner).retain(|name, _| names.contains(name));
    }

    /// All callers, by name.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<CallerState>> {
        let mut all: Vec<_> = self.callers.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        all.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        all
    }

    fn limiter(&self, config: &config::Caller) -> Limiter {
        let clock = LimiterClock { clock: self.clock.clone(), opened: self.opened };
        RateLimiter::direct_with_clock(quota(config.rate, config.burst), clock)
            .with_middleware::<StateInformationMiddleware>()
    }
}

/// One request an interval (rounded up, so that the rate is never exceeded), and so many at once.
fn quota(rate: Rate, burst: u32) -> Quota {
    let interval_ns = rate.per.as_nanos().div_ceil(u128::from(rate.requests.max(1))).max(1);
    let interval_ns = u64::try_from(interval_ns).unwrap_or(u64::MAX).min(BURST_NS_MAX);
    let burst_max = u32::try_from(BURST_NS_MAX / interval_ns).unwrap_or(u32::MAX);
    let burst = NonZeroU32::new(burst.min(burst_max)).unwrap_or(NonZeroU32::MIN);
    Quota::with_period(Duration::from_nanos(interval_ns))
        .unwrap_or_else(|| Quota::per_second(NonZeroU32::MIN))
        .allow_burst(burst)
}

impl CallerState {
    /// Takes one request off the rate. Does not lock.
    ///
    /// # Errors
    /// [`TooFast`].
    pub fn admit(&self) -> Result<Remaining, TooFast> {
        let terms = self.terms.load();
        terms.limiter.check().map_or_else(
            |not_until| {
                let quota = not_until.quota();
                let retry_after = not_until.wait_time_from(terms.limiter.clock().now());
                let whole_in =
                    retry_after + quota.burst_size_replenished_in().saturating_sub(quota.replenish_interval());
                Err(TooFast { retry_after, remaining: Remaining { left: 0, whole_in } })
            },
            |state| {
                let (quota, left) = (state.quota(), state.remaining_burst_capacity());
                let taken = quota.burst_size().get().saturating_sub(left);
                Ok(Remaining { left, whole_in: quota.replenish_interval().saturating_mul(taken) })
            },
        )
    }

    /// Counts a request as under way, unless `max` are.
    pub fn enter(self: &Arc<Self>, max: usize) -> Option<InFlight> {
        let one_more = |under_way| (under_way < max).then_some(under_way + 1);
        self.in_flight.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).ok()?;
        Some(InFlight { caller: self.clone() })
    }

    /// Requests under way.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// The rate and burst in force.
    #[must_use]
    pub fn rate(&self) -> (Rate, u32) {
        let terms = self.terms.load();
        (terms.rate, terms.burst)
    }

    /// One of its keys was used.
    pub fn used(&self, key: &KeyHash, wall_ms: i64) {
        let key = KeyId::of(key);
        if let Some(known) = self.terms.load().keys.iter().find(|known| known.key == key) {
            known.last_used.fetch_max(wall_ms, Ordering::Relaxed);
        }
    }

    /// Its keys, and when each was last used since the start (milliseconds since 1970).
    #[must_use]
    pub fn keys(&self) -> Vec<(KeyId, Option<i64>)> {
        let keys =
            |known: &KeyUse| (known.key, Some(known.last_used.load(Ordering::Relaxed)).filter(|used| *used != 0));
        self.terms.load().keys.iter().map(keys).collect()
    }

    /// Counts a request, by operation (`None`: it was none) and answer.
    pub fn count(&self, operation: Option<&Arc<str>>, answer: Answer) {
        self.counts.count(operation, answer);
    }

    /// What was counted: operation, answer, how often.
    #[must_use]
    pub fn counted(&self) -> Vec<(Option<Arc<str>>, Answer, u64)> {
        self.counts.iter().flat_map(Count::by_answer).filter(|(_, _, n)| *n > 0).collect()
    }

    /// All requests.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.counts.iter().flat_map(Count::by_answer).map(|(_, _, n)| n).sum()
    }

    /// Those that were refused.
    #[must_use]
    pub fn refused(&self) -> u64 {
        let counts = self.counts.iter().flat_map(Count::by_answer);
        counts.filter(|(_, answer, _)| *answer == Answer::Refused).map(|(_, _, n)| n).sum()
    }

    fn change(&self, config: &config::Caller, limiter: impl FnOnce() -> Limiter) {
        let terms = self.terms.load_full();
        let same_rate = terms.rate == config.rate && terms.burst == config.burst;
        let same_keys = terms.keys.iter().map(|known| known.key).eq(config.keys.iter().map(KeyId::of));
        if same_rate && same_keys {
            return;
        }
        let limiter = if same_rate { terms.limiter.clone() } else { Arc::new(limiter()) };
        self.terms.store(Arc::new(Terms::new(config, limiter, Some(&terms))));
    }
}

impl Terms {
    /// Keys that were there before keep their last use (but for one in the very moment of the change).
    fn new(config: &config::Caller, limiter: Arc<Limiter>, before: Option<&Self>) -> Self {
        let before = before.map_or(&[][..], |terms| &terms.keys);
        let keys = config.keys.iter().map(|hash| {
            let key = KeyId::of(hash);
            let known = before.iter().find(|known| known.key == key);
            KeyUse { key, last_used: known.map_or(0, |known| known.last_used.load(Ordering::Relaxed)).into() }
        });
        Self { rate: config.rate, burst: config.burst, limiter, keys: keys.collect() }
    }
}

impl Counts {
    fn count(&self, operation: Option<&Arc<str>>, answer: Answer) {
        let mut place = self;
        loop {
            let count = place.0.get_or_init(|| Box::new(Count::new(operation.cloned())));
            if count.operation.as_ref() == operation {
                if let Some(n) = count.by_answer.get(answer.index()) {
                    n.fetch_add(1, Ordering::Relaxed);
                }
                return;
            }
            place = &count.next;
        }
    }

    fn iter(&self) -> impl Iterator<Item = &Count> {
        std::iter::successors(self.0.get(), |count| count.next.0.get()).map(Box::as_ref)
    }
}

impl Count {
    fn new(operation: Option<Arc<str>>) -> Self {
        Self { operation, by_answer: Default::default(), next: Counts::default() }
    }

    fn by_answer(&self) -> impl Iterator<Item = (Option<Arc<str>>, Answer, u64)> {
        Answer::ALL
            .iter()
            .zip(&self.by_answer)
            .map(|(answer, n)| (self.operation.clone(), *answer, n.load(Ordering::Relaxed)))
    }
}

impl Answer {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Hit, Self::Stale, Self::Miss, Self::Forwarded, Self::Replayed, Self::Refused];

    const fn index(self) -> usize {
        match self {
            Self::Hit => 0,
            Self::Stale => 1,
            Self::Miss => 2,
            Self::Forwarded => 3,
            Self::Replayed => 4,
            Self::Refused => 5,
        }
    }

    /// As records and metrics spell it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Stale => "stale",
            Self::Miss => "miss",
            Self::Forwarded => "forwarded",
            Self::Replayed => "replayed",
            Self::Refused => "refused",
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.caller.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

impl GovernorClock for LimiterClock {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        let since = self.clock.now().saturating_duration_since(self.opened);
        Nanos::new(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
    }
}

impl fmt::Debug for CallerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CallerState").field("name", &self.name).finish_non_exhaustive()
    }
}
