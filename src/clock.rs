//! The only source of time. Everything that waits, expires or takes timestamps asks a [`Clock`], so that tests can move
//! it.

#![expect(clippy::disallowed_methods, reason = "this is the one module that may ask the system for the time")]

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};

/// How often a wait checks a movable clock.
const MOVABLE_POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Monotonic and wall time. Cheap to clone; clones of a movable clock move together.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    /// How far a test has moved this clock.
    moved: Option<Arc<ClockOffset>>,
    /// Fixed time of a frozen clock.
    frozen: Option<FrozenTimes>,
}

/// What a frozen clock shows before it is moved.
#[derive(Clone, Copy, Debug)]
struct FrozenTimes {
    now: Instant,
    wall: Timestamp,
    boot: Duration,
}

/// Offset from the machine's clock, in milliseconds.
#[derive(Debug, Default)]
struct ClockOffset {
    ahead: AtomicU64,
    /// Additional offset of wall time only.
    wall: AtomicI64,
}

impl Clock {
    /// The machine's time.
    #[must_use]
    pub fn system() -> Self {
        Self::default()
    }

    /// A clock that runs with the machine's and can be moved forward with [`Clock::advance`].
    #[must_use]
    pub fn movable() -> Self {
        Self { moved: Some(Arc::default()), frozen: None }
    }

    /// A frozen clock that moves only with [`Clock::advance`], for tests that compare exact times.
    #[must_use]
    pub fn frozen() -> Self {
        Self {
            moved: Some(Arc::default()),
            frozen: Some(FrozenTimes { now: Instant::now(), wall: Timestamp::now(), boot: machine_boot() }),
        }
    }

    /// Moves a movable clock and all its clones forward; does nothing to the system clock.
    pub fn advance(&self, by: Duration) {
        if let Some(moved) = &self.moved {
            moved.ahead.fetch_add(u64::try_from(by.as_millis()).unwrap_or(u64::MAX), Ordering::SeqCst);
        }
    }

    /// Shifts the wall time of a movable clock and all its clones, as if somebody had reset the machine's clock.
    pub fn step(&self, by: SignedDuration) {
        if let Some(moved) = &self.moved {
            moved.wall.fetch_add(i64::try_from(by.as_millis()).unwrap_or(0), Ordering::SeqCst);
        }
    }

    fn ahead(&self) -> Duration {
        self.moved.as_ref().map_or(Duration::ZERO, |moved| Duration::from_millis(moved.ahead.load(Ordering::SeqCst)))
    }

    /// Monotonic time, for deadlines, ages and pacing.
    #[must_use]
    pub fn now(&self) -> Instant {
        if self.moved.is_none() {
            return Instant::now();
        }
        self.frozen.map_or_else(Instant::now, |frozen| frozen.now) + self.ahead()
    }

    /// Waits until this clock reaches `moment`. A movable clock is polled, because a test may move it.
    pub async fn sleep_until(&self, moment: Instant) {
        loop {
            let left = moment.saturating_duration_since(self.now());
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(if self.moved.is_some() { left.min(MOVABLE_POLL_INTERVAL) } else { left }).await;
        }
    }

    /// The future's output; `None` if it takes longer than this by this clock.
    pub async fn timeout<F: Future>(&self, limit: Duration, future: F) -> Option<F::Output> {
        tokio::select! {
            biased;
            output = future => Some(output),
            () = self.sleep_until(self.now() + limit) => None,
        }
    }

    /// Time since the machine started, sleep included, in milliseconds. It goes on from one process to the next, and nobody can set it.
    /// `None` where the system does not tell it.
    #[must_use]
    pub fn since_boot_ms(&self) -> Option<i64> {
        // Not by the system call: the library for it reads where valgrind lets nobody read.
        let told = std::fs::read_to_string("/proc/uptime").ok()?;
        let up = Duration::try_from_secs_f64(told.split(' ').next()?.parse().ok()?).ok()?;
        i64::try_from(up.saturating_add(self.ahead()).as_millis()).ok()
    }

    /// Time since the machine's start, with the time that it slept, for leases: another machine does not sleep along.
    #[must_use]
    pub fn boot(&self) -> Duration {
        self.frozen.map_or_else(machine_boot, |frozen| frozen.boot) + self.ahead()
    }

    /// Wall time, for records and headers; never for decisions.
    #[must_use]
    pub fn wall(&self) -> Timestamp {
        let Some(moved) = &self.moved else { return Timestamp::now() };
        let stepped = SignedDuration::from_millis(moved.wall.load(Ordering::SeqCst));
        self.frozen.map_or_else(Timestamp::now, |frozen| frozen.wall) + self.ahead() + stepped
    }

    /// Wall time in milliseconds since 1970, for data that outlives the process.
    #[must_use]
    pub fn wall_ms(&self) -> i64 {
        self.wall().as_millisecond()
    }
}

fn machine_boot() -> Duration {
    let at = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let (seconds, nanos) = (u64::try_from(at.tv_sec), u32::try_from(at.tv_nsec));
    Duration::new(seconds.unwrap_or(0), nanos.unwrap_or(0))
}
