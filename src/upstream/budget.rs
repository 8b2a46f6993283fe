//! The retry budget keeps retries a small share of all attempts, because sending more makes an outage worse.
//!
//! Each caller has its own budget, so that a caller who keeps failing cannot spend what other callers' requests have
//! earned.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::clock::Clock;
use crate::config::Limits;
use crate::hash::NameMap;

/// A caller may retry a percentage of its attempts within this time...
const WINDOW: Duration = Duration::from_secs(60);
/// ...plus its share of the floor within this time, but at least one.
const FLOOR_WINDOW: Duration = Duration::from_secs(10);
/// Attempts are counted in slices of this length.
const SLICE: Duration = Duration::from_secs(1);

/// Counts attempts and decides whether one may be retried.
pub(super) struct RetryBudget {
    clock: Clock,
    percent: u64,
    floor: u64,
    /// Callers with attempts within [`WINDOW`].
    callers: Mutex<NameMap<CallerBudget>>,
}

/// One caller's slices, oldest first, none older than [`WINDOW`]: at most 61.
#[derive(Default)]
struct CallerBudget(VecDeque<BudgetSlice>);

struct BudgetSlice {
    began: Instant,
    attempts: u64,
    resent: u64,
}

impl RetryBudget {
    pub(super) fn new(limits: &Limits, clock: Clock) -> Self {
        let (percent, floor) = (u64::from(limits.retry_percent), u64::from(limits.retry_floor));
        Self { clock, percent, floor, callers: Mutex::default() }
    }

    /// Counts an attempt, whether first or retry.
    pub(super) fn attempted(&self, caller: &Arc<str>) {
        let now = self.clock.now();
        let mut callers = self.callers.lock().unwrap_or_else(PoisonError::into_inner);
        if !callers.contains_key(caller) {
            callers.retain(|_, account| account.has_any_since(now, WINDOW));
            callers.insert(caller.clone(), CallerBudget::default());
        }
        if let Some(account) = callers.get_mut(caller) {
            account.at(now).attempts += 1;
        }
    }

    /// Takes the right to retry once. `false` if too many of this caller's attempts are retries already.
    pub(super) fn take(&self, caller: &Arc<str>) -> bool {
        let now = self.clock.now();
        let mut callers = self.callers.lock().unwrap_or_else(PoisonError::into_inner);
        let active = callers.values().filter(|account| account.has_any_since(now, FLOOR_WINDOW)).count();
        let share = self.floor / u64::try_from(active.max(1)).unwrap_or(u64::MAX);
        let floor = share.max(self.floor.min(1));
        let account = callers.entry(caller.clone()).or_default();
        account.at(now);
        let attempts: u64 = account.0.iter().map(|slice| slice.attempts).sum();
        let resent: u64 = account.0.iter().map(|slice| slice.resent).sum();
        let lately = account.0.iter().filter(|slice| now.saturating_duration_since(slice.began) < FLOOR_WINDOW);
        let few = lately.map(|slice| slice.resent).sum::<u64>() < floor;
        let may = few || (resent + 1) * 100 <= attempts * self.percent;
        if may {
            account.at(now).resent += 1;
        }
        may
    }
}

impl CallerBudget {
    /// The slice of `now`; drops slices that are too old.
    fn at(&mut self, now: Instant) -> &mut BudgetSlice {
        while self.0.front().is_some_and(|slice| now.saturating_duration_since(slice.began) >= WINDOW) {
            self.0.pop_front();
        }
        let is_over = self.0.back().is_none_or(|slice| now.saturating_duration_since(slice.began) >= SLICE);
        let last = if is_over { None } else { self.0.pop_back() };
        self.0.push_back_mut(last.unwrap_or(BudgetSlice { began: now, attempts: 0, resent: 0 }))
    }

    fn has_any_since(&self, now: Instant, time: Duration) -> bool {
        self.0.back().is_some_and(|slice| now.saturating_duration_since(slice.began) < time)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(clock: &Clock) -> RetryBudget {
        RetryBudget { clock: clock.clone(), percent: 10, floor: 2, callers: Mutex::default() }
    }

    fn name(text: &str) -> Arc<str> {
        text.into()
    }

    fn taken(budget: &RetryBudget, caller: &str, tries: usize) -> usize {
        (0..tries).filter(|_| budget.take(&name(caller))).count()
    }

    #[test]
    fn a_tenth_of_the_attempts_of_a_minute_may_go_again() {
        let clock = Clock::frozen();
        let budget = budget(&clock);
        for _ in 0..50 {
            budget.attempted(&name("a"));
            clock.advance(Duration::from_millis(500));
        }
        assert_eq!(taken(&budget, "a", 20), 5);
        clock.advance(Duration::from_secs(61));
        budget.attempted(&name("a"));
        assert_eq!(taken(&budget, "a", 20), 2, "what is older than a minute no longer counts: the floor is left");
    }

    #[test]
    fn a_floor_of_two_in_ten_seconds_holds_however_few_attempts_there_are() {
        let clock = Clock::frozen();
        let budget = budget(&clock);
        for _ in 0..5 {
            assert_eq!(taken(&budget, "a", 10), 2);
            clock.advance(Duration::from_secs(9));
            assert_eq!(taken(&budget, "a", 10), 0);
            clock.advance(Duration::from_secs(2));
        }
    }

    #[test]
    fn who_fails_all_the_time_spends_nobody_elses() {
        let clock = Clock::frozen();
        let budget = budget(&clock);
        for _ in 0..100 {
            budget.attempted(&name("greedy"));
            budget.attempted(&name("polite"));
        }
        assert_eq!(taken(&budget, "greedy", 1_000), 10, "a tenth of its own");
        assert_eq!(taken(&budget, "polite", 1_000), 10);
        // The active callers share the floor, and each gets at least one.
        clock.advance(Duration::from_secs(61));
        for caller in ["a", "b", "c"] {
            budget.attempted(&name(caller));
        }
        assert_eq!(["a", "b", "c"].map(|caller| taken(&budget, caller, 10)), [1, 1, 1]);
        let none = RetryBudget { floor: 0, ..self::budget(&clock) };
        assert_eq!(taken(&none, "a", 10), 0);
    }

    #[test]
    fn it_holds_one_slice_a_second_and_none_older_than_a_minute() {
        let clock = Clock::frozen();
        let budget = budget(&clock);
        for number in 0..10_000 {
            budget.attempted(&name("a"));
            budget.attempted(&format!("caller-{}", number / 10).into());
            clock.advance(Duration::from_millis(100));
        }
        let callers = budget.callers.lock().unwrap();
        assert!(callers["a"].0.len() <= 61);
        assert!(callers.len() <= 62, "{} callers are remembered", callers.len());
    }
}
