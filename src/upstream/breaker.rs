//! The breaker: while the upstream cannot be reached, requests are refused at once instead of one by one after their time.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::catalogue::Retry;
use crate::clock::Clock;
use crate::config::Limits;
use crate::process_log::STATE;

/// What a refused request is told when a probe is due or under way: its end is not known.
const PROBE_GUESS: Duration = Duration::from_secs(1);

/// Counts requests in a row that did not reach the upstream (never statuses, never cut answers).
pub struct Breaker {
    clock: Clock,
    failures: u32,
    open: Duration,
    open_max: Duration,
    state: Arc<Mutex<State>>,
}

enum State {
    Closed { failed: u32 },
    Open { until: Instant, span: Duration, probing: bool },
}

/// What the breaker is doing, for metrics and readiness.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Everything passes.
    Closed,
    /// Everything is refused.
    Open,
    /// The next `safe` request finds out, or one is doing so.
    Probing,
}

/// A request's right to go upstream. Reported back to the breaker; dropped, it counts as nothing.
pub struct Pass {
    state: Arc<Mutex<State>>,
    probe: bool,
}

/// The breaker refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Open {
    /// When to come again.
    pub retry_after: Duration,
}

impl Breaker {
    pub(super) fn new(limits: &Limits, clock: Clock) -> Self {
        Self {
            clock,
            failures: limits.breaker_failures,
            open: limits.breaker_open,
            open_max: limits.breaker_open_max.max(limits.breaker_open),
            state: Arc::new(Mutex::new(State::Closed { failed: 0 })),
        }
    }

    /// May a request of this class go upstream?
    ///
    /// # Errors
    /// [`Open`]: not now. When the breaker's time is over, one `safe` request may probe; a write could end in doubt.
    pub fn permit(&self, class: Retry) -> Result<Pass, Open> {
        let now = self.clock.now();
        let probe = match &mut *lock(&self.state) {
            State::Closed { .. } => false,
            State::Open { until, .. } if now < *until => return Err(Open { retry_after: *until - now }),
            State::Open { probing, .. } => {
                if *probing || class != Retry::Safe {
                    return Err(Open { retry_after: PROBE_GUESS });
                }
                *probing = true;
                true
            }
        };
        Ok(Pass { state: self.state.clone(), probe })
    }

    /// How a request that had `pass` ended: was the upstream reached by its last attempt?
    pub fn report(&self, mut pass: Pass, reached: bool) {
        let was_probe = std::mem::take(&mut pass.probe);
        let mut state = lock(&self.state);
        let was_open = matches!(*state, State::Open { .. });
        *state = match *state {
            State::Closed { .. } if reached => State::Closed { failed: 0 },
            State::Closed { failed } if self.failures == 0 || failed + 1 < self.failures => {
                State::Closed { failed: failed.saturating_add(1).min(self.failures) }
            }
            State::Closed { .. } => self.opened(self.open),
            State::Open { .. } if was_probe && reached => State::Closed { failed: 0 },
            State::Open { span, .. } if was_probe => self.opened(span.saturating_mul(2).min(self.open_max)),
            // It began before the breaker opened: old news.
            State::Open { .. } => return,
        };
        match (was_open, matches!(*state, State::Open { .. })) {
            (false, true) => {
                tracing::error!(target: STATE, "the breaker is open: requests are refused until the upstream answers again");
            }
            (true, false) => tracing::info!(target: STATE, "the breaker is closed: requests go upstream again"),
            (false, false) | (true, true) => {}
        }
    }

    /// What it is doing.
    #[must_use]
    pub fn standing(&self) -> Standing {
        match *lock(&self.state) {
            State::Closed { .. } => Standing::Closed,
            State::Open { until, .. } if self.clock.now() < until => Standing::Open,
            State::Open { .. } => Standing::Probing,
        }
    }

    fn opened(&self, span: Duration) -> State {
        State::Open { until: self.clock.now() + span, span, probing: false }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        if !self.probe {
            return;
        }
        if let State::Open { probing, .. } = &mut *lock(&self.state) {
            *probing = false;
        }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::tests::limits;

    fn breaker(clock: &Clock) -> Breaker {
        Breaker::new(&limits(), clock.clone())
    }

    fn request(breaker: &Breaker, class: Retry, reached: bool) -> Result<(), Open> {
        breaker.permit(class).map(|pass| breaker.report(pass, reached))
    }

    /// Opened by five requests in a row that did not arrive.
    fn opened(clock: &Clock) -> Breaker {
        let breaker = breaker(clock);
        for _ in 0..5 {
            request(&breaker, Retry::Once, false).unwrap();
        }
        breaker
    }

    /// For how long it opened; a movable clock runs on with the machine's, so what is left of that is no round number.
    fn open_for(breaker: &Breaker) -> Duration {
        let Err(open) = breaker.permit(Retry::Safe) else { panic!("it passes") };
        let State::Open { span, .. } = *lock(&breaker.state) else { panic!("it is closed") };
        assert!(open.retry_after <= span);
        span
    }

    #[test]
    fn five_in_a_row_open_it_and_one_that_arrives_begins_anew() {
        let breaker = breaker(&Clock::movable());
        for _ in 0..3 {
            for _ in 0..4 {
                request(&breaker, Retry::Safe, false).unwrap();
            }
            request(&breaker, Retry::Safe, true).unwrap();
        }
        for _ in 0..4 {
            request(&breaker, Retry::Safe, false).unwrap();
        }
        drop(breaker.permit(Retry::Safe).unwrap());
        assert_eq!(breaker.standing(), Standing::Closed, "a dropped pass counts as nothing");
        request(&breaker, Retry::Safe, false).unwrap();
        assert_eq!(breaker.standing(), Standing::Open);
        assert_eq!(open_for(&breaker), Duration::from_secs(5));
    }

    #[test]
    fn one_read_probes_while_all_others_wait() {
        let clock = Clock::movable();
        let breaker = opened(&clock);
        clock.advance(Duration::from_secs(5));
        assert_eq!(breaker.standing(), Standing::Probing);
        assert!(breaker.permit(Retry::Once).is_err() && breaker.permit(Retry::Idempotent).is_err());
        let probe = breaker.permit(Retry::Safe).unwrap();
        assert!(matches!(breaker.permit(Retry::Safe), Err(Open { retry_after: PROBE_GUESS })));
        drop(probe);
        let probe = breaker.permit(Retry::Safe).unwrap();
        breaker.report(probe, true);
        assert_eq!(breaker.standing(), Standing::Closed);
        assert!(breaker.permit(Retry::Once).is_ok());
    }

    #[test]
    fn each_probe_that_fails_doubles_the_time_to_a_minute() {
        let clock = Clock::movable();
        let breaker = opened(&clock);
        for seconds in [5, 10, 20, 40, 60, 60] {
            assert_eq!(open_for(&breaker), Duration::from_secs(seconds));
            clock.advance(Duration::from_secs(seconds));
            request(&breaker, Retry::Safe, false).unwrap();
        }
        clock.advance(Duration::from_secs(60));
        request(&breaker, Retry::Safe, true).unwrap();
        for _ in 0..5 {
            request(&breaker, Retry::Safe, false).unwrap();
        }
        assert_eq!(open_for(&breaker), Duration::from_secs(5), "once closed, it begins anew");
    }

    #[test]
    fn what_began_before_it_opened_tells_nothing() {
        let clock = Clock::movable();
        let breaker = breaker(&clock);
        let old: Vec<_> = (0..7).map(|_| breaker.permit(Retry::Safe).unwrap()).collect();
        for (number, pass) in old.into_iter().enumerate() {
            breaker.report(pass, number == 6);
        }
        assert_eq!(breaker.standing(), Standing::Open);
        assert_eq!(open_for(&breaker), Duration::from_secs(5));
    }

    #[test]
    fn zero_is_never() {
        let breaker = Breaker::new(&Limits { breaker_failures: 0, ..limits() }, Clock::movable());
        for _ in 0..100 {
            request(&breaker, Retry::Safe, false).unwrap();
        }
    }
}
