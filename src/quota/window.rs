//! The slots of one bucket that are taken: exact, whatever the alignment of the upstream's own window.
//!
//! A slot is taken when an attempt is sent and comes back [`HOLD_MS`] after that attempt ended. The upstream counts the
//! attempt at some moment between the two, so any two attempts in the same slot are counted more than a minute apart.

use std::collections::VecDeque;
use std::sync::Arc;

/// Milliseconds since the quota was opened.
pub(super) type Moment = u64;

/// How long after an attempt's end its slot stays taken: the upstream's minute and a second for clocks that differ.
pub(super) const HOLD_MS: u64 = 61_000;

/// Ends are rounded up to this, so that a window is at most 6,100 entries a caller, whatever the limit.
const TICK_MS: u64 = 10;

/// How far back the ends of one tick are searched for one of the same caller to be added to.
const SAME_TICK_SEARCH: usize = 16;

/// Slots of ended attempts that come back together.
#[derive(Clone, Debug)]
pub(super) struct ReturningSlots {
    /// When they come back.
    pub(super) returns: Moment,
    /// Whose they are.
    pub(super) caller: Arc<str>,
    /// How many; 0: none, but the caller asked for one within the window.
    pub(super) count: u64,
}

/// What one who takes a slot has to leave to others: at the horizon `h` (milliseconds from now), together with what has come
/// back by then, at least `min(reserve + per_hold / parts · h / HOLD_MS, most)`.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SlotsToLeave {
    /// Slots for whoever comes at once.
    pub(super) reserve: u64,
    /// Over a whole hold, others may want `per_hold / parts` slots, evenly.
    pub(super) per_hold: u64,
    /// See `per_hold`; at least 1.
    pub(super) parts: u64,
    /// They may be made to wait so long.
    pub(super) patience_ms: u64,
    /// More than this the others cannot want within a hold.
    pub(super) most: u64,
}

/// When slots can be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SlotsDue {
    /// At this moment (or at once, if it is not after now), unless somebody else takes them.
    At(Moment),
    /// When an attempt that is under way has ended: too many are, to promise the others their share.
    AfterAnEnd,
    /// Not within a hold from now: attempts under way have all of them.
    Later,
}

/// The taken slots of one bucket.
#[derive(Debug, Default)]
pub(super) struct SlotWindow {
    under_way: u64,
    /// In the order in which they come back.
    held: VecDeque<ReturningSlots>,
    held_count: u64,
}

impl SlotWindow {
    /// Slots that are taken.
    pub(super) fn used(&self) -> u64 {
        self.under_way + self.held_count
    }

    /// An attempt is sent.
    pub(super) fn send(&mut self) {
        self.under_way += 1;
    }

    /// An attempt that was under way turns out never to have been sent.
    pub(super) fn unsend(&mut self) {
        self.under_way = self.under_way.saturating_sub(1);
    }

    /// An attempt that was under way has ended now. `true`: a further entry was made for it.
    pub(super) fn end(&mut self, now: Moment, caller: &Arc<str>) -> bool {
        self.under_way = self.under_way.saturating_sub(1);
        self.hold(now.next_multiple_of(TICK_MS) + HOLD_MS, caller, 1)
    }

    /// Holds `count` slots until `returns`. `true`: a further entry was made for them.
    pub(super) fn hold(&mut self, returns: Moment, caller: &Arc<str>, count: u64) -> bool {
        self.held_count += count;
        let at = self.held.partition_point(|held| held.returns <= returns);
        let same = self.held.range_mut(at.saturating_sub(SAME_TICK_SEARCH)..at).rev();
        let mut same = same.take_while(|held| held.returns == returns);
        if let Some(held) = same.find(|held| held.caller == *caller) {
            held.count += count;
            return false;
        }
        self.held.insert(at, ReturningSlots { returns, caller: caller.clone(), count });
        true
    }

    /// Takes out the next slots that have come back by now.
    pub(super) fn returned(&mut self, now: Moment) -> Option<ReturningSlots> {
        let held = self.held.pop_front_if(|held| held.returns <= now)?;
        self.held_count -= held.count;
        if self.held.is_empty() {
            self.held = VecDeque::new();
        }
        Some(held)
    }

    /// When the next slots come back.
    pub(super) fn next_return(&self) -> Option<Moment> {
        self.held.front().map(|held| held.returns)
    }

    /// When can `take` slots be taken such that from then on there is enough of `keep`?
    pub(super) fn when(&self, now: Moment, limit: u64, take: u64, keep: &SlotsToLeave) -> SlotsDue {
        let wanted = self.used() + take;
        let least = keep.reserve.min(keep.most);
        // `supply`: what is left after taking, `None` while that is less than nothing; `back`: what has come back by then.
        let (mut at, mut back) = (now, 0);
        for held in &self.held {
            match (limit + back).checked_sub(wanted) {
                Some(supply) if supply >= keep.most => return SlotsDue::At(at),
                Some(supply) if supply >= least => at = at.max(held.returns.saturating_sub(keep.lasts_ms(supply))),
                Some(_) | None => at = at.max(held.returns),
            }
            back += held.count;
        }
        match (limit + back).checked_sub(wanted) {
            None => SlotsDue::Later,
            Some(supply) if supply >= keep.most || keep.lasts_ms(supply) >= HOLD_MS => SlotsDue::At(at),
            Some(_) => SlotsDue::AfterAnEnd,
        }
    }
}

impl SlotsToLeave {
    /// For how long `supply` slots are enough.
    fn lasts_ms(&self, supply: u64) -> u64 {
        let Some(spare) = supply.checked_sub(self.reserve) else { return 0 };
        let lasts = u128::from(spare) * u128::from(self.parts) * u128::from(HOLD_MS);
        lasts
            .checked_div(u128::from(self.per_hold))
            .map_or(u64::MAX, |ms| u64::try_from(ms).unwrap_or(u64::MAX).saturating_add(self.patience_ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_stays_small_however_much_is_sent() {
        let mut window = SlotWindow::default();
        let caller: Arc<str> = "a".into();
        for now in 0..200_000 {
            while window.returned(now).is_some() {}
            for _ in 0..3 {
                window.send();
                window.end(now, &caller);
            }
        }
        assert!(window.held.len() <= 6_102, "{}", window.held.len());
        assert!(window.used() >= 183_000, "{}", window.used());
    }

    #[test]
    fn a_slot_comes_back_61_seconds_after_the_end_and_no_earlier() {
        let mut window = SlotWindow::default();
        window.send();
        window.end(1_234, &"a".into());
        assert!(window.returned(1_234 + HOLD_MS - 1).is_none());
        assert!(window.returned(1_240 + HOLD_MS).is_some());
        assert_eq!(window.used(), 0);
    }

    #[test]
    fn slots_that_others_may_want_are_kept_for_every_moment_of_the_hold() {
        let mut window = SlotWindow::default();
        let caller: Arc<str> = "a".into();
        window.hold(30_000, &caller, 5);
        window.hold(60_000, &caller, 5);
        let keep =
            |reserve, per_hold| SlotsToLeave { reserve, per_hold, parts: 1, patience_ms: 0, most: reserve + per_hold };
        assert_eq!(window.when(0, 10, 1, &SlotsToLeave::default()), SlotsDue::At(30_000));
        assert_eq!(window.when(0, 10, 6, &SlotsToLeave::default()), SlotsDue::At(60_000));
        assert_eq!(window.when(0, 10, 11, &SlotsToLeave::default()), SlotsDue::Later);
        assert_eq!(window.when(0, 10, 1, &keep(4, 0)), SlotsDue::At(30_000));
        assert_eq!(window.when(0, 10, 1, &keep(5, 0)), SlotsDue::At(60_000));
        // At 30 s four are left, one more than the reserve; at two a hold that lasts 30.5 s.
        assert_eq!(window.when(0, 10, 1, &keep(3, 2)), SlotsDue::At(30_000));
        assert_eq!(window.when(0, 10, 1, &keep(3, 4)), SlotsDue::At(60_000 - 15_250));
    }

    #[test]
    fn attempts_under_way_come_back_later_than_a_hold() {
        let mut window = SlotWindow::default();
        window.send();
        window.send();
        let keep = SlotsToLeave { reserve: 0, per_hold: 9, parts: 1, patience_ms: 0, most: 9 };
        assert_eq!(window.when(0, 10, 1, &keep), SlotsDue::AfterAnEnd);
        assert_eq!(window.when(0, 2, 1, &SlotsToLeave::default()), SlotsDue::Later);
    }
}
