//! The seats of a door: one for each connection, with what it has been at since when.
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
use crate::shares::{Held, Holder, Short};

/// How often a newcomer looks for somebody who has become idle.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// A connection whose answers wait for its client, and for nothing else, may be asked to give way after this.
const UNTAKEN_MS: u64 = 1_000;
/// An idle connection that was told to leave has so long: over HTTP/2 it ends only when its client has confirmed that.
const LEAVE: Duration = Duration::from_secs(2);

/// What a connection is at while it has no request under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Phase {
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
pub(super) enum Word {
    /// Nothing.
    Stay = 0,
    /// Finish what you are at and close.
    Leave = 1,
    /// You are dropped as you are.
    Gone = 2,
}

/// How much of a connection its client has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Ended {
    Nothing,
    /// It sends nothing more. A client that still waits for its answer may do so, and one that closes its TCP socket looks the same
    /// until something is written to it.
    Half,
    /// Nothing that is written to it arrives any more: it was reset, or a Unix socket was closed.
    Whole,
}

/// One connection's seat.
#[derive(Debug)]
pub(super) struct Seat {
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
    place: Mutex<Option<Held>>,
    seats: Weak<Seats>,
    word: AtomicU8,
    /// Is somebody still there who waits for an answer? To be looked at.
    doubted: AtomicBool,
    /// The answer under way has no end of its own.
    endless: AtomicBool,
    /// Who drives the connection.
    driver: AtomicWaker,
}

/// A connection has a request under way, or an answer that was not taken yet.
#[derive(Debug)]
pub struct Busy {
    seat: Arc<Seat>,
    clock: Clock,
}

impl Busy {
    /// The connection is this caller's from now on. Beyond its share, one of its others that waits for nothing but its client
    /// gives way.
    ///
    /// # Errors
    /// None does: the connection is to end with this request's answer.
    pub fn is_of(&self, caller: NonZeroU64, connections: &Arc<Holder>) -> Result<(), Short> {
        let seat = &self.seat;
        if seat.caller.load(Ordering::Relaxed) == caller.get() {
            return Ok(());
        }
        let given = connections.take(1).or_else(|short| {
            let given = seat.seats.upgrade().and_then(|seats| seats.give_way_of(caller));
            given.ok_or_else(|| {
                seat.tell(Word::Leave);
                short
            })
        });
        *seat.place() = Some(given?);
        seat.caller.store(caller.get(), Ordering::Relaxed);
        Ok(())
    }

    /// The answer has no end of its own: over HTTP/1.1 it ends when its client sends nothing more, or nobody would know that it left.
    pub fn is_endless(&self) {
        self.seat.endless.store(true, Ordering::Relaxed);
    }
}

/// An HTTP/2 answer waits for its client.
pub(super) struct Untaken(Arc<Seat>);

impl Drop for Untaken {
    fn drop(&mut self) {
        self.0.untaken.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Whose connections are counted together.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum User {
    Caller(u64),
    Peer(Option<IpAddr>),
}

impl Drop for Busy {
    fn drop(&mut self) {
        if self.seat.busy.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.seat.endless.store(false, Ordering::Relaxed);
            self.seat.enter(Phase::Idle, &self.clock);
        }
    }
}

impl Seat {
    fn new(seats: &Arc<Seats>, peer: Option<IpAddr>) -> Self {
        let (epoch, clock) = (seats.epoch, &seats.clock);
        let seat = Self {
            epoch,
            multiplexes: AtomicBool::new(false),
            phase: AtomicU8::new(Phase::Silent as u8),
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
            seats: Arc::downgrade(seats),
            word: AtomicU8::new(Word::Stay as u8),
            doubted: AtomicBool::new(false),
            endless: AtomicBool::new(false),
            driver: AtomicWaker::new(),
        };
        seat.enter(Phase::Silent, clock);
        seat.born_ms.store(seat.at(clock), Ordering::Relaxed);
        seat
    }

    fn at(&self, clock: &Clock) -> u64 {
        u64::try_from(clock.now().saturating_duration_since(self.epoch).as_millis()).unwrap_or(u64::MAX).max(1)
    }

    fn enter(&self, phase: Phase, clock: &Clock) {
        self.since_ms.store(self.at(clock), Ordering::Relaxed);
        self.phase.store(phase as u8, Ordering::Relaxed);
    }

    /// The handshake is over; the silence counts anew.
    pub(super) fn shaken(&self, clock: &Clock) {
        self.enter(Phase::Silent, clock);
    }

    /// HTTP/2: bytes between requests are no head (pings, window updates).
    pub(super) fn multiplexes(&self) {
        self.multiplexes.store(true, Ordering::Relaxed);
    }

    /// Bytes came. Between requests, they begin a head.
    pub(super) fn heard(&self, clock: &Clock) {
        let waiting = self.busy.load(Ordering::Relaxed) == 0 && self.phase.load(Ordering::Relaxed) != Phase::Head as u8;
        if waiting && !self.multiplexes.load(Ordering::Relaxed) {
            self.enter(Phase::Head, clock);
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
    pub(super) fn untaken(self: &Arc<Self>, clock: &Clock) -> Untaken {
        self.untaken_ms.store(self.at(clock), Ordering::Relaxed);
        self.untaken.fetch_add(1, Ordering::AcqRel);
        Untaken(self.clone())
    }

    fn place(&self) -> MutexGuard<'_, Option<Held>> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn user(&self) -> User {
        match self.caller.load(Ordering::Relaxed) {
            0 => User::Peer(self.peer),
            caller => User::Caller(caller),
        }
    }

    pub(super) fn busy(self: &Arc<Self>, clock: &Clock) -> Busy {
        self.busy.fetch_add(1, Ordering::AcqRel);
        self.served.store(true, Ordering::Relaxed);
        Busy { seat: self.clone(), clock: clock.clone() }
    }

    /// Tells the connection; a harder word is never taken back.
    fn tell(&self, word: Word) {
        self.word.fetch_max(word as u8, Ordering::AcqRel);
        self.driver.wake();
    }

    /// What it was told.
    fn told(&self) -> Word {
        match self.word.load(Ordering::Acquire) {
            word if word >= Word::Gone as u8 => Word::Gone,
            word if word == Word::Leave as u8 => Word::Leave,
            _ => Word::Stay,
        }
    }

    /// What it was told; whoever drives the connection is woken when it is told more. One driver at a time.
    pub(super) fn listen(&self, cx: &Context<'_>) -> Word {
        self.driver.register(cx.waker());
        self.told()
    }

    /// Resolves when the connection is to be dropped as it is.
    pub(super) async fn gone(&self) {
        poll_fn(|cx| if self.listen(cx) == Word::Gone { Poll::Ready(()) } else { Poll::Pending }).await;
    }

    /// Is it to be looked whether somebody still waits for the answer? Says so once for each sweep.
    pub(super) fn is_doubted(&self) -> bool {
        self.doubted.load(Ordering::Relaxed) && self.doubted.swap(false, Ordering::Relaxed)
    }

    /// How much of the connection its client has ended when nobody waits for the answer.
    pub(super) fn is_left_at(&self) -> Ended {
        if self.endless.load(Ordering::Relaxed) { Ended::Half } else { Ended::Whole }
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
            return self.tell(Word::Gone);
        }
        if self.told() == Word::Leave && self.leaving_ms.load(Ordering::Relaxed) == 0 {
            self.leaving_ms.store(now_ms, Ordering::Relaxed);
        }
        let phase = self.phase.load(Ordering::Relaxed);
        // While the end of an answer is on its way, how long that takes is bounded by `write_stall`.
        if let Some(since) = self.waiting_since().filter(|_| stuck == 0) {
            let (since, limit) = match (phase, self.leaving_ms.load(Ordering::Relaxed)) {
                (p, _) if p == Phase::Silent as u8 => (since, limits.first_byte),
                (p, _) if p == Phase::Head as u8 => (since, limits.head),
                (_, 0) => (since, limits.idle),
                (_, leaving) => (since.max(leaving), LEAVE.min(limits.idle)),
            };
            if over(since, limit) {
                // An idle connection is told; a silent or slow one is dropped.
                let is_new = phase == Phase::Idle as u8 && self.told() == Word::Stay;
                self.tell(if is_new { Word::Leave } else { Word::Gone });
            }
        }
        if over(born, limits.age) {
            self.tell(Word::Leave);
        }
    }
}

/// All seats of a door.
pub(super) struct Seats {
    most: usize,
    epoch: Instant,
    clock: Clock,
    taken: Mutex<HashMap<u64, Arc<Seat>>>,
    /// Nobody is to stay.
    closing: AtomicBool,
    next: AtomicU64,
    freed: Notify,
    empty: Notify,
}

/// A taken seat; dropping it frees it.
pub(super) struct Taken {
    id: u64,
    seat: Arc<Seat>,
    seats: Arc<Seats>,
}

impl Taken {
    pub(super) fn seat(&self) -> &Arc<Seat> {
        &self.seat
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        *self.seat.place() = None;
        let mut taken = self.seats.lock();
        taken.remove(&self.id);
        self.seats.freed.notify_one();
        if taken.is_empty() {
            self.seats.empty.notify_waiters();
        }
    }
}

impl Seats {
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

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<Seat>>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn len(&self) -> usize {
        self.lock().len()
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.clock.now().saturating_duration_since(self.epoch).as_millis()).unwrap_or(u64::MAX)
    }

    /// Resolves when no seat is taken.
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

    /// A seat for a connection that was accepted. At the cap somebody gives way; while all are busy the newcomer waits, and so
    /// does everybody behind it.
    pub(super) async fn take(self: &Arc<Self>, peer: Option<IpAddr>) -> Taken {
        loop {
            let freed = self.freed.notified();
            if let Some(seat) = self.try_take(peer) {
                return seat;
            }
            self.give_way();
            // Bounded, because a busy connection that becomes idle frees no seat by itself.
            let _elapsed_or_freed = tokio::time::timeout(LOOK_AGAIN, freed).await;
        }
    }

    fn try_take(self: &Arc<Self>, peer: Option<IpAddr>) -> Option<Taken> {
        let mut taken = self.lock();
        if taken.len() >= self.most {
            return None;
        }
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let seat = Arc::new(Seat::new(self, peer));
        if self.closing.load(Ordering::Acquire) {
            seat.tell(Word::Leave);
        }
        taken.insert(id, seat.clone());
        Some(Taken { id, seat, seats: self.clone() })
    }

    fn give_way(&self) {
        let now_ms = self.now_ms();
        let taken = self.lock();
        let staying = || taken.values().filter(|seat| seat.told() != Word::Gone);
        let mut held = HashMap::<User, usize>::new();
        staying().for_each(|seat| *held.entry(seat.user()).or_default() += 1);
        let rank = |seat: &Arc<Seat>, since| {
            let is_new = !seat.served.load(Ordering::Relaxed);
            (is_new, held.get(&seat.user()).copied(), Reverse(since))
        };
        let ranked = staying().filter_map(|seat| Some((rank(seat, seat.may_give_way(now_ms)?), seat)));
        if let Some((_, seat)) = ranked.max_by_key(|(rank, _)| *rank) {
            seat.tell(Word::Gone);
        }
    }

    /// Of this caller's connections that wait for nothing but their client, the one that has waited longest gives way; its place.
    fn give_way_of(&self, caller: NonZeroU64) -> Option<Held> {
        let now_ms = self.now_ms();
        let taken = self.lock();
        let own = taken.values().filter(|seat| seat.user() == User::Caller(caller.get()) && seat.told() != Word::Gone);
        let waiting = own.filter_map(|seat| Some((seat.may_give_way(now_ms)?, seat)));
        let (_, seat) = waiting.min_by_key(|(since, _)| *since)?;
        seat.tell(Word::Gone);
        seat.place().take()
    }

    /// Drops all connections.
    pub(super) fn cut(&self) {
        self.lock().values().for_each(|seat| seat.tell(Word::Gone));
    }

    /// Lets all connections, and whoever still comes, finish what they are at and close.
    pub(super) fn close(&self) {
        let taken = self.lock();
        self.closing.store(true, Ordering::Release);
        taken.values().for_each(|seat| seat.tell(Word::Leave));
    }

    /// Closes who is silent, slow, idle, stuck or old beyond the limits, or gone.
    pub(super) fn sweep(&self, limits: &Limits) {
        let now_ms = self.now_ms();
        for seat in self.lock().values() {
            seat.judge(now_ms, limits);
            seat.doubt();
        }
    }
}
