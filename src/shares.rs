//! Shares: one limited thing (bytes, requests, connections), several holders, and nobody who can take all of it.
//!
//! What is free, anybody may take; but a part of it is always kept for whoever has less. A holder within its share
//! (limit ÷ (holders + 1)) leaves as much as it holds itself, up to a sixteenth of the limit; beyond its share it leaves an
//! eighth, or a whole share where that is less. So a lone holder gets seven eighths, whoever comes then finds room at once,
//! and of all that is given back those below their share are served first. While nobody is beyond its share, everybody is
//! given its share: the holders' shares together leave one share free.
//!
//! Nobody waits and nothing is locked: taking and giving back are two additions, one to the holder's count and one to the
//! common one.

mod bytes;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub use bytes::{CountedBytes, amount};

/// The common word holds the amount taken in its lower bits...
const AMOUNT_BITS: u32 = 44;
const AMOUNT_MASK: u64 = (1 << AMOUNT_BITS) - 1;
/// ...and above them how many holders hold something. For a moment that may be less than nothing: a holder's last amount may be
/// counted out before its first was counted in.
const ONE_HOLDER: u64 = 1 << AMOUNT_BITS;

/// What part of the limit holders beyond their share leave free.
const RESERVE: u64 = 8;

/// A limited thing that holders share.
#[derive(Debug)]
pub struct SharedLimit {
    limit: AtomicU64,
    word: AtomicU64,
}

/// Why an amount is not given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shortage {
    /// The holder would have more than any one may have, however much is free.
    Most,
    /// The holder would be beyond its share, and what is free is kept for others.
    Share,
    /// The others hold it.
    All,
}

impl SharedLimit {
    /// So much in all.
    #[must_use]
    pub fn new(limit: u64) -> Arc<Self> {
        let shared = Self { limit: AtomicU64::new(0), word: AtomicU64::new(0) };
        shared.set_limit(limit);
        Arc::new(shared)
    }

    /// Another limit from now on. What is held beyond it stays with its holders.
    pub fn set_limit(&self, limit: u64) {
        self.limit.store(limit.min(AMOUNT_MASK), Ordering::Relaxed);
    }

    /// So much there is in all.
    #[must_use]
    pub fn limit(&self) -> u64 {
        self.limit.load(Ordering::Relaxed)
    }

    /// So much is taken.
    #[must_use]
    pub fn taken(&self) -> u64 {
        self.word.load(Ordering::Relaxed) & AMOUNT_MASK
    }

    /// A further holder, of nothing yet.
    #[must_use]
    pub fn holder(self: &Arc<Self>) -> Arc<ShareHolder> {
        Arc::new(ShareHolder { shared: self.clone(), held: AtomicU64::new(0), refused: AtomicU64::new(0) })
    }

    /// May a holder who then has `after` take `more`, while the common word is `word`?
    fn judge(&self, word: u64, more: u64, after: u64) -> Result<(), Shortage> {
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

/// One that takes of it.
#[derive(Debug)]
pub struct ShareHolder {
    shared: Arc<SharedLimit>,
    held: AtomicU64,
    refused: AtomicU64,
}

impl ShareHolder {
    /// Takes so much, or nothing.
    ///
    /// # Errors
    /// Whose share is used up.
    pub fn take(self: &Arc<Self>, amount: u64) -> Result<HeldShare, Shortage> {
        self.take_up_to(amount, u64::MAX)
    }

    /// The same of a holder who may have no more than `most`.
    ///
    /// # Errors
    /// Whose share is used up.
    pub fn take_up_to(self: &Arc<Self>, amount: u64, most: u64) -> Result<HeldShare, Shortage> {
        self.admit(amount, most)?;
        Ok(HeldShare { holder: self.clone(), amount })
    }

    /// So much it holds.
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
        // Counted before it is judged, so that two who take at the same time for the same holder know of one another.
        let before = self.held.fetch_add(more, Ordering::Relaxed);
        let (after, entering) = (before + more, if before == 0 { ONE_HOLDER } else { 0 });
        let mut short = Shortage::Most;
        let taken = word.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |word| {
            let word = word.wrapping_add(entering);
            let judged = if after > most { Err(Shortage::Most) } else { self.shared.judge(word, more, after) };
            judged.map(|()| word + more).map_err(|why| short = why).ok()
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

/// What was taken; given back when dropped.
#[derive(Debug)]
pub struct HeldShare {
    holder: Arc<ShareHolder>,
    amount: u64,
}

impl HeldShare {
    /// So much.
    #[must_use]
    pub fn amount(&self) -> u64 {
        self.amount
    }

    /// Takes what is missing to `amount`, or nothing.
    ///
    /// # Errors
    /// Whose share is used up.
    pub fn grow(&mut self, amount: u64) -> Result<(), Shortage> {
        self.holder.admit(amount.saturating_sub(self.amount), u64::MAX)?;
        self.amount = self.amount.max(amount);
        Ok(())
    }

    /// Gives back what is more than `amount`.
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
