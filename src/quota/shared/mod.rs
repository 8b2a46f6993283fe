//! A bucket whose slots several replicas hand out together: its state is in the engine, and whoever wants something of it swaps it.
//!
//! `wishes` says what this replica wants and what a swap means; it is pure. [`SharedTurns`] is the bucket here: requests lay their wishes
//! on its desk, and while there is anything to do, one task (`swapping`) carries them out, all at once, one swap after the other.
//! `epochs` puts back what this replica has spent when the engine has lost its state.

mod epochs;
mod reserve;
mod swapping;
#[cfg(test)]
mod tests;
mod wishes;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, oneshot, watch};
use uuid::Uuid;

use self::reserve::Reserve;
use self::swapping::KnownState;
#[cfg(test)]
pub(super) use self::wishes::{AskAnswer, DecidedSwap};
pub(super) use self::wishes::{LendTerms, OwnLimit, SharedAsk, Wishes};
use super::all_buckets::QuotaShared;
use super::fair_queue::{FairQueue, SPARE, SlotRequest};
use super::journal::JournalPosition;
use super::journal_state::{JournalLine, JournalStep};
use super::throttle_gate::CloseReason;
use super::window::{HOLD_MS, Moment, SlotsDue};
use super::{BucketId, LimitSource, QuotaOutlook, QuotaRefused, WaitsFor};
use crate::hash;
use crate::replicas::cells::{EngineTime, QuotaCells};
use crate::tasks::Tasks;

pub(super) use epochs::{JournalPast, follow};
use reserve::ReservedSlot;

/// How old what is known of a bucket may be to refuse by it, in milliseconds.
const REFUSED_BY_KNOWN_MS: u64 = 200;

/// How long work that nobody waits for waits for the engine.
const SPARE_WAIT: Duration = Duration::from_secs(1);

/// How long a request waits to hear of the engine whether there is a slot, however little it would wait for one.
const FIRST_WORD_WAIT: Duration = Duration::from_millis(900);

/// What a quota needs to be shared with other replicas.
#[derive(Clone, Debug)]
pub struct SharedQuota {
    /// Where the state of each bucket is.
    pub cells: Arc<dyn QuotaCells>,
    /// This incarnation of this replica.
    pub incarnation: Uuid,
    /// The longest attempt (`upstream.attempt` and `upstream.write_attempt`).
    pub attempt_max: Duration,
    /// `replicas.reserve`, in percent.
    pub reserve_percent: u32,
    /// `replicas.max`.
    pub replicas_max: u32,
    /// Where buckets' tasks run.
    pub tasks: Tasks,
}

/// This replica's part in all shared buckets.
#[derive(Debug)]
pub(super) struct QuotaGroup {
    cells: Arc<dyn QuotaCells>,
    terms: LendTerms,
    replicas_max: u32,
    tasks: Tasks,
    common: Arc<QuotaShared>,
    gate: watch::Sender<EpochGate>,
    turns: Mutex<Vec<Weak<SharedTurns>>>,
}

/// Whether slots can be had in the engine's soft state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct EpochGate {
    epoch: Option<Uuid>,
    /// All replicas have put back what they had spent.
    is_open: bool,
    /// When it opens at the latest, since the machine's start, in milliseconds.
    opens_by: u64,
}

/// A shared bucket.
#[derive(Debug)]
pub(super) struct SharedTurns {
    id: BucketId,
    /// Its name in the engine.
    cell: String,
    group: Arc<QuotaGroup>,
    desk: Mutex<TurnsDesk>,
    wake: Notify,
}

type SharedReply = oneshot::Sender<Result<SharedGrant, QuotaRefused>>;

/// What lies ready for the bucket's task.
#[derive(Debug)]
struct TurnsDesk {
    wishes: Wishes<SharedReply>,
    known: Option<KnownState>,
    /// The epoch that has everything that this replica spent here.
    epoch: Option<Uuid>,
    /// When the state was last swapped or read, since the machine's start, in milliseconds.
    looked: u64,
    is_running: bool,
    /// The engine cannot be reached.
    is_cut_off: bool,
    /// Until when the bucket was closed because somebody set the engine's clock, since the machine's start, in milliseconds.
    unsure: u64,
    /// Not before this time since the machine's start is the engine asked again.
    retry_at: u64,
    reserve: Reserve,
}

/// A slot of a shared bucket. Dropping it means that its attempt has ended, or that nobody used it.
#[derive(Debug)]
pub(super) struct SharedGrant {
    turns: Arc<SharedTurns>,
    pub(super) caller: Arc<str>,
    slot: GrantedSlot,
    pub(super) line: JournalPosition,
    pub(super) is_received: bool,
}

#[derive(Debug)]
enum GrantedSlot {
    /// By the engine; its number among what this replica spent.
    Engine(u64),
    Reserve(ReservedSlot),
}

/// A request that waits. Dropping it withdraws it.
struct WaitingAsk<'a> {
    turns: &'a Arc<SharedTurns>,
    number: u64,
}

impl Drop for WaitingAsk<'_> {
    fn drop(&mut self) {
        let had_ticket = self.turns.desk().wishes.withdraw(self.number).is_some_and(|ask| ask.ticket.is_some());
        if had_ticket {
            self.turns.nudge();
        }
    }
}

impl QuotaGroup {
    pub(super) fn new(shared: &SharedQuota, common: Arc<QuotaShared>) -> Arc<Self> {
        let SharedQuota { cells, incarnation, attempt_max, reserve_percent, replicas_max, tasks } = shared.clone();
        let attempt_ms = u64::try_from(attempt_max.as_millis()).unwrap_or(u64::MAX).min(u64::from(u32::MAX));
        let terms = LendTerms { owner: incarnation.as_u128(), attempt_ms, reserve_percent };
        let (gate, turns) = (watch::Sender::new(EpochGate::default()), Mutex::default());
        Arc::new(Self { cells, terms, replicas_max, tasks, common, gate, turns })
    }

    fn now(&self) -> Option<EngineTime> {
        self.cells.clock().at(self.common.clock.boot())
    }

    /// All buckets that are known.
    fn all(&self) -> Vec<Arc<SharedTurns>> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner).iter().filter_map(Weak::upgrade).collect()
    }
}

impl SharedTurns {
    pub(super) fn new(id: BucketId, limit: OwnLimit, group: &Arc<QuotaGroup>) -> Arc<Self> {
        let wishes = Wishes::new(group.terms, limit);
        let desk = TurnsDesk {
            wishes,
            known: None,
            epoch: None,
            looked: 0,
            is_running: false,
            is_cut_off: false,
            unsure: 0,
            retry_at: 0,
            reserve: Reserve::new(group.terms.reserve_percent, group.replicas_max),
        };
        let cell = id.to_string();
        let turns = Arc::new(Self { id, cell, group: group.clone(), desk: Mutex::new(desk), wake: Notify::new() });
        let mut all = group.turns.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() == all.capacity() {
            all.retain(|turns| turns.strong_count() > 0);
        }
        all.push(Arc::downgrade(&turns));
        drop(all);
        turns
    }

    fn desk(&self) -> MutexGuard<'_, TurnsDesk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a slot, at most until `latest`.
    pub(super) async fn acquire(
        self: &Arc<Self>,
        request: &SlotRequest<'_>,
        latest: Instant,
        is_spare: bool,
    ) -> Result<SharedGrant, QuotaRefused> {
        let clock = &self.group.common.clock;
        let boot = self.group.common.boot();
        let wait = latest.saturating_duration_since(clock.now());
        let (reply, mut told) = oneshot::channel();
        let ask = SharedAsk {
            caller: request.caller.clone(),
            eligible: request.eligible,
            wait_ms: request.wait_ms,
            latest: boot.saturating_add(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)),
            queue_max: request.queue_max,
            is_spare,
            ticket: None,
            reply,
        };
        let (number, offers) = {
            let mut desk = self.desk();
            let number = self.refuse_by_known(&mut desk, &ask, boot).map_or_else(|| Ok(desk.wishes.add(ask)), Err)?;
            (number, self.offers(&mut desk, boot))
        };
        let waiting = WaitingAsk { turns: self, number };
        self.hand_out(offers);
        self.nudge();
        tokio::select! {
            biased;
            told = &mut told => told.unwrap_or(Err(QuotaRefused::TooLong(QuotaOutlook::UNKNOWN))),
            () = self.waited_long_enough(number, latest, clock.now() + FIRST_WORD_WAIT) => {
                let refused = self.in_vain(request.caller, number);
                drop(waiting);
                told.try_recv().unwrap_or(Err(refused))
            }
        }
    }

    /// Waits until `latest`; if the engine has said nothing of a request by then, until `heard_by`.
    async fn waited_long_enough(&self, number: u64, latest: Instant, heard_by: Instant) {
        let clock = &self.group.common.clock;
        clock.sleep_until(latest).await;
        if !self.was_heard(number) {
            clock.sleep_until(heard_by).await;
        }
    }

    fn was_heard(&self, number: u64) -> bool {
        self.desk().wishes.asks().any(|(other, ask)| *other == number && ask.ticket.is_some())
    }

    /// A slot that nobody misses, if there is one.
    pub(super) async fn acquire_spare(self: &Arc<Self>) -> Option<SharedGrant> {
        let latest = self.group.common.clock.now() + SPARE_WAIT;
        let caller = SPARE.into();
        let request =
            SlotRequest { caller: &caller, eligible: 1, wait_ms: 0, latest: 0, queue_max: usize::MAX, owner: 0 };
        self.acquire(&request, latest, true).await.ok()
    }

    /// Refuses a request by what is known of the bucket, if that is as good as new: many requests in vain then cost no swaps.
    fn refuse_by_known(&self, desk: &mut TurnsDesk, ask: &SharedAsk<SharedReply>, boot: u64) -> Option<QuotaRefused> {
        let own = desk.wishes.asks().filter(|(_, other)| other.caller == ask.caller).count();
        let is_fresh = boot < desk.looked + REFUSED_BY_KNOWN_MS && !desk.is_cut_off && !ask.is_spare;
        let now = self.group.now().filter(|_| is_fresh);
        if let (Some(now), Some(known)) = (now, &mut desk.known) {
            let latest = now.earliest + ask.latest.saturating_sub(boot);
            let (caller, eligible, wait_ms, queue_max) = (&ask.caller, ask.eligible, ask.wait_ms, ask.queue_max);
            let owner = self.group.terms.owner;
            let request = SlotRequest { caller, eligible, wait_ms, latest, queue_max, owner };
            // Only what the queue itself would refuse at once: a forecast is no reason.
            if let Some(refused) = known.state.queue.refused(now.earliest, &request) {
                desk.wishes.note_asking(&ask.caller, boot);
                return Some(refused);
            }
        }
        (own >= ask.queue_max.max(1)).then(|| QuotaRefused::QueueFull(self.outlook(desk, &ask.caller)))
    }

    /// Why a request has waited in vain.
    fn in_vain(&self, caller: &Arc<str>, number: u64) -> QuotaRefused {
        let was_heard = self.was_heard(number);
        let mut desk = self.desk();
        let gate = *self.group.gate.borrow();
        if desk.is_cut_off || !self.group.cells.is_connected() || gate.epoch.is_none() || (gate.is_open && !was_heard) {
            return QuotaRefused::EngineUnreachable;
        }
        QuotaRefused::TooLong(self.outlook(&mut desk, caller))
    }

    /// Where a caller stands, as far as is known.
    fn outlook(&self, desk: &mut TurnsDesk, caller: &Arc<str>) -> QuotaOutlook {
        let gate = *self.group.gate.borrow();
        if !gate.is_open {
            let after = Duration::from_millis(gate.opens_by.saturating_sub(self.group.common.boot()).min(HOLD_MS));
            return QuotaOutlook { waits_for: WaitsFor::Closed, after, ..QuotaOutlook::UNKNOWN };
        }
        self.with_queue(desk, |queue, now| {
            queue.expire(now);
            let due = queue.next_turn(now).map_or(SlotsDue::At(now), |(_, due)| due);
            queue.outlook(now, caller, due)
        })
    }

    /// The queue as far as it is known, and the engine's time.
    fn with_queue<T>(&self, desk: &mut TurnsDesk, look: impl FnOnce(&mut FairQueue, Moment) -> T) -> T {
        let now = self.group.now().map_or(0, |now| now.earliest);
        match &mut desk.known {
            Some(known) => look(&mut known.state.queue, now),
            None => look(&mut FairQueue::new(self.group.terms.granted(desk.wishes.limit.limit)), now),
        }
    }

    /// Looks at the queue as far as it is known.
    pub(super) fn look<T>(&self, look: impl FnOnce(&mut FairQueue, Moment) -> T) -> T {
        self.with_queue(&mut self.desk(), look)
    }

    /// Predicts what would happen to a request that gives up in so many milliseconds.
    pub(super) fn foresee(&self, request: &SlotRequest<'_>, wait_ms: u64) -> Result<QuotaOutlook, QuotaRefused> {
        self.look(|queue, now| queue.foresee(now, &SlotRequest { latest: now.saturating_add(wait_ms), ..*request }))
    }

    /// Sets the limit. News are told to the others; what is older gives way to what they know.
    pub(super) fn set_limit(self: &Arc<Self>, limit: u32, from: LimitSource, is_news: bool) {
        let mut desk = self.desk();
        desk.wishes.limit = OwnLimit { limit, from, is_news: is_news && from == LimitSource::Learned };
        desk.looked = 0;
        drop(desk);
        if is_news {
            self.nudge();
        }
    }

    /// The learned limit, if the replicas have learned one.
    pub(super) fn learned(&self) -> Option<u32> {
        let limit = self.desk().wishes.limit;
        (limit.from == LimitSource::Learned).then_some(limit.limit)
    }

    /// Closes the bucket for so many milliseconds, for all replicas.
    pub(super) fn close(self: &Arc<Self>, lasts_ms: u64, why: CloseReason) {
        let boot = self.group.common.boot();
        let mut desk = self.desk();
        desk.wishes.close(boot.saturating_add(lasts_ms), why);
        desk.reserve.close(boot, boot.saturating_add(lasts_ms), why);
        drop(desk);
        self.nudge();
    }

    /// Opens the bucket before its time. Returns why it was closed, as far as is known.
    pub(super) fn reopen(self: &Arc<Self>) -> Option<CloseReason> {
        let why = {
            let mut desk = self.desk();
            desk.wishes.reopen();
            desk.looked = 0;
            desk.reserve.reopen(self.group.common.boot());
            self.with_queue(&mut desk, |queue, now| queue.closed_why(now))
        };
        self.nudge();
        why
    }

    /// Takes back what an earlier process spent, as the journal remembers it: `age_ms` ago an attempt ended.
    pub(super) fn restore(&self, caller: &Arc<str>, count: u64, age_ms: u64) {
        let boot = self.group.common.boot();
        let ended = boot.saturating_sub(age_ms);
        let mut desk = self.desk();
        desk.wishes.restore(caller, count, ended);
        desk.reserve.restore(caller, count, ended + HOLD_MS);
    }

    /// Number of slots taken; `None` while this replica wants something of the bucket or must remember what it spent.
    pub(super) fn evictable(&self) -> Option<u64> {
        let boot = self.group.common.boot();
        let mut desk = self.desk();
        desk.wishes.forget(boot);
        let is_idle = !desk.is_running && desk.wishes.is_empty() && desk.reserve.is_idle(boot);
        is_idle.then(|| self.with_queue(&mut desk, |queue, _| queue.used()))
    }

    fn grant(self: &Arc<Self>, caller: Arc<str>, slot: GrantedSlot) -> SharedGrant {
        let step = |at| JournalStep { at, bucket: self.id, count: 1, caller: &caller };
        let line = self.group.common.add_line(|at| JournalLine::Sent(step(at)));
        SharedGrant { turns: self.clone(), caller, slot, line, is_received: false }
    }
}

/// Replicas that failed together do not try again together: a random number below this.
fn jitter(below: u64) -> u64 {
    hash::random::<1>().map_or(0, |[byte]| u64::from(byte) * below / 256)
}

impl Drop for SharedGrant {
    fn drop(&mut self) {
        let (turns, boot) = (&self.turns, self.turns.group.common.boot());
        let step = |at| JournalStep { at, bucket: turns.id, count: 1, caller: &self.caller };
        turns.group.common.add_line(|at| match self.is_received {
            true => JournalLine::Ended(step(at)),
            false => JournalLine::Unsent(step(at)),
        });
        let mut desk = turns.desk();
        match &self.slot {
            GrantedSlot::Engine(number) => desk.wishes.end(*number, boot, self.is_received),
            GrantedSlot::Reserve(slot) => desk.reserve.end(boot, slot, self.is_received),
        }
        drop(desk);
        turns.nudge();
    }
}
