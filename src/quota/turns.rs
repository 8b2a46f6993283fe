//! Whose turn it is at one bucket: a pure state machine, told the time, that hands out the slots of a [`Window`] fairly.
//!
//! A caller's share is the limit divided by the callers of the last hold. Below it, counting a newcomer who may come at any
//! moment, a caller takes any free slot. Above it, it takes what is left over: only when nobody below waits, and only so fast
//! that everybody below, and the newcomer, still finds its share coming back evenly, after a small reserve at once. So whoever
//! floods ends up spread over the hold, and stays out of the way without leaving the unused share of others idle.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::gate::Gate;
use super::pace::Pace;
use super::window::{Due, HOLD_MS, Held, Keep, Moment, Window};

/// So many callers may come at any moment who have not been seen within a hold.
const NEWCOMERS_MAX: usize = 2;
/// Above its share a caller may take this much (numerator, denominator) of an even pace: what was left out is caught up with.
const PACE: (u64, u64) = (11, 10);
/// Between its share with newcomers and its share without, a caller may make newcomers wait so long.
const PATIENCE_MS: u64 = 2_500;
/// What a caller uses is told from at least so long a time.
const AGE_MIN_MS: u64 = 5_000;
/// That time is told in whole steps, so that it is known when it changes.
const AGE_STEP_MS: u64 = 1_000;
/// A reserve is one in so many slots of the limit...
const RESERVE_DIVISOR: u64 = 30;
/// ...unless the limit is below this.
const RESERVE_LIMIT_MIN: u64 = 4;
/// Who asks in vain is noted as active at most once in so many milliseconds.
const MARK_MS: u64 = 1_000;
/// Whose the spare slots are: no caller can have this name.
pub(super) const SPARE: &str = "(makegate)";
/// Of the limit's slots, one in so many may be taken as spare ones within a hold, and at least one.
const SPARE_DIVISOR: u64 = 30;
/// What is promised to those who wait for attempts under way to end: nobody knows when that is.
const AFTER_AN_END: Duration = Duration::from_secs(1);

/// The turns of one bucket. `W` is what a waiting caller is told with.
#[derive(Debug)]
pub(super) struct Turns<W> {
    limit: u64,
    /// How many configured callers may come at all.
    eligible: usize,
    window: Window,
    gate: Gate,
    pace: Pace,
    /// The active ones: who has slots in the window, waits, or asked within a hold.
    callers: HashMap<Arc<str>, Caller<W>>,
    /// Callers with somebody waiting, the next one first.
    order: VecDeque<Arc<str>>,
    next_ticket: u64,
    spare: Spare,
}

/// The slots that were taken as spare ones: they are nobody's share, and who took them is no caller that others make room for.
#[derive(Debug)]
struct Spare {
    name: Arc<str>,
    spent: u64,
}

#[derive(Debug)]
struct Caller<W> {
    /// Its slots, under way and held.
    spent: u64,
    under_way: u64,
    /// Its entries in the window.
    entries: u64,
    /// Active since then.
    since: Moment,
    /// When it was last noted as active although it got nothing.
    marked: Moment,
    waiting: VecDeque<Ticket<W>>,
}

#[derive(Debug)]
struct Ticket<W> {
    id: u64,
    wake: W,
}

/// The right to send one attempt.
#[derive(Clone, Debug)]
pub(super) struct Grant {
    pub(super) caller: Arc<str>,
    round: u32,
}

/// Who asks for a turn.
#[derive(Debug)]
pub(super) struct Asking<'a> {
    pub(super) caller: &'a Arc<str>,
    /// How many configured callers may come at all.
    pub(super) eligible: usize,
    /// A turn after this is of no use.
    pub(super) latest: Moment,
    /// How many of its may wait.
    pub(super) queue_max: usize,
}

/// The answer to [`Turns::ask`].
#[derive(Debug)]
pub(super) enum Asked {
    /// Send.
    Granted(Grant),
    /// Wait; this is the ticket to [`Turns::leave`] with.
    Queued(u64),
    /// The caller has as many waiting as it may. When one more could be sent.
    Full(Duration),
    /// Nothing comes in time. When it could be sent.
    TooLong(Duration),
}

/// How a caller stands to its share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Standing {
    /// Below it, even if a newcomer came.
    Below,
    /// Below it as long as none comes.
    Fair,
    /// At or above it.
    Over,
}

impl<W> Turns<W> {
    /// Nothing taken, nobody waits.
    pub(super) fn new(limit: u32) -> Self {
        Self {
            limit: limit.into(),
            eligible: 1,
            window: Window::default(),
            gate: Gate::default(),
            pace: Pace::default(),
            callers: HashMap::new(),
            order: VecDeque::new(),
            next_ticket: 0,
            spare: Spare { name: SPARE.into(), spent: 0 },
        }
    }

    /// A caller wants to send one attempt; `wake` makes what it is told with if it has to wait.
    pub(super) fn ask(&mut self, now: Moment, asking: &Asking<'_>, wake: impl FnOnce() -> W) -> Asked {
        let caller = asking.caller;
        self.expire(now);
        self.eligible = asking.eligible;
        let waiting = self
            .callers
            .entry(caller.clone())
            .or_insert_with(|| Caller { since: now, ..Caller::default() })
            .waiting
            .len();
        let due = self.due(now, caller, self.ahead_of(caller, waiting));
        if self.order.is_empty() && due == Due::At(now) {
            return Asked::Granted(self.send(now, caller));
        }
        if waiting >= asking.queue_max {
            self.mark(now, caller);
            return Asked::Full(after(now, due));
        }
        if due == Due::Later || matches!(due, Due::At(moment) if moment > asking.latest) {
            self.mark(now, caller);
            return Asked::TooLong(after(now, due));
        }
        Asked::Queued(self.queue(caller, wake()))
    }

    /// A slot for what can wait for ever: only while nobody waits, more than half of the slots are free, and no 429 is near.
    pub(super) fn spare(&mut self, now: Moment) -> Option<Grant> {
        self.expire(now);
        let most = (self.limit / SPARE_DIVISOR).max(1);
        let is_spare = self.order.is_empty()
            && self.window.used() * 2 < self.limit
            && self.spare.spent < most
            && self.gate.is_wide_open(now);
        is_spare.then(|| {
            self.spare.spent += 1;
            self.window.send();
            Grant { caller: self.spare.name.clone(), round: self.gate.send() }
        })
    }

    fn queue(&mut self, caller: &Arc<str>, wake: W) -> u64 {
        let id = self.next_ticket;
        self.next_ticket += 1;
        if let Some(state) = self.callers.get_mut(caller) {
            if state.waiting.is_empty() {
                self.order.push_back(caller.clone());
            }
            state.waiting.push_back(Ticket { id, wake });
        }
        id
    }

    /// A ticket's holder has given up, or was granted (then nothing happens). Says when it could have been sent.
    pub(super) fn leave(&mut self, now: Moment, caller: &Arc<str>, ticket: u64) -> Option<Duration> {
        self.expire(now);
        let state = self.callers.get_mut(caller)?;
        let place = state.waiting.iter().position(|waiting| waiting.id == ticket)?;
        state.waiting.remove(place);
        if state.waiting.is_empty() {
            self.order.retain(|name| name != caller);
        }
        self.mark(now, caller);
        Some(after(now, self.due(now, caller, self.ahead_of(caller, place))))
    }

    /// The next turn that is due. Call it until it says `None` after everything that may free a slot.
    pub(super) fn pump(&mut self, now: Moment) -> Option<(Grant, W)> {
        self.expire(now);
        let place = self.front()?;
        let caller = self.order.get(place)?.clone();
        if self.due(now, &caller, 0) != Due::At(now) {
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

    /// When [`Turns::pump`] is worth calling again if nothing else happens; `None`: nobody waits. What is due is known, but
    /// whatever comes back before may change how everybody stands, and so does time ([`AGE_STEP_MS`]).
    pub(super) fn next(&self, now: Moment) -> Option<Moment> {
        let caller = self.order.get(self.front()?)?;
        let changes = now + AGE_STEP_MS - now % AGE_STEP_MS;
        let changes = self.window.next_return().map_or(changes, |returns| returns.min(changes));
        match self.due(now, caller, 0) {
            Due::At(moment) => Some(moment.min(changes)),
            Due::AfterAnEnd | Due::Later => Some(changes),
        }
    }

    /// An attempt has ended.
    pub(super) fn end(&mut self, now: Moment, grant: &Grant) {
        self.expire(now);
        let added = self.window.end(now, &grant.caller);
        if let Some(state) = self.callers.get_mut(&grant.caller) {
            state.under_way = state.under_way.saturating_sub(1);
            state.entries += u64::from(added);
        }
        self.gate.end(grant.round, self.limit);
    }

    /// An attempt was never sent: its slot is free again.
    pub(super) fn unsend(&mut self, now: Moment, grant: &Grant) {
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

    /// Who has taken how many slots.
    pub(super) fn spenders(&self) -> impl Iterator<Item = (&Arc<str>, u64)> {
        let spare = (self.spare.spent > 0).then_some((&self.spare.name, self.spare.spent));
        self.callers.iter().map(|(name, state)| (name, state.spent)).chain(spare)
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

    fn send(&mut self, now: Moment, caller: &Arc<str>) -> Grant {
        let standing = self.standing(self.spent(caller));
        if standing == Standing::Over {
            self.pace.take(now, self.keep(now, standing).1);
        }
        let state = self.callers.entry(caller.clone()).or_default();
        state.spent += 1;
        state.under_way += 1;
        self.window.send();
        Grant { caller: caller.clone(), round: self.gate.send() }
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
        while let Some(Held { caller, count, .. }) = self.window.returned(now) {
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
            (standing, if standing == Standing::Below { 0 } else { spent }, place)
        });
        ranked.min().map(|(_, _, place)| place)
    }

    /// When `caller` may take one more slot after `ahead` others were taken.
    fn due(&self, now: Moment, caller: &Arc<str>, ahead: u64) -> Due {
        let standing = self.standing(self.spent(caller));
        let (keep, left) = self.keep(now, standing);
        let mut opens = match self.gate.opens(now) {
            Due::At(moment) => moment,
            closed @ (Due::AfterAnEnd | Due::Later) => return closed,
        };
        if standing == Standing::Over {
            opens = opens.max(self.pace.due(now, ahead, left));
        }
        match self.window.when(now, self.limit, ahead + 1, &keep) {
            Due::At(moment) => Due::At(moment.max(opens)),
            never @ (Due::AfterAnEnd | Due::Later) => never,
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

    fn spent(&self, caller: &Arc<str>) -> u64 {
        self.callers.get(caller).map_or(0, |state| state.spent)
    }

    /// The active callers, and that number with the newcomer who may come.
    fn heads(&self) -> (u64, u64) {
        let active = self.callers.len().max(1);
        let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        (count(active), count(active + self.eligible.saturating_sub(active).min(NEWCOMERS_MAX)))
    }

    /// Would one more request of this caller, after those that wait, be within its share of the window?
    #[cfg(test)]
    pub(super) fn within_share(&self, caller: &Arc<str>) -> bool {
        let known = self.callers.get(caller);
        let active = self.callers.len() + usize::from(known.is_none());
        let asks = known.map_or(0, |state| state.spent + state.waiting.len() as u64);
        asks * (active as u64) < self.limit
    }

    fn standing(&self, spent: u64) -> Standing {
        let (active, heads) = self.heads();
        if spent * heads < self.limit {
            Standing::Below
        } else if active > 1 && spent * active < self.limit {
            Standing::Fair
        } else {
            Standing::Over
        }
    }

    /// What a caller that stands so has to leave to those who stand better, and how many slots a hold they leave to it.
    fn keep(&self, now: Moment, standing: Standing) -> (Keep, u64) {
        if standing == Standing::Below {
            return (Keep::default(), self.limit);
        }
        let (active, heads) = self.heads();
        // In slots times `heads`: each of the better ones may come to want twice what it uses, and one of them, or the
        // newcomers, surprise with whole shares.
        let (mut want, mut surprise) = (0, (heads - active) * self.limit);
        let (mut spent, mut under_way) = (0, 0);
        for better in self.callers.values().filter(|state| self.standing(state.spent) < standing) {
            let age = (now - now % AGE_STEP_MS).saturating_sub(better.since).clamp(AGE_MIN_MS, HOLD_MS);
            let wants = (better.spent * 2 * HOLD_MS / age + 1).saturating_mul(heads).min(self.limit);
            want += wants;
            surprise = surprise.max(self.limit - wants);
            spent += better.spent;
            under_way += better.under_way;
        }
        let per_hold = want + surprise;
        let most = (per_hold / heads).saturating_sub(under_way);
        let keep = match standing {
            Standing::Over => Keep { reserve: self.reserve(), per_hold, parts: heads, patience_ms: 0, most },
            Standing::Below | Standing::Fair => {
                Keep { reserve: 0, per_hold, parts: heads, patience_ms: PATIENCE_MS, most }
            }
        };
        let left = self.limit.saturating_sub(keep.reserve + spent) * PACE.0 / PACE.1;
        (keep, left.max(1))
    }

    fn reserve(&self) -> u64 {
        if self.eligible > 1 && self.limit >= RESERVE_LIMIT_MIN { (self.limit / RESERVE_DIVISOR).max(1) } else { 0 }
    }
}

impl<W> Default for Caller<W> {
    fn default() -> Self {
        Self { spent: 0, under_way: 0, entries: 0, since: 0, marked: 0, waiting: VecDeque::new() }
    }
}

fn after(now: Moment, due: Due) -> Duration {
    match due {
        Due::At(moment) => Duration::from_millis(moment.saturating_sub(now)),
        Due::AfterAnEnd => AFTER_AN_END,
        Due::Later => Duration::from_millis(HOLD_MS),
    }
}
