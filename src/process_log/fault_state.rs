//! Something that goes wrong for a while: when it began, and when it ended.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A trouble that is there or not. Those who notice it say so each time; it begins once and ends once.
#[derive(Debug, Default)]
pub struct FaultState(Mutex<Option<Instant>>);

impl FaultState {
    /// It is there. `true`: it begins now.
    pub fn begins(&self, now: Instant) -> bool {
        let mut since = self.since();
        let begins = since.is_none();
        since.get_or_insert(now);
        begins
    }

    /// It is not there (any more). `Some`: it ends now, and lasted so long.
    pub fn ends(&self, now: Instant) -> Option<Duration> {
        self.since().take().map(|since| now.saturating_duration_since(since))
    }

    /// Is it there?
    #[must_use]
    pub fn is_ongoing(&self) -> bool {
        self.since().is_some()
    }

    fn since(&self) -> MutexGuard<'_, Option<Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
