//! The connections of a door: at most a fixed number, each with what it is doing and since when.
//!
//! At the limit, a new connection evicts an old one. Connections that never sent a request, or whose body is only thrown away, go first, then
//! those with no request in progress. Among these, the owner with the most connections loses the one that has waited longest. A connection
//! belongs to its last known caller, or to its peer's address until a caller is known.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::future::poll_fn;
use std::net::IpAddr;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_util::task::AtomicWaker;
use tokio::sync::Notify;

use super::order::{ClientEnd, ConnectionOrder, IdlePhase};
use super::unread::{UnreadKind, UnreadRequests};
use crate::clock::Clock;
use crate::config::Limits;
use crate::shares::{HeldShare, ShareHolder, Shortage};

/// How often a new connection that waits for a slot looks for one to evict.
const EVICTION_RETRY: Duration = Duration::from_millis(50);
/// A connection whose answers wait only for its client may be evicted after this long.
const UNTAKEN_MS: u64 = 1_000;
/// How long an idle connection may take to leave: over HTTP/2 it ends only when its client has confirmed the GOAWAY.
const GRACEFUL_CLOSE_MAX: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(super) struct ConnectionState {
    epoch: Instant,
    multiplexes: AtomicBool,
    phase: AtomicU8,
    since_ms: AtomicU64,
    began_ms: AtomicU64,
    busy: AtomicU32,
    /// HTTP/1.1: the service has a request, or its answer is not written yet.
    answering: AtomicBool,
    /// HTTP/1.1: the last bytes that were received begin a head that is not complete.
    pub(super) head_begun: AtomicBool,
    /// Has it ever had a request?
    served: AtomicBool,
    /// HTTP/2: number of answers that wait for the client, which has taken nothing of them since `untaken_ms`.
    untaken: AtomicU32,
    untaken_ms: AtomicU64,
    /// Number of bodies that are read only to be thrown away.
    pub(super) lingering: AtomicU32,
    /// When writing got stuck; 0 if it is not stuck.
    stuck_ms: AtomicU64,
    /// When a sweep first saw that it was told to leave; 0 if none has.
    leaving_ms: AtomicU64,
    peer: Option<IpAddr>,
    /// The last caller that was identified on it; 0 if none was.
    caller: AtomicU64,
    /// Its part of that caller's share of connections.
    share: Mutex<Option<HeldShare>>,
    connections: Weak<Connections>,
    order: AtomicU8,
    /// Check whether the client still waits for the answer.
    client_check_due: AtomicBool,
    /// The answer in progress is a stream without end.
    endless: AtomicBool,
    pub(super) driver: AtomicWaker,
}

/// Marks a connection busy: it has a request in progress, or an answer that the client has not taken yet.
#[derive(Debug)]
pub struct BusyGuard {
    state: Arc<ConnectionState>,
    clock: Clock,
}

impl BusyGuard {
    /// Assigns the connection to this caller. If the caller's share is used up, its longest-waiting connection that waits only for its
    /// client is evicted.
    ///
    /// # Errors
    /// If there is none to evict: the connection closes after this request's answer.
    pub fn assign_to(&self, caller: NonZeroU64, connections: &Arc<ShareHolder>) -> Result<(), Shortage> {
        let state = &self.state;
        if state.caller.load(Ordering::Relaxed) == caller.get() {
            return Ok(());
        }
        let share = connections.take(1).or_else(|short| {
            state.connections.upgrade().and_then(|connections| connections.evict_one_of(caller)).ok_or_else(|| {
                state.give_order(ConnectionOrder::Close);
                short
            })
        });
        *state.share() = Some(share?);
        state.caller.store(caller.get(), Ordering::Relaxed);
        Ok(())
    }

    /// Marks the answer as a stream without end. Over HTTP/1.1 it ends when its client sends nothing more: nothing else would tell that
    /// the client has left.
    pub fn mark_endless(&self) {
        self.state.endless.store(true, Ordering::Relaxed);
    }
}

/// Counts an HTTP/2 answer that waits for its client.
pub(super) struct UntakenAnswer(Arc<ConnectionState>);

impl Drop for UntakenAnswer {
    fn drop(&mut self) {
        self.0.untaken.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Connections are counted per owner.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum ConnectionOwner {
    Caller(u64),
    Peer(Option<IpAddr>),
}

impl Drop for BusyGuard {
    fn drop(&mut self) {
        if self.state.busy.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.state.endless.store(false, Ordering::Relaxed);
            // A head that began behind the last request has its limit from now on: nothing more of it was read meanwhile.
            let is_next_begun = self.state.head_begun.load(Ordering::Relaxed);
            self.state.enter(if is_next_begun { IdlePhase::Head } else { IdlePhase::Idle }, &self.clock);
        }
    }
}

impl ConnectionState {
    pub(super) fn new(connections: &Arc<Connections>, peer: Option<IpAddr>) -> Self {
        let (epoch, clock) = (connections.epoch, &connections.clock);
        let state = Self {
            epoch,
            multiplexes: AtomicBool::new(false),
            phase: AtomicU8::new(IdlePhase::Silent as u8),
            since_ms: AtomicU64::new(0),
            began_ms: AtomicU64::new(0),
            busy: AtomicU32::new(0),
            answering: AtomicBool::new(false),
            head_begun: AtomicBool::new(false),
            served: AtomicBool::new(false),
            untaken: AtomicU32::new(0),
            untaken_ms: AtomicU64::new(0),
            lingering: AtomicU32::new(0),
            stuck_ms: AtomicU64::new(0),
            leaving_ms: AtomicU64::new(0),
            peer,
            caller: AtomicU64::new(0),
            share: Mutex::default(),
            connections: Arc::downgrade(connections),
            order: AtomicU8::new(ConnectionOrder::KeepOpen as u8),
            client_check_due: AtomicBool::new(false),
            endless: AtomicBool::new(false),
            driver: AtomicWaker::new(),
        };
        state.enter(IdlePhase::Silent, clock);
        state.began_ms.store(state.at(clock), Ordering::Relaxed);
        state
    }

    fn at(&self, clock: &Clock) -> u64 {
        u64::try_from(clock.now().saturating_duration_since(self.epoch).as_millis()).unwrap_or(u64::MAX).max(1)
    }

    pub(super) fn enter(&self, phase: IdlePhase, clock: &Clock) {
        self.since_ms.store(self.at(clock), Ordering::Relaxed);
        self.phase.store(phase as u8, Ordering::Relaxed);
    }

    /// Is a request's head being read?
    pub(super) fn is_within_head(&self) -> bool {
        self.busy.load(Ordering::Acquire) == 0 && self.phase.load(Ordering::Relaxed) == IdlePhase::Head as u8
    }

    /// HTTP/2: bytes between requests (pings, window updates) do not begin a head.
    pub(super) fn mark_multiplexed(&self) {
        self.multiplexes.store(true, Ordering::Relaxed);
    }

    /// Bytes were received. Between requests, they begin a head.
    pub(super) fn on_read(&self, clock: &Clock) {
        let waiting =
            self.busy.load(Ordering::Relaxed) == 0 && self.phase.load(Ordering::Relaxed) != IdlePhase::Head as u8;
        if waiting && !self.multiplexes.load(Ordering::Relaxed) {
            self.enter(IdlePhase::Head, clock);
        }
    }

    /// A write succeeded, or could not proceed (`stuck`).
    pub(super) fn on_write(&self, stuck: bool, clock: &Clock) {
        let known = self.stuck_ms.load(Ordering::Relaxed);
        if stuck && known == 0 {
            self.stuck_ms.store(self.at(clock), Ordering::Relaxed);
        } else if !stuck && known != 0 {
            self.stuck_ms.store(0, Ordering::Relaxed);
            // hyper handed over the end of this answer long ago; only now is the connection idle.
            if self.busy.load(Ordering::Relaxed) == 0 {
                self.since_ms.store(self.at(clock), Ordering::Relaxed);
            }
        }
    }

    /// An answer waits for the client until the guard is dropped.
    pub(super) fn untaken(self: &Arc<Self>, clock: &Clock) -> UntakenAnswer {
        self.untaken_ms.store(self.at(clock), Ordering::Relaxed);
        self.untaken.fetch_add(1, Ordering::AcqRel);
        UntakenAnswer(self.clone())
    }

    /// A body begins to be thrown away. Its connection is also busy; for eviction it is idle since now.
    pub(super) fn on_linger(&self, clock: &Clock) {
        self.since_ms.store(self.at(clock), Ordering::Relaxed);
        self.lingering.fetch_add(1, Ordering::AcqRel);
    }

    fn share(&self) -> MutexGuard<'_, Option<HeldShare>> {
        self.share.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn owner(&self) -> ConnectionOwner {
        match self.caller.load(Ordering::Relaxed) {
            0 => ConnectionOwner::Peer(self.peer),
            caller => ConnectionOwner::Caller(caller),
        }
    }

    pub(super) fn busy(self: &Arc<Self>, clock: &Clock) -> BusyGuard {
        self.busy.fetch_add(1, Ordering::AcqRel);
        self.served.store(true, Ordering::Relaxed);
        self.answering.store(true, Ordering::Relaxed);
        BusyGuard { state: self.clone(), clock: clock.clone() }
    }

    /// HTTP/1.1: all that there was to write is written.
    pub(super) fn on_flush(&self) {
        if self.busy.load(Ordering::Acquire) == 0 {
            self.answering.store(false, Ordering::Relaxed);
        }
    }

    pub(super) fn is_answering(&self) -> bool {
        self.answering.load(Ordering::Relaxed)
    }

    /// A stronger order is never withdrawn.
    pub(super) fn give_order(&self, order: ConnectionOrder) {
        self.order.fetch_max(order as u8, Ordering::AcqRel);
        self.driver.wake();
    }

    fn current_order(&self) -> ConnectionOrder {
        match self.order.load(Ordering::Acquire) {
            order if order >= ConnectionOrder::Drop as u8 => ConnectionOrder::Drop,
            order if order == ConnectionOrder::Close as u8 => ConnectionOrder::Close,
            _ => ConnectionOrder::KeepOpen,
        }
    }

    /// Returns the current order, and wakes the task that drives the connection when a stronger one comes. One driver at a time.
    pub(super) fn poll_order(&self, cx: &Context<'_>) -> ConnectionOrder {
        self.driver.register(cx.waker());
        self.current_order()
    }

    /// Resolves when the connection must be dropped.
    pub(super) async fn drop_ordered(&self) {
        poll_fn(|cx| if self.poll_order(cx) == ConnectionOrder::Drop { Poll::Ready(()) } else { Poll::Pending }).await;
    }

    /// Should the stream check whether the client still waits for the answer? True once per sweep.
    pub(super) fn take_client_check(&self) -> bool {
        self.client_check_due.load(Ordering::Relaxed) && self.client_check_due.swap(false, Ordering::Relaxed)
    }

    /// What the client must have closed before it counts as gone.
    pub(super) fn client_gone_at(&self) -> ClientEnd {
        if self.endless.load(Ordering::Relaxed) { ClientEnd::HalfClosed } else { ClientEnd::Closed }
    }

    /// Over HTTP/1.1 nothing is read while an answer is owed, so the stream must check whether the client is still there. HTTP/2 reads at
    /// all times.
    fn request_client_check(&self) {
        if !self.multiplexes.load(Ordering::Relaxed) && self.busy.load(Ordering::Acquire) > 0 {
            self.client_check_due.store(true, Ordering::Relaxed);
            self.driver.wake();
        }
    }

    /// When its current idle phase began; `None` if a request is in progress.
    fn waiting_since(&self) -> Option<u64> {
        (self.busy.load(Ordering::Acquire) == 0).then(|| self.since_ms.load(Ordering::Relaxed))
    }

    /// Since when it has waited only for its client; `None` if it has work in progress.
    fn evictable_since(&self, now_ms: u64) -> Option<u64> {
        let stuck = self.stuck_ms.load(Ordering::Relaxed);
        let busy = self.busy.load(Ordering::Acquire).saturating_sub(self.lingering.load(Ordering::Acquire));
        let waits = match busy {
            0 => return Some(self.since_ms.load(Ordering::Relaxed)),
            _ if stuck != 0 => stuck,
            _ if busy <= self.untaken.load(Ordering::Acquire) => self.untaken_ms.load(Ordering::Relaxed),
            _ => return None,
        };
        (now_ms.saturating_sub(waits) > UNTAKEN_MS).then_some(waits)
    }

    /// Returns why a connection without a whole request is dropped.
    fn enforce_limits(&self, now_ms: u64, limits: &Limits) -> Option<UnreadKind> {
        let over = |since: u64, limit: Duration| {
            now_ms.saturating_sub(since) > u64::try_from(limit.as_millis()).unwrap_or(u64::MAX)
        };
        let began = self.began_ms.load(Ordering::Relaxed);
        let stuck = self.stuck_ms.load(Ordering::Relaxed);
        if (stuck != 0 && over(stuck, limits.write_stall)) || over(began, limits.age.saturating_add(limits.age_grace)) {
            self.give_order(ConnectionOrder::Drop);
            return None;
        }
        if self.current_order() == ConnectionOrder::Close && self.leaving_ms.load(Ordering::Relaxed) == 0 {
            self.leaving_ms.store(now_ms, Ordering::Relaxed);
        }
        let (phase, mut unread) = (self.phase.load(Ordering::Relaxed), None);
        // While the end of an answer is still being written, `write_stall` bounds how long that takes.
        let waiting = self.waiting_since().filter(|_| stuck == 0 && phase != IdlePhase::Handshake as u8);
        if let Some(since) = waiting {
            let (since, limit, kind) = match (phase, self.leaving_ms.load(Ordering::Relaxed)) {
                (p, _) if p == IdlePhase::Silent as u8 => (since, limits.first_byte, Some(UnreadKind::Silent)),
                (p, _) if p == IdlePhase::Head as u8 => (since, limits.head, Some(UnreadKind::Slow)),
                (_, 0) => (since, limits.idle, None),
                (_, leaving) => (since.max(leaving), GRACEFUL_CLOSE_MAX.min(limits.idle), None),
            };
            if over(since, limit) {
                unread = kind.filter(|_| self.current_order() != ConnectionOrder::Drop);
                // An idle connection is told to leave; a silent or slow one is dropped.
                let is_new = phase == IdlePhase::Idle as u8 && self.current_order() == ConnectionOrder::KeepOpen;
                self.give_order(if is_new { ConnectionOrder::Close } else { ConnectionOrder::Drop });
            }
        }
        if over(began, limits.age) {
            self.give_order(ConnectionOrder::Close);
        }
        unread
    }
}

pub(super) struct Connections {
    most: usize,
    epoch: Instant,
    clock: Clock,
    taken: Mutex<HashMap<u64, Arc<ConnectionState>>>,
    /// New connections are told to leave, too.
    closing: AtomicBool,
    next: AtomicU64,
    freed: Notify,
    empty: Notify,
}

/// A connection's slot, freed on drop.
pub(super) struct ConnectionSlot {
    id: u64,
    state: Arc<ConnectionState>,
    connections: Arc<Connections>,
}

impl ConnectionSlot {
    pub(super) fn state(&self) -> &Arc<ConnectionState> {
        &self.state
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        *self.state.share() = None;
        let mut taken = self.connections.lock();
        taken.remove(&self.id);
        self.connections.freed.notify_one();
        if taken.is_empty() {
            self.connections.empty.notify_waiters();
        }
    }
}

impl Connections {
    pub(super) fn new(most: usize, clock: Clock) -> Self {
        Self {
            most,
            epoch: clock.now(),
            clock,
            taken: Mutex::default(),
            closing: AtomicBool::new(false),
            next: AtomicU64::new(0),
            freed: Notify::new(),
            empty: Notify::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<ConnectionState>>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn len(&self) -> usize {
        self.lock().len()
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.clock.now().saturating_duration_since(self.epoch).as_millis()).unwrap_or(u64::MAX)
    }

    /// Resolves when no connection is left.
    pub(super) async fn emptied(&self) {
        loop {
            let mut emptied = std::pin::pin!(self.empty.notified());
            emptied.as_mut().enable();
            if self.lock().is_empty() {
                return;
            }
            emptied.await;
        }
    }

    /// Returns a slot for an accepted connection. At the limit one is evicted; while all are busy, this connection waits, and so do those
    /// behind it.
    pub(super) async fn take(self: &Arc<Self>, peer: Option<IpAddr>) -> ConnectionSlot {
        loop {
            let freed = self.freed.notified();
            if let Some(state) = self.try_take(peer) {
                return state;
            }
            self.evict_one();
            // The timeout is needed because a busy connection that becomes idle frees no slot.
            let _elapsed_or_freed = tokio::time::timeout(EVICTION_RETRY, freed).await;
        }
    }

    fn try_take(self: &Arc<Self>, peer: Option<IpAddr>) -> Option<ConnectionSlot> {
        let mut taken = self.lock();
        if taken.len() >= self.most {
            return None;
        }
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let state = Arc::new(ConnectionState::new(self, peer));
        if self.closing.load(Ordering::Acquire) {
            state.give_order(ConnectionOrder::Close);
        }
        taken.insert(id, state.clone());
        Some(ConnectionSlot { id, state, connections: self.clone() })
    }

    fn evict_one(&self) {
        let now_ms = self.now_ms();
        let taken = self.lock();
        let staying = || taken.values().filter(|state| state.current_order() != ConnectionOrder::Drop);
        let mut held = HashMap::<ConnectionOwner, usize>::new();
        staying().for_each(|state| *held.entry(state.owner()).or_default() += 1);
        let rank = |state: &Arc<ConnectionState>, since| {
            let is_first = !state.served.load(Ordering::Relaxed) || state.lingering.load(Ordering::Relaxed) > 0;
            (is_first, held.get(&state.owner()).copied(), Reverse(since))
        };
        let ranked = staying().filter_map(|state| Some((rank(state, state.evictable_since(now_ms)?), state)));
        if let Some((_, state)) = ranked.max_by_key(|(rank, _)| *rank) {
            state.give_order(ConnectionOrder::Drop);
        }
    }

    /// Evicts the caller's longest-waiting connection that waits only for its client, and returns its part of the share.
    fn evict_one_of(&self, caller: NonZeroU64) -> Option<HeldShare> {
        let now_ms = self.now_ms();
        let taken = self.lock();
        let own = taken.values().filter(|state| {
            state.owner() == ConnectionOwner::Caller(caller.get()) && state.current_order() != ConnectionOrder::Drop
        });
        let waiting = own.filter_map(|state| Some((state.evictable_since(now_ms)?, state)));
        let (_, state) = waiting.min_by_key(|(since, _)| *since)?;
        state.give_order(ConnectionOrder::Drop);
        state.share().take()
    }

    pub(super) fn drop_all(&self) {
        self.lock().values().for_each(|state| state.give_order(ConnectionOrder::Drop));
    }

    /// Tells all connections, and those still to come, to finish the requests in progress and close.
    pub(super) fn close(&self) {
        let taken = self.lock();
        self.closing.store(true, Ordering::Release);
        taken.values().for_each(|state| state.give_order(ConnectionOrder::Close));
    }

    /// Closes connections that are silent, slow, idle, stuck or too old, or whose client is gone.
    pub(super) fn sweep(&self, limits: &Limits, unread: &UnreadRequests) {
        let now_ms = self.now_ms();
        for state in self.lock().values() {
            state.enforce_limits(now_ms, limits).into_iter().for_each(|kind| unread.count(kind));
            state.request_client_check();
        }
    }
}
