//! One caller's permits on this replica: a part of its rate that the engine has granted, spent without asking anybody.
//!
//! Why all replicas together admit at most `burst + rate × t` in any time `t`: a permit lives for `T` from before it was asked for, so what
//! is spent within `t` was granted within `t + T`; and the engine's bucket holds `burst − rate × T`, so it grants at most
//! `burst − rate × T + rate × (t + T)` in that time. A request that waited for its own permit counts from the engine's word on.

use std::collections::VecDeque;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

/// How often a round begins: what a caller spent in one is what it asks for at once in the next.
pub(super) const ROUND: Duration = Duration::from_millis(100);
/// The longest life of a permit.
const LIFE_NANOS_MAX: u64 = 1_000_000_000;
/// The most time in which a bucket becomes full (73 years).
const WHOLE_NANOS_MAX: u64 = u64::MAX / 8;
/// The most permits that a caller asks for at once.
const PERMITS_MAX: u32 = 1_000_000;
/// The most requests of a caller that wait for permits.
const WAITING_MAX: usize = 1_024;

/// What a caller's rate means to the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PermitTerms {
    /// Time in which one permit comes, in nanoseconds.
    pub(super) step: u64,
    /// What the engine's bucket holds: this time's permits, in nanoseconds.
    pub(super) bucket: u64,
    /// How long a permit lives, in nanoseconds.
    life: u64,
}

impl PermitTerms {
    /// The terms of a rate: one request in each `interval`, and `burst` of them at once.
    #[must_use]
    pub fn new(interval: Duration, burst: NonZeroU32) -> Self {
        let burst = u64::from(burst.get());
        // The engine's time is in microseconds: a whole bucket must be one at least. And it adds such times to its clock.
        let step = u64::try_from(interval.as_nanos()).unwrap_or(u64::MAX);
        let step = step.clamp(1_000_u64.div_ceil(burst), WHOLE_NANOS_MAX);
        let whole = step * burst.min(WHOLE_NANOS_MAX / step);
        let life = LIFE_NANOS_MAX.min((whole - step) / 2);
        Self { step, bucket: whole - life, life }
    }

    /// How long a permit may be spent here, in microseconds: a hundredth less than it lives, because clocks do not run alike.
    const fn spent_within(&self) -> u64 {
        (self.life - self.life.div_ceil(100)) / 1_000
    }

    /// How many permits come in this time.
    fn permits_in(&self, nanos: u64) -> u32 {
        u32::try_from(nanos / self.step).unwrap_or(u32::MAX)
    }
}

/// What the engine says to a caller's demand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Granted {
    /// The number of permits.
    pub(super) permits: u32,
    /// Time until its bucket is full, in nanoseconds.
    pub(super) whole_in: u64,
}

/// The permits of one caller. All moments are microseconds since the machine's start.
#[derive(Debug)]
pub struct Purse {
    pub(super) caller: Arc<str>,
    pub(super) terms: PermitTerms,
    /// The older permits and the younger ones.
    batches: [AtomicU64; 2],
    /// Spent in this round.
    spent: AtomicU32,
    /// Spent in the last one.
    spent_before: AtomicU32,
    /// When the engine's bucket will be full, if nobody else asks.
    whole_at: AtomicU64,
    /// Whether it stands in the line of those that need permits.
    pub(super) is_wanting: AtomicBool,
    waiting: Mutex<VecDeque<oneshot::Sender<bool>>>,
}

impl Purse {
    pub(super) fn new(caller: Arc<str>, terms: PermitTerms) -> Self {
        Self {
            caller,
            terms,
            batches: Default::default(),
            spent: AtomicU32::new(0),
            spent_before: AtomicU32::new(0),
            whole_at: AtomicU64::new(0),
            is_wanting: AtomicBool::new(false),
            waiting: Mutex::default(),
        }
    }

    /// Spends a permit, if there is one.
    pub(super) fn take(&self, now: u64) -> bool {
        let one_less = |batch| {
            let batch = Batch::unpack(batch);
            (batch.left(now) > 0).then(|| Batch { permits: batch.permits - 1, ..batch }.pack())
        };
        let take = |batch: &AtomicU64| batch.fetch_update(Ordering::AcqRel, Ordering::Relaxed, one_less).is_ok();
        let taken = self.batches.iter().any(take);
        if taken {
            self.spent.fetch_add(1, Ordering::Relaxed);
        }
        taken
    }

    /// Adds permits. Only the task that asks the engine does.
    fn put(&self, permits: u32, until: u64, now: u64) {
        let [older, younger] = &self.batches;
        if Batch::unpack(older.load(Ordering::Acquire)).left(now) == 0 {
            // For a moment nobody sees these permits. Whoever comes then asks the engine.
            older.store(younger.swap(0, Ordering::AcqRel), Ordering::Release);
            younger.store(Batch { permits, until }.pack(), Ordering::Release);
            return;
        }
        let merged = |batch| {
            let batch = Batch::unpack(batch);
            let left = batch.left(now);
            let until = if left > 0 { batch.until } else { Batch { permits, until }.until };
            Some(Batch { permits: left.saturating_add(permits), until }.pack())
        };
        let _always = younger.fetch_update(Ordering::AcqRel, Ordering::Acquire, merged);
    }

    /// Number of permits that can be spent now.
    pub(super) fn left(&self, now: u64) -> u32 {
        self.batches
            .iter()
            .fold(0_u32, |sum, batch| sum.saturating_add(Batch::unpack(batch.load(Ordering::Acquire)).left(now)))
    }

    /// Time until the engine's bucket is full, in nanoseconds, as far as this replica knows.
    pub(super) fn whole_in(&self, now: u64) -> u64 {
        self.whole_at.load(Ordering::Acquire).saturating_sub(now).saturating_mul(1_000)
    }

    /// Time until the engine has a permit, in nanoseconds; 0 while it may have one.
    pub(super) fn next_in(&self, now: u64) -> u64 {
        self.whole_in(now).saturating_add(self.terms.step).saturating_sub(self.terms.bucket)
    }

    /// Number of requests that can be sent at once, as far as this replica knows.
    pub(super) fn known_left(&self, now: u64) -> u32 {
        let engine = self.terms.permits_in(self.terms.bucket.saturating_sub(self.whole_in(now)));
        engine.saturating_add(self.left(now))
    }

    /// Waits for a permit; `None`: too many do.
    pub(super) fn wait(&self) -> Option<oneshot::Receiver<bool>> {
        let mut waiting = self.waiting();
        if waiting.len() >= WAITING_MAX {
            waiting.retain(|one| !one.is_closed());
        }
        let (sender, receiver) = oneshot::channel();
        (waiting.len() < WAITING_MAX).then(|| {
            waiting.push_back(sender);
            receiver
        })
    }

    /// How many permits to ask for now that somebody may wait for one; 0: nobody does. Whoever spends many asks for as many.
    pub(super) fn demand(&self) -> u32 {
        let waiting = {
            let mut waiting = self.waiting();
            waiting.retain(|one| !one.is_closed());
            u32::try_from(waiting.len()).unwrap_or(u32::MAX)
        };
        if waiting == 0 {
            return 0;
        }
        let spent = self.spent_before.load(Ordering::Relaxed).max(self.spent.load(Ordering::Relaxed) / 2);
        waiting.max(self.spendable(spent)).min(PERMITS_MAX)
    }

    /// Of what was spent in a round, what can be spent before it dies.
    fn spendable(&self, spent: u32) -> u32 {
        let round = u64::try_from(ROUND.as_micros()).unwrap_or(u64::MAX);
        let part = u64::from(spent) * self.terms.spent_within().min(round) / round;
        u32::try_from(part).unwrap_or(u32::MAX)
    }

    /// A round is over. Returns how many permits to ask for, if the caller is likely to spend them; `None`: it is silent.
    pub(super) fn end_round(&self, now: u64) -> Option<u32> {
        let spent = self.spent.swap(0, Ordering::Relaxed);
        let before = self.spent_before.swap(spent, Ordering::Relaxed);
        let left = self.left(now);
        if spent == 0 && before == 0 && left == 0 {
            // Nothing that is dead is ever looked at again.
            self.batches.iter().for_each(|batch| batch.store(0, Ordering::Release));
            return None;
        }
        let likely = self.spendable(spent.min(before)).saturating_sub(left).min(PERMITS_MAX);
        Some(if self.next_in(now) == 0 { likely } else { 0 })
    }

    /// The engine's answer to what was sent at `sent`: first for those who wait, in order; the rest is for those who come. Returns whether
    /// somebody still waits.
    pub(super) fn answer(&self, granted: Granted, sent: u64, now: u64) -> bool {
        self.whole_at.store(now + granted.whole_in.div_ceil(1_000), Ordering::Release);
        let mut left = granted.permits;
        let mut waiting = self.waiting();
        while left > 0
            && let Some(one) = waiting.pop_front()
        {
            if one.send(true).is_ok() {
                left -= 1;
                self.spent.fetch_add(1, Ordering::Relaxed);
            }
        }
        if self.next_in(now) > 0 {
            // Whether asked for or not: the engine has nothing for them.
            for one in waiting.drain(..) {
                let _gone = one.send(false);
            }
        }
        let until = sent + self.terms.spent_within();
        if left > 0 && until > now {
            self.put(left, until, now);
        }
        !waiting.is_empty()
    }

    /// The engine did not answer: nobody here knows what is left.
    pub(super) fn give_up(&self) {
        self.waiting().clear();
    }

    fn waiting(&self) -> MutexGuard<'_, VecDeque<oneshot::Sender<bool>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Some permits and when they die, in one word: 20 bits and 44 bits, which come round after 200 days.
#[derive(Clone, Copy, Debug)]
struct Batch {
    permits: u32,
    until: u64,
}

impl Batch {
    const UNTIL_BITS: u32 = 44;
    const UNTIL: u64 = (1 << Self::UNTIL_BITS) - 1;
    const PERMITS_MAX: u32 = (1 << (u64::BITS - Self::UNTIL_BITS)) - 1;

    fn unpack(word: u64) -> Self {
        let permits = u32::try_from(word >> Self::UNTIL_BITS).unwrap_or(Self::PERMITS_MAX);
        Self { permits, until: word & Self::UNTIL }
    }

    fn pack(self) -> u64 {
        u64::from(self.permits.min(Self::PERMITS_MAX)) << Self::UNTIL_BITS | self.until & Self::UNTIL
    }

    /// Those that are not dead.
    const fn left(self, now: u64) -> u32 {
        let lives_for = self.until.wrapping_sub(now) & Self::UNTIL;
        if lives_for != 0 && lives_for <= Self::UNTIL / 2 { self.permits } else { 0 }
    }
}
