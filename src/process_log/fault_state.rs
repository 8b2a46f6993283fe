//! Tracks a fault that lasts for a while: when it began and when it ended.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A fault that is ongoing or not. Everybody who notices it may report it; only the first report begins it, and only
/// the first report after it ends it.
#[derive(Debug, Default)]
pub struct FaultState(Mutex<Option<Instant>>);

impl FaultState {
    /// Reports the fault. `true` if it begins now.
    pub fn begin(&self, now: Instant) -> bool {
        let mut since = self.held();
        let begins = since.is_none();
        since.get_or_insert(now);
        begins
    }

    /// Reports that the fault is absent. Returns how long it lasted if it ends now.
    pub fn end(&self, now: Instant) -> Option<Duration> {
        self.held().take().map(|since| now.saturating_duration_since(since))
    }

    /// Whether the fault is ongoing.
    #[must_use]
    pub fn is_ongoing(&self) -> bool {
        self.held().is_some()
    }

    /// When it began, if it is ongoing.
    #[must_use]
    pub fn since(&self) -> Option<Instant> {
        *self.held()
    }

    fn held(&self) -> MutexGuard<'_, Option<Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
