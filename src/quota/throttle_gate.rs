//! A bucket's gate after an upstream 429: closed for a while, then reopened gradually, because someone else may be
//! using the quota.

use std::fmt;
use std::time::Duration;

use super::window::{Moment, SlotsDue};
use super::{CLOSED_DEFAULT, CLOSED_MAX};

/// Decides whether attempts may go. Open unless [`ThrottleGate::close`] was called.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ThrottleGate {
    pub(super) closed_until: Moment,
    /// When one attempt may test whether a long closing is still needed; at most once until an attempt succeeds.
    pub(super) early_test: Option<Moment>,
    pub(super) is_tested_early: bool,
    /// Until then nobody knows what an earlier process sent, so nothing may go.
    pub(super) unknown_until: Moment,
    /// How often it was closed. Attempts from before the last time prove nothing.
    pub(super) round: u32,
    pub(super) batch: Option<ReopenBatch>,
    pub(super) why: Option<CloseReason>,
}

/// Why a gate was closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CloseReason {
    /// The upstream answered 429, with this Retry-After.
    Throttled(Option<Duration>),
    /// The upstream answered 429 to an earlier process.
    ThrottledBefore,
    /// Nobody knows what an earlier process sent.
    UnknownBefore,
    /// Somebody set the clock by which the replicas count.
    ClockStep,
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Throttled(None) => f.write_str("Make answered 429 without Retry-After"),
            Self::Throttled(Some(asked)) => write!(f, "Make answered 429 with Retry-After: {}", asked.as_secs()),
            Self::ThrottledBefore => f.write_str("Make answered 429 before makegate was started again"),
            Self::UnknownBefore => f.write_str("makegate does not know what was sent before it was started"),
            Self::ClockStep => f.write_str("the clock of the replicas' database was set"),
        }
    }
}

/// While reopening: how many attempts may go now. When all have ended without a 429, it becomes twice as many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ReopenBatch {
    pub(super) size: u64,
    pub(super) sent: u64,
    pub(super) ended: u64,
}

impl ReopenBatch {
    const FIRST: Self = Self { size: 1, sent: 0, ended: 0 };
}

impl ThrottleGate {
    /// Closes the gate until `until` (or an earlier call's time if later, but never for longer than ten minutes); then one attempt goes
    /// first. If that is more than Make's own minute, one goes at half of it.
    pub(super) fn close(&mut self, now: Moment, until: Moment, why: CloseReason) {
        let longest = now.saturating_add(millis(CLOSED_MAX));
        self.closed_until = self.closed_until.max(until).min(longest);
        if matches!(why, CloseReason::UnknownBefore | CloseReason::ClockStep) {
            self.unknown_until = self.unknown_until.max(until);
        }
        let lasts = self.closed_until.saturating_sub(now);
        let half = (now + lasts / 2).max(self.unknown_until);
        let may_test = lasts > millis(CLOSED_DEFAULT) && half < self.closed_until && !self.is_tested_early;
        self.early_test = may_test.then_some(half);
        self.round = self.round.wrapping_add(1);
        self.batch = Some(ReopenBatch::FIRST);
        self.why = Some(why);
    }

    /// Opens a closed gate: one attempt goes first. Returns why it was closed.
    pub(super) fn reopen(&mut self, now: Moment) -> Option<CloseReason> {
        if self.is_wide_open(now) {
            return None;
        }
        self.open_at(now);
        self.round = self.round.wrapping_add(1);
        self.batch = Some(ReopenBatch::FIRST);
        self.why
    }

    fn open_at(&mut self, now: Moment) {
        self.closed_until = self.closed_until.min(now);
        (self.early_test, self.is_tested_early) = (None, false);
    }

    /// When it lets the next attempt through.
    pub(super) fn opens(&self, now: Moment) -> SlotsDue {
        match &self.batch {
            Some(batch) if batch.sent >= batch.size => SlotsDue::AfterAnEnd,
            Some(_) | None => SlotsDue::At(self.early_test.unwrap_or(self.closed_until).max(now)),
        }
    }

    /// Nothing can have closed it for longer than this.
    pub(super) fn clamp(&mut self, until: Moment) {
        self.closed_until = self.closed_until.min(until);
        self.unknown_until = self.unknown_until.min(until);
        self.early_test = self.early_test.map(|at| at.min(until));
    }

    /// Until when it is closed; `None` if it is not.
    pub(super) fn closed_until(&self, now: Moment) -> Option<Moment> {
        (self.closed_until > now).then_some(self.closed_until)
    }

    /// Why it is closed, or not wide open yet.
    pub(super) fn why(&self, now: Moment) -> Option<CloseReason> {
        self.why.filter(|_| !self.is_wide_open(now))
    }

    /// Whether nothing holds attempts back, and no recent 429 did.
    pub(super) fn is_wide_open(&self, now: Moment) -> bool {
        self.batch.is_none() && self.closed_until <= now
    }

    /// Lets an attempt through and returns the round it belongs to.
    pub(super) fn send(&mut self, now: Moment) -> u32 {
        if let Some(batch) = &mut self.batch {
            batch.sent += 1;
            self.is_tested_early = self.closed_until > now;
        }
        self.round
    }

    /// An attempt of `round` was never sent after all.
    pub(super) fn unsend(&mut self, round: u32) {
        if let Some(batch) = self.batch.as_mut().filter(|_| round == self.round) {
            batch.sent = batch.sent.saturating_sub(1);
        }
    }

    /// An attempt of `round` ended. Once `limit` attempts may go at once, the gate is wide open.
    pub(super) fn end(&mut self, now: Moment, round: u32, limit: u64) {
        let Some(batch) = self.batch.as_mut().filter(|_| round == self.round) else { return };
        batch.ended += 1;
        if batch.ended < batch.size {
            return;
        }
        let size = batch.size * 2;
        self.batch = (size < limit).then_some(ReopenBatch { size, sent: 0, ended: 0 });
        self.open_at(now);
    }
}

fn millis(duration: Duration) -> Moment {
    u64::try_from(duration.as_millis()).unwrap_or(Moment::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHY: CloseReason = CloseReason::Throttled(None);
    const TEN_MINUTES: Moment = 600_000;

    fn closed(until: Moment) -> ThrottleGate {
        let mut gate = ThrottleGate::default();
        gate.close(0, until, WHY);
        gate
    }

    #[test]
    fn a_minute_is_waited_whole_and_more_is_tested_once_at_half() {
        for (asked, tested, ends) in [
            (1_000, 1_000, 1_000),
            (60_000, 60_000, 60_000),
            (60_002, 30_001, 60_002),
            (TEN_MINUTES, 300_000, TEN_MINUTES),
            (86_400_000, 300_000, TEN_MINUTES),
            (Moment::MAX, 300_000, TEN_MINUTES),
        ] {
            let mut gate = closed(asked);
            assert_eq!((gate.opens(0), gate.closed_until(0)), (SlotsDue::At(tested), Some(ends)), "{asked}");
            // The test ends well: open from then on.
            let round = gate.send(tested);
            assert_eq!(gate.opens(tested), SlotsDue::AfterAnEnd);
            gate.end(tested + 10, round, 60);
            assert_eq!((gate.opens(tested + 10), gate.closed_until(tested + 10)), (SlotsDue::At(tested + 10), None));
        }
        // It draws another 429: from then on no further test, until one at its full time.
        let mut gate = closed(TEN_MINUTES);
        let round = gate.send(300_000);
        gate.close(300_010, 300_010 + TEN_MINUTES, WHY);
        gate.end(300_020, round, 60);
        assert_eq!(gate.opens(300_020), SlotsDue::At(300_010 + TEN_MINUTES));
        gate.send(300_010 + TEN_MINUTES);
        gate.close(901_000, 901_000 + TEN_MINUTES, WHY);
        assert_eq!(gate.opens(901_000), SlotsDue::At(901_000 + TEN_MINUTES / 2));
        // One that was never sent may go again.
        let round = gate.send(1_201_000);
        gate.unsend(round);
        assert_eq!(gate.opens(1_201_000), SlotsDue::At(1_201_000));
    }

    #[test]
    fn what_an_earlier_process_sent_is_never_tested() {
        let mut gate = ThrottleGate::default();
        gate.close(0, 61_000, CloseReason::UnknownBefore);
        assert_eq!(gate.opens(0), SlotsDue::At(61_000));
        for (throttled, opens) in [(65_000, 61_000), (TEN_MINUTES, 300_000)] {
            gate.close(0, throttled, WHY);
            assert_eq!(gate.opens(0), SlotsDue::At(opens));
        }
        let mut gate = closed(TEN_MINUTES);
        gate.close(0, 61_000, CloseReason::UnknownBefore);
        assert_eq!(gate.opens(0), SlotsDue::At(300_000));
    }

    #[test]
    fn an_operator_opens_it_as_the_end_of_the_wait_does() {
        let mut gate = closed(TEN_MINUTES);
        let old = gate.send(300_000);
        assert_eq!(gate.reopen(300_001), Some(WHY));
        assert_eq!((gate.closed_until(300_001), gate.why(300_001)), (None, Some(WHY)), "one attempt goes first");
        assert_eq!(gate.opens(300_001), SlotsDue::At(300_001));
        let first = gate.send(300_002);
        gate.end(300_003, old, 60);
        assert_eq!(gate.opens(300_003), SlotsDue::AfterAnEnd, "an earlier attempt proves nothing");
        gate.end(300_004, first, 2);
        assert!(gate.is_wide_open(300_004) && gate.why(300_004).is_none());
        assert_eq!(gate.reopen(300_005), None, "it is not closed");
    }
}
