//! What a replica's wishes do to the state of a bucket, and when it has to look at that state.

use std::collections::HashMap;

use super::super::super::fair_queue::{FairQueue, QueueTicket, SharedState, SlotAnswer, SlotRequest};
use super::super::super::window::{Moment, SlotsDue};
use super::super::super::{CLOSED_MAX, LimitSource, QuotaOutlook, QuotaRefused};
use super::{AskDecision, DecidedSwap, OwnLimit, SEND_WITHIN_MS, SharedAsk, SpentStage, Wishes};
use crate::replicas::cells::EngineTime;

/// When another replica's turn is this much overdue, in milliseconds, its ticket is dropped.
const OVERDUE_MS: u64 = 250;
/// Tickets of others are dropped this long after their latest moment, in milliseconds.
const EXPIRED_MS: u64 = 1_000;
/// How long the ends of attempts may wait for the next swap, in milliseconds: if nobody waits for them, if somebody waits for a slot, and
/// if the bucket is reopening, where the next attempts wait for them.
const END_WAITS_MS: [u64; 3] = [1_000, 100, 10];
/// How often the state is looked at while requests of this replica wait, in milliseconds: if another replica's turn is due, if the own
/// turn is near, and if it is far.
const LOOKS_MS: [u64; 3] = [25, 200, 1_000];
/// The own turn is near if no more requests go before it.
const NEAR: u64 = 4;

impl<T> Wishes<T> {
    /// Carries all of it out on a state, at this time by the engine's clock.
    pub(in super::super::super) fn decide(&self, state: &mut SharedState, now: EngineTime) -> DecidedSwap {
        let mut swap = DecidedSwap { left: self.left, ..DecidedSwap::default() };
        let lend_ms = self.terms.lend_ms();
        if state.lend_ms < lend_ms {
            (state.lend_ms, swap.is_changed) = (lend_ms, true);
        }
        let closed_ms = u64::try_from(CLOSED_MAX.as_millis()).unwrap_or(u64::MAX);
        swap.is_changed |= state.queue.clamp(now.latest, state.lend_ms, closed_ms);
        self.set_limit(state, &mut swap);
        let queue = &mut state.queue;
        queue.expire(now.earliest);
        queue.lend_until((now.latest + lend_ms).next_multiple_of(10));
        self.tell_ends(queue, now, &mut swap);
        self.tell_closing(queue, now, &mut swap);
        let mut tickets: HashMap<u64, u64> =
            self.asks.iter().filter_map(|(number, ask)| Some((ask.ticket?, *number))).collect();
        let owner = self.terms.owner;
        let is_alive = |ticket: &QueueTicket| match ticket.owner == owner {
            true => tickets.contains_key(&ticket.id),
            false => ticket.latest + EXPIRED_MS > now.earliest,
        };
        swap.is_changed |= queue.retain_tickets(now.earliest, is_alive);
        for caller in self.asking.keys() {
            queue.note_asking(now.earliest, caller);
            (swap.asking, swap.is_changed) = (true, true);
        }
        self.pump(state, now.earliest, &tickets, &mut swap);
        self.ask(&mut state.queue, now, &mut tickets, &mut swap);
        self.pump(state, now.earliest, &tickets, &mut swap);
        self.note_turn(state, now.earliest, &mut swap);
        swap
    }

    /// Configured limits win, then news, then what the others know.
    fn set_limit(&self, state: &mut SharedState, swap: &mut DecidedSwap) {
        let OwnLimit { limit, from, is_news } = self.limit;
        let own = from == LimitSource::Configured || is_news || state.limit_from != LimitSource::Learned;
        if own && (state.limit, state.limit_from) != (limit, from) {
            (state.limit, state.limit_from, swap.is_changed) = (limit, from, true);
        }
        swap.learned = is_news.then_some(limit);
        let granted = self.terms.granted(state.limit);
        if state.queue.limit() != granted {
            state.queue.set_limit(granted);
            swap.is_changed = true;
        }
    }

    fn tell_ends(&self, queue: &mut FairQueue, now: EngineTime, swap: &mut DecidedSwap) {
        let renewed = now.boot.saturating_sub(self.terms.attempt_ms + SEND_WITHIN_MS / 2);
        for (number, slot) in &self.spent {
            match slot.stage {
                SpentStage::Ended { at, is_told: false } => {
                    swap.is_changed |= queue.end_lent(now.earliest, now.latest_at(at), &slot.grant);
                    swap.told.push(*number);
                }
                SpentStage::Unsent => {
                    swap.is_changed |= queue.unsend_lent(now.earliest, &slot.grant);
                    swap.told.push(*number);
                }
                SpentStage::UnderWay if slot.lent <= renewed => {
                    let returns = (now.latest + self.terms.lend_ms()).next_multiple_of(10);
                    queue.lend_again(now.earliest, &slot.grant, returns);
                    swap.lent.push((*number, returns));
                    swap.is_changed = true;
                }
                SpentStage::UnderWay | SpentStage::Ended { .. } => {}
            }
        }
    }

    fn tell_closing(&self, queue: &mut FairQueue, now: EngineTime, swap: &mut DecidedSwap) {
        if let Some((until, why)) = self.closing.filter(|_| !self.is_closing_told) {
            queue.close(now.earliest, now.latest_at(until), why);
            swap.is_changed = true;
        }
        swap.closing = self.closing;
        if self.is_reopening {
            swap.is_changed |= queue.reopen(now.latest).is_some();
            swap.reopening = true;
        }
    }

    fn ask(&self, queue: &mut FairQueue, now: EngineTime, tickets: &mut HashMap<u64, u64>, swap: &mut DecidedSwap) {
        for (number, ask) in &self.asks {
            if swap.asks.contains_key(number) || ask.ticket.is_some_and(|ticket| queue.has_ticket(&ask.caller, ticket))
            {
                continue;
            }
            swap.is_changed = true;
            let decision = if ask.is_spare {
                let spare = queue.take_spare(now.earliest).map(AskDecision::Granted);
                spare.unwrap_or(AskDecision::Refused(QuotaRefused::TooLong(QuotaOutlook::UNKNOWN)))
            } else {
                let request = SlotRequest {
                    caller: &ask.caller,
                    eligible: ask.eligible,
                    wait_ms: ask.wait_ms,
                    latest: now.earliest + ask.latest.saturating_sub(now.boot),
                    queue_max: ask.queue_max,
                    owner: self.terms.owner,
                };
                match queue.ask(now.earliest, &request) {
                    SlotAnswer::Granted(grant) => AskDecision::Granted(grant),
                    SlotAnswer::Queued(ticket) => {
                        tickets.insert(ticket, *number);
                        AskDecision::Queued(ticket)
                    }
                    SlotAnswer::Full(outlook) => AskDecision::Refused(QuotaRefused::QueueFull(outlook)),
                    SlotAnswer::TooLong(outlook) => AskDecision::Refused(QuotaRefused::TooLong(outlook)),
                }
            };
            swap.asks.insert(*number, decision);
        }
    }

    /// Hands out the turns that are due, as long as they are this replica's, and drops those that others do not take.
    fn pump(&self, state: &mut SharedState, now: Moment, tickets: &HashMap<u64, u64>, swap: &mut DecidedSwap) {
        while let Some((ticket, SlotsDue::At(due))) = state.queue.next_turn(now)
            && due <= now
        {
            if ticket.owner == self.terms.owner {
                let Some((grant, id)) = state.queue.pump(now) else { return };
                let Some(number) = tickets.get(&id) else { return };
                swap.asks.insert(*number, AskDecision::Granted(grant));
            } else if state.turn.is_some_and(|(id, since)| id == ticket.id && since + OVERDUE_MS <= now) {
                state.queue.retain_tickets(now, |other| other.id != ticket.id);
            } else {
                return;
            }
            swap.is_changed = true;
        }
    }

    /// Notes since when another replica's turn is due.
    fn note_turn(&self, state: &mut SharedState, now: Moment, swap: &mut DecidedSwap) {
        let next = state.queue.next_turn(now).filter(|(_, due)| *due == SlotsDue::At(now)).map(|(ticket, _)| ticket.id);
        let noted = state.turn.filter(|(id, _)| Some(*id) == next);
        swap.is_changed |= next.is_some() && noted.is_none();
        state.turn = noted.or_else(|| next.map(|id| (id, now)));
    }

    /// When to look at the state, since the machine's start; `None` if there is nothing to do. It was last looked at `looked`.
    pub(in super::super::super) fn due(
        &self,
        known: Option<&SharedState>,
        now: EngineTime,
        looked: u64,
    ) -> Option<u64> {
        let is_new = |ask: &SharedAsk<T>| match (ask.ticket, known) {
            (Some(ticket), Some(state)) => !state.queue.has_ticket(&ask.caller, ticket),
            (Some(_), None) | (None, _) => true,
        };
        if self.is_urgent() || self.asks.values().any(is_new) {
            return Some(now.boot);
        }
        let [idle, waited, reopening] = END_WAITS_MS;
        let end_wait = known.map_or(idle, |state| match state.queue.closed_why(now.earliest) {
            Some(_) => reopening,
            None if state.queue.is_waited_for() => waited,
            None => idle,
        });
        let spent = self.spent.values().filter_map(|slot| match slot.stage {
            SpentStage::Ended { is_told: true, .. } => None,
            SpentStage::Ended { at, .. } => Some(at + end_wait),
            SpentStage::Unsent => Some(looked + end_wait),
            SpentStage::UnderWay => Some(slot.lent + self.terms.attempt_ms + SEND_WITHIN_MS / 2),
        });
        let asking = (!self.asking.is_empty()).then(|| self.asking_since + idle);
        let look = known.filter(|_| !self.asks.is_empty()).and_then(|state| self.next_look(&state.queue, now, looked));
        spent.chain(asking).chain(look).min()
    }

    fn next_look(&self, queue: &FairQueue, now: EngineTime, looked: u64) -> Option<u64> {
        let (next, due) = queue.next_turn(now.earliest)?;
        let is_own = next.owner == self.terms.owner;
        let (ahead, due) = if is_own { (0, due) } else { queue.owners_turn(now.earliest, self.terms.owner)? };
        let [soon, near, far] = LOOKS_MS;
        let most = looked + if ahead < NEAR { near } else { far };
        Some(match due {
            SlotsDue::At(moment) => {
                let due = now.boot + moment.saturating_sub(now.earliest);
                due.max(looked + if is_own { 5 } else { soon }).min(most)
            }
            SlotsDue::AfterAnEnd | SlotsDue::Later => most,
        })
    }
}
