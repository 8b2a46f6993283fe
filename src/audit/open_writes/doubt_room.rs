//! The room for open writes. A write in doubt stays until somebody settles it, so callers share the room: one whose
//! writes all end in doubt runs out of its own share, and the others go on writing.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::shares::{HeldShare, ShareHolder, SharedLimit, Shortage};

/// The limit until a configuration sets `limits.doubts`.
const DEFAULT_LIMIT: u64 = 10_000;

/// How many writes may be open at once, and what each caller holds of that. It is known by names and not by the
/// configured callers, because a doubt outlives its caller's configuration and the process.
#[derive(Debug)]
pub struct DoubtRoom {
    shared: Arc<SharedLimit>,
    holders: Mutex<HashMap<Arc<str>, Arc<ShareHolder>>>,
}

impl Default for DoubtRoom {
    fn default() -> Self {
        Self { shared: SharedLimit::new(DEFAULT_LIMIT), holders: Mutex::default() }
    }
}

impl DoubtRoom {
    /// Changes the limit. Writes that are open beyond a lower limit stay open.
    pub fn set_limit(&self, limit: u64) {
        self.shared.set_limit(limit);
    }

    /// Whether a caller that holds most of the room is refused more.
    #[must_use]
    pub fn is_nearly_full(&self) -> bool {
        let limit = self.shared.limit();
        self.shared.taken() + limit / 8 >= limit
    }

    /// How much of the room is taken, and how much there is.
    #[must_use]
    pub fn load(&self) -> (u64, u64) {
        (self.shared.taken(), self.shared.limit())
    }

    /// Takes room for one more write of this caller.
    ///
    /// # Errors
    /// Says whose share is used up.
    pub(crate) fn take(&self, caller: &str) -> Result<HeldShare, Shortage> {
        self.holder(caller).take(1)
    }

    /// Room for a write that is open already.
    pub(crate) fn hold(&self, caller: &str) -> HeldShare {
        self.holder(caller).hold(1)
    }

    fn holder(&self, caller: &str) -> Arc<ShareHolder> {
        let mut holders = self.holders.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(holder) = holders.get(caller) {
            return holder.clone();
        }
        let holder = self.shared.holder();
        holders.insert(caller.into(), holder.clone());
        holder
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_full_of_doubts_leaves_room_for_others_also_after_a_restart() {
        let (room, again) = (DoubtRoom::default(), DoubtRoom::default());
        [&room, &again].iter().for_each(|room| room.set_limit(64));
        let held: Vec<_> = std::iter::from_fn(|| room.take("a").ok()).collect();
        let _kept: Vec<_> = held.iter().map(|_| again.hold("a")).collect();
        for room in [&room, &again] {
            assert_eq!((held.len(), room.take("a").unwrap_err(), room.is_nearly_full()), (56, Shortage::Share, true));
            drop((room.take("b").unwrap(), room.take("c").unwrap()));
        }
        drop(held);
        assert!(room.take("a").is_ok() && !room.is_nearly_full());
    }
}
