//! What a queue needs so that several replicas can share it: slots that come back although nobody says so, and tickets of others.

use std::sync::Arc;

use super::super::QuotaRefused;
use super::super::window::{HOLD_MS, LentSlots, Moment, SlotsDue, return_of};
use super::{FairQueue, QueueCaller, QueueDecision, QueueTicket, SPARE, SlotGrant, SlotRequest};

/// How far the clocks by which replicas count may be apart before something that lies ahead is not believed.
const AHEAD_MS: u64 = 2_000;

impl FairQueue {
    /// From now on, slots that are taken come back then at the latest.
    pub(in super::super) fn lend_until(&mut self, until: Moment) {
        self.lends_until = Some(until);
    }

    /// Nothing in here can lie further ahead than these times allow, unless somebody set the clock back. Slots then come back after
    /// their longest time from now on. Returns false if that was not needed.
    pub(in super::super) fn clamp(&mut self, now: Moment, lend_ms: u64, closed_ms: u64) -> bool {
        let (lent, held) = (now + lend_ms + AHEAD_MS, now + HOLD_MS + AHEAD_MS);
        let (closed, next_ns) = (now + closed_ms + AHEAD_MS, (now + 2 * HOLD_MS) * 1_000_000);
        let is_ahead = self.window.lent().back().is_some_and(|slots| slots.returns > lent)
            || self.window.held().back().is_some_and(|slots| slots.returns > held)
            || self.gate.closed_until(closed).is_some()
            || self.pace.next_ns > next_ns;
        if is_ahead {
            self.window.clamp(lent, held);
            self.gate.clamp(closed);
            self.pace.next_ns = self.pace.next_ns.min(next_ns);
        }
        is_ahead
    }

    /// Nobody has said in time when these attempts ended: their replica is gone.
    pub(super) fn forget_lapsed(&mut self, lapsed: &LentSlots) {
        if *lapsed.caller == *SPARE {
            self.spare.spent = self.spare.spent.saturating_sub(lapsed.count);
        }
        for _ in 0..lapsed.count {
            self.gate.unsend(lapsed.round);
        }
        let Some(state) = self.callers.get_mut(&lapsed.caller) else { return };
        state.spent = state.spent.saturating_sub(lapsed.count);
        state.under_way = state.under_way.saturating_sub(lapsed.count);
        if state.entries == 0 && state.under_way == 0 && state.waiting.is_empty() {
            self.callers.remove(&lapsed.caller);
        }
    }

    /// An attempt with a lent slot ended at `ended`. Does nothing if that is known already. Returns whether it changed anything.
    pub(in super::super) fn end_lent(&mut self, now: Moment, ended: Moment, grant: &SlotGrant) -> bool {
        self.expire(now);
        let (Some(lent), returns) = (grant.returns, return_of(ended)) else { return false };
        if self.window.take_lent(lent, &grant.caller, grant.round) {
            let added = self.window.hold(returns, &grant.caller, 1);
            self.count_end(now, grant, added);
            self.expire(now);
            return true;
        }
        // Either this end was told before, or the slot came back as if its replica were gone: too early, if the attempt took that long.
        let is_missing = lent < returns && returns > now;
        if is_missing {
            self.hold(returns, &grant.caller, 1);
        }
        is_missing
    }

    /// An attempt with a lent slot was never sent. Returns false if the slot has come back already.
    pub(in super::super) fn unsend_lent(&mut self, now: Moment, grant: &SlotGrant) -> bool {
        self.expire(now);
        let is_lent = grant.returns.is_some_and(|lent| self.window.take_lent(lent, &grant.caller, grant.round));
        if is_lent {
            self.forget_sent(now, grant);
        }
        is_lent
    }

    /// Counts an attempt as under way that this state does not know, or lends its slot for longer.
    pub(in super::super) fn lend_again(&mut self, now: Moment, grant: &SlotGrant, returns: Moment) {
        self.expire(now);
        let was_lent = grant.returns.is_some_and(|lent| self.window.take_lent(lent, &grant.caller, grant.round));
        self.window.lend(LentSlots { returns, caller: grant.caller.clone(), round: grant.round, count: 1 });
        if was_lent {
            return;
        }
        if *grant.caller == *SPARE {
            self.spare.spent += 1;
            return;
        }
        let fresh = || QueueCaller { since: now, ..QueueCaller::default() };
        let state = self.callers.entry(grant.caller.clone()).or_insert_with(fresh);
        state.spent += 1;
        state.under_way += 1;
    }

    /// Drops the tickets that are not to be kept. Returns whether there were any.
    pub(in super::super) fn retain_tickets(&mut self, now: Moment, keep: impl Fn(&QueueTicket) -> bool) -> bool {
        let mut left = Vec::new();
        for (name, state) in &mut self.callers {
            let before = state.waiting.len();
            state.waiting.retain(&keep);
            if state.waiting.len() < before {
                left.push(name.clone());
            }
        }
        let callers = &self.callers;
        self.order.retain(|name| callers.get(name).is_some_and(|state| !state.waiting.is_empty()));
        for name in &left {
            self.note_active(now, name);
        }
        !left.is_empty()
    }

    /// The ticket whose turn is next, and when it is due.
    pub(in super::super) fn next_turn(&self, now: Moment) -> Option<(QueueTicket, SlotsDue)> {
        let caller = self.order.get(self.next_in_order()?)?;
        let ticket = *self.callers.get(caller)?.waiting.front()?;
        Some((ticket, self.first_due(now, caller)))
    }

    /// For the ticket of this owner that is due first: how many go before it, and when it is due.
    pub(in super::super) fn owners_turn(&self, now: Moment, owner: u128) -> Option<(u64, SlotsDue)> {
        let turns = self.order.iter().filter_map(|caller| {
            let waiting = &self.callers.get(caller)?.waiting;
            let own = waiting.iter().position(|ticket| ticket.owner == owner)?;
            let ahead = self.ahead_of(caller, own);
            Some((ahead, self.due(now, caller, ahead, own)))
        });
        turns.min_by_key(|(ahead, _)| *ahead)
    }

    /// Whether a ticket waits here.
    #[must_use]
    pub(in super::super) fn has_ticket(&self, caller: &Arc<str>, id: u64) -> bool {
        self.callers.get(caller).is_some_and(|state| state.waiting.iter().any(|ticket| ticket.id == id))
    }

    /// Why a request would be refused at once, if it would. Takes nothing and makes nobody active.
    pub(in super::super) fn refused(&mut self, now: Moment, request: &SlotRequest<'_>) -> Option<QuotaRefused> {
        let is_new = self.activate(now, request);
        let refused = match self.decide(now, request) {
            QueueDecision::Send | QueueDecision::Queue(_) => None,
            QueueDecision::Full(due) => Some(QuotaRefused::QueueFull(self.outlook(now, request.caller, due))),
            QueueDecision::TooLong(due) => Some(QuotaRefused::TooLong(self.outlook(now, request.caller, due))),
        };
        if is_new {
            self.callers.remove(request.caller);
        }
        refused
    }

    /// A caller asked and got nothing.
    pub(in super::super) fn note_asking(&mut self, now: Moment, caller: &Arc<str>) {
        self.expire(now);
        self.callers.entry(caller.clone()).or_insert_with(|| QueueCaller { since: now, ..QueueCaller::default() });
        self.note_active(now, caller);
    }

    /// Number of slots of attempts under way.
    #[cfg(test)]
    pub(in super::super) fn lent_count(&self) -> u64 {
        self.window.lent().iter().map(|slots| slots.count).sum()
    }
}
