//! The right to answer from memory: for so long after a beat was sent, every write of another replica waits for this one.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::clock::Clock;

/// Until when memory may answer. It is counted on this machine's own clock, which goes on while the machine sleeps.
#[derive(Debug)]
pub struct Lease {
    clock: Clock,
    /// In milliseconds since the machine's start; 0: never yet.
    until_ms: AtomicU64,
}

impl Lease {
    pub(super) const fn new(clock: Clock) -> Self {
        Self { clock, until_ms: AtomicU64::new(0) }
    }

    /// Whether memory may answer who arrived before this call.
    #[must_use]
    pub fn holds(&self) -> bool {
        !self.left().is_zero()
    }

    /// How much longer it lasts.
    #[must_use]
    pub fn left(&self) -> Duration {
        let until = Duration::from_millis(self.until_ms.load(Ordering::SeqCst));
        until.saturating_sub(self.clock.boot())
    }

    /// A beat that was sent at this time since the machine's start was answered.
    pub(super) fn extend(&self, sent: Duration, by: Duration) {
        let until = u64::try_from((sent + by).as_millis()).unwrap_or(u64::MAX);
        self.until_ms.fetch_max(until, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_counted_from_before_its_beat_was_sent() {
        let clock = Clock::frozen();
        let lease = Lease::new(clock.clone());
        assert!(!lease.holds(), "nobody has answered yet");
        let sent = clock.boot();
        clock.advance(Duration::from_secs(3));
        lease.extend(sent, Duration::from_secs(5));
        assert!(lease.holds());
        lease.extend(sent.saturating_sub(Duration::from_secs(1)), Duration::from_secs(5));
        clock.advance(Duration::from_millis(1_900));
        assert!(lease.holds(), "an answer that came late takes nothing back");
        clock.advance(Duration::from_millis(101));
        assert!(!lease.holds());
    }
}
