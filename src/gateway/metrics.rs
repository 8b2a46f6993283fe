//! What is counted of requests beside the callers' own counters: attempts by how they ended, times, unrecorded requests.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::upstream::EndingKind;

/// Upper bounds of the duration buckets, in microseconds.
pub const DURATION_BOUNDS_US: [u64; 12] =
    [100, 250, 1_000, 2_500, 10_000, 25_000, 100_000, 250_000, 1_000_000, 2_500_000, 10_000_000, 60_000_000];

/// A histogram of durations: one relaxed addition a sample.
#[derive(Debug, Default)]
pub struct DurationHistogram {
    buckets: [AtomicU64; DURATION_BOUNDS_US.len() + 1],
    sum_us: AtomicU64,
}

impl DurationHistogram {
    /// Adds a sample.
    pub fn add(&self, duration: Duration) {
        let us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let place = DURATION_BOUNDS_US.iter().position(|bound| us <= *bound).unwrap_or(DURATION_BOUNDS_US.len());
        if let Some(bucket) = self.buckets.get(place) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        self.sum_us.fetch_add(us, Ordering::Relaxed);
    }

    /// Samples up to each bound and beyond the last (not cumulated), and their sum in microseconds.
    #[must_use]
    pub fn read(&self) -> (Vec<u64>, u64) {
        (
            self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).collect(),
            self.sum_us.load(Ordering::Relaxed),
        )
    }
}

/// The meters.
#[derive(Debug, Default)]
pub struct GatewayMetrics {
    attempts: [AtomicU64; EndingKind::ALL.len()],
    /// Attempts that the upstream answered with anything but a failure of its own (5xx).
    pub answers: AtomicU64,
    /// Looks at what became of a write in doubt.
    pub looks: AtomicU64,
    /// Doubts that those settled.
    pub settled_by_look: AtomicU64,
    /// Requests from the moment they were read whole to their answer.
    pub requests: DurationHistogram,
    /// Waits for quota.
    pub quota_waits: DurationHistogram,
    /// Requests that were refused because the log had no room for their record.
    pub unrecorded: AtomicU64,
    /// Answers to requests whose caller never became known.
    pub unidentified: AtomicU64,
    /// Answers that held the token and were withheld.
    pub leaks: AtomicU64,
    /// Answers 401 to the gateway's own token.
    pub token_refused: AtomicU64,
    /// Answers 403 that are not JSON: something before Make refused.
    pub edge_refused: AtomicU64,
    /// Answers that were stored although the upstream said not to.
    pub overruled: AtomicU64,
    /// Fetches ahead of time (`cache.refresh_ahead`).
    pub ahead: AtomicU64,
    /// Requests whose handling failed for a fault of makegate's own.
    pub faults: AtomicU64,
}

impl GatewayMetrics {
    /// Counts an attempt.
    pub fn attempt(&self, ending: EndingKind) {
        if let Some(counter) = self.attempts.get(ending as usize) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Attempts by how they ended.
    pub fn attempts(&self) -> impl Iterator<Item = (EndingKind, u64)> {
        EndingKind::ALL.iter().copied().zip(self.attempts.iter().map(|count| count.load(Ordering::Relaxed)))
    }
}
