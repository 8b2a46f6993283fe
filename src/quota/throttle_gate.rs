//! A bucket's gate after an upstream 429: closed for a while, then reopened gradually, because someone else may be
//! using the quota.

use super::window::{Moment, SlotsDue};

/// Decides whether attempts may go. Open unless [`ThrottleGate::close`] was called.
#[derive(Debug, Default)]
pub(super) struct ThrottleGate {
    closed_until: Moment,
    /// How often it was closed. Attempts from before the last time prove nothing.
    round: u32,
    batch: Option<ReopenBatch>,
}

/// While reopening: how many attempts may go now. When all have ended without a 429, it becomes twice as many.
#[derive(Debug)]
struct ReopenBatch {
    size: u64,
    sent: u64,
    ended: u64,
}

impl ThrottleGate {
    /// Closes the gate after a 429 until `until` (or an earlier call's time if later); then one attempt goes first.
    pub(super) fn close(&mut self, until: Moment) {
        self.closed_until = self.closed_until.max(until);
        self.round = self.round.wrapping_add(1);
        self.batch = Some(ReopenBatch { size: 1, sent: 0, ended: 0 });
    }

    /// When it lets the next attempt through.
    pub(super) fn opens(&self, now: Moment) -> SlotsDue {
        match &self.batch {
            Some(batch) if batch.sent >= batch.size => SlotsDue::AfterAnEnd,
            Some(_) | None => SlotsDue::At(self.closed_until.max(now)),
        }
    }

    /// Until when it is closed; `None` if it is not.
    pub(super) fn closed_until(&self, now: Moment) -> Option<Moment> {
        (self.closed_until > now).then_some(self.closed_until)
    }

    /// Whether nothing holds attempts back, and no recent 429 did.
    pub(super) fn is_wide_open(&self, now: Moment) -> bool {
        self.batch.is_none() && self.closed_until <= now
    }

    /// Lets an attempt through and returns the round it belongs to.
    pub(super) fn send(&mut self) -> u32 {
        if let Some(batch) = &mut self.batch {
            batch.sent += 1;
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
    pub(super) fn end(&mut self, round: u32, limit: u64) {
        let Some(batch) = self.batch.as_mut().filter(|_| round == self.round) else { return };
        batch.ended += 1;
        if batch.ended < batch.size {
            return;
        }
        let size = batch.size * 2;
        self.batch = (size < limit).then_some(ReopenBatch { size, sent: 0, ended: 0 });
    }
}
