//! What one replica wants of a bucket that replicas share, and what becomes of it when the shared state is swapped. Pure: it is passed
//! the time, and whoever calls it says whether the swap was carried out.

mod deciding;

use std::collections::BTreeMap;
use std::sync::Arc;

use super::super::fair_queue::{SharedState, SlotGrant};
use super::super::throttle_gate::CloseReason;
use super::super::window::{HOLD_MS, Moment, return_of};
use super::super::{LimitSource, QuotaRefused};
use crate::hash::NameMap;
use crate::replicas::cells::EngineTime;

/// How long a slot may be had before its attempt is sent, in milliseconds. Beyond it the slot is lent anew.
const SEND_WITHIN_MS: u64 = 5_000;
/// An attempt that is told to a new state belongs to no round of its gate.
const NO_ROUND: u32 = u32::MAX;

/// How this replica takes slots.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct LendTerms {
    /// This incarnation of the replica.
    pub(in super::super) owner: u128,
    /// The longest that an attempt takes, in milliseconds.
    pub(in super::super) attempt_ms: u64,
    /// Part of each limit that is never granted through the engine, in percent.
    pub(in super::super) reserve_percent: u32,
}

/// A request that has no slot yet. Times are since the machine's start, in milliseconds.
#[derive(Debug)]
pub(in super::super) struct SharedAsk<T> {
    pub(in super::super) caller: Arc<str>,
    pub(in super::super) eligible: usize,
    pub(in super::super) wait_ms: u64,
    pub(in super::super) latest: u64,
    pub(in super::super) queue_max: usize,
    /// It wants a slot only if nobody misses it.
    pub(in super::super) is_spare: bool,
    /// The ticket by which the state knows it.
    pub(in super::super) ticket: Option<u64>,
    pub(in super::super) reply: T,
}

/// A slot that this replica took, as long as it counts.
#[derive(Debug)]
struct SpentSlot {
    grant: SlotGrant,
    /// When it was taken, or lent anew.
    lent: u64,
    stage: SpentStage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SpentStage {
    UnderWay,
    /// It was never sent, and the state does not know.
    Unsent,
    /// Whether the state knows.
    Ended {
        at: u64,
        is_told: bool,
    },
}

/// What becomes of a request.
#[derive(Clone, Debug)]
enum AskDecision {
    Granted(SlotGrant),
    Queued(u64),
    Refused(QuotaRefused),
}

/// What a swap means, once it was carried out.
#[derive(Debug, Default)]
pub(in super::super) struct DecidedSwap {
    /// There is something to swap.
    pub(in super::super) is_changed: bool,
    asks: BTreeMap<u64, AskDecision>,
    /// Slots whose ends are told.
    told: Vec<u64>,
    /// Slots that come back at another moment now.
    lent: Vec<(u64, Moment)>,
    closing: Option<(u64, CloseReason)>,
    reopening: bool,
    learned: Option<u32>,
    asking: bool,
    /// Number of requests that had left.
    left: u64,
}

/// What a request is told.
#[derive(Debug)]
pub(in super::super) enum AskAnswer {
    /// It has this slot, for this caller.
    Granted(u64, Arc<str>),
    /// It gets none.
    Refused(QuotaRefused),
}

/// What this replica knows about a bucket's limit.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct OwnLimit {
    pub(in super::super) limit: u32,
    pub(in super::super) from: LimitSource,
    /// The other replicas may not know it yet.
    pub(in super::super) is_news: bool,
}

/// All that this replica wants of a bucket.
#[derive(Debug)]
pub(in super::super) struct Wishes<T> {
    terms: LendTerms,
    pub(in super::super) limit: OwnLimit,
    asks: BTreeMap<u64, SharedAsk<T>>,
    spent: BTreeMap<u64, SpentSlot>,
    next: u64,
    /// Until when the upstream closed the bucket or a clock's step does, since the machine's start, and why.
    closing: Option<(u64, CloseReason)>,
    is_closing_told: bool,
    /// An operator opens the bucket.
    is_reopening: bool,
    /// Number of requests that have left although they had a ticket, and how many of those tickets are out of the state.
    left: u64,
    left_told: u64,
    /// Callers that were refused without a swap, and since when the first of them is not in the state.
    asking: NameMap<()>,
    asking_since: u64,
}

impl LendTerms {
    pub(in super::super) const fn lend_ms(&self) -> u64 {
        self.attempt_ms + SEND_WITHIN_MS + HOLD_MS
    }

    /// The part of a limit that is granted through the engine.
    pub(in super::super) fn granted(&self, limit: u32) -> u32 {
        let kept = u64::from(limit) * u64::from(self.reserve_percent) / 100;
        limit.saturating_sub(u32::try_from(kept).unwrap_or(u32::MAX)).max(1)
    }
}

impl<T> Wishes<T> {
    pub(in super::super) fn new(terms: LendTerms, limit: OwnLimit) -> Self {
        Self {
            terms,
            limit,
            asks: BTreeMap::new(),
            spent: BTreeMap::new(),
            next: 0,
            closing: None,
            is_closing_told: true,
            is_reopening: false,
            left: 0,
            left_told: 0,
            asking: NameMap::default(),
            asking_since: 0,
        }
    }

    pub(in super::super) fn add(&mut self, ask: SharedAsk<T>) -> u64 {
        self.next += 1;
        self.asks.insert(self.next, ask);
        self.next
    }

    /// A request does not wait any more. Returns it if it waited.
    pub(in super::super) fn withdraw(&mut self, number: u64) -> Option<SharedAsk<T>> {
        let ask = self.asks.remove(&number)?;
        self.left += u64::from(ask.ticket.is_some());
        Some(ask)
    }

    pub(in super::super) fn asks(&self) -> impl Iterator<Item = (&u64, &SharedAsk<T>)> {
        self.asks.iter()
    }

    /// The attempt with this slot has ended, or was never sent.
    pub(in super::super) fn end(&mut self, number: u64, at: u64, is_sent: bool) {
        if let Some(slot) = self.spent.get_mut(&number) {
            slot.stage = if is_sent { SpentStage::Ended { at, is_told: false } } else { SpentStage::Unsent };
        }
    }

    /// What an earlier process spent, as its journal remembers.
    pub(in super::super) fn restore(&mut self, caller: &Arc<str>, count: u64, ended: u64) {
        for _ in 0..count {
            self.next += 1;
            let grant = SlotGrant { caller: caller.clone(), round: NO_ROUND, returns: None };
            let stage = SpentStage::Ended { at: ended, is_told: true };
            self.spent.insert(self.next, SpentSlot { grant, lent: ended, stage });
        }
    }

    /// The bucket is closed until then, since the machine's start.
    pub(in super::super) fn close(&mut self, until: u64, why: CloseReason) {
        let later = self.closing.filter(|(before, _)| *before >= until);
        self.closing = Some(later.unwrap_or((until, why)));
        self.is_closing_told = false;
    }

    pub(in super::super) fn reopen(&mut self) {
        (self.closing, self.is_closing_told, self.is_reopening) = (None, true, true);
    }

    /// A caller was refused by the state as it was a moment ago.
    pub(in super::super) fn note_asking(&mut self, caller: &Arc<str>, boot: u64) {
        if self.asking.is_empty() {
            self.asking_since = boot;
        }
        self.asking.insert(caller.clone(), ());
    }

    /// Forgets what does not count any more.
    pub(in super::super) fn forget(&mut self, boot: u64) {
        let counts = |slot: &SpentSlot| match slot.stage {
            SpentStage::Ended { at, is_told: true } => at + HOLD_MS + SEND_WITHIN_MS > boot,
            SpentStage::Ended { .. } | SpentStage::UnderWay | SpentStage::Unsent => true,
        };
        self.spent.retain(|_, slot| counts(slot));
        if self.is_closing_told {
            self.closing = self.closing.filter(|(until, _)| *until > boot);
        }
    }

    /// Whether this replica wants nothing, and has spent nothing that counts.
    pub(in super::super) fn is_empty(&self) -> bool {
        self.asks.is_empty() && self.spent.is_empty() && self.closing.is_none() && self.is_closing_told
    }

    /// Whether anything is left to do for this bucket: to ask, to tell, or to watch.
    pub(in super::super) fn has_work(&self) -> bool {
        let is_open = |slot: &SpentSlot| !matches!(slot.stage, SpentStage::Ended { is_told: true, .. });
        self.is_urgent() || !self.asks.is_empty() || !self.asking.is_empty() || self.spent.values().any(is_open)
    }

    /// Whether this replica has spent something that counts.
    pub(in super::super) fn has_spent(&self) -> bool {
        !self.spent.is_empty() || self.closing.is_some()
    }

    fn is_urgent(&self) -> bool {
        self.left > self.left_told || !self.is_closing_told || self.is_reopening || self.limit.is_news
    }

    /// The swap was carried out. `is_usable` says whether its grants may be used: if not, their slots go back, and their requests ask
    /// again. Returns whom to tell what.
    pub(in super::super) fn swapped(
        &mut self,
        swap: DecidedSwap,
        state: &SharedState,
        boot: u64,
        is_usable: bool,
    ) -> Vec<(T, AskAnswer)> {
        for number in swap.told {
            match self.spent.get_mut(&number) {
                Some(SpentSlot { stage: SpentStage::Ended { is_told, .. }, .. }) => *is_told = true,
                Some(_) => {
                    self.spent.remove(&number);
                }
                None => {}
            }
        }
        for (number, returns) in swap.lent {
            if let Some(slot) = self.spent.get_mut(&number) {
                (slot.grant.returns, slot.lent) = (Some(returns), boot);
            }
        }
        self.is_closing_told |= self.closing == swap.closing;
        self.is_reopening &= !swap.reopening;
        self.limit.is_news &= swap.learned != Some(self.limit.limit);
        if swap.asking {
            self.asking.clear();
        }
        self.left_told = swap.left;
        self.adopt_limit(state);
        let mut answers = Vec::new();
        for (number, decision) in swap.asks {
            match decision {
                AskDecision::Granted(grant) => answers.extend(self.granted(number, grant, boot, is_usable)),
                AskDecision::Queued(ticket) => match self.asks.get_mut(&number) {
                    Some(ask) => ask.ticket = Some(ticket),
                    None => self.left += 1,
                },
                AskDecision::Refused(refused) => {
                    answers.extend(self.asks.remove(&number).map(|ask| (ask.reply, AskAnswer::Refused(refused))));
                }
            }
        }
        answers
    }

    /// Nobody knows whether the swap was carried out. An end that was told then is not told again: it could end another attempt, whose
    /// slot looks the same. If it was not told, its slot comes back as if this replica were gone.
    pub(in super::super) fn maybe_told(&mut self, swap: &DecidedSwap) {
        for number in &swap.told {
            match self.spent.get_mut(number) {
                Some(SpentSlot { stage: SpentStage::Ended { is_told, .. }, .. }) => *is_told = true,
                Some(SpentSlot { stage: SpentStage::Unsent, .. }) => {
                    self.spent.remove(number);
                }
                Some(SpentSlot { stage: SpentStage::UnderWay, .. }) | None => {}
            }
        }
    }

    fn granted(&mut self, number: u64, grant: SlotGrant, boot: u64, is_usable: bool) -> Option<(T, AskAnswer)> {
        let ask = if is_usable { self.asks.remove(&number) } else { None };
        if let Some(ask) = self.asks.get_mut(&number) {
            ask.ticket = None;
        }
        self.next += 1;
        let stage = if ask.is_some() { SpentStage::UnderWay } else { SpentStage::Unsent };
        self.spent.insert(self.next, SpentSlot { grant, lent: boot, stage });
        ask.map(|ask| (ask.reply, AskAnswer::Granted(self.next, ask.caller)))
    }

    /// Takes over what the others have learned.
    pub(in super::super) fn adopt_limit(&mut self, state: &SharedState) {
        if self.limit.from != LimitSource::Configured && !self.limit.is_news && state.limit_from == LimitSource::Learned
        {
            self.limit = OwnLimit { limit: state.limit, from: LimitSource::Learned, is_news: false };
        }
    }

    /// Puts all that this replica has spent into a state that knows nothing of it. Returns what to pass to [`Wishes::is_back`].
    pub(in super::super) fn put_back(&self, state: &mut SharedState, now: EngineTime) -> Vec<(u64, Option<Moment>)> {
        let lent_until = (now.latest + self.terms.lend_ms()).next_multiple_of(10);
        state.lend_ms = state.lend_ms.max(self.terms.lend_ms());
        state.queue.lend_until(lent_until);
        let mut back = Vec::new();
        for (number, slot) in &self.spent {
            match slot.stage {
                SpentStage::UnderWay => {
                    let grant = SlotGrant { round: NO_ROUND, returns: None, ..slot.grant.clone() };
                    state.queue.lend_again(now.earliest, &grant, lent_until);
                    back.push((*number, Some(lent_until)));
                }
                SpentStage::Ended { at, .. } => {
                    let returns = return_of(now.latest_at(at));
                    if returns > now.earliest {
                        state.queue.hold(returns, &slot.grant.caller, 1);
                    }
                    back.push((*number, None));
                }
                SpentStage::Unsent => back.push((*number, None)),
            }
        }
        if let Some((until, why)) = self.closing.filter(|(until, _)| *until > now.boot) {
            state.queue.close(now.earliest, now.latest_at(until), why);
        }
        back
    }

    /// What was put back is in the state. No request has a ticket there.
    pub(in super::super) fn is_back(&mut self, back: Vec<(u64, Option<Moment>)>, boot: u64) {
        for (number, lent) in back {
            let Some(slot) = self.spent.get_mut(&number) else { continue };
            (slot.grant.round, slot.grant.returns, slot.lent) = (NO_ROUND, lent, boot);
            match (&mut slot.stage, lent) {
                (SpentStage::Ended { is_told, .. }, None) => *is_told = true,
                (SpentStage::Unsent, None) => {
                    self.spent.remove(&number);
                }
                (SpentStage::UnderWay | SpentStage::Ended { .. } | SpentStage::Unsent, _) => {}
            }
        }
        self.asks.values_mut().for_each(|ask| ask.ticket = None);
        (self.left_told, self.is_closing_told) = (self.left, true);
    }
}
