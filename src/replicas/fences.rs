//! Fences over all replicas (promise 3): which of them this replica has applied.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

/// Why fences are raised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FenceKind {
    /// An operator's purge, or a new token.
    Purge,
    /// A write took effect, or may have.
    Settled,
    /// A write may take effect for this long.
    InDoubt(Duration),
}

impl FenceKind {
    /// As the engine stores it.
    pub(super) fn to_engine(self) -> Option<i32> {
        match self {
            Self::Settled => None,
            Self::Purge => Some(-1),
            Self::InDoubt(doubt) => Some(i32::try_from(doubt.as_millis()).unwrap_or(i32::MAX)),
        }
    }

    /// Undoes [`Self::to_engine`].
    pub(super) fn of_engine(stored: Option<i32>) -> Self {
        match stored {
            None => Self::Settled,
            Some(doubt_ms) => {
                u64::try_from(doubt_ms).map_or(Self::Purge, |ms| Self::InDoubt(Duration::from_millis(ms)))
            }
        }
    }
}

/// What fences guard: this replica's memory.
pub trait FenceTarget: Send + Sync {
    /// Raises the fences of these tags (none: everything).
    fn raise(&self, tags: &[String], kind: FenceKind);
    /// Fences everything, because this replica may have missed fences. What is fetched from now on may still lag.
    fn raise_all(&self);
}

/// Which fences of the engine's order this replica has applied.
#[derive(Default)]
pub(super) struct AppliedFences {
    target: OnceLock<Arc<dyn FenceTarget>>,
    state: Mutex<AppliedState>,
}

#[derive(Debug, Default)]
struct AppliedState {
    /// All up to this one.
    upto: i64,
    /// Raised here, so they are not applied again.
    own: BTreeSet<i64>,
}

impl std::fmt::Debug for AppliedFences {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("AppliedFences").field(&self.state).finish()
    }
}

impl AppliedFences {
    fn state(&self) -> MutexGuard<'_, AppliedState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_target(&self, target: Arc<dyn FenceTarget>) {
        let _already_set = self.target.set(target);
    }

    /// The place up to which all fences are applied.
    pub(super) fn upto(&self) -> i64 {
        self.state().upto
    }

    /// This replica joined when `head` was the newest place.
    pub(super) fn joined(&self, head: i64) {
        if let Some(target) = self.target.get() {
            target.raise_all();
        }
        *self.state() = AppliedState { upto: head, own: BTreeSet::new() };
    }

    /// Applies the fence at this place if it is the next one. Returns false if others come before it.
    pub(super) fn take(&self, place: i64, tags: &[String], kind: FenceKind) -> bool {
        let mut state = self.state();
        if place <= state.upto {
            return true;
        }
        if place != state.upto + 1 {
            return false;
        }
        if !state.own.remove(&place)
            && let Some(target) = self.target.get()
        {
            target.raise(tags, kind);
        }
        state.upto = place;
        true
    }
}
