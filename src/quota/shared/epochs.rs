//! When the engine has lost its soft state, every replica puts back what it has spent, and nobody grants before all have.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use uuid::Uuid;

use super::super::fair_queue::SharedState;
use super::super::journal_state::JournalLine;
use super::super::throttle_gate::CloseReason;
use super::swapping::KnownState;
use super::{EpochGate, QuotaGroup, SharedTurns, jitter};
use crate::replicas::Epoch;
use crate::replicas::cells::{CellError, CellReply};

/// How often to ask whether all replicas have put back what they had spent.
const ASK: Duration = Duration::from_millis(100);
/// How many buckets are put back at the same time.
const AT_ONCE: usize = 16;

/// What the journal says of the process before this one.
#[derive(Clone, Copy, Debug, Default)]
pub(in super::super) struct JournalPast {
    /// The epoch that knows everything that was spent.
    pub(in super::super) epoch: Option<Uuid>,
    /// Until when nobody knows what was spent besides, since the machine's start, in milliseconds.
    pub(in super::super) unknown_until: u64,
}

/// Follows the epochs and the engine's clock for as long as the service runs.
pub(in super::super) async fn follow(group: Arc<QuotaGroup>, mut past: JournalPast) {
    let (mut epochs, mut stepped) = (group.cells.epoch(), group.cells.clock().stepped());
    let mut total = *stepped.borrow_and_update();
    loop {
        let epoch = *epochs.borrow_and_update();
        let work = async {
            if let Some(epoch) = epoch {
                group.join(&epoch, &mut past).await;
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            changed = epochs.changed() => if changed.is_err() { return },
            _ = stepped.changed() => {
                let now = *stepped.borrow_and_update();
                group.close_for_step(now.saturating_sub(total));
                total = now;
            }
            () = work => {}
        }
    }
}

impl QuotaGroup {
    async fn join(&self, epoch: &Epoch, past: &mut JournalPast) {
        let now = *self.gate.borrow();
        if now.epoch != Some(epoch.id) {
            let seen = u64::try_from(epoch.seen.as_millis()).unwrap_or(u64::MAX);
            let opens_by = seen.saturating_add(self.terms.lend_ms());
            self.gate.send_replace(EpochGate { epoch: Some(epoch.id), is_open: false, opens_by });
        } else if now.is_open {
            // The same state, but the other replicas must hear once more that it has everything.
            self.say_back(epoch.id).await;
            return;
        }
        let is_known = past.epoch == Some(epoch.id);
        let clock = &self.common.clock;
        if is_known {
            self.all().iter().for_each(|turns| turns.desk().epoch = Some(epoch.id));
        } else {
            self.put_back(epoch.id).await;
            let left = past.unknown_until.saturating_sub(self.common.boot());
            clock.sleep_until(clock.now() + Duration::from_millis(left)).await;
            self.common.add_line(|_| JournalLine::Epoch(Some(epoch.id)));
            past.epoch = Some(epoch.id);
        }
        self.say_back(epoch.id).await;
        let opens_by = self.gate.borrow().opens_by;
        while self.common.boot() < opens_by && !matches!(self.cells.all_back(epoch.id).await, Ok(true)) {
            clock.sleep_until(clock.now() + ASK).await;
        }
        self.gate.send_modify(|gate| gate.is_open = true);
        self.all().iter().for_each(SharedTurns::nudge);
    }

    async fn say_back(&self, epoch: Uuid) {
        while self.cells.say_back(epoch).await.is_err() {
            self.common.clock.sleep_until(self.common.clock.now() + ASK).await;
        }
    }

    async fn put_back(&self, epoch: Uuid) {
        let all = self.all();
        let mut waiting = all.iter();
        let mut working: FuturesUnordered<_> =
            waiting.by_ref().take(AT_ONCE).map(|turns| turns.put_back(epoch)).collect();
        while working.next().await.is_some() {
            working.extend(waiting.next().map(|turns| turns.put_back(epoch)));
        }
    }

    /// Somebody set the engine's clock by this much: what this replica spent may seem older than it is.
    fn close_for_step(&self, by_ms: u64) {
        let until = self.common.boot().saturating_add(by_ms.min(self.terms.lend_ms()));
        for turns in self.all() {
            let mut desk = turns.desk();
            if desk.wishes.has_spent() {
                desk.wishes.close(until, CloseReason::ClockStep);
                drop(desk);
                turns.nudge();
            }
        }
    }
}

impl SharedTurns {
    /// Puts everything that this replica has spent of this bucket into the state of a new epoch.
    async fn put_back(self: &Arc<Self>, epoch: Uuid) {
        let (cells, clock) = (&self.group.cells, &self.group.common.clock);
        loop {
            if self.put_back_once(epoch).await.unwrap_or(false) {
                return;
            }
            let jitter = Duration::from_millis(5 + jitter(64));
            let pause = if cells.is_connected() { jitter } else { ASK };
            clock.sleep_until(clock.now() + pause).await;
        }
    }

    async fn put_back_once(self: &Arc<Self>, epoch: Uuid) -> Result<bool, CellError> {
        let (cells, common) = (&self.group.cells, &self.group.common);
        {
            let (boot, mut desk) = (common.boot(), self.desk());
            desk.wishes.forget(boot);
            if desk.epoch == Some(epoch) {
                return Ok(true);
            }
            if !desk.wishes.has_spent() {
                desk.enter(epoch, boot);
                return Ok(true);
            }
        }
        let CellReply::Content(content) = cells.read(epoch, &self.cell).await? else { return Ok(false) };
        let (mut state, back) = {
            let mut desk = self.desk();
            let limit = desk.wishes.limit;
            let state = if content.version == 0 { None } else { SharedState::decode(&content.state).ok() };
            let mut state = state.unwrap_or_else(|| SharedState::new(limit.limit, limit.from));
            let Some(now) = self.group.now() else { return Ok(false) };
            desk.epoch = None;
            let back = desk.wishes.put_back(&mut state, now);
            (state, back)
        };
        let CellReply::Swapped(version) = cells.swap(epoch, &self.cell, content.version, state.encode()).await? else {
            return Ok(false);
        };
        let (boot, mut desk) = (common.boot(), self.desk());
        desk.enter(epoch, boot);
        desk.wishes.is_back(back, boot);
        desk.wishes.adopt_limit(&state);
        state.queue.expire(0);
        desk.known = Some(KnownState::new(version, state));
        Ok(true)
    }
}
