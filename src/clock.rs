//! The one source of time. Everything that waits, expires or stamps asks a [`Clock`], so that a test can move it.

#![expect(clippy::disallowed_methods, reason = "this is the module that the ban points to")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use jiff::Timestamp;

/// How often a wait looks at a movable clock.
const MOVABLE_NAP: Duration = Duration::from_millis(5);

/// Monotonic and wall time. Cheap to clone; clones of a movable clock move together.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    /// Milliseconds by which a test has moved this clock ahead of the machine's.
    ahead_ms: Option<Arc<AtomicU64>>,
    /// Where a clock that stands still stands.
    still: Option<(Instant, Timestamp)>,
}

impl Clock {
    /// The machine's time.
    #[must_use]
    pub fn system() -> Self {
        Self::default()
    }

    /// A clock that runs with the machine's and can be moved ahead by [`Clock::advance`].
    #[must_use]
    pub fn movable() -> Self {
        Self { ahead_ms: Some(Arc::default()), still: None }
    }

    /// A clock that stands still unless it is moved by [`Clock::advance`]: what tests compare to the second.
    #[must_use]
    pub fn still() -> Self {
        Self { ahead_ms: Some(Arc::default()), still: Some((Instant::now(), Timestamp::now())) }
    }

    /// Moves a movable clock (and all its clones) ahead; does nothing to the system's.
    pub fn advance(&self, by: Duration) {
        if let Some(ahead) = &self.ahead_ms {
            ahead.fetch_add(u64::try_from(by.as_millis()).unwrap_or(u64::MAX), Ordering::SeqCst);
        }
    }

    fn ahead(&self) -> Duration {
        self.ahead_ms.as_ref().map_or(Duration::ZERO, |ms| Duration::from_millis(ms.load(Ordering::SeqCst)))
    }

    /// Monotonic time: for deadlines, ages and pacing.
    #[must_use]
    pub fn now(&self) -> Instant {
        if self.ahead_ms.is_none() {
            return Instant::now();
        }
        self.still.map_or_else(Instant::now, |(now, _)| now) + self.ahead()
    }

    /// Waits until this clock shows `moment`. A movable clock is looked at again and again, because a test may move it.
    pub async fn sleep_until(&self, moment: Instant) {
        loop {
            let left = moment.saturating_duration_since(self.now());
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(if self.ahead_ms.is_some() { left.min(MOVABLE_NAP) } else { left }).await;
        }
    }

    /// Wall time: for records and headers, never for arithmetic that decides anything.
    #[must_use]
    pub fn wall(&self) -> Timestamp {
        if self.ahead_ms.is_none() {
            return Timestamp::now();
        }
        self.still.map_or_else(Timestamp::now, |(_, now)| now) + self.ahead()
    }

    /// Wall time in milliseconds since 1970, for what must outlive the process.
    #[must_use]
    pub fn wall_ms(&self) -> i64 {
        self.wall().as_millisecond()
    }
}
