//! The breaker: while the upstream cannot be reached, requests are refused at once instead of one by one after their time.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::catalogue::Retry;
use crate::clock::Clock;
use crate::config::Limits;

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
