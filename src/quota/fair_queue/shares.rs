//! The arithmetic of shares: what each caller may have, what is kept for others, and what a waiting caller is told.

use std::sync::Arc;
use std::time::Duration;

use super::super::window::{HOLD_MS, Moment, SlotsDue, SlotsToLeave};
use super::super::{QuotaOutlook, WaitsFor};
use super::FairQueue;

/// Maximum number of newcomers (callers not seen within a hold) for whom slots are kept at any moment.
const NEWCOMERS_MAX: usize = 2;
/// Pace allowed above a share, relative to an even pace (numerator, denominator). It exceeds 1 so that missed slots
/// are made up for.
const PACE: (u64, u64) = (11, 10);
/// Newcomers who arrive together get a slot each within this part (numerator, denominator) of the longest wait. Slots
/// that come back evenly are then enough for them, and none has to stay free next to a lone caller, unless the limit
/// is so low that slots come back further apart.
const PATIENCE: (u64, u64) = (9, 10);
/// Minimum time over which a caller's usage is measured.
const AGE_MIN_MS: u64 = 5_000;
/// That time is rounded down to steps, so that it is known when it changes.
pub(super) const AGE_STEP_MS: u64 = 1_000;
/// Divisor of the limit that gives the slots kept free for callers that come at once.
const RESERVE_DIVISOR: u64 = 30;
/// Below this limit none are kept free.
const RESERVE_LIMIT_MIN: u64 = 4;
/// The divisor next to a lone caller, which is promised 97 % of what 60 seconds allow although a slot is held for 61.
const LONE_RESERVE_DIVISOR: u64 = 100;

/// A caller's standing relative to its share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum ShareStanding {
    /// Below it, even if a newcomer came.
    Below,
    /// Below it as long as no newcomer comes.
    Fair,
    /// At or above it.
    Over,
}

impl FairQueue {
    pub(super) fn spent(&self, caller: &Arc<str>) -> u64 {
        self.callers.get(caller).map_or(0, |state| state.spent)
    }

    /// The number of active callers, and that number including the newcomers who may come.
    fn caller_counts(&self) -> (u64, u64) {
        let active = self.callers.len().max(1);
        let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        (count(active), count(active + self.eligible.saturating_sub(active).min(NEWCOMERS_MAX)))
    }

    /// Whether one more request of this caller, after its waiting ones, would be within its share of the window.
    #[cfg(test)]
    pub(in super::super) fn within_share(&self, caller: &Arc<str>) -> bool {
        let known = self.callers.get(caller);
        let active = self.callers.len() + usize::from(known.is_none());
        let asks = known.map_or(0, |state| state.spent + state.waiting.len() as u64);
        asks * (active as u64) < self.limit
    }

    /// What a caller must leave to others, and how many slots per hold they leave to it. `others` of its requests wait besides the one that
    /// this is about.
    pub(super) fn slots_to_leave_by(&self, now: Moment, caller: &Arc<str>, others: usize) -> (SlotsToLeave, u64) {
        let spent = self.spent(caller);
        let asks = spent + u64::try_from(others).unwrap_or(u64::MAX);
        let standing = match self.standing(spent) {
            // It wants no more than its share, so it is not held up for newcomers, who may never come.
            ShareStanding::Fair if asks * self.caller_counts().0 < self.limit => ShareStanding::Below,
            standing @ (ShareStanding::Below | ShareStanding::Fair | ShareStanding::Over) => standing,
        };
        self.slots_to_leave(now, standing)
    }

    pub(super) fn standing(&self, spent: u64) -> ShareStanding {
        let (active, with_newcomers) = self.caller_counts();
        if spent * with_newcomers < self.limit {
            ShareStanding::Below
        } else if active > 1 && spent * active < self.limit {
            ShareStanding::Fair
        } else {
            ShareStanding::Over
        }
    }

    /// What a caller with this standing must leave to those with a better one, and how many slots per hold they leave
    /// to it.
    fn slots_to_leave(&self, now: Moment, standing: ShareStanding) -> (SlotsToLeave, u64) {
        if standing == ShareStanding::Below {
            return (SlotsToLeave::default(), self.limit);
        }
        let (active, with_newcomers) = self.caller_counts();
        // In slots times `with_newcomers`: each caller with a better standing may want up to twice what it uses, and one of
        // them, or the newcomers, may surprise with whole shares.
        let (mut want, mut surprise) = (0, (with_newcomers - active) * self.limit);
        let (mut spent, mut under_way) = (0, 0);
        for better in self.callers.values().filter(|state| self.standing(state.spent) < standing) {
            let age = (now - now % AGE_STEP_MS).saturating_sub(better.since).clamp(AGE_MIN_MS, HOLD_MS);
            let wants = (better.spent * 2 * HOLD_MS / age + 1).saturating_mul(with_newcomers).min(self.limit);
            want += wants;
            surprise = surprise.max(self.limit - wants);
            spent += better.spent;
            under_way += better.under_way;
        }
        let per_hold = want + surprise;
        let patience_ms = self.wait_ms * PATIENCE.0 / (PATIENCE.1 * (with_newcomers - active).max(1));
        let (reserve, patience_ms) = match standing {
            ShareStanding::Below | ShareStanding::Fair => (0, patience_ms),
            ShareStanding::Over if self.eligible < 2 => (0, 0),
            ShareStanding::Over if active == 1 => (self.limit / LONE_RESERVE_DIVISOR, patience_ms),
            ShareStanding::Over if self.limit < RESERVE_LIMIT_MIN => (0, 0),
            ShareStanding::Over => ((self.limit / RESERVE_DIVISOR).max(1), 0),
        };
        let most = (per_hold / with_newcomers).saturating_sub(under_way);
        let keep = SlotsToLeave { reserve, per_hold, parts: with_newcomers, patience_ms, most };
        let left = self.limit.saturating_sub(reserve + spent) * PACE.0 / PACE.1;
        (keep, left.max(1))
    }

    /// The share of `caller`, counting it as active.
    pub(in super::super) fn share(&self, caller: &Arc<str>) -> u32 {
        let active = self.callers.len() + usize::from(!self.callers.contains_key(caller));
        to_u32(self.limit / u64::try_from(active).unwrap_or(u64::MAX).max(1))
    }

    /// Number of free slots that the caller with the most slots cannot have now.
    pub(in super::super) fn kept(&self, now: Moment) -> u32 {
        let most = self.callers.iter().max_by_key(|(_, state)| state.spent);
        let keep =
            most.map(|(name, state)| self.slots_to_leave_by(now, name, state.waiting.len()).0).unwrap_or_default();
        let free = self.limit.saturating_sub(self.window.used());
        let (mut takeable, mut too_many) = (0, free + 1);
        while takeable + 1 < too_many {
            let middle = takeable.midpoint(too_many);
            match self.window.available_at(now, self.limit, middle, &keep) == SlotsDue::At(now) {
                true => takeable = middle,
                false => too_many = middle,
            }
        }
        to_u32(free - takeable)
    }

    /// What `caller` is told if its next slot is `due`.
    pub(in super::super) fn outlook(&self, now: Moment, caller: &Arc<str>, due: SlotsDue) -> QuotaOutlook {
        let free = self.limit.saturating_sub(self.window.used());
        let waits_for = match free {
            _ if !self.gate.is_wide_open(now) => WaitsFor::Closed,
            0 => WaitsFor::Spent,
            _ => WaitsFor::Kept,
        };
        let waiting = self.callers.get(caller).map_or(0, |state| state.waiting.len());
        QuotaOutlook {
            waits_for,
            after: time_until(now, due),
            limit: self.limit(),
            free: to_u32(free),
            spent: to_u32(self.spent(caller)),
            share: self.share(caller),
            waiting,
        }
    }
}

/// What requests waiting for attempts under way to end are told, because nobody knows when that is.
const UNKNOWN_END_WAIT: Duration = Duration::from_secs(1);

fn time_until(now: Moment, due: SlotsDue) -> Duration {
    match due {
        SlotsDue::At(moment) => Duration::from_millis(moment.saturating_sub(now)),
        SlotsDue::AfterAnEnd => UNKNOWN_END_WAIT,
        SlotsDue::Later => Duration::from_millis(HOLD_MS),
    }
}

fn to_u32(slots: u64) -> u32 {
    u32::try_from(slots).unwrap_or(u32::MAX)
}
