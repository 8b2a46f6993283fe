//! The connections of a door, so many at most: what each has been at, and since when.
//!
//! At the cap somebody gives way to who comes: first connections that never sent a request, then those that have none under way,
//! of whoever has the most connections, the one that has waited longest. Whose a connection is: its last caller's, once one
//! is known, else its peer's.

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

use crate::clock::Clock;
use crate::config::Limits;
use crate::shares::{HeldShare, ShareHolder, Shortage};

/// How often a newcomer looks for somebody who has become idle.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// A connection whose answers wait for its client, and for nothing else, may be asked to give way after this.
const UNTAKEN_MS: u64 = 1_000;
/// An idle connection that was told to leave has so long: over HTTP/2 it ends only when its client has confirmed that.
const LEAVE: Duration = Duration::from_secs(2);

/// What a connection is at while it has no request under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum IdlePhase {
    /// Nothing came yet: not accepted, in the TLS handshake, or silent.
    Silent = 0,
    /// A head has begun.
    Head = 1,
    /// Between two requests.
    Idle = 2,
}

/// What a connection is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(super) enum ConnectionOrder {
    Stay = 0,
    /// Finish what you are at and close.
    Leave = 1,
    /// You are dropped as you are.
    Gone = 2,
}

/// How much of a connection its client has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum ClientEnd {
    Nothing,
    /// It sends nothing more: a client that waits for its answer looks like one that closed its TCP socket.
    Half,
    /// Nothing that is written to it arrives any more: it was reset, or a Unix socket was closed.
    Whole,
}

/// What one connection is at.
#[derive(Debug)]
pub(super) struct ConnectionState {
    epoch: Instant,
    multiplexes: AtomicBool,
    phase: AtomicU8,
    since_ms: AtomicU64,
    born_ms: AtomicU64,
    busy: AtomicU32,
    /// Was it ever busy?
    served: AtomicBool,
    /// Over HTTP/2: answers that wait for the client, of which nothing was taken since `untaken_ms`.
    untaken: AtomicU32,
    untaken_ms: AtomicU64,
    /// Since when writing is stuck; 0: it is not.
    stuck_ms: AtomicU64,
    /// The first sweep that found it told to leave; 0: none did.
    leaving_ms: AtomicU64,
    peer: Option<IpAddr>,
    /// Whose the last request was whose caller became known; 0: there was none.
    caller: AtomicU64,
    /// What it takes of that caller's share of connections.
    place: Mutex<Option<HeldShare>>,
    connections: Weak<Connections>,
    word: AtomicU8,
    /// Is somebody still there who waits for an answer? To be looked at.
    doubted: AtomicBool,
    /// The answer under way has no end of its own.
    endless: AtomicBool,
    driver: AtomicWaker,
}

/// A connection has a request under way, or an answer that was not taken yet.
#[derive(Debug)]
pub struct BusyGuard {
    state: Arc<ConnectionState>,
    clock: Clock,
}

impl BusyGuard {
    /// The connection is this caller's from now on. Beyond its share, one of its others that waits for nothing but its client
    /// gives way.
    ///
    /// # Errors
    /// None does: the connection is to end with this request's answer.
    pub fn is_of(&self, caller: NonZeroU64, connections: &Arc<ShareHolder>) -> Result<(), Shortage> {
        let state = &self.state;
        if state.caller.load(Ordering::Relaxed) == caller.get() {
            return Ok(());
        }
        let given = connections.take(1).or_else(|short| {
            let given = state.connections.upgrade().and_then(|connections| connections.give_way_of(caller));
            given.ok_or_else(|| {
                state.tell(ConnectionOrder::Leave);
                short
            })
        });
        *state.place() = Some(given?);
        state.caller.store(caller.get(), Ordering::Relaxed);
        Ok(())
    }

    /// The answer has no end of its own: over HTTP/1.1 it ends when its client sends nothing more, or nobody would know that it left.
    pub fn is_endless(&self) {
        self.state.endless.store(true, Ordering::Relaxed);
    }
}

/// An HTTP/2 answer waits for its client.
pub(super) struct UntakenAnswer(Arc<ConnectionState>);

impl Drop for UntakenAnswer {
    fn drop(&mut self) {
        self.0.untaken.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Whose connections are counted together.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum ConnectionOwner {
    Caller(u64),
    Peer(Option<IpAddr>),
}

impl Drop for BusyGuard {
    fn drop(&mut self) {
        if self.state.busy.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.state.endless.store(false, Ordering::Relaxed);
            self.state.enter(IdlePhase::Idle, &self.clock);
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
            born_ms: AtomicU64::new(0),
            busy: AtomicU32::new(0),
            served: AtomicBool::new(false),
            untaken: AtomicU32::new(0),
            untaken_ms: AtomicU64::new(0),
            stuck_ms: AtomicU64::new(0),
            leaving_ms: AtomicU64::new(0),
            peer,
            caller: AtomicU64::new(0),
            place: Mutex::default(),
            connections: Arc::downgrade(connections),
            word: AtomicU8::new(ConnectionOrder::Stay as u8),
            doubted: AtomicBool::new(false),
            endless: AtomicBool::new(false),
            driver: AtomicWaker::new(),
        };
        state.enter(IdlePhase::Silent, clock);
        state.born_ms.store(state.at(clock), Ordering::Relaxed);
        state
    }

    fn at(&self, clock: &Clock) -> u64 {
        u64::try_from(clock.now().saturating_duration_since(self.epoch).as_millis()).unwrap_or(u64::MAX).max(1)
    }

    fn enter(&self, phase: IdlePhase, clock: &Clock) {
        self.since_ms.store(self.at(clock), Ordering::Relaxed);
        self.phase.store(phase as u8, Ordering::Relaxed);
    }

    /// The handshake is over; the silence counts anew.
    pub(super) fn shaken(&self, clock: &Clock) {
        self.enter(IdlePhase::Silent, clock);
    }

    /// HTTP/2: bytes between requests are no head (pings, window updates).
    pub(super) fn multiplexes(&self) {
        self.multiplexes.store(true, Ordering::Relaxed);
    }

    /// Bytes came. Between requests, they begin a head.
    pub(super) fn heard(&self, clock: &Clock) {
        let waiting =
            self.busy.load(Ordering::Relaxed) == 0 && self.phase.load(Ordering::Relaxed) != IdlePhase::Head as u8;
        if waiting && !self.multiplexes.load(Ordering::Relaxed) {
            self.enter(IdlePhase::Head, clock);
        }
    }

    /// Something was written, or could not be (`stuck`).
    pub(super) fn wrote(&self, stuck: bool, clock: &Clock) {
        let known = self.stuck_ms.load(Ordering::Relaxed);
        if stuck && known == 0 {
            self.stuck_ms.store(self.at(clock), Ordering::Relaxed);
        } else if !stuck && known != 0 {
            self.stuck_ms.store(0, Ordering::Relaxed);
            // The end of an answer that left hyper's hands long ago: it is idle only from now on.
            if self.busy.load(Ordering::Relaxed) == 0 {
                self.since_ms.store(self.at(clock), Ordering::Relaxed);
            }
        }
    }

    /// An answer waits for the client from now on, until this is dropped.
    pub(super) fn untaken(self: &Arc<Self>, clock: &Clock) -> UntakenAnswer {
        self.untaken_ms.store(self.at(clock), Ordering::Relaxed);
        self.untaken.fetch_add(1, Ordering::AcqRel);
        UntakenAnswer(self.clone())
    }

    fn place(&self) -> MutexGuard<'_, Option<HeldShare>> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn user(&self) -> ConnectionOwner {
        match self.caller.load(Ordering::Relaxed) {
            0 => ConnectionOwner::Peer(self.peer),
            caller => ConnectionOwner::Caller(caller),
        }
    }

    pub(super) fn busy(self: &Arc<Self>, clock: &Clock) -> BusyGuard {
        self.busy.fetch_add(1, Ordering::AcqRel);
        self.served.store(true, Ordering::Relaxed);
        BusyGuard { state: self.clone(), clock: clock.clone() }
    }

    /// Tells the connection; a harder word is never taken back.
    fn tell(&self, word: ConnectionOrder) {
        self.word.fetch_max(word as u8, Ordering::AcqRel);
        self.driver.wake();
    }

    /// What it was told.
    fn told(&self) -> ConnectionOrder {
        match self.word.load(Ordering::Acquire) {
            word if word >= ConnectionOrder::Gone as u8 => ConnectionOrder::Gone,
            word if word == ConnectionOrder::Leave as u8 => ConnectionOrder::Leave,
            _ => ConnectionOrder::Stay,
        }
    }

    /// What it was told; whoever drives the connection is woken when it is told more. One driver at a time.
    pub(super) fn listen(&self, cx: &Context<'_>) -> ConnectionOrder {
        self.driver.register(cx.waker());
        self.told()
    }

    /// Resolves when the connection is to be dropped as it is.
    pub(super) async fn gone(&self) {
        poll_fn(|cx| if self.listen(cx) == ConnectionOrder::Gone { Poll::Ready(()) } else { Poll::Pending }).await;
    }

    /// Is it to be looked whether somebody still waits for the answer? Says so once for each sweep.
    pub(super) fn is_doubted(&self) -> bool {
        self.doubted.load(Ordering::Relaxed) && self.doubted.swap(false, Ordering::Relaxed)
    }

    /// How much of the connection its client has ended when nobody waits for the answer.
    pub(super) fn is_left_at(&self) -> ClientEnd {
        if self.endless.load(Ordering::Relaxed) { ClientEnd::Half } else { ClientEnd::Whole }
    }

    /// Over HTTP/1.1 nothing is read while an answer is owed: somebody must ask whether it still is. HTTP/2 reads at all times.
    fn doubt(&self) {
        if !self.multiplexes.load(Ordering::Relaxed) && self.busy.load(Ordering::Acquire) > 0 {
            self.doubted.store(true, Ordering::Relaxed);
            self.driver.wake();
        }
    }

    /// Since when it has had no request under way; `None`: it has one.
    fn waiting_since(&self) -> Option<u64> {
        (self.busy.load(Ordering::Acquire) == 0).then(|| self.since_ms.load(Ordering::Relaxed))
    }

    /// Since when nothing but its client was waited for; `None`: it has work under way.
    fn may_give_way(&self, now_ms: u64) -> Option<u64> {
        let stuck = self.stuck_ms.load(Ordering::Relaxed);
        let busy = self.busy.load(Ordering::Acquire);
        let waits = match busy {
            0 => return Some(self.since_ms.load(Ordering::Relaxed)),
            _ if stuck != 0 => stuck,
            _ if busy <= self.untaken.load(Ordering::Acquire) => self.untaken_ms.load(Ordering::Relaxed),
            _ => return None,
        };
        (now_ms.saturating_sub(waits) > UNTAKEN_MS).then_some(waits)
    }

    fn judge(&self, now_ms: u64, limits: &Limits) {
        let over = |since: u64, limit: Duration| {
            now_ms.saturating_sub(since) > u64::try_from(limit.as_millis()).unwrap_or(u64::MAX)
        };
        let born = self.born_ms.load(Ordering::Relaxed);
        let stuck = self.stuck_ms.load(Ordering::Relaxed);
        if (stuck != 0 && over(stuck, limits.write_stall)) || over(born, limits.age.saturating_add(limits.age_grace)) {
            return self.tell(ConnectionOrder::Gone);
        }
        if self.told() == ConnectionOrder::Leave && self.leaving_ms.load(Ordering::Relaxed) == 0 {
            self.leaving_ms.store(now_ms, Ordering::Relaxed);
        }
        let phase = self.phase.load(Ordering::Relaxed);
        // While the end of an answer is on its way, how long that takes is bounded by `write_stall`.
        if let Some(since) = self.waiting_since().filter(|_| stuck == 0) {
            let (since, limit) = match (phase, self.leaving_ms.load(Ordering::Relaxed)) {
                (p, _) if p == IdlePhase::Silent as u8 => (since, limits.first_byte),
                (p, _) if p == IdlePhase::Head as u8 => (since, limits.head),
                (_, 0) => (since, limits.idle),
                (_, leaving) => (since.max(leaving), LEAVE.min(limits.idle)),
            };
            if over(since, limit) {
                // An idle connection is told; a silent or slow one is dropped.
                let is_new = phase == IdlePhase::Idle as u8 && self.told() == ConnectionOrder::Stay;
                self.tell(if is_new { ConnectionOrder::Leave } else { ConnectionOrder::Gone });
            }
        }
        if over(born, limits.age) {
            self.tell(ConnectionOrder::Leave);
        }
    }
}

/// All connections of a door.
pub(super) struct Connections {
    most: usize,
    epoch: Instant,
    clock: Clock,
    taken: Mutex<HashMap<u64, Arc<ConnectionState>>>,
    /// Nobody is to stay.
    closing: AtomicBool,
    next: AtomicU64,
    freed: Notify,
    empty: Notify,
}

/// A connection's place among them; dropping it frees it.
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
        *self.state.place() = None;
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

    /// Resolves when there is no connection left.
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

    /// A place for a connection that was accepted. At the cap somebody gives way; while all are busy the newcomer waits, and so
    /// does everybody behind it.
    pub(super) async fn take(self: &Arc<Self>, peer: Option<IpAddr>) -> ConnectionSlot {
        loop {
            let freed = self.freed.notified();
            if let Some(state) = self.try_take(peer) {
                return state;
            }
            self.give_way();
            // Bounded, because a busy connection that becomes idle frees no place by itself.
            let _elapsed_or_freed = tokio::time::timeout(LOOK_AGAIN, freed).await;
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
            state.tell(ConnectionOrder::Leave);
        }
        taken.insert(id, state.clone());
        Some(ConnectionSlot { id, state, connections: self.clone() })
    }

    fn give_way(&self) {
        let now_ms = self.now_ms();
        let taken = self.lock();
        let staying = || taken.values().filter(|state| state.told() != ConnectionOrder::Gone);
        let mut held = HashMap::<ConnectionOwner, usize>::new();
        staying().for_each(|state| *held.entry(state.user()).or_default() += 1);
        let rank = |state: &Arc<ConnectionState>, since| {
            let is_new = !state.served.load(Ordering::Relaxed);
            (is_new, held.get(&state.user()).copied(), Reverse(since))
        };
        let ranked = staying().filter_map(|state| Some((rank(state, state.may_give_way(now_ms)?), state)));
        if let Some((_, state)) = ranked.max_by_key(|(rank, _)| *rank) {
            state.tell(ConnectionOrder::Gone);
        }
    }

    /// Of this caller's connections that wait for nothing but their client, the one that has waited longest gives way; its place.
    fn give_way_of(&self, caller: NonZeroU64) -> Option<HeldShare> {
        let now_ms = self.now_ms();
        let taken = self.lock();
        let own = taken.values().filter(|state| {
            state.user() == ConnectionOwner::Caller(caller.get()) && state.told() != ConnectionOrder::Gone
        });
        let waiting = own.filter_map(|state| Some((state.may_give_way(now_ms)?, state)));
        let (_, state) = waiting.min_by_key(|(since, _)| *since)?;
        state.tell(ConnectionOrder::Gone);
        state.place().take()
    }

    /// Drops all connections.
    pub(super) fn cut(&self) {
        self.lock().values().for_each(|state| state.tell(ConnectionOrder::Gone));
    }

    /// Lets all connections, and whoever still comes, finish what they are at and close.
    pub(super) fn close(&self) {
        let taken = self.lock();
        self.closing.store(true, Ordering::Release);
        taken.values().for_each(|state| state.tell(ConnectionOrder::Leave));
    }

    /// Closes who is silent, slow, idle, stuck or old beyond the limits, or gone.
    pub(super) fn sweep(&self, limits: &Limits) {
        let now_ms = self.now_ms();
        for state in self.lock().values() {
            state.judge(now_ms, limits);
            state.doubt();
        }
    }
}
