//! The task of a shared bucket: it carries out what lies on the bucket's desk, one swap after the other, and ends when nothing is left.

use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::super::fair_queue::SharedState;
use super::super::throttle_gate::CloseReason;
use super::reserve::ReservedSlot;
use super::wishes::{AskAnswer, DecidedSwap};
use super::{GrantedSlot, SharedReply, SharedTurns, TurnsDesk, jitter};
use crate::replicas::cells::{CellContent, CellError, CellReply};

/// How long to wait after the engine could not be reached, and after it said that the epoch is another, in milliseconds.
const RETRY_MS: u64 = 250;
const EPOCH_RETRY_MS: u64 = 50;
/// If the engine's time is known no better than this, in milliseconds, it is asked first.
const VAGUE_MS: u64 = 200;
/// After a lost swap and no lock, replicas try again at different times within this, in milliseconds.
const LOST_MS: u64 = 20;

/// The state as it was last swapped or read.
#[derive(Debug)]
pub(super) struct KnownState {
    version: i64,
    pub(super) state: SharedState,
}

/// What the bucket's task does next.
enum NextStep {
    Swap(Uuid),
    /// Until this time since the machine's start, or something changes.
    Rest(u64),
    End,
}

/// What came of a state.
struct MadeState {
    version: i64,
    state: SharedState,
    swap: DecidedSwap,
    /// By how much the engine's clock had been set before.
    stepped: u64,
}

type ReserveOffers = Vec<(SharedReply, Arc<str>, ReservedSlot)>;

impl SharedTurns {
    /// Something has changed on the desk.
    pub(super) fn nudge(self: &Arc<Self>) {
        let starts = {
            let mut desk = self.desk();
            let starts = !desk.is_running && desk.wishes.has_work() && tokio::runtime::Handle::try_current().is_ok();
            desk.is_running |= starts;
            starts
        };
        if starts {
            self.group.tasks.spawn(self.clone().run());
        } else {
            self.wake.notify_one();
        }
    }

    async fn run(self: Arc<Self>) {
        let (mut gate, stop) = (self.group.gate.subscribe(), self.group.tasks.stop_token());
        loop {
            gate.borrow_and_update();
            match self.next_step(stop.is_cancelled()) {
                NextStep::End => return,
                NextStep::Swap(epoch) => self.swap(epoch).await,
                NextStep::Rest(until) => {
                    let clock = &self.group.common.clock;
                    let rest = Duration::from_millis(until.saturating_sub(self.group.common.boot()).max(1));
                    let is_stopping = stop.is_cancelled();
                    tokio::select! {
                        () = self.wake.notified() => {},
                        _ = gate.changed() => {},
                        () = stop.cancelled(), if !is_stopping => {},
                        () = clock.sleep_until(clock.now() + rest) => {},
                    }
                }
            }
        }
    }

    fn next_step(self: &Arc<Self>, is_stopping: bool) -> NextStep {
        let (boot, gate) = (self.group.common.boot(), *self.group.gate.borrow());
        let mut desk = self.desk();
        desk.wishes.forget(boot);
        let has_asks = desk.wishes.asks().next().is_some();
        let is_idle = !has_asks && (gate.epoch.is_none() || !gate.is_open || (is_stopping && boot < desk.retry_at));
        if is_idle || !desk.wishes.has_work() {
            desk.is_running = false;
            return NextStep::End;
        }
        let Some(epoch) = gate.epoch.filter(|_| gate.is_open) else {
            desk.is_cut_off = !self.group.cells.is_connected();
            let offers = self.offers(&mut desk, boot);
            drop(desk);
            self.hand_out(offers);
            return NextStep::Rest(boot + RETRY_MS);
        };
        if desk.epoch != Some(epoch) {
            // It has spent nothing: what was spent was put back before the gate opened.
            desk.enter(epoch, boot);
        }
        if boot < desk.retry_at {
            return NextStep::Rest(desk.retry_at);
        }
        let Some(now) = self.group.now() else { return NextStep::Swap(epoch) };
        let known = desk.known.as_ref().map(|known| &known.state);
        match desk.wishes.due(known, now, desk.looked) {
            Some(due) if due <= boot || (is_stopping && !has_asks) => NextStep::Swap(epoch),
            Some(due) => NextStep::Rest(due),
            None => NextStep::Rest(boot + 1_000),
        }
    }

    /// Carries out what lies on the desk.
    async fn swap(self: &Arc<Self>, epoch: Uuid) {
        let cells = &self.group.cells;
        let Some(mut made) = self.make(epoch, None) else {
            match cells.read(epoch, &self.cell).await {
                Ok(CellReply::Content(content)) => {
                    if let Some(made) = self.make(epoch, Some(&content)) {
                        self.put(epoch, made).await;
                    }
                }
                Ok(CellReply::Swapped(_)) => {}
                Err(error) => self.failed(&error),
            }
            return;
        };
        if made.swap.is_changed {
            self.put(epoch, made).await;
            return;
        }
        // What is known may be old.
        match cells.read(epoch, &self.cell).await {
            Ok(CellReply::Content(content)) if content.version == made.version => {
                made.version = content.version;
                self.settle(epoch, made);
            }
            Ok(CellReply::Content(content)) => {
                if let Some(made) = self.make(epoch, Some(&content)) {
                    self.put(epoch, made).await;
                }
            }
            Ok(CellReply::Swapped(_)) => {}
            Err(error) => self.failed(&error),
        }
    }

    async fn put(self: &Arc<Self>, epoch: Uuid, mut made: MadeState) {
        if !made.swap.is_changed {
            self.settle(epoch, made);
            return;
        }
        let cells = &self.group.cells;
        match cells.swap(epoch, &self.cell, made.version, made.state.encode()).await {
            Ok(CellReply::Swapped(version)) => {
                made.version = version;
                self.settle(epoch, made);
            }
            Ok(CellReply::Content(_)) => self.put_locked(epoch).await,
            Err(error) => {
                if matches!(error, CellError::Unclear(_)) {
                    self.desk().wishes.maybe_told(&made.swap);
                }
                self.failed(&error);
            }
        }
    }

    /// Somebody was faster. Under the lock nobody is.
    async fn put_locked(self: &Arc<Self>, epoch: Uuid) {
        let mut made = None;
        let change = |content: &CellContent| {
            made = self.make(epoch, Some(content));
            made.as_ref().filter(|made| made.swap.is_changed).map(|made| made.state.encode())
        };
        let reply = self.group.cells.change(epoch, &self.cell, Box::new(change)).await;
        match (reply, made) {
            (Ok(CellReply::Swapped(version)), Some(mut made)) => {
                made.version = version;
                self.settle(epoch, made);
            }
            (Ok(CellReply::Content(_)), Some(made)) if !made.swap.is_changed => self.settle(epoch, made),
            (Err(error @ (CellError::AnotherEpoch | CellError::Unclear(_))), made) => {
                if let Some(made) = made.filter(|_| matches!(error, CellError::Unclear(_))) {
                    self.desk().wishes.maybe_told(&made.swap);
                }
                self.failed(&error);
            }
            (Ok(_) | Err(CellError::NotSwapped(_)), _) => {
                // The other connection may still do, without a lock.
                let mut desk = self.desk();
                desk.known = None;
                desk.retry_at = self.group.common.boot() + 1 + jitter(LOST_MS);
            }
        }
    }

    /// Carries out everything on a state (what is known, if none is given). Returns `None` if that cannot be done: nothing is known, or
    /// the state cannot be read.
    fn make(&self, epoch: Uuid, content: Option<&CellContent>) -> Option<MadeState> {
        let stepped = *self.group.cells.clock().stepped().borrow();
        let mut desk = self.desk();
        let now = self.group.now()?;
        let known = match content {
            None if now.latest - now.earliest > VAGUE_MS => return None,
            None => desk.known.as_ref().map(|known| (known.version, known.state.clone()))?,
            Some(content) if content.version == 0 => {
                (0, SharedState::new(desk.wishes.limit.limit, desk.wishes.limit.from))
            }
            Some(content) => match SharedState::decode(&content.state) {
                Ok(state) => (content.version, state),
                Err(fault) => {
                    tracing::warn!(bucket = self.cell, %fault, "this replica grants nothing of this quota");
                    (desk.is_cut_off, desk.retry_at) = (true, self.group.common.boot() + RETRY_MS);
                    return None;
                }
            },
        };
        if desk.epoch != Some(epoch) {
            return None;
        }
        let unsure = self.group.cells.clock().unsure_until().min(now.boot + self.group.terms.lend_ms());
        if unsure > now.boot && desk.unsure < unsure {
            desk.wishes.close(unsure, CloseReason::ClockStep);
            desk.unsure = unsure;
        }
        let (version, mut state) = known;
        let mut swap = desk.wishes.decide(&mut state, now);
        swap.is_changed |= version == 0;
        Some(MadeState { version, state, swap, stepped })
    }

    /// A swap was carried out, or none was needed.
    fn settle(self: &Arc<Self>, epoch: Uuid, made: MadeState) {
        let MadeState { version, state, swap, stepped } = made;
        let boot = self.group.common.boot();
        let by = self.group.cells.clock().stepped().borrow().saturating_sub(stepped);
        let answers = {
            let mut desk = self.desk();
            if self.group.gate.borrow().epoch != Some(epoch) || desk.epoch != Some(epoch) {
                return;
            }
            let answers = desk.wishes.swapped(swap, &state, boot, by == 0);
            desk.known = Some(KnownState { version, state });
            (desk.looked, desk.is_cut_off) = (boot, false);
            answers
        };
        for (reply, answer) in answers {
            let told = match answer {
                AskAnswer::Granted(number, caller) => Ok(self.grant(caller, GrantedSlot::Engine(number))),
                AskAnswer::Refused(refused) => Err(refused),
            };
            // If its request has just left, the slot was never received, and goes back here.
            drop(reply.send(told));
        }
    }

    fn failed(self: &Arc<Self>, error: &CellError) {
        let boot = self.group.common.boot();
        let mut desk = self.desk();
        desk.known = None;
        let offers = if matches!(error, CellError::AnotherEpoch) {
            desk.retry_at = boot + EPOCH_RETRY_MS;
            Vec::new()
        } else {
            (desk.is_cut_off, desk.retry_at) = (true, boot + RETRY_MS);
            self.offers(&mut desk, boot)
        };
        drop(desk);
        self.hand_out(offers);
    }

    /// What the reserve grants while the engine cannot be reached.
    pub(super) fn offers(&self, desk: &mut TurnsDesk, boot: u64) -> ReserveOffers {
        if desk.is_cut_off { desk.reserve.offer(boot, &mut desk.wishes) } else { Vec::new() }
    }

    pub(super) fn hand_out(self: &Arc<Self>, offers: ReserveOffers) {
        for (reply, caller, slot) in offers {
            drop(reply.send(Ok(self.grant(caller, GrantedSlot::Reserve(slot)))));
        }
    }
}

impl TurnsDesk {
    /// From here on the state of this epoch counts, in which this replica has no tickets.
    pub(super) fn enter(&mut self, epoch: Uuid, boot: u64) {
        self.wishes.is_back(Vec::new(), boot);
        (self.epoch, self.known, self.retry_at) = (Some(epoch), None, 0);
    }
}

impl KnownState {
    pub(super) const fn new(version: i64, state: SharedState) -> Self {
        Self { version, state }
    }
}
