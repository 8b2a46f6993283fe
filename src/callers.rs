//! Caller state that outlives reloads: each caller's rate, its part of what callers share, and counters.

mod local_rate;
mod rates;
mod recent;
mod shared_kinds;

use std::collections::HashMap;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use self::rates::CallerRate;
use self::recent::RequestSamples;
use crate::clock::Clock;
use crate::config;
use crate::counters::AnswerCounts;
use crate::ids::KeyId;
use crate::replicas::Replicas;
use crate::shares::{HeldShare, ShareHolder, SharedLimit, Shortage};

pub use rates::Admission;
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
    /// Into how many parts the rate is divided, of which this is one: 1, or `replicas.max` while the replicas' database is out of reach.
    pub one_of: u32,
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
    fn new(name: Arc<str>, rate: CallerRate, share_holders: PerKind<Arc<ShareHolder>>) -> Self {
        Self {
            name,
            id: NonZeroU64::MIN.saturating_add(NEXT_ID.fetch_add(1, Ordering::Relaxed)),
            rate: ArcSwap::from_pointee(rate),
            share_holders,
            answers: AnswerCounts::default(),
            used: Mutex::default(),
            samples: RequestSamples::default(),
        }
    }

    /// Counts one request against the rate.
    #[must_use]
    pub fn admit(&self) -> Admission {
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
    replicas: Option<Arc<Replicas>>,
    states: Mutex<HashMap<Arc<str>, Arc<CallerState>>>,
}

impl Callers {
    /// Starts with no callers and no limits. Callers' rates hold over all replicas, if there are several.
    #[must_use]
    pub fn new(clock: Clock, replicas: Option<Arc<Replicas>>) -> Self {
        let shared = PerKind::unlimited();
        Self { own: shared.holders(), shared, clock, replicas, states: Mutex::default() }
    }

    fn rate(&self, config: &config::CallerConfig) -> CallerRate {
        CallerRate::new(config, &self.clock, self.replicas.as_ref())
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
        let state = states.entry(config.name.clone()).or_insert_with(|| {
            Arc::new(CallerState::new(config.name.clone(), self.rate(config), self.shared.holders()))
        });
        if !state.rate.load().has_settings(config) {
            state.rate.store(Arc::new(self.rate(config)));
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

    fn admit(state: &CallerState) -> Result<Remaining, OverRate> {
        match state.admit() {
            Admission::Told(told) => told,
            Admission::Ask(_) => panic!("nobody else knows"),
        }
    }

    #[test]
    fn a_burst_passes_at_once_and_the_rest_at_the_rate() {
        let clock = Clock::frozen();
        let callers = Callers::new(clock.clone(), None);
        let state = callers.get_or_make(&caller(60, 3));
        let lefts: Vec<u32> = (0..3).map(|_| admit(&state).unwrap().left).collect();
        assert_eq!(lefts, [2, 1, 0]);
        let fast = admit(&state).unwrap_err();
        assert!(fast.retry_after <= Duration::from_secs(1), "{fast:?}");
        assert!(fast.retry_after >= Duration::from_millis(900), "{fast:?}");
        clock.advance(Duration::from_secs(1));
        assert!(admit(&state).is_ok());
        assert!(admit(&state).is_err());
    }

    #[test]
    fn the_remaining_burst_is_exact_while_it_refills() {
        let clock = Clock::frozen();
        let state = Callers::new(clock.clone(), None).get_or_make(&caller(6, 5));
        for left in (0..5).rev() {
            let remaining = admit(&state).unwrap();
            assert_eq!(remaining, Remaining { left, whole_in: Duration::from_secs(10) * (5 - left) });
        }
        let fast = admit(&state).unwrap_err();
        assert_eq!(fast.remaining.whole_in - fast.retry_after, Duration::from_secs(40));
        // Three intervals of 10 s have passed: one request is taken, two are left.
        clock.advance(Duration::from_secs(30));
        assert_eq!(admit(&state).unwrap().left, 2);
        clock.advance(Duration::from_secs(3_600));
        assert_eq!(admit(&state).unwrap().left, 4);
    }

    #[test]
    fn a_caller_that_retries_when_told_to_is_admitted() {
        let clock = Clock::frozen();
        let state = Callers::new(clock.clone(), None).get_or_make(&caller(7, 1));
        for _ in 0..20 {
            assert!(admit(&state).is_ok());
            let retry_after = admit(&state).unwrap_err().retry_after;
            assert!(retry_after <= Duration::from_secs(60).div_f64(7.0) + Duration::from_nanos(1), "{retry_after:?}");
            // A movable clock moves in milliseconds.
            clock.advance(retry_after + Duration::from_millis(1));
        }
    }

    #[test]
    fn an_extremely_slow_rate_overflows_nothing() {
        let mut config = caller(1, u32::MAX);
        config.rate.per = Duration::from_secs(86_400 * 365);
        let callers = Callers::new(Clock::frozen(), None);
        let state = callers.get_or_make(&config);
        assert!(admit(&state).is_ok() && admit(&state).is_ok());
        assert!(
            Arc::ptr_eq(&state.rate.load(), &callers.get_or_make(&config).rate.load()),
            "the same rate keeps the same limiter"
        );
    }

    #[test]
    fn a_reload_keeps_the_limiter_unless_the_rate_changes() {
        let callers = Callers::new(Clock::frozen(), None);
        let state = callers.get_or_make(&caller(60, 1));
        assert!(admit(&state).is_ok());
        assert!(admit(&callers.get_or_make(&caller(60, 1))).is_err());
        assert!(admit(&callers.get_or_make(&caller(60, 2))).is_ok());
        assert!(Arc::ptr_eq(&state, &callers.get_or_make(&caller(60, 2))));
    }

    #[test]
    fn a_huge_rate_is_a_rate() {
        let callers = Callers::new(Clock::frozen(), None);
        let state = callers.get_or_make(&caller(1_000_000_000, 1_000_000_000));
        assert!((0..1000).all(|_| admit(&state).is_ok()));
    }

    #[test]
    fn requests_under_way_are_bounded() {
        let callers = Callers::new(Clock::frozen(), None);
        let state = callers.get_or_make(&caller(60, 1));
        let first = state.count_under_way(1);
        assert!(first.is_ok());
        assert_eq!(state.count_under_way(1).unwrap_err(), Shortage::HolderMax);
        drop(first);
        assert!(state.count_under_way(1).is_ok());
    }
}
