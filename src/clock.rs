//! The one source of time. Everything that waits, expires or stamps asks a [`Clock`], so that a test can move it.

#![expect(clippy::disallowed_methods, reason = "this is the module that the ban points to")]

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};

/// How often a wait looks at a movable clock.
const MOVABLE_NAP: Duration = Duration::from_millis(5);

/// Monotonic and wall time. Cheap to clone; clones of a movable clock move together.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    /// What a test has done to this clock.
    moved: Option<Arc<ClockOffset>>,
    /// Where a clock that stands still stands.
    still: Option<(Instant, Timestamp)>,
}

/// By how many milliseconds a test has moved a clock from the machine's.
#[derive(Debug, Default)]
struct ClockOffset {
    ahead: AtomicU64,
    /// Wall time alone, beside that.
    wall: AtomicI64,
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
        Self { moved: Some(Arc::default()), still: None }
    }

    /// A clock that stands still unless it is moved by [`Clock::advance`]: what tests compare to the second.
    #[must_use]
    pub fn still() -> Self {
        Self { moved: Some(Arc::default()), still: Some((Instant::now(), Timestamp::now())) }
    }

    /// Moves a movable clock (and all its clones) ahead; does nothing to the system's.
    pub fn advance(&self, by: Duration) {
        if let Some(moved) = &self.moved {
            moved.ahead.fetch_add(u64::try_from(by.as_millis()).unwrap_or(u64::MAX), Ordering::SeqCst);
        }
    }

    /// Sets the wall time of a movable clock (and all its clones) on or back, as somebody who sets the machine's does.
    pub fn step(&self, by: SignedDuration) {
        if let Some(moved) = &self.moved {
            moved.wall.fetch_add(i64::try_from(by.as_millis()).unwrap_or(0), Ordering::SeqCst);
        }
    }

    fn ahead(&self) -> Duration {
        self.moved.as_ref().map_or(Duration::ZERO, |moved| Duration::from_millis(moved.ahead.load(Ordering::SeqCst)))
    }

    /// Monotonic time: for deadlines, ages and pacing.
    #[must_use]
    pub fn now(&self) -> Instant {
        if self.moved.is_none() {
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
            tokio::time::sleep(if self.moved.is_some() { left.min(MOVABLE_NAP) } else { left }).await;
        }
    }

    /// Wall time: for records and headers, never for arithmetic that decides anything.
    #[must_use]
    pub fn wall(&self) -> Timestamp {
        let Some(moved) = &self.moved else { return Timestamp::now() };
        let stepped = SignedDuration::from_millis(moved.wall.load(Ordering::SeqCst));
        self.still.map_or_else(Timestamp::now, |(_, now)| now) + self.ahead() + stepped
    }

    /// Wall time in milliseconds since 1970, for what must outlive the process.
    #[must_use]
    pub fn wall_ms(&self) -> i64 {
        self.wall().as_millisecond()
    }
}
