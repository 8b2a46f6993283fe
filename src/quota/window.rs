//! The slots taken in one bucket: an exact account, whatever the alignment of the upstream's own window.
//!
//! A slot is taken when an attempt is sent and comes back [`HOLD_MS`] after the attempt ended. The upstream counts
//! the attempt at some point in between, so it counts any two attempts in the same slot more than a minute apart.

use std::collections::VecDeque;
use std::sync::Arc;

/// Milliseconds since the quota was opened; for a quota that replicas share, since 1970 by the engine's clock.
pub(super) type Moment = u64;

/// How long a slot stays taken after its attempt ended: the upstream's minute, plus a second for clock differences.
pub(super) const HOLD_MS: u64 = 61_000;

/// Ends are rounded up to this, so that a window has at most 6,100 entries per caller, whatever the limit.
const TICK_MS: u64 = 10;

/// How many entries of the same tick are searched for one of the same caller to add to.
const SAME_TICK_SEARCH: usize = 16;

/// Slots of ended attempts that come back together.
#[derive(Clone, Debug)]
pub(super) struct ReturningSlots {
    pub(super) returns: Moment,
    pub(super) caller: Arc<str>,
    /// Number of slots. 0 means that the caller only asked for one within the window.
    pub(super) count: u64,
}

/// What whoever takes a slot must leave to others: `h` milliseconds from now, together with what has come back by
/// then, at least `min(reserve + per_hold / parts · h / HOLD_MS, most)`.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SlotsToLeave {
    /// Slots for callers that come at once.
    pub(super) reserve: u64,
    /// Over a whole hold, others may want `per_hold / parts` slots, evenly spread.
    pub(super) per_hold: u64,
    /// See `per_hold`; at least 1.
    pub(super) parts: u64,
    /// How long they may be made to wait.
    pub(super) patience_ms: u64,
    /// The most that the others can want within a hold.
    pub(super) most: u64,
}

/// When slots can be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SlotsDue {
    /// At this moment (now if it has passed), unless someone else takes them.
    At(Moment),
    /// When an attempt under way has ended: too many are under way to promise the others their share.
    AfterAnEnd,
    /// Not within a hold from now, because attempts under way have them all.
    Later,
}

#[derive(Clone, Debug, Default)]
pub(super) struct SlotWindow {
    under_way: u64,
    /// Those under way that other replicas may have sent, in the order in which they come back at the latest.
    lent: VecDeque<LentSlots>,
    /// In the order in which they come back.
    held: VecDeque<ReturningSlots>,
    held_count: u64,
}

/// Slots of attempts under way. Their replica says when an attempt has ended; if it dies, they come back without that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LentSlots {
    pub(super) returns: Moment,
    pub(super) caller: Arc<str>,
    /// Of the gate, when they were sent.
    pub(super) round: u32,
    pub(super) count: u64,
}

impl SlotWindow {
    /// Number of slots taken.
    pub(super) fn used(&self) -> u64 {
        self.under_way + self.held_count
    }

    pub(super) fn send(&mut self) {
        self.under_way += 1;
    }

    /// An attempt under way turned out never to have been sent.
    pub(super) fn unsend(&mut self) {
        self.under_way = self.under_way.saturating_sub(1);
    }

    /// An attempt under way has ended now. Returns true if that added an entry.
    pub(super) fn end(&mut self, now: Moment, caller: &Arc<str>) -> bool {
        self.under_way = self.under_way.saturating_sub(1);
        self.hold(return_of(now), caller, 1)
    }

    /// Holds `count` slots until `returns`. Returns true if that added an entry.
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

    /// Counts attempts as under way, until `returns` at the latest.
    pub(super) fn lend(&mut self, slots: LentSlots) {
        self.under_way += slots.count;
        let at = self.lent.partition_point(|lent| lent.returns <= slots.returns);
        let same = self.lent.range_mut(at.saturating_sub(SAME_TICK_SEARCH)..at).rev();
        let mut same = same.take_while(|lent| lent.returns == slots.returns);
        match same.find(|lent| lent.caller == slots.caller && lent.round == slots.round) {
            Some(lent) => lent.count += slots.count,
            None => self.lent.insert(at, slots),
        }
    }

    /// Takes one of these slots out. Returns false if none of them is left.
    pub(super) fn take_lent(&mut self, returns: Moment, caller: &Arc<str>, round: u32) -> bool {
        let from = self.lent.partition_point(|lent| lent.returns < returns);
        let mut same = self.lent.iter_mut().enumerate().skip(from).take_while(|(_, lent)| lent.returns == returns);
        let Some((at, lent)) = same.find(|(_, lent)| lent.caller == *caller && lent.round == round) else {
            return false;
        };
        lent.count -= 1;
        if lent.count == 0 {
            self.lent.remove(at);
        }
        self.under_way = self.under_way.saturating_sub(1);
        true
    }

    /// Takes out the next lent slots that have come back by now, because nobody has said when their attempts ended.
    pub(super) fn lapsed(&mut self, now: Moment) -> Option<LentSlots> {
        let lent = self.lent.pop_front_if(|lent| lent.returns <= now)?;
        self.under_way = self.under_way.saturating_sub(lent.count);
        Some(lent)
    }

    /// The slots of attempts under way.
    pub(super) fn lent(&self) -> &VecDeque<LentSlots> {
        &self.lent
    }

    /// The slots of ended attempts.
    pub(super) fn held(&self) -> &VecDeque<ReturningSlots> {
        &self.held
    }

    /// Lets nothing come back later than this after `now`: nothing can have been taken for longer.
    pub(super) fn clamp(&mut self, lent_until: Moment, held_until: Moment) {
        self.lent
            .iter_mut()
            .rev()
            .take_while(|lent| lent.returns > lent_until)
            .for_each(|lent| lent.returns = lent_until);
        self.held
            .iter_mut()
            .rev()
            .take_while(|held| held.returns > held_until)
            .for_each(|held| held.returns = held_until);
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

    /// When `take` slots can be taken such that enough of `keep` is left from then on.
    pub(super) fn available_at(&self, now: Moment, limit: u64, take: u64, keep: &SlotsToLeave) -> SlotsDue {
        let wanted = self.used() + take;
        let least = keep.reserve.min(keep.most);
        // `supply` is what is left after taking (`None` while negative); `back` is what has come back by then.
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

/// When the slot of an attempt that ended at this moment comes back.
pub(super) fn return_of(ended: Moment) -> Moment {
    ended.next_multiple_of(TICK_MS) + HOLD_MS
}

impl SlotsToLeave {
    /// How long `supply` slots are enough.
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
        assert_eq!(window.available_at(0, 10, 1, &SlotsToLeave::default()), SlotsDue::At(30_000));
        assert_eq!(window.available_at(0, 10, 6, &SlotsToLeave::default()), SlotsDue::At(60_000));
        assert_eq!(window.available_at(0, 10, 11, &SlotsToLeave::default()), SlotsDue::Later);
        assert_eq!(window.available_at(0, 10, 1, &keep(4, 0)), SlotsDue::At(30_000));
        assert_eq!(window.available_at(0, 10, 1, &keep(5, 0)), SlotsDue::At(60_000));
        // At 30 s four slots are left, one more than the reserve; at two per hold that lasts 30.5 s.
        assert_eq!(window.available_at(0, 10, 1, &keep(3, 2)), SlotsDue::At(30_000));
        assert_eq!(window.available_at(0, 10, 1, &keep(3, 4)), SlotsDue::At(60_000 - 15_250));
    }

    #[test]
    fn attempts_under_way_come_back_later_than_a_hold() {
        let mut window = SlotWindow::default();
        window.send();
        window.send();
        let keep = SlotsToLeave { reserve: 0, per_hold: 9, parts: 1, patience_ms: 0, most: 9 };
        assert_eq!(window.available_at(0, 10, 1, &keep), SlotsDue::AfterAnEnd);
        assert_eq!(window.available_at(0, 2, 1, &SlotsToLeave::default()), SlotsDue::Later);
    }
}
