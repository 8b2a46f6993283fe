//! Caller state that outlives reloads: each caller's rate, its part of what callers share, and counters.

mod recent;
mod shared_kinds;

use std::collections::HashMap;
use std::num::{NonZeroU32, NonZeroU64};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use governor::clock::Clock as _;
use governor::middleware::StateInformationMiddleware;
use governor::nanos::Nanos;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};

use self::recent::RequestSamples;
use crate::clock::Clock;
use crate::config;
use crate::counters::AnswerCounts;
use crate::ids::KeyId;
use crate::shares::{HeldShare, ShareHolder, SharedLimit, Shortage};

pub use recent::RecentRequests;
pub use shared_kinds::{PerKind, SharedKind};

/// What is left of a caller's rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remaining {
    /// Number of requests that can be sent at once now.
    pub left: u32,
    /// Time until the whole burst is available again.
    pub whole_in: Duration,
}

/// The caller is over its rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OverRate {
    /// How long to wait for the next request.
    pub retry_after: Duration,
    /// What is left, which is nothing.
    pub remaining: Remaining,
}

/// Adapts our clock to governor.
#[derive(Clone, Debug)]
struct LimiterClock {
    clock: Clock,
    epoch: Instant,
}

impl governor::clock::Clock for LimiterClock {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        self.clock.now().saturating_duration_since(self.epoch).into()
    }
}

type Limiter = RateLimiter<NotKeyed, InMemoryState, LimiterClock, StateInformationMiddleware>;

/// Maximum time that a burst may take to become whole again (73 years).
const BURST_NANOS_MAX: u64 = u64::MAX / 8;

#[derive(Debug)]
struct CallerRate {
    rate: config::Rate,
    burst: NonZeroU32,
    /// As configured; the effective burst may be smaller.
    configured_burst: u32,
    interval: Duration,
    ticks: LimiterClock,
    limiter: Limiter,
}

impl CallerRate {
    fn new(config: &config::CallerConfig, clock: &Clock) -> Self {
        let burst = NonZeroU32::new(config.burst).unwrap_or(NonZeroU32::MIN);
        // Rounded up, so that the rate is never exceeded. The burst is limited where governor's nanoseconds would
        // overflow.
        let nanos = config.rate.per.as_nanos().div_ceil(u128::from(config.rate.requests.max(1)));
        let nanos = u64::try_from(nanos).unwrap_or(u64::MAX).clamp(1, BURST_NANOS_MAX);
        let burst = burst.min(u32::try_from(BURST_NANOS_MAX / nanos).ok().and_then(NonZeroU32::new).unwrap_or(burst));
        let interval = Duration::from_nanos(nanos);
        let quota =
            Quota::with_period(interval).unwrap_or_else(|| Quota::per_second(NonZeroU32::MIN)).allow_burst(burst);
        let ticks = LimiterClock { clock: clock.clone(), epoch: clock.now() };
        let limiter = RateLimiter::direct_with_clock(quota, ticks.clone()).with_middleware();
        Self { rate: config.rate, burst, configured_burst: config.burst, interval, ticks, limiter }
    }

    fn has_settings(&self, config: &config::CallerConfig) -> bool {
        self.rate == config.rate && self.configured_burst == config.burst
    }

    fn remaining(&self, left: u32) -> Remaining {
        Remaining { left, whole_in: self.interval.saturating_mul(self.burst.get().saturating_sub(left)) }
    }

    fn admit(&self) -> Result<Remaining, OverRate> {
        match self.limiter.check() {
            Ok(state) => Ok(self.remaining(state.remaining_burst_capacity())),
            Err(early) => {
                let retry_after = early.wait_time_from(self.ticks.now());
                let whole_in = retry_after + self.remaining(1).whole_in;
                Err(OverRate { retry_after, remaining: Remaining { left: 0, whole_in } })
            }
        }
    }
}

static NEXT_ID: AtomicU64 = AtomicU64::new(0);

/// One caller's state.
#[derive(Debug)]
pub struct CallerState {
    /// The caller's name.
    pub name: Arc<str>,
    /// An id that no other caller state in this process has ever had.
    pub id: NonZeroU64,
    rate: ArcSwap<CallerRate>,
    /// What the caller holds of what callers share.
    pub share_holders: PerKind<Arc<ShareHolder>>,
    /// What it was answered. A silent caller costs little.
    pub answers: AnswerCounts,
    used: Mutex<HashMap<KeyId, LastUsed>>,
    samples: RequestSamples,
}

/// When a key was last used, in Unix milliseconds; 0 means never.
pub type LastUsed = Arc<AtomicI64>;

impl CallerState {
    fn new(config: &config::CallerConfig, share_holders: PerKind<Arc<ShareHolder>>, clock: &Clock) -> Self {
        Self {
            name: config.name.clone(),
            id: NonZeroU64::MIN.saturating_add(NEXT_ID.fetch_add(1, Ordering::Relaxed)),
            rate: ArcSwap::from_pointee(CallerRate::new(config, clock)),
            share_holders,
            answers: AnswerCounts::default(),
            used: Mutex::default(),
            samples: RequestSamples::default(),
        }
    }

    /// Counts one request against the rate.
    ///
    /// # Errors
    /// [`OverRate`].
    pub fn admit(&self) -> Result<Remaining, OverRate> {
        self.rate.load().admit()
    }

    /// Counts a request as under way until the guard is dropped. At most `most` may be.
    ///
    /// # Errors
    /// The caller has too many requests under way, or has used up its share.
    pub fn count_under_way(&self, most: usize) -> Result<HeldShare, Shortage> {
        self.share_holders.requests.take_up_to(1, u64::try_from(most).unwrap_or(u64::MAX))
    }

    /// Number of requests under way.
    #[must_use]
    pub fn under_way(&self) -> u64 {
        self.share_holders.requests.held()
    }

    /// What the caller asked for in the last minute.
    #[must_use]
    pub fn last_minute(&self, now: Instant) -> RecentRequests {
        self.samples.last_minute(&self.answers, now)
    }

    /// Where the last use of this key is stored.
    #[must_use]
    pub fn last_used(&self, key: KeyId) -> LastUsed {
        self.used.lock().unwrap_or_else(PoisonError::into_inner).entry(key).or_default().clone()
    }
}

/// The state of all callers, by name.
#[derive(Debug)]
pub struct Callers {
    /// The limits that callers share.
    pub shared: PerKind<Arc<SharedLimit>>,
    /// The gateway's own holders, which belong to no caller.
    pub own: PerKind<Arc<ShareHolder>>,
    clock: Clock,
    states: Mutex<HashMap<Arc<str>, Arc<CallerState>>>,
}

impl Callers {
    /// Starts with no callers and no limits.
    #[must_use]
    pub fn new(clock: Clock) -> Self {
        let shared = PerKind::unlimited();
        Self { own: shared.holders(), shared, clock, states: Mutex::default() }
    }

    /// Sets the limits that callers share.
    pub fn set_limits(&self, limits: &config::Limits) {
        self.shared.set_limits(limits);
    }

    /// The caller's state, created if necessary. If the rate is unchanged the caller keeps its limiter, because a new
    /// one would have a full burst.
    #[must_use]
    pub fn get_or_make(&self, config: &config::CallerConfig) -> Arc<CallerState> {
        let mut states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        let state = states
            .entry(config.name.clone())
            .or_insert_with(|| Arc::new(CallerState::new(config, self.shared.holders(), &self.clock)));
        if !state.rate.load().has_settings(config) {
            state.rate.store(Arc::new(CallerRate::new(config, &self.clock)));
        }
        state.clone()
    }

    /// Takes note of how much callers have asked for. Must be called every second.
    pub fn maintain(&self) {
        let states: Vec<_> = self.states.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        states.iter().for_each(|state| state.samples.take(&state.answers, self.clock.now()));
    }

    /// Forgets callers that are no longer configured.
    pub fn retain(&self, stays: impl Fn(&str) -> bool) {
        self.states.lock().unwrap_or_else(PoisonError::into_inner).retain(|name, _| stays(name));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{CallerConfig, Grants, Rate, Scope};

    fn caller(requests: u32, burst: u32) -> CallerConfig {
        let rate = Rate { requests, per: Duration::from_secs(60) };
        CallerConfig {
            name: "a".into(),
            keys: vec![],
            identities: vec![],
            certificates: vec![],
            uids: vec![],
            grants: Grants::All,
            organizations: Scope::All,
            rate,
            burst,
            may_refresh: true,
        }
    }

    #[test]
    fn a_burst_passes_at_once_and_the_rest_at_the_rate() {
        let clock = Clock::frozen();
        let callers = Callers::new(clock.clone());
        let state = callers.get_or_make(&caller(60, 3));
        let lefts: Vec<u32> = (0..3).map(|_| state.admit().unwrap().left).collect();
        assert_eq!(lefts, [2, 1, 0]);
        let fast = state.admit().unwrap_err();
        assert!(fast.retry_after <= Duration::from_secs(1), "{fast:?}");
        assert!(fast.retry_after >= Duration::from_millis(900), "{fast:?}");
        clock.advance(Duration::from_secs(1));
        assert!(state.admit().is_ok());
        assert!(state.admit().is_err());
    }

    #[test]
    fn the_remaining_burst_is_exact_while_it_refills() {
        let clock = Clock::frozen();
        let state = Callers::new(clock.clone()).get_or_make(&caller(6, 5));
        for left in (0..5).rev() {
            let remaining = state.admit().unwrap();
            assert_eq!(remaining, Remaining { left, whole_in: Duration::from_secs(10) * (5 - left) });
        }
        let fast = state.admit().unwrap_err();
        assert_eq!(fast.remaining.whole_in - fast.retry_after, Duration::from_secs(40));
        // Three intervals of 10 s have passed: one request is taken, two are left.
        clock.advance(Duration::from_secs(30));
        assert_eq!(state.admit().unwrap().left, 2);
        clock.advance(Duration::from_secs(3_600));
        assert_eq!(state.admit().unwrap().left, 4);
    }

    #[test]
    fn a_caller_that_retries_when_told_to_is_admitted() {
        let clock = Clock::frozen();
        let state = Callers::new(clock.clone()).get_or_make(&caller(7, 1));
        for _ in 0..20 {
            assert!(state.admit().is_ok());
            let retry_after = state.admit().unwrap_err().retry_after;
            assert!(retry_after <= Duration::from_secs(60).div_f64(7.0) + Duration::from_nanos(1), "{retry_after:?}");
            // A movable clock moves in milliseconds.
            clock.advance(retry_after + Duration::from_millis(1));
        }
    }

    #[test]
    fn an_extremely_slow_rate_overflows_nothing() {
        let mut config = caller(1, u32::MAX);
        config.rate.per = Duration::from_secs(86_400 * 365);
        let callers = Callers::new(Clock::frozen());
        let state = callers.get_or_make(&config);
        assert!(state.admit().is_ok() && state.admit().is_ok());
        assert!(
            Arc::ptr_eq(&state.rate.load(), &callers.get_or_make(&config).rate.load()),
            "the same rate keeps the same limiter"
        );
    }

    #[test]
    fn a_reload_keeps_the_limiter_unless_the_rate_changes() {
        let callers = Callers::new(Clock::frozen());
        let state = callers.get_or_make(&caller(60, 1));
        assert!(state.admit().is_ok());
        assert!(callers.get_or_make(&caller(60, 1)).admit().is_err());
        assert!(callers.get_or_make(&caller(60, 2)).admit().is_ok());
        assert!(Arc::ptr_eq(&state, &callers.get_or_make(&caller(60, 2))));
    }

    #[test]
    fn a_huge_rate_is_a_rate() {
        let callers = Callers::new(Clock::frozen());
        let state = callers.get_or_make(&caller(1_000_000_000, 1_000_000_000));
        assert!((0..1000).all(|_| state.admit().is_ok()));
    }

    #[test]
    fn requests_under_way_are_bounded() {
        let callers = Callers::new(Clock::frozen());
        let state = callers.get_or_make(&caller(60, 1));
        let first = state.count_under_way(1);
        assert!(first.is_ok());
        assert_eq!(state.count_under_way(1).unwrap_err(), Shortage::HolderMax);
        drop(first);
        assert!(state.count_under_way(1).is_ok());
    }
}
