//! The retry budget: when much fails, sending more makes it worse. Re-sent attempts stay a small share of all of them.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::clock::Clock;
use crate::config::Limits;

/// The share is one of all attempts in this time...
const WINDOW: Duration = Duration::from_secs(60);
/// ...and the floor is one of this time.
const FLOOR_WINDOW: Duration = Duration::from_secs(10);
/// Attempts are counted together in slices this long.
const SLICE: Duration = Duration::from_secs(1);

/// Counts attempts, and says whether one may be sent again.
pub(super) struct Budget {
    clock: Clock,
    percent: u64,
    floor: u64,
    /// Oldest first, none older than [`WINDOW`]: at most 61.
    slices: Mutex<VecDeque<Slice>>,
}

struct Slice {
    began: Instant,
    attempts: u64,
    resent: u64,
}

impl Budget {
    pub(super) fn new(limits: &Limits, clock: Clock) -> Self {
        let (percent, floor) = (u64::from(limits.retry_percent), u64::from(limits.retry_floor));
        Self { clock, percent, floor, slices: Mutex::default() }
    }

    /// Counts an attempt, first or re-sent.
    pub(super) fn attempted(&self) {
        let now = self.clock.now();
        if let Some(slice) = self.slices_at(now).back_mut() {
            slice.attempts += 1;
        }
    }

    /// Takes the right to send once again. `false`: too much is being sent again already.
    pub(super) fn take(&self) -> bool {
        let now = self.clock.now();
        let mut slices = self.slices_at(now);
        let attempts: u64 = slices.iter().map(|slice| slice.attempts).sum();
        let resent: u64 = slices.iter().map(|slice| slice.resent).sum();
        let lately = slices.iter().filter(|slice| now.saturating_duration_since(slice.began) < FLOOR_WINDOW);
        let few = lately.map(|slice| slice.resent).sum::<u64>() < self.floor;
        let may = few || (resent + 1) * 100 <= attempts * self.percent;
        if may && let Some(slice) = slices.back_mut() {
            slice.resent += 1;
        }
        may
    }

    /// The slices without what is over; the last one is that of `now`.
    fn slices_at(&self, now: Instant) -> MutexGuard<'_, VecDeque<Slice>> {
        let mut slices = self.slices.lock().unwrap_or_else(PoisonError::into_inner);
        while slices.front().is_some_and(|slice| now.saturating_duration_since(slice.began) >= WINDOW) {
            slices.pop_front();
        }
        if slices.back().is_none_or(|slice| now.saturating_duration_since(slice.began) >= SLICE) {
            slices.push_back(Slice { began: now, attempts: 0, resent: 0 });
        }
        slices
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(clock: &Clock) -> Budget {
        Budget { clock: clock.clone(), percent: 10, floor: 2, slices: Mutex::default() }
    }

    fn taken(budget: &Budget, tries: usize) -> usize {
        (0..tries).filter(|_| budget.take()).count()
    }

    #[test]
    fn a_tenth_of_the_attempts_of_a_minute_may_go_again() {
        let clock = Clock::movable();
        let budget = budget(&clock);
        for _ in 0..50 {
            budget.attempted();
            clock.advance(Duration::from_millis(500));
        }
        assert_eq!(taken(&budget, 20), 5);
        clock.advance(Duration::from_secs(61));
        budget.attempted();
        assert_eq!(taken(&budget, 20), 2, "what is older than a minute no longer counts: the floor is left");
    }

    #[test]
    fn a_floor_of_two_in_ten_seconds_holds_however_few_attempts_there_are() {
        let clock = Clock::movable();
        let budget = budget(&clock);
        for _ in 0..5 {
            assert_eq!(taken(&budget, 10), 2);
            clock.advance(Duration::from_secs(9));
            assert_eq!(taken(&budget, 10), 0);
            clock.advance(Duration::from_secs(2));
        }
    }

    #[test]
    fn it_holds_one_slice_a_second_and_none_older_than_a_minute() {
        let clock = Clock::movable();
        let budget = budget(&clock);
        for _ in 0..10_000 {
            budget.attempted();
            clock.advance(Duration::from_millis(100));
        }
        assert!(budget.slices.lock().unwrap().len() <= 61);
    }
}
