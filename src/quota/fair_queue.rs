//! Whose turn it is at a bucket: a pure state machine that is passed the time and hands out the slots of a
//! [`SlotWindow`] fairly.
//!
//! A caller's share is the limit divided by the number of callers active within the last hold. Below its share,
//! computed as if a newcomer had come, a caller takes any free slot. Above it, it takes what is left over, only when
//! nobody below is waiting, and only so fast that everyone below and the newcomer still find their shares coming back
//! evenly. So a flooding caller ends up spread over the hold, and stays out of the way without leaving the others'
//! unused share idle. The arithmetic is in `shares`.

mod encoding;
mod lending;
mod shares;

use std::collections::VecDeque;
use std::sync::Arc;

use super::surplus_pacer::SurplusPacer;
use super::throttle_gate::{CloseReason, ThrottleGate};
use super::window::{HOLD_MS, LentSlots, Moment, ReturningSlots, SlotWindow, SlotsDue, SlotsToLeave};
use super::{QuotaOutlook, QuotaRefused};
use crate::hash::NameMap;
pub(super) use encoding::SharedState;
use shares::{AGE_STEP_MS, ShareStanding};

/// Minimum time between two notes that a caller is active although it gets nothing, in milliseconds.
const ACTIVE_NOTE_MS_MIN: u64 = 1_000;
/// The same in a queue that replicas share, where each note is sent and stored with the state.
const SHARED_NOTE_MS_MIN: u64 = 10_000;
/// The owner of spare slots; no caller can have this name.
pub(super) const SPARE: &str = "(makegate)";
/// Divisor of the limit that gives how many spare slots may be taken within a hold (at least one).
const SPARE_DIVISOR: u64 = 30;

/// The queue of one bucket. A waiting request is known by its ticket.
#[derive(Clone, Debug)]
pub(super) struct FairQueue {
    limit: u64,
    /// Number of configured callers that can reach this bucket.
    eligible: usize,
    /// Maximum time that a request waits, in milliseconds.
    wait_ms: u64,
    window: SlotWindow,
    gate: ThrottleGate,
    pace: SurplusPacer,
    /// The active callers: those with slots in the window, waiting requests, or requests within the last hold.
    callers: NameMap<QueueCaller>,
    /// Callers with waiting requests, next one first.
    order: VecDeque<Arc<str>>,
    next_ticket: u64,
    spare: SpareSlots,
    /// If replicas share the queue: when a slot that is taken now comes back, even if nobody says that its attempt has ended.
    lends_until: Option<Moment>,
}

/// A waiting request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct QueueTicket {
    pub(super) id: u64,
    /// The replica whose request it is, by its incarnation; 0 if replicas do not share the queue.
    pub(super) owner: u128,
    pub(super) latest: Moment,
}

/// Slots taken as spare ones. They count against no share, and their taker is not a caller for whom others make room.
#[derive(Clone, Debug)]
struct SpareSlots {
    name: Arc<str>,
    spent: u64,
}

#[derive(Clone, Debug, Default)]
struct QueueCaller {
    /// Its slots, under way and held.
    spent: u64,
    under_way: u64,
    /// Number of its entries in the window.
    entries: u64,
    /// When it became active.
    since: Moment,
    /// When it was last noted as active although it got nothing.
    active_noted_at: Moment,
    /// The tickets of its waiting requests, oldest first.
    waiting: VecDeque<QueueTicket>,
}

#[derive(Clone, Debug)]
pub(super) struct SlotGrant {
    pub(super) caller: Arc<str>,
    pub(super) round: u32,
    /// If replicas share the queue: when the slot comes back at the latest.
    pub(super) returns: Option<Moment>,
}

/// A request for a slot.
#[derive(Debug)]
pub(super) struct SlotRequest<'a> {
    pub(super) caller: &'a Arc<str>,
    /// Number of configured callers that can reach this bucket.
    pub(super) eligible: usize,
    /// Maximum time that any request waits, in milliseconds.
    pub(super) wait_ms: u64,
    /// When this request's slot becomes useless.
    pub(super) latest: Moment,
    /// Maximum number of this caller's waiting requests.
    pub(super) queue_max: usize,
    /// The replica that asks; 0 if replicas do not share the queue.
    pub(super) owner: u128,
}

#[derive(Debug)]
pub(super) enum SlotAnswer {
    /// The slot is granted.
    Granted(SlotGrant),
    /// The request must wait; this is the ticket for [`FairQueue::leave`].
    Queued(u64),
    /// The caller has too many requests waiting.
    Full(QuotaOutlook),
    /// No slot comes in time.
    TooLong(QuotaOutlook),
}

/// What to do with a request, and when its slot would be due.
#[derive(Clone, Copy, Debug)]
enum QueueDecision {
    Send,
    Queue(SlotsDue),
    Full(SlotsDue),
    TooLong(SlotsDue),
}

impl FairQueue {
    /// Nothing is taken and nobody waits.
    pub(super) fn new(limit: u32) -> Self {
        Self {
            limit: limit.into(),
            eligible: 1,
            wait_ms: 0,
            window: SlotWindow::default(),
            gate: ThrottleGate::default(),
            pace: SurplusPacer::default(),
            callers: NameMap::default(),
            order: VecDeque::new(),
            next_ticket: 0,
            spare: SpareSlots { name: SPARE.into(), spent: 0 },
            lends_until: None,
        }
    }

    /// Asks for a slot.
    pub(super) fn ask(&mut self, now: Moment, request: &SlotRequest<'_>) -> SlotAnswer {
        let caller = request.caller;
        self.activate(now, request);
        match self.decide(now, request) {
            QueueDecision::Send => SlotAnswer::Granted(self.send(now, caller)),
            QueueDecision::Queue(_) => SlotAnswer::Queued(self.queue(request)),
            QueueDecision::Full(due) => {
                self.note_active(now, caller);
                SlotAnswer::Full(self.outlook(now, caller, due))
            }
            QueueDecision::TooLong(due) => {
                self.note_active(now, caller);
                SlotAnswer::TooLong(self.outlook(now, caller, due))
            }
        }
    }

    /// Predicts what would happen to a request if nothing else happened. Takes nothing and makes nobody active.
    pub(super) fn foresee(&mut self, now: Moment, request: &SlotRequest<'_>) -> Result<QuotaOutlook, QuotaRefused> {
        let caller = request.caller;
        let is_new = self.activate(now, request);
        let decision = self.decide(now, request);
        let outlook = |due| self.outlook(now, caller, due);
        let foreseen = match decision {
            QueueDecision::Send => Ok(outlook(SlotsDue::At(now))),
            QueueDecision::Queue(due @ SlotsDue::At(moment)) if moment > request.latest => {
                Err(QuotaRefused::TooLong(outlook(due)))
            }
            QueueDecision::Queue(due) => Ok(outlook(due)),
            QueueDecision::Full(due) => Err(QuotaRefused::QueueFull(outlook(due))),
            QueueDecision::TooLong(due) => Err(QuotaRefused::TooLong(outlook(due))),
        };
        if is_new {
            self.callers.remove(caller);
        }
        foreseen
    }

    /// Marks a requesting caller as active. Returns true if it was not active before.
    fn activate(&mut self, now: Moment, request: &SlotRequest<'_>) -> bool {
        self.expire(now);
        (self.eligible, self.wait_ms) = (request.eligible, request.wait_ms);
        let is_new = !self.callers.contains_key(request.caller);
        if is_new {
            self.callers.insert(request.caller.clone(), QueueCaller { since: now, ..QueueCaller::default() });
        }
        is_new
    }

    /// A request waits for slots that are kept for others whatever its pace allows, because that changes with what
    /// the others do. It is refused at once only if even the kept slots would not be enough.
    fn decide(&self, now: Moment, request: &SlotRequest<'_>) -> QueueDecision {
        let waiting = self.callers.get(request.caller).map_or(0, |state| state.waiting.len());
        let ahead = self.ahead_of(request.caller, waiting);
        let due = self.due(now, request.caller, ahead, waiting);
        if self.order.is_empty() && due == SlotsDue::At(now) {
            return QueueDecision::Send;
        }
        if waiting >= request.queue_max {
            return QueueDecision::Full(due);
        }
        let earliest = self.window.available_at(now, self.limit, ahead + 1, &SlotsToLeave::default());
        let is_in_vain =
            |due: &SlotsDue| *due == SlotsDue::Later || matches!(due, SlotsDue::At(moment) if *moment > request.latest);
        match [earliest, self.gate.opens(now)].into_iter().find(is_in_vain) {
            Some(earliest) if due == SlotsDue::AfterAnEnd => QueueDecision::TooLong(earliest),
            Some(_) => QueueDecision::TooLong(due),
            None => QueueDecision::Queue(due),
        }
    }

    /// A slot for work that can wait forever: only while nobody waits, more than half of the slots are free, and
    /// there was no recent 429.
    pub(super) fn take_spare(&mut self, now: Moment) -> Option<SlotGrant> {
        self.expire(now);
        let most = (self.limit / SPARE_DIVISOR).max(1);
        let is_spare = self.order.is_empty()
            && self.window.used() * 2 < self.limit
            && self.spare.spent < most
            && self.gate.is_wide_open(now);
        is_spare.then(|| {
            self.spare.spent += 1;
            let caller = self.spare.name.clone();
            self.issue(now, caller)
        })
    }

    fn queue(&mut self, request: &SlotRequest<'_>) -> u64 {
        let id = self.next_ticket;
        self.next_ticket += 1;
        if let Some(state) = self.callers.get_mut(request.caller) {
            if state.waiting.is_empty() {
                self.order.push_back(request.caller.clone());
            }
            state.waiting.push_back(QueueTicket { id, owner: request.owner, latest: request.latest });
        }
        id
    }

    /// Takes a ticket out of the queue and returns when its request could have been sent. Does nothing if it was
    /// already granted.
    pub(super) fn leave(&mut self, now: Moment, caller: &Arc<str>, ticket: u64) -> Option<QuotaOutlook> {
        self.expire(now);
        let state = self.callers.get_mut(caller)?;
        let place = state.waiting.iter().position(|waiting| waiting.id == ticket)?;
        state.waiting.remove(place);
        if state.waiting.is_empty() {
            self.order.retain(|name| name != caller);
        }
        self.note_active(now, caller);
        let due = self.due(now, caller, self.ahead_of(caller, place), place);
        Some(self.outlook(now, caller, due))
    }

    /// Hands out the next due slot, with the ticket that it is for. Call it until it returns `None` after anything that may free a slot.
    pub(super) fn pump(&mut self, now: Moment) -> Option<(SlotGrant, u64)> {
        self.expire(now);
        let place = self.next_in_order()?;
        let caller = self.order.get(place)?.clone();
        if self.first_due(now, &caller) != SlotsDue::At(now) {
            return None;
        }
        let state = self.callers.get_mut(&caller)?;
        let ticket = state.waiting.pop_front()?;
        self.order.remove(place);
        if !state.waiting.is_empty() {
            self.order.push_back(caller.clone());
        }
        Some((self.send(now, &caller), ticket.id))
    }

    /// When [`FairQueue::pump`] must be called again if nothing else happens; `None` if nobody waits. The due time is
    /// known, but slots that come back earlier may change each caller's standing, and so does time ([`AGE_STEP_MS`]).
    pub(super) fn next_wake(&self, now: Moment) -> Option<Moment> {
        let caller = self.order.get(self.next_in_order()?)?;
        let changes = now + AGE_STEP_MS - now % AGE_STEP_MS;
        let changes = self.window.next_return().map_or(changes, |returns| returns.min(changes));
        match self.first_due(now, caller) {
            SlotsDue::At(moment) => Some(moment.min(changes)),
            SlotsDue::AfterAnEnd | SlotsDue::Later => Some(changes),
        }
    }

    /// An attempt has ended.
    pub(super) fn end(&mut self, now: Moment, grant: &SlotGrant) {
        self.expire(now);
        let added = self.window.end(now, &grant.caller);
        self.count_end(now, grant, added);
    }

    /// Counts an attempt as ended. `added`: whether its slot made a new entry of the window.
    fn count_end(&mut self, now: Moment, grant: &SlotGrant, added: bool) {
        if let Some(state) = self.callers.get_mut(&grant.caller) {
            state.under_way = state.under_way.saturating_sub(1);
            state.entries += u64::from(added);
        }
        self.gate.end(now, grant.round, self.limit);
    }

    /// An attempt was never sent, so its slot is free again.
    pub(super) fn unsend(&mut self, now: Moment, grant: &SlotGrant) {
        self.expire(now);
        self.window.unsend();
        self.forget_sent(now, grant);
    }

    /// Counts an attempt whose slot is free again as never sent.
    fn forget_sent(&mut self, now: Moment, grant: &SlotGrant) {
        if *grant.caller == *SPARE {
            self.spare.spent = self.spare.spent.saturating_sub(1);
        }
        if let Some(state) = self.callers.get_mut(&grant.caller) {
            state.under_way = state.under_way.saturating_sub(1);
            state.spent = state.spent.saturating_sub(1);
        }
        self.note_active(now, &grant.caller);
        self.gate.unsend(grant.round);
    }

    /// Nothing is sent before `until`, with the exceptions that the gate makes.
    pub(super) fn close(&mut self, now: Moment, until: Moment, why: CloseReason) {
        self.gate.close(now, until, why);
    }

    /// Opens the bucket before its time. Returns why it was closed.
    pub(super) fn reopen(&mut self, now: Moment) -> Option<CloseReason> {
        self.gate.reopen(now)
    }

    /// Why the bucket is closed, or not wide open yet.
    pub(super) fn closed_why(&self, now: Moment) -> Option<CloseReason> {
        self.gate.why(now)
    }

    pub(super) fn set_limit(&mut self, limit: u32) {
        self.limit = limit.into();
    }

    /// Number of slots taken.
    pub(super) fn used(&self) -> u64 {
        self.window.used()
    }

    /// Attempts per minute.
    pub(super) fn limit(&self) -> u32 {
        u32::try_from(self.limit).unwrap_or(u32::MAX)
    }

    pub(super) fn is_waited_for(&self) -> bool {
        !self.order.is_empty()
    }

    /// Number of waiting requests.
    pub(super) fn waiting(&self) -> usize {
        self.callers.values().map(|state| state.waiting.len()).sum()
    }

    /// Callers with the number of slots they have taken and of requests waiting.
    pub(super) fn spenders(&self) -> impl Iterator<Item = (&Arc<str>, u64, usize)> {
        let spare = (self.spare.spent > 0).then_some((&self.spare.name, self.spare.spent, 0));
        self.callers.iter().map(|(name, state)| (name, state.spent, state.waiting.len())).chain(spare)
    }

    /// Until when the upstream's 429 keeps the bucket closed.
    pub(super) fn closed_until(&self, now: Moment) -> Option<Moment> {
        self.gate.closed_until(now)
    }

    /// Number of slots taken. Returns `None` if the bucket is closed or has waiters.
    pub(super) fn evictable(&mut self, now: Moment) -> Option<u64> {
        self.expire(now);
        (!self.is_waited_for() && self.closed_until(now).is_none()).then(|| self.window.used())
    }

    /// Takes `count` slots that come back at `returns`, as remembered by the journal.
    pub(super) fn hold(&mut self, returns: Moment, caller: &Arc<str>, count: u64) {
        if **caller == *SPARE {
            self.spare.spent += count;
            self.window.hold(returns, caller, count);
            return;
        }
        let state = self.callers.entry(caller.clone()).or_default();
        state.spent += count;
        state.entries += u64::from(self.window.hold(returns, caller, count));
    }

    fn send(&mut self, now: Moment, caller: &Arc<str>) -> SlotGrant {
        let standing = self.standing(self.spent(caller));
        if standing == ShareStanding::Over {
            self.pace.take(now, self.slots_to_leave_by(now, caller, 0).1);
        }
        let state = self.callers.entry(caller.clone()).or_default();
        state.spent += 1;
        state.under_way += 1;
        self.issue(now, caller.clone())
    }

    /// Takes the slot itself.
    fn issue(&mut self, now: Moment, caller: Arc<str>) -> SlotGrant {
        let round = self.gate.send(now);
        match self.lends_until {
            None => self.window.send(),
            Some(returns) => self.window.lend(LentSlots { returns, caller: caller.clone(), round, count: 1 }),
        }
        SlotGrant { caller, round, returns: self.lends_until }
    }

    fn note_active(&mut self, now: Moment, caller: &Arc<str>) {
        let Some(state) = self.callers.get_mut(caller) else { return };
        let pause = if self.lends_until.is_some() { SHARED_NOTE_MS_MIN } else { ACTIVE_NOTE_MS_MIN };
        if state.entries == 0 || now >= state.active_noted_at + pause {
            state.active_noted_at = now;
            state.entries += u64::from(self.window.hold(now + HOLD_MS, caller, 0));
        }
    }

    /// Takes back the slots that are due.
    pub(super) fn expire(&mut self, now: Moment) {
        while let Some(lapsed) = self.window.lapsed(now) {
            self.forget_lapsed(&lapsed);
        }
        while let Some(ReturningSlots { caller, count, .. }) = self.window.returned(now) {
            if *caller == *SPARE {
                self.spare.spent = self.spare.spent.saturating_sub(count);
            }
            let Some(state) = self.callers.get_mut(&caller) else { continue };
            state.spent = state.spent.saturating_sub(count);
            state.entries = state.entries.saturating_sub(1);
            if state.entries == 0 && state.under_way == 0 && state.waiting.is_empty() {
                self.callers.remove(&caller);
            }
        }
    }

    /// Index in `order` of the next caller: round robin below the share; above it, whoever has spent least.
    fn next_in_order(&self) -> Option<usize> {
        let ranked = self.order.iter().enumerate().map(|(place, name)| {
            let spent = self.spent(name);
            let standing = self.standing(spent);
            (standing, if standing == ShareStanding::Below { 0 } else { spent }, place)
        });
        ranked.min().map(|(_, _, place)| place)
    }

    /// When the first of its waiting requests may take a slot.
    fn first_due(&self, now: Moment, caller: &Arc<str>) -> SlotsDue {
        let waiting = self.callers.get(caller).map_or(0, |state| state.waiting.len());
        self.due(now, caller, 0, waiting.saturating_sub(1))
    }

    /// When `caller` may take one more slot after `ahead` others are taken, while `others` of its own requests wait.
    fn due(&self, now: Moment, caller: &Arc<str>, ahead: u64, others: usize) -> SlotsDue {
        let standing = self.standing(self.spent(caller));
        let (keep, left) = self.slots_to_leave_by(now, caller, others);
        let mut opens = match self.gate.opens(now) {
            SlotsDue::At(moment) => moment,
            closed @ (SlotsDue::AfterAnEnd | SlotsDue::Later) => return closed,
        };
        if standing == ShareStanding::Over {
            opens = opens.max(self.pace.due(now, ahead, left));
        }
        match self.window.available_at(now, self.limit, ahead + 1, &keep) {
            SlotsDue::At(moment) => SlotsDue::At(moment.max(opens)),
            never @ (SlotsDue::AfterAnEnd | SlotsDue::Later) => never,
        }
    }

    /// Number of waiting requests that go before a request of `caller` with `own` of its own ahead of it.
    fn ahead_of(&self, caller: &Arc<str>, own: usize) -> u64 {
        let standing = self.standing(self.spent(caller));
        let others = self.order.iter().filter(|name| *name != caller).map(|name| {
            let waiting = self.callers.get(name).map_or(0, |state| state.waiting.len());
            match self.standing(self.spent(name)).cmp(&standing) {
                std::cmp::Ordering::Less => waiting,
                std::cmp::Ordering::Equal => waiting.min(own + 1),
                std::cmp::Ordering::Greater => 0,
            }
        });
        u64::try_from(others.sum::<usize>() + own).unwrap_or(u64::MAX)
    }
}
