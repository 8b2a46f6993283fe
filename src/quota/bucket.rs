//! A bucket shared by threads: its queue behind a short lock, those who wait, and how much each caller spent.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, oneshot};

use super::all_buckets::QuotaShared;
use super::fair_queue::{FairQueue, SPARE, SlotAnswer, SlotGrant, SlotRequest};
use super::journal::JournalPosition;
use super::journal_state::{JournalBucket, JournalLine, JournalStep};
use super::shared::{SharedGrant, SharedTurns};
use super::throttle_gate::CloseReason;
use super::window::{Moment, SlotsDue};
use super::{BucketId, BucketView, LimitSource, QuotaOutlook, QuotaRefused, SpenderView};
use crate::hash::NameMap;

/// Maximum number of bucket and caller pairs whose spending is counted; further ones are not.
const ACCOUNTS_MAX: usize = 100_000;

#[derive(Debug)]
pub(super) struct Bucket {
    id: BucketId,
    shared: Arc<QuotaShared>,
    /// If replicas share the bucket: who hands out its slots. The queue below is then without use.
    turns: Option<Arc<SharedTurns>>,
    queue: Mutex<BucketQueue>,
    /// Held by one of the waiting requests, which watches the time for all of them.
    timekeeper: tokio::sync::Mutex<()>,
    /// Notifies that request of changes.
    changed: Notify,
    accounts: RwLock<NameMap<SpenderCounts>>,
    /// The limit learned for this bucket; 0 if none.
    pub(super) learned: AtomicU32,
    touched: AtomicU64,
}

#[derive(Debug)]
struct BucketQueue {
    turns: FairQueue,
    /// Who gets the slot of each ticket.
    waiting: HashMap<u64, oneshot::Sender<Slot>>,
}

impl BucketQueue {
    /// Where the slot of this ticket arrives.
    fn wait_for(&mut self, ticket: u64) -> oneshot::Receiver<Slot> {
        let (sender, receiver) = oneshot::channel();
        self.waiting.insert(ticket, sender);
        receiver
    }
}

/// What a caller spent and saved at a bucket since the start.
#[derive(Debug, Default)]
struct SpenderCounts {
    sent: AtomicU64,
    saved: AtomicU64,
    waited_us: AtomicU64,
    refused: AtomicU64,
}

/// The right to send one attempt now, held while it runs. Dropping it means that the attempt has ended.
#[derive(Debug)]
pub struct Slot {
    bucket: Arc<Bucket>,
    hold: SlotHold,
    waited: Duration,
    /// Whether the slot reached its waiter, so that it may have been used.
    received: bool,
}

/// What ends when a slot is dropped.
#[derive(Debug)]
enum SlotHold {
    /// A slot of this process alone, and the position of its journal line.
    Own(SlotGrant, JournalPosition),
    /// One of all replicas, which ends by itself.
    Shared(Box<SharedGrant>),
}

/// A waiting request. Dropping it leaves the queue.
#[derive(Debug)]
struct QueuedRequest {
    bucket: Arc<Bucket>,
    caller: Arc<str>,
    ticket: u64,
    granted: oneshot::Receiver<Slot>,
}

impl Bucket {
    pub(super) fn new(
        id: BucketId,
        queue: FairQueue,
        turns: Option<Arc<SharedTurns>>,
        shared: Arc<QuotaShared>,
    ) -> Self {
        Self {
            id,
            shared,
            turns,
            queue: Mutex::new(BucketQueue { turns: queue, waiting: HashMap::new() }),
            timekeeper: tokio::sync::Mutex::default(),
            changed: Notify::new(),
            accounts: RwLock::default(),
            learned: 0.into(),
            touched: 0.into(),
        }
    }

    /// Waits for the right to send one attempt for `caller`; see [`super::Quota::acquire`].
    pub(super) async fn acquire(
        self: Arc<Self>,
        request: &SlotRequest<'_>,
        latest: Instant,
    ) -> Result<Slot, QuotaRefused> {
        let began = self.shared.clock.now();
        match self.clone().wait(request, latest).await {
            Ok(mut slot) => {
                slot.waited = self.shared.clock.now().saturating_duration_since(began);
                Ok(slot.wait_written().await)
            }
            Err(refused) => {
                self.with_account(request.caller, |account| account.refused.fetch_add(1, Ordering::Relaxed));
                Err(refused)
            }
        }
    }

    async fn wait(self: Arc<Self>, request: &SlotRequest<'_>, latest: Instant) -> Result<Slot, QuotaRefused> {
        let now = self.shared.now();
        self.touched.store(now, Ordering::Relaxed);
        if let Some(turns) = &self.turns {
            let grant = turns.acquire(request, latest, false).await?;
            return Ok(self.shared_slot(grant));
        }
        let (ticket, granted) = {
            let mut queue = self.queue();
            match queue.turns.ask(now, request) {
                SlotAnswer::Granted(grant) => {
                    drop(queue);
                    return Ok(self.issue_slot(grant));
                }
                SlotAnswer::Queued(ticket) => (ticket, queue.wait_for(ticket)),
                SlotAnswer::Full(outlook) => return Err(QuotaRefused::QueueFull(outlook)),
                SlotAnswer::TooLong(outlook) => return Err(QuotaRefused::TooLong(outlook)),
            }
        };
        QueuedRequest { bucket: self, caller: request.caller.clone(), ticket, granted }.slot(latest).await
    }

    /// See [`super::Quota::foresee`].
    pub(super) fn foresee(&self, request: &SlotRequest<'_>) -> Result<QuotaOutlook, QuotaRefused> {
        let now = self.shared.now();
        match &self.turns {
            Some(turns) => turns.foresee(request, request.latest.saturating_sub(now)),
            None => self.queue().turns.foresee(now, request),
        }
    }

    /// Takes a slot that nobody else wants; see [`super::Quota::acquire_spare`].
    pub(super) async fn acquire_spare(self: &Arc<Self>) -> Option<Slot> {
        let now = self.shared.now();
        if let Some(turns) = &self.turns {
            self.touched.store(now, Ordering::Relaxed);
            let grant = turns.acquire_spare().await?;
            return Some(self.shared_slot(grant).wait_written().await);
        }
        let grant = self.queue().turns.take_spare(now)?;
        self.touched.store(now, Ordering::Relaxed);
        Some(self.issue_slot(grant).wait_written().await)
    }

    /// Hands out the slots that are due, and returns when to call this again if nothing else happens.
    pub(super) fn pump(self: &Arc<Self>) -> Option<Moment> {
        let now = self.shared.now();
        let mut due = Vec::new();
        let next = {
            let mut queue = self.queue();
            while let Some((grant, ticket)) = queue.turns.pump(now) {
                due.extend(queue.waiting.remove(&ticket).map(|sender| (grant, sender)));
            }
            queue.turns.next_wake(now)
        };
        for (grant, sender) in due {
            // If the waiter has just left, the slot comes back and is dropped here. It was never received, so it
            // passes to the next one.
            drop(sender.send(self.issue_slot(grant)));
        }
        next
    }

    /// Makes a change that may let someone through.
    pub(super) fn change<T>(self: &Arc<Self>, change: impl FnOnce(&mut FairQueue) -> T) -> T {
        let (done, is_waited_for) = {
            let mut queue = self.queue();
            (change(&mut queue.turns), queue.turns.is_waited_for())
        };
        if is_waited_for {
            self.pump();
            self.changed.notify_one();
        }
        done
    }

    /// Closes the bucket because the upstream answered 429.
    pub(super) fn close(self: &Arc<Self>, lasts: Duration, asked: Option<Duration>) {
        let lasts_ms = u64::try_from(lasts.as_millis()).unwrap_or(u64::MAX);
        let now = self.shared.now();
        match &self.turns {
            Some(turns) => turns.close(lasts_ms, CloseReason::Throttled(asked)),
            None => self.change(|queue| queue.close(now, now.saturating_add(lasts_ms), CloseReason::Throttled(asked))),
        }
        self.shared.add_line(|now| JournalLine::Closed(now.saturating_add_unsigned(lasts_ms), self.id));
    }

    /// Opens the bucket before its time. Returns why it was closed.
    pub(super) fn reopen(self: &Arc<Self>) -> Option<CloseReason> {
        let now = self.shared.now();
        let why = match &self.turns {
            Some(turns) => turns.reopen(),
            None => self.change(|queue| queue.reopen(now)),
        }?;
        self.shared.add_line(|now| JournalLine::Closed(now, self.id));
        Some(why)
    }

    /// Sets the limit. News of it are told to the other replicas, if there are any.
    pub(super) fn set_limit(self: &Arc<Self>, limit: u32, from: LimitSource, is_news: bool) {
        match &self.turns {
            Some(turns) => turns.set_limit(limit, from, is_news),
            None => self.change(|queue| queue.set_limit(limit)),
        }
    }

    /// The limit learned for this bucket by this process, or by any replica; 0 if none.
    pub(super) fn learned(&self) -> u32 {
        let told = self.turns.as_ref().and_then(|turns| turns.learned());
        told.inspect(|limit| self.learned.store(*limit, Ordering::Relaxed))
            .unwrap_or_else(|| self.learned.load(Ordering::Relaxed))
    }

    /// Takes over what an earlier process spent.
    pub(super) fn restore(self: &Arc<Self>, known: &JournalBucket, wall_ms: i64) {
        match &self.turns {
            Some(turns) => {
                known.restore_shared(wall_ms, |caller, count, age_ms| turns.restore(caller, count, age_ms));
                let left = known.closed_until.map_or(0, |until| u64::try_from(until - wall_ms).unwrap_or(0));
                if left > 0 {
                    turns.close(left, CloseReason::ThrottledBefore);
                }
            }
            None => self.change(|queue| known.restore_into(queue, wall_ms)),
        }
    }

    /// Counts answers to `caller` that cost nothing.
    pub(super) fn count_saved(&self, caller: &Arc<str>, count: u64) {
        self.touched.store(self.shared.now(), Ordering::Relaxed);
        self.with_account(caller, |account| account.saved.fetch_add(count, Ordering::Relaxed));
    }

    fn queue(&self) -> MutexGuard<'_, BucketQueue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Number of slots taken, and when the bucket was last used. Returns `None` if it is closed or has waiters.
    pub(super) fn evictable(&self) -> Option<(u64, Moment)> {
        let used = match &self.turns {
            Some(turns) => turns.evictable()?,
            None => self.queue().turns.evictable(self.shared.now())?,
        };
        Some((used, self.touched.load(Ordering::Relaxed)))
    }

    /// The operators' view.
    pub(super) fn view(&self, limit_from: LimitSource) -> BucketView {
        match &self.turns {
            Some(turns) => turns.look(|queue, now| self.view_queue(queue, now, limit_from)),
            None => self.view_queue(&mut self.queue().turns, self.shared.now(), limit_from),
        }
    }

    fn view_queue(&self, queue: &mut FairQueue, now: Moment, limit_from: LimitSource) -> BucketView {
        let mut callers: HashMap<Arc<str>, SpenderView> = HashMap::new();
        queue.expire(now);
        for (name, spent, waiting) in queue.spenders() {
            callers.insert(name.clone(), SpenderView { spent, waiting, ..SpenderView::new(name) });
        }
        for (name, account) in self.accounts.read().unwrap_or_else(PoisonError::into_inner).iter() {
            let caller = callers.entry(name.clone()).or_insert_with(|| SpenderView::new(name));
            caller.sent = account.sent.load(Ordering::Relaxed);
            caller.saved = account.saved.load(Ordering::Relaxed);
            caller.waited_us = account.waited_us.load(Ordering::Relaxed);
            caller.refused = account.refused.load(Ordering::Relaxed);
        }
        for caller in callers.values_mut().filter(|caller| *caller.name != *SPARE) {
            caller.share = Some(queue.share(&caller.name));
        }
        let mut callers: Vec<_> = callers.into_values().collect();
        callers.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        let (limit, used) = (queue.limit(), u32::try_from(queue.used()).unwrap_or(u32::MAX));
        BucketView {
            organization: match self.id {
                BucketId::Account => None,
                BucketId::Organization(id) => Some(id),
            },
            limit,
            limit_from,
            used,
            remaining: limit.saturating_sub(used),
            waiting: queue.waiting(),
            kept: queue.kept(now),
            closed_for: queue.closed_until(now).map(|until| Duration::from_millis(until.saturating_sub(now))),
            closed_because: queue.closed_why(now).map(|why| why.to_string()),
            callers,
        }
    }

    /// The sender of the waiter's answer is gone.
    fn lost(&self, caller: &Arc<str>) -> QuotaRefused {
        let now = self.shared.now();
        QuotaRefused::TooLong(self.queue().turns.outlook(now, caller, SlotsDue::At(now)))
    }

    fn issue_slot(self: &Arc<Self>, grant: SlotGrant) -> Slot {
        let line = self
            .shared
            .add_line(|at| JournalLine::Sent(JournalStep { at, bucket: self.id, count: 1, caller: &grant.caller }));
        Slot { bucket: self.clone(), hold: SlotHold::Own(grant, line), waited: Duration::ZERO, received: false }
    }

    fn shared_slot(self: &Arc<Self>, grant: SharedGrant) -> Slot {
        Slot { bucket: self.clone(), hold: SlotHold::Shared(Box::new(grant)), waited: Duration::ZERO, received: false }
    }

    /// Watches the time for all waiting requests until dropped.
    async fn watch(self: &Arc<Self>) -> Infallible {
        let _timekeeper = self.timekeeper.lock().await;
        loop {
            match self.pump() {
                Some(next) => {
                    let next = self.shared.opened + Duration::from_millis(next);
                    tokio::select! { () = self.shared.clock.sleep_until(next) => {}, () = self.changed.notified() => {} }
                }
                None => self.changed.notified().await,
            }
        }
    }

    fn with_account(&self, caller: &Arc<str>, count: impl Fn(&SpenderCounts) -> u64) {
        if let Some(account) = self.accounts.read().unwrap_or_else(PoisonError::into_inner).get(caller) {
            count(account);
            return;
        }
        let mut accounts = self.accounts.write().unwrap_or_else(PoisonError::into_inner);
        if !accounts.contains_key(caller) && self.shared.accounts.fetch_add(1, Ordering::Relaxed) >= ACCOUNTS_MAX {
            self.shared.accounts.fetch_sub(1, Ordering::Relaxed);
            return;
        }
        count(accounts.entry(caller.clone()).or_default());
    }
}

impl Drop for Bucket {
    fn drop(&mut self) {
        let accounts = self.accounts.get_mut().unwrap_or_else(PoisonError::into_inner).len();
        self.shared.accounts.fetch_sub(accounts, Ordering::Relaxed);
    }
}

impl Slot {
    /// Marks the slot as received and waits for the journal: from here on it may be used.
    async fn wait_written(mut self) -> Self {
        if let Some(journal) = &self.bucket.shared.journal {
            let line = match &self.hold {
                SlotHold::Own(_, line) => *line,
                SlotHold::Shared(grant) => grant.line,
            };
            journal.wait_written(line).await;
        }
        self.set_received(true);
        self
    }

    fn set_received(&mut self, received: bool) {
        self.received = received;
        if let SlotHold::Shared(grant) = &mut self.hold {
            grant.is_received = received;
        }
    }

    /// How long the request waited for the slot.
    #[must_use]
    pub fn waited(&self) -> Duration {
        self.waited
    }

    /// Frees the slot at once, because the attempt provably never left (no connection was made).
    pub fn release_unsent(mut self) {
        self.set_received(false);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let (bucket, now) = (&self.bucket, self.bucket.shared.now());
        let caller = match &self.hold {
            SlotHold::Shared(grant) => &grant.caller,
            SlotHold::Own(grant, _) => {
                let step = |at| JournalStep { at, bucket: bucket.id, count: 1, caller: &grant.caller };
                if self.received {
                    bucket.change(|queue| queue.end(now, grant));
                    bucket.shared.add_line(|at| JournalLine::Ended(step(at)));
                } else {
                    bucket.shared.add_line(|at| JournalLine::Unsent(step(at)));
                    bucket.change(|queue| queue.unsend(now, grant));
                }
                &grant.caller
            }
        };
        if !self.received {
            return;
        }
        let waited_us = u64::try_from(self.waited.as_micros()).unwrap_or(u64::MAX);
        bucket.with_account(caller, |account| {
            account.waited_us.fetch_add(waited_us, Ordering::Relaxed);
            account.sent.fetch_add(1, Ordering::Relaxed)
        });
    }
}

impl QueuedRequest {
    async fn slot(mut self, latest: Instant) -> Result<Slot, QuotaRefused> {
        let bucket = self.bucket.clone();
        bucket.changed.notify_one();
        tokio::select! {
            biased;
            granted = &mut self.granted => return granted.map_err(|_| bucket.lost(&self.caller)),
            never = bucket.watch() => match never {},
            () = bucket.shared.clock.sleep_until(latest) => {}
        }
        match self.leave() {
            Some(outlook) => Err(QuotaRefused::TooLong(outlook)),
            // The slot was granted at this very moment and is on its way.
            None => (&mut self.granted).await.map_err(|_| bucket.lost(&self.caller)),
        }
    }

    /// Leaves the queue. Returns `None` if the request was no longer in it.
    fn leave(&self) -> Option<QuotaOutlook> {
        let now = self.bucket.shared.now();
        let left = self.bucket.change(|queue| queue.leave(now, &self.caller, self.ticket))?;
        self.bucket.queue().waiting.remove(&self.ticket);
        Some(left)
    }
}

impl Drop for QueuedRequest {
    fn drop(&mut self) {
        self.leave();
    }
}
