//! A bucket after an upstream 429: closed for a while, then reopened gently, for somebody else may be drawing on it.

use super::window::{Moment, SlotsDue};

/// Lets attempts through, or not. Open unless [`ThrottleGate::close`] was called.
#[derive(Debug, Default)]
pub(super) struct ThrottleGate {
    closed_until: Moment,
    /// How often it was closed: attempts from before the last time prove nothing.
    round: u32,
    batch: Option<ReopenBatch>,
}

/// While reopening: so many attempts may go, and when all have ended without a 429, twice as many.
#[derive(Debug)]
struct ReopenBatch {
    size: u64,
    sent: u64,
    ended: u64,
}

impl ThrottleGate {
    /// The upstream refused: nothing goes before `until` (or before what was said earlier), and then one attempt first.
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

    /// Until when it is closed; `None`: it is not.
    pub(super) fn closed_until(&self, now: Moment) -> Option<Moment> {
        (self.closed_until > now).then_some(self.closed_until)
    }

    /// Is there nothing that holds attempts back, nor did a 429 a while ago?
    pub(super) fn is_wide_open(&self, now: Moment) -> bool {
        self.batch.is_none() && self.closed_until <= now
    }

    /// An attempt goes through. Returns the round that it belongs to.
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

    /// An attempt of `round` ended. From `limit` attempts at once on the gate is wide open.
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
