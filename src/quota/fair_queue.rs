//! Whose turn it is at one bucket: a pure state machine, told the time, that hands out the slots of a [`SlotWindow`] fairly.
//!
//! A caller's share is the limit divided by the callers of the last hold. Below it, counting a newcomer who may come at any
//! moment, a caller takes any free slot. Above it, it takes what is left over: only when nobody below waits, and only so fast
//! that everybody below, and the newcomer, still finds its share coming back evenly. So whoever floods ends up spread over the
//! hold, and stays out of the way without leaving the unused share of others idle. `shares` has the arithmetic.

mod shares;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::surplus_pacer::SurplusPacer;
use super::throttle_gate::ThrottleGate;
use super::window::{HOLD_MS, Moment, ReturningSlots, SlotWindow, SlotsDue, SlotsToLeave};
use super::{QuotaOutlook, QuotaRefused};
use shares::{AGE_STEP_MS, ShareStanding};

/// Who asks in vain is noted as active at most once in so many milliseconds.
const MARK_MS: u64 = 1_000;
/// Whose the spare slots are: no caller can have this name.
pub(super) const SPARE: &str = "(makegate)";
/// Of the limit's slots, one in so many may be taken as spare ones within a hold, and at least one.
const SPARE_DIVISOR: u64 = 30;

/// The turns of one bucket. `W` is what a waiting caller is told with.
#[derive(Debug)]
pub(super) struct FairQueue<W> {
    limit: u64,
    /// How many configured callers may come at all.
    eligible: usize,
    /// The longest that a request waits.
    wait_ms: u64,
    window: SlotWindow,
    gate: ThrottleGate,
    pace: SurplusPacer,
    /// The active ones: who has slots in the window, waits, or asked within a hold.
    callers: HashMap<Arc<str>, QueueCaller<W>>,
    /// Callers with somebody waiting, the next one first.
    order: VecDeque<Arc<str>>,
    next_ticket: u64,
    spare: SpareSlots,
}

/// The slots that were taken as spare ones: they are nobody's share, and who took them is no caller that others make room for.
#[derive(Debug)]
struct SpareSlots {
    name: Arc<str>,
    spent: u64,
}

#[derive(Debug)]
struct QueueCaller<W> {
    /// Its slots, under way and held.
    spent: u64,
    under_way: u64,
    /// Its entries in the window.
    entries: u64,
    /// Active since then.
    since: Moment,
    /// When it was last noted as active although it got nothing.
    marked: Moment,
    waiting: VecDeque<QueueTicket<W>>,
}

#[derive(Debug)]
struct QueueTicket<W> {
    id: u64,
    wake: W,
}

/// The right to send one attempt.
#[derive(Clone, Debug)]
pub(super) struct SlotGrant {
    pub(super) caller: Arc<str>,
    round: u32,
}

/// Who asks for a turn.
#[derive(Debug)]
pub(super) struct SlotRequest<'a> {
    pub(super) caller: &'a Arc<str>,
    /// How many configured callers may come at all.
    pub(super) eligible: usize,
    /// The longest that any request waits.
    pub(super) wait_ms: u64,
    /// A turn after this is of no use to this one.
    pub(super) latest: Moment,
    /// How many of its may wait.
    pub(super) queue_max: usize,
}

/// The answer to [`FairQueue::ask`].
#[derive(Debug)]
pub(super) enum SlotAnswer {
    /// Send.
    Granted(SlotGrant),
    /// Wait; this is the ticket to [`FairQueue::leave`] with.
    Queued(u64),
    /// The caller has as many waiting as it may.
    Full(QuotaOutlook),
    /// Nothing comes in time.
    TooLong(QuotaOutlook),
}

/// What to do with a request, and when it would be due.
#[derive(Clone, Copy, Debug)]
enum QueueDecision {
    Send,
    Queue(SlotsDue),
    Full(SlotsDue),
    TooLong(SlotsDue),
}

impl<W> FairQueue<W> {
    /// Nothing taken, nobody waits.
    pub(super) fn new(limit: u32) -> Self {
        Self {
            limit: limit.into(),
            eligible: 1,
            wait_ms: 0,
            window: SlotWindow::default(),
            gate: ThrottleGate::default(),
            pace: SurplusPacer::default(),
            callers: HashMap::new(),
            order: VecDeque::new(),
            next_ticket: 0,
            spare: SpareSlots { name: SPARE.into(), spent: 0 },
        }
    }

    /// A caller wants to send one attempt; `wake` makes what it is told with if it has to wait.
    pub(super) fn ask(&mut self, now: Moment, request: &SlotRequest<'_>, wake: impl FnOnce() -> W) -> SlotAnswer {
        let caller = request.caller;
        self.meet(now, request);
        match self.decide(now, request) {
            QueueDecision::Send => SlotAnswer::Granted(self.send(now, caller)),
            QueueDecision::Queue(_) => SlotAnswer::Queued(self.queue(caller, wake())),
            QueueDecision::Full(due) => {
                self.mark(now, caller);
                SlotAnswer::Full(self.outlook(now, caller, due))
            }
            QueueDecision::TooLong(due) => {
                self.mark(now, caller);
                SlotAnswer::TooLong(self.outlook(now, caller, due))
            }
        }
    }

    /// What would become of a request now if nothing else happened. It takes nothing and makes nobody active.
    pub(super) fn foresee(&mut self, now: Moment, request: &SlotRequest<'_>) -> Result<QuotaOutlook, QuotaRefused> {
        let caller = request.caller;
        let is_new = self.meet(now, request);
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

    /// Whoever asks is active from now on. `true`: it was not before.
    fn meet(&mut self, now: Moment, request: &SlotRequest<'_>) -> bool {
        self.expire(now);
        (self.eligible, self.wait_ms) = (request.eligible, request.wait_ms);
        let is_new = !self.callers.contains_key(request.caller);
        if is_new {
            self.callers.insert(request.caller.clone(), QueueCaller { since: now, ..QueueCaller::default() });
        }
        is_new
    }

    /// A request waits for slots that are kept for others, whatever its pace says, because that changes with what the others do.
    /// It is refused at once only where not even the slots that are kept would do.
    fn decide(&self, now: Moment, request: &SlotRequest<'_>) -> QueueDecision {
        let waiting = self.callers.get(request.caller).map_or(0, |state| state.waiting.len());
        let ahead = self.ahead_of(request.caller, waiting);
        let due = self.due(now, request.caller, ahead);
        if self.order.is_empty() && due == SlotsDue::At(now) {
            return QueueDecision::Send;
        }
        if waiting >= request.queue_max {
            return QueueDecision::Full(due);
        }
        let earliest = self.window.when(now, self.limit, ahead + 1, &SlotsToLeave::default());
        let is_in_vain =
            |due: &SlotsDue| *due == SlotsDue::Later || matches!(due, SlotsDue::At(moment) if *moment > request.latest);
        match [earliest, self.gate.opens(now)].into_iter().find(is_in_vain) {
            Some(earliest) if due == SlotsDue::AfterAnEnd => QueueDecision::TooLong(earliest),
            Some(_) => QueueDecision::TooLong(due),
            None => QueueDecision::Queue(due),
        }
    }

    /// A slot for what can wait for ever: only while nobody waits, more than half of the slots are free, and no 429 is near.
    pub(super) fn spare(&mut self, now: Moment) -> Option<SlotGrant> {
        self.expire(now);
        let most = (self.limit / SPARE_DIVISOR).max(1);
        let is_spare = self.order.is_empty()
            && self.window.used() * 2 < self.limit
            && self.spare.spent < most
            && self.gate.is_wide_open(now);
        is_spare.then(|| {
            self.spare.spent += 1;
            self.window.send();
            SlotGrant { caller: self.spare.name.clone(), round: self.gate.send() }
        })
    }

    fn queue(&mut self, caller: &Arc<str>, wake: W) -> u64 {
        let id = self.next_ticket;
        self.next_ticket += 1;
        if let Some(state) = self.callers.get_mut(caller) {
            if state.waiting.is_empty() {
                self.order.push_back(caller.clone());
            }
            state.waiting.push_back(QueueTicket { id, wake });
        }
        id
    }

    /// A ticket's holder has given up, or was granted (then nothing happens). Says when it could have been sent.
    pub(super) fn leave(&mut self, now: Moment, caller: &Arc<str>, ticket: u64) -> Option<QuotaOutlook> {
        self.expire(now);
        let state = self.callers.get_mut(caller)?;
        let place = state.waiting.iter().position(|waiting| waiting.id == ticket)?;
        state.waiting.remove(place);
        if state.waiting.is_empty() {
            self.order.retain(|name| name != caller);
        }
        self.mark(now, caller);
        let due = self.due(now, caller, self.ahead_of(caller, place));
        Some(self.outlook(now, caller, due))
    }

    /// The next turn that is due. Call it until it says `None` after everything that may free a slot.
    pub(super) fn pump(&mut self, now: Moment) -> Option<(SlotGrant, W)> {
        self.expire(now);
        let place = self.front()?;
        let caller = self.order.get(place)?.clone();
        if self.due(now, &caller, 0) != SlotsDue::At(now) {
            return None;
        }
        let state = self.callers.get_mut(&caller)?;
        let ticket = state.waiting.pop_front()?;
        self.order.remove(place);
        if !state.waiting.is_empty() {
            self.order.push_back(caller.clone());
        }
        Some((self.send(now, &caller), ticket.wake))
    }

    /// When [`FairQueue::pump`] is worth calling again if nothing else happens; `None`: nobody waits. What is due is known, but
    /// whatever comes back before may change how everybody stands, and so does time ([`AGE_STEP_MS`]).
    pub(super) fn next(&self, now: Moment) -> Option<Moment> {
        let caller = self.order.get(self.front()?)?;
        let changes = now + AGE_STEP_MS - now % AGE_STEP_MS;
        let changes = self.window.next_return().map_or(changes, |returns| returns.min(changes));
        match self.due(now, caller, 0) {
            SlotsDue::At(moment) => Some(moment.min(changes)),
            SlotsDue::AfterAnEnd | SlotsDue::Later => Some(changes),
        }
    }

    /// An attempt has ended.
    pub(super) fn end(&mut self, now: Moment, grant: &SlotGrant) {
        self.expire(now);
        let added = self.window.end(now, &grant.caller);
        if let Some(state) = self.callers.get_mut(&grant.caller) {
            state.under_way = state.under_way.saturating_sub(1);
            state.entries += u64::from(added);
        }
        self.gate.end(grant.round, self.limit);
    }

    /// An attempt was never sent: its slot is free again.
    pub(super) fn unsend(&mut self, now: Moment, grant: &SlotGrant) {
        self.expire(now);
        self.window.unsend();
        if *grant.caller == *SPARE {
            self.spare.spent = self.spare.spent.saturating_sub(1);
        }
        if let Some(state) = self.callers.get_mut(&grant.caller) {
            state.under_way = state.under_way.saturating_sub(1);
            state.spent = state.spent.saturating_sub(1);
        }
        self.mark(now, &grant.caller);
        self.gate.unsend(grant.round);
    }

    /// The upstream refused an attempt: nothing is sent before `until`.
    pub(super) fn close(&mut self, until: Moment) {
        self.gate.close(until);
    }

    /// From now on the limit is this.
    pub(super) fn set_limit(&mut self, limit: u32) {
        self.limit = limit.into();
    }

    /// Slots that are taken.
    pub(super) fn used(&self) -> u64 {
        self.window.used()
    }

    /// Attempts a minute.
    pub(super) fn limit(&self) -> u32 {
        u32::try_from(self.limit).unwrap_or(u32::MAX)
    }

    /// Does anybody wait?
    pub(super) fn is_waited_for(&self) -> bool {
        !self.order.is_empty()
    }

    /// How many wait.
    pub(super) fn waiting(&self) -> usize {
        self.callers.values().map(|state| state.waiting.len()).sum()
    }

    /// Who has taken how many slots, and how many of its requests wait.
    pub(super) fn spenders(&self) -> impl Iterator<Item = (&Arc<str>, u64, usize)> {
        let spare = (self.spare.spent > 0).then_some((&self.spare.name, self.spare.spent, 0));
        self.callers.iter().map(|(name, state)| (name, state.spent, state.waiting.len())).chain(spare)
    }

    /// Until when the upstream's 429 keeps it closed.
    pub(super) fn closed_until(&self, now: Moment) -> Option<Moment> {
        self.gate.closed_until(now)
    }

    /// How many slots are taken; `None`: it is closed, or somebody waits.
    pub(super) fn dispensable(&mut self, now: Moment) -> Option<u64> {
        self.expire(now);
        (!self.is_waited_for() && self.closed_until(now).is_none()).then(|| self.window.used())
    }

    /// Takes `count` slots that come back at `returns`: what a journal remembers.
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
            self.pace.take(now, self.keep(now, standing).1);
        }
        let state = self.callers.entry(caller.clone()).or_default();
        state.spent += 1;
        state.under_way += 1;
        self.window.send();
        SlotGrant { caller: caller.clone(), round: self.gate.send() }
    }

    fn mark(&mut self, now: Moment, caller: &Arc<str>) {
        let Some(state) = self.callers.get_mut(caller) else { return };
        if state.entries == 0 || now >= state.marked + MARK_MS {
            state.marked = now;
            state.entries += u64::from(self.window.hold(now + HOLD_MS, caller, 0));
        }
    }

    /// Gives back what is due.
    pub(super) fn expire(&mut self, now: Moment) {
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

    /// Where in `order` the caller is whose turn is next: round robin below the share, above it whoever has spent least.
    fn front(&self) -> Option<usize> {
        let ranked = self.order.iter().enumerate().map(|(place, name)| {
            let spent = self.spent(name);
            let standing = self.standing(spent);
            (standing, if standing == ShareStanding::Below { 0 } else { spent }, place)
        });
        ranked.min().map(|(_, _, place)| place)
    }

    /// When `caller` may take one more slot after `ahead` others were taken.
    fn due(&self, now: Moment, caller: &Arc<str>, ahead: u64) -> SlotsDue {
        let standing = self.standing(self.spent(caller));
        let (keep, left) = self.keep(now, standing);
        let mut opens = match self.gate.opens(now) {
            SlotsDue::At(moment) => moment,
            closed @ (SlotsDue::AfterAnEnd | SlotsDue::Later) => return closed,
        };
        if standing == ShareStanding::Over {
            opens = opens.max(self.pace.due(now, ahead, left));
        }
        match self.window.when(now, self.limit, ahead + 1, &keep) {
            SlotsDue::At(moment) => SlotsDue::At(moment.max(opens)),
            never @ (SlotsDue::AfterAnEnd | SlotsDue::Later) => never,
        }
    }

    /// How many of those who wait go before one of `caller` that has `own` of its own before it.
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

impl<W> Default for QueueCaller<W> {
    fn default() -> Self {
        Self { spent: 0, under_way: 0, entries: 0, since: 0, marked: 0, waiting: VecDeque::new() }
    }
}
