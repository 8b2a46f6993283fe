//! Make's quota: a number of requests per organization and minute, and a bucket for paths without an organization.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use serde::{Serialize, Serializer};

const WINDOW: Duration = Duration::from_secs(60);
/// Maximum number of buckets; requests for more organizations within one minute are refused.
const BUCKETS_MAX: usize = 10_000;

/// How the minute is counted; Make does not document it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum MinuteWindow {
    /// Consecutive minutes, starting when the sandbox starts or is reset, each with the full quota.
    #[default]
    Fixed,
    /// The last 60 seconds.
    Sliding,
}

/// What a request is counted against.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SandboxBucket {
    /// Paths without an organization: list, create, invitations.
    Account,
    /// Paths of this organization, whether it exists or not.
    Organization(u64),
}

impl Serialize for SandboxBucket {
    /// `"account"`, or the organization's id.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Account => serializer.serialize_str("account"),
            Self::Organization(id) => serializer.serialize_u64(*id),
        }
    }
}

/// What each bucket has spent in its window.
#[derive(Debug)]
pub(super) struct SandboxQuota {
    window: MinuteWindow,
    start: Instant,
    spent: HashMap<SandboxBucket, VecDeque<Instant>>,
}

impl SandboxQuota {
    pub(super) fn new(window: MinuteWindow, start: Instant) -> Self {
        Self { window, start, spent: HashMap::new() }
    }

    /// Counts one request; `false` if the bucket is exhausted. A refused request is not counted.
    pub(super) fn take(&mut self, bucket: SandboxBucket, limit: u32, now: Instant) -> bool {
        let counts = self.counting(now);
        if self.spent.len() >= BUCKETS_MAX && !self.spent.contains_key(&bucket) {
            self.spent.retain(|_, times| times.back().is_some_and(|time| counts(*time)));
            if self.spent.len() >= BUCKETS_MAX {
                return false;
            }
        }
        let times = self.spent.entry(bucket).or_default();
        while times.front().is_some_and(|time| !counts(*time)) {
            times.pop_front();
        }
        let free = u32::try_from(times.len()).is_ok_and(|spent| spent < limit);
        if free {
            times.push_back(now);
        }
        free
    }

    /// A predicate for which earlier requests still count at `now`.
    fn counting(&self, now: Instant) -> impl Fn(Instant) -> bool + use<> {
        let whole_minutes = now.saturating_duration_since(self.start).as_secs() / WINDOW.as_secs();
        let begin = self.start + Duration::from_secs(whole_minutes * WINDOW.as_secs());
        let window = self.window;
        move |time| match window {
            MinuteWindow::Fixed => time >= begin,
            MinuteWindow::Sliding => now.saturating_duration_since(time) < WINDOW,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    /// Which of four requests at these seconds get through with a quota of two.
    fn admitted(window: MinuteWindow, seconds: [u64; 4]) -> [bool; 4] {
        let start = Clock::system().now();
        let mut quota = SandboxQuota::new(window, start);
        seconds.map(|second| quota.take(SandboxBucket::Account, 2, start + Duration::from_secs(second)))
    }

    #[test]
    fn a_fixed_window_is_whole_again_at_the_minute() {
        assert_eq!(admitted(MinuteWindow::Fixed, [58, 58, 59, 60]), [true, true, false, true]);
    }

    #[test]
    fn a_sliding_window_frees_each_request_after_a_minute() {
        assert_eq!(admitted(MinuteWindow::Sliding, [0, 58, 59, 60]), [true, true, false, true]);
        assert_eq!(admitted(MinuteWindow::Sliding, [58, 58, 60, 117]), [true, true, false, false]);
    }

    #[test]
    fn buckets_are_counted_apart() {
        let now = Clock::system().now();
        let mut quota = SandboxQuota::new(MinuteWindow::Fixed, now);
        assert!(quota.take(SandboxBucket::Organization(11), 1, now));
        assert!(!quota.take(SandboxBucket::Organization(11), 1, now));
        assert!(quota.take(SandboxBucket::Organization(12), 1, now));
    }
}
