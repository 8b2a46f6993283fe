//! Shares: several holders use one limited thing (bytes, requests, connections), and nobody can take all of it.
//!
//! Anyone may take what is free, but a part is always kept for those who have less. A holder within its share (limit
//! ÷ (holders + 1)) must leave free as much as it holds itself, up to a sixteenth of the limit. Beyond its share it
//! must leave an eighth of the limit, or a whole share if that is less. So a lone holder gets seven eighths, whoever
//! comes next finds room at once, and whatever is given back goes first to those below their share. While nobody
//! exceeds its share, everyone gets its share, because all shares together leave one share free.
//!
//! Nobody waits and nothing is locked: taking and giving back are two additions, one to the holder's count and one to
//! the common count.

mod bytes;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub use bytes::{CountedBytes, amount};

/// The common word holds the amount taken in its lower bits.
const AMOUNT_BITS: u32 = 44;
const AMOUNT_MASK: u64 = (1 << AMOUNT_BITS) - 1;
/// Above these bits is the number of holders that hold something. It may briefly be negative, because a holder's last
/// amount may be subtracted before its first was added.
const ONE_HOLDER: u64 = 1 << AMOUNT_BITS;

/// Divisor of the limit that gives the part which holders beyond their share must leave free.
const RESERVE: u64 = 8;

/// A limit that several holders share.
#[derive(Debug)]
pub struct SharedLimit {
    limit: AtomicU64,
    word: AtomicU64,
}

/// Why an amount was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shortage {
    /// The holder would exceed the maximum for one holder, however much is free.
    HolderMax,
    /// The holder would exceed its share, and what is free is kept for others.
    Share,
    /// Others hold it all.
    All,
}

impl SharedLimit {
    /// Creates a limit of this size.
    #[must_use]
    pub fn new(limit: u64) -> Arc<Self> {
        let shared = Self { limit: AtomicU64::new(0), word: AtomicU64::new(0) };
        shared.set_limit(limit);
        Arc::new(shared)
    }

    /// Changes the limit. Amounts held beyond a lower limit stay with their holders.
    pub fn set_limit(&self, limit: u64) {
        self.limit.store(limit.min(AMOUNT_MASK), Ordering::Relaxed);
    }

    /// The total that can be held.
    #[must_use]
    pub fn limit(&self) -> u64 {
        self.limit.load(Ordering::Relaxed)
    }

    /// The amount currently held.
    #[must_use]
    pub fn taken(&self) -> u64 {
        self.word.load(Ordering::Relaxed) & AMOUNT_MASK
    }

    /// Adds a holder, which holds nothing yet.
    #[must_use]
    pub fn holder(self: &Arc<Self>) -> Arc<ShareHolder> {
        Arc::new(ShareHolder { shared: self.clone(), held: AtomicU64::new(0), refused: AtomicU64::new(0) })
    }

    /// Whether a holder may take `more` and then hold `after`, given the common word.
    fn check(&self, word: u64, more: u64, after: u64) -> Result<(), Shortage> {
        let limit = self.limit();
        let holders = u64::try_from(word.cast_signed() >> AMOUNT_BITS).unwrap_or(0);
        let share = (limit / (holders + 1)).max(1);
        let reserve = share.min(limit / RESERVE);
        let kept = if after <= share { after.min(reserve / 2) } else { reserve };
        if (word & AMOUNT_MASK) + more + kept <= limit {
            return Ok(());
        }
        Err(if after > share && after > more { Shortage::Share } else { Shortage::All })
    }
}

/// A holder of parts of a shared limit.
#[derive(Debug)]
pub struct ShareHolder {
    shared: Arc<SharedLimit>,
    held: AtomicU64,
    refused: AtomicU64,
}

impl ShareHolder {
    /// Takes this amount, or nothing.
    ///
    /// # Errors
    /// Says whose share is used up.
    pub fn take(self: &Arc<Self>, amount: u64) -> Result<HeldShare, Shortage> {
        self.take_up_to(amount, u64::MAX)
    }

    /// Like [`ShareHolder::take`], for a holder that may hold at most `most`.
    ///
    /// # Errors
    /// Says whose share is used up.
    pub fn take_up_to(self: &Arc<Self>, amount: u64, most: u64) -> Result<HeldShare, Shortage> {
        self.admit(amount, most)?;
        Ok(HeldShare { holder: self.clone(), amount })
    }

    /// Holds this amount whether or not it fits, because it is held already.
    pub fn hold(self: &Arc<Self>, amount: u64) -> HeldShare {
        if amount > 0 {
            let entering = if self.held.fetch_add(amount, Ordering::Relaxed) == 0 { ONE_HOLDER } else { 0 };
            self.shared.word.fetch_add(amount.wrapping_add(entering), Ordering::Relaxed);
        }
        HeldShare { holder: self.clone(), amount }
    }

    /// The amount it holds.
    #[must_use]
    pub fn held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }

    /// How often it was refused.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    fn admit(&self, more: u64, most: u64) -> Result<(), Shortage> {
        let word = &self.shared.word;
        if more == 0 {
            return Ok(());
        }
        if more > AMOUNT_MASK {
            return Err(self.refuse(Shortage::All));
        }
        // Count first and judge afterwards, so that concurrent takes for the same holder see each other.
        let before = self.held.fetch_add(more, Ordering::Relaxed);
        let (after, entering) = (before + more, if before == 0 { ONE_HOLDER } else { 0 });
        let mut short = Shortage::HolderMax;
        let taken = word.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |word| {
            let word = word.wrapping_add(entering);
            let checked = if after > most { Err(Shortage::HolderMax) } else { self.shared.check(word, more, after) };
            checked.map(|()| word + more).map_err(|why| short = why).ok()
        });
        if taken.is_ok() {
            return Ok(());
        }
        let leaving = if self.held.fetch_sub(more, Ordering::Relaxed) == more { ONE_HOLDER } else { 0 };
        if entering != leaving {
            word.fetch_add(entering.wrapping_sub(leaving), Ordering::Relaxed);
        }
        Err(self.refuse(short))
    }

    fn refuse(&self, short: Shortage) -> Shortage {
        self.refused.fetch_add(1, Ordering::Relaxed);
        short
    }

    fn give_back(&self, amount: u64) {
        if amount == 0 {
            return;
        }
        let leaving = if self.held.fetch_sub(amount, Ordering::Relaxed) == amount { ONE_HOLDER } else { 0 };
        self.shared.word.fetch_sub(amount.wrapping_add(leaving), Ordering::Relaxed);
    }
}

/// A held amount, given back when dropped.
#[derive(Debug)]
pub struct HeldShare {
    holder: Arc<ShareHolder>,
    amount: u64,
}

impl HeldShare {
    /// The amount held.
    #[must_use]
    pub fn amount(&self) -> u64 {
        self.amount
    }

    /// Grows to `amount`, or not at all.
    ///
    /// # Errors
    /// Says whose share is used up.
    pub fn grow(&mut self, amount: u64) -> Result<(), Shortage> {
        self.holder.admit(amount.saturating_sub(self.amount), u64::MAX)?;
        self.amount = self.amount.max(amount);
        Ok(())
    }

    /// Gives back what exceeds `amount`.
    pub fn shrink(&mut self, amount: u64) {
        self.holder.give_back(self.amount.saturating_sub(amount));
        self.amount = self.amount.min(amount);
    }
}

impl Drop for HeldShare {
    fn drop(&mut self) {
        self.holder.give_back(self.amount);
    }
}

#[cfg(test)]
mod tests;
