//! Slots above a share are taken evenly, so that they come back evenly: a caller that needs its share later finds it
//! soon.

use super::window::{HOLD_MS, Moment};

/// How far the taking may be ahead of an even pace.
const AHEAD_NS: u64 = 1_000_000_000;

/// The common pace of all callers above their share.
#[derive(Clone, Debug, Default)]
pub(super) struct SurplusPacer {
    /// When the next slot would be taken at an even pace, in nanoseconds.
    pub(super) next_ns: u64,
}

impl SurplusPacer {
    /// When one more slot may be taken after `ahead` others, at a pace of `per_hold` slots per hold.
    pub(super) fn due(&self, now: Moment, ahead: u64, per_hold: u64) -> Moment {
        let next_ns = self.next_ns.saturating_add(ahead.saturating_mul(interval_ns(per_hold)));
        next_ns.saturating_sub(AHEAD_NS).div_ceil(1_000_000).max(now)
    }

    pub(super) fn take(&mut self, now: Moment, per_hold: u64) {
        self.next_ns = self.next_ns.max(now * 1_000_000) + interval_ns(per_hold);
    }
}

fn interval_ns(per_hold: u64) -> u64 {
    (HOLD_MS * 1_000_000).checked_div(per_hold).unwrap_or(HOLD_MS * 1_000_000)
}
