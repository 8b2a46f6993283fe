//! The right to answer from memory and to send writes: for so long after a beat was sent, every write of another replica waits for this
//! one, and nobody gives it up.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::clock::Clock;

/// Until when memory may answer. It is counted on this machine's own clock, which goes on while the machine sleeps.
#[derive(Debug)]
pub struct Lease {
    clock: Clock,
    /// In milliseconds since the machine's start; 0: never yet.
    until_ms: AtomicU64,
    /// Number of terms that have begun.
    terms: AtomicU64,
}

impl Lease {
    pub(super) const fn new(clock: Clock) -> Self {
        Self { clock, until_ms: AtomicU64::new(0), terms: AtomicU64::new(0) }
    }

    /// Whether memory may answer who arrived before this call.
    #[must_use]
    pub fn holds(&self) -> bool {
        !self.left().is_zero()
    }

    /// The number of this term, which is an unbroken time with a lease: while it is the same, nobody has given this replica up, adopted its
    /// writes or returned its turns. `None`: there is no lease.
    #[must_use]
    pub fn term(&self) -> Option<u64> {
        self.holds().then(|| self.terms.load(Ordering::SeqCst))
    }

    /// How much longer it lasts.
    #[must_use]
    pub fn left(&self) -> Duration {
        let until = Duration::from_millis(self.until_ms.load(Ordering::SeqCst));
        until.saturating_sub(self.clock.boot())
    }

    /// A beat that was sent at this time since the machine's start was answered. One task alone calls this.
    pub(super) fn extend(&self, sent: Duration, by: Duration) {
        if !self.holds() {
            self.terms.fetch_add(1, Ordering::SeqCst);
        }
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

    #[test]
    fn a_term_ends_with_its_lease_and_no_later_one_is_the_same() {
        let clock = Clock::frozen();
        let lease = Lease::new(clock.clone());
        let five = Duration::from_secs(5);
        assert_eq!(lease.term(), None);
        lease.extend(clock.boot(), five);
        let first = lease.term();
        clock.advance(Duration::from_secs(4));
        lease.extend(clock.boot(), five);
        clock.advance(Duration::from_secs(4));
        assert!(first.is_some() && lease.term() == first, "it was extended in time");
        clock.advance(Duration::from_millis(1_001));
        assert_eq!(lease.term(), None);
        lease.extend(clock.boot(), five);
        assert!(lease.term().is_some() && lease.term() != first);
    }
}
