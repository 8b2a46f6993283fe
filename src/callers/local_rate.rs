//! A caller's rate as this process alone knows it.

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use governor::clock::Clock as _;
use governor::middleware::StateInformationMiddleware;
use governor::nanos::Nanos;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};

use super::{OverRate, Remaining};
use crate::clock::Clock;
use crate::config::Rate;

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

/// A rate and burst, as a limiter needs them.
#[derive(Clone, Copy, Debug)]
pub(super) struct LimiterTerms {
    pub(super) interval: Duration,
    pub(super) burst: NonZeroU32,
}

impl LimiterTerms {
    /// The interval is rounded up, so that the rate is never exceeded. The burst is limited where governor's nanoseconds would overflow.
    pub(super) fn new(rate: Rate, burst: u32) -> Self {
        let burst = NonZeroU32::new(burst).unwrap_or(NonZeroU32::MIN);
        let nanos = rate.per.as_nanos().div_ceil(u128::from(rate.requests.max(1)));
        let nanos = u64::try_from(nanos).unwrap_or(u64::MAX).clamp(1, BURST_NANOS_MAX);
        let burst = burst.min(u32::try_from(BURST_NANOS_MAX / nanos).ok().and_then(NonZeroU32::new).unwrap_or(burst));
        Self { interval: Duration::from_nanos(nanos), burst }
    }
}

#[derive(Debug)]
pub(super) struct LocalRate {
    terms: LimiterTerms,
    ticks: LimiterClock,
    limiter: Limiter,
}

impl LocalRate {
    pub(super) fn new(terms: LimiterTerms, clock: &Clock) -> Self {
        let quota = Quota::with_period(terms.interval).unwrap_or_else(|| Quota::per_second(NonZeroU32::MIN));
        let ticks = LimiterClock { clock: clock.clone(), epoch: clock.now() };
        let limiter = RateLimiter::direct_with_clock(quota.allow_burst(terms.burst), ticks.clone()).with_middleware();
        Self { terms, ticks, limiter }
    }

    fn remaining(&self, left: u32) -> Remaining {
        let LimiterTerms { interval, burst } = self.terms;
        Remaining { left, whole_in: interval.saturating_mul(burst.get().saturating_sub(left)) }
    }

    pub(super) fn admit(&self) -> Result<Remaining, OverRate> {
        match self.limiter.check() {
            Ok(state) => Ok(self.remaining(state.remaining_burst_capacity())),
            Err(early) => {
                let retry_after = early.wait_time_from(self.ticks.now());
                let whole_in = retry_after + self.remaining(1).whole_in;
                Err(OverRate { retry_after, remaining: Remaining { left: 0, whole_in }, one_of: 1 })
            }
        }
    }
}
