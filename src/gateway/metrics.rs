//! Metrics of requests that no caller's own counters cover: attempts by ending, durations, unrecorded requests.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::upstream::EndingKind;

/// Upper bounds of the duration buckets, in microseconds.
pub const DURATION_BOUNDS_US: [u64; 12] =
    [100, 250, 1_000, 2_500, 10_000, 25_000, 100_000, 250_000, 1_000_000, 2_500_000, 10_000_000, 60_000_000];

/// A histogram of durations. A sample costs two relaxed additions.
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

    /// Samples up to each bound and beyond the last (not cumulative), and their sum in microseconds.
    #[must_use]
    pub fn read(&self) -> (Vec<u64>, u64) {
        (
            self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).collect(),
            self.sum_us.load(Ordering::Relaxed),
        )
    }
}

/// Counters and histograms of the gateway.
#[derive(Debug, Default)]
pub struct GatewayMetrics {
    attempts: [AtomicU64; EndingKind::ALL.len()],
    /// Attempts that the upstream answered with anything but a 5xx.
    pub answers: AtomicU64,
    /// Reads that check what became of a write in doubt.
    pub looks: AtomicU64,
    /// Doubts that those reads settled.
    pub settled_by_look: AtomicU64,
    /// Time from reading the whole request to its answer.
    pub requests: DurationHistogram,
    /// Time spent waiting for quota.
    pub quota_waits: DurationHistogram,
    /// Requests that were refused because the log had no room for their record.
    pub unrecorded: AtomicU64,
    /// Answers to requests whose caller was not identified.
    pub unidentified: AtomicU64,
    /// Answers that were withheld because they contained the token.
    pub leaks: AtomicU64,
    /// 401 answers to the gateway's own token.
    pub token_refused: AtomicU64,
    /// 403 answers that are not Make's own: something in front of Make refused.
    pub edge_refused: AtomicU64,
    /// Answers that were stored although the upstream forbade it.
    pub overruled: AtomicU64,
    /// Answers that were not stored because their body cannot be an answer of the operation.
    pub odd: AtomicU64,
    /// Fetches ahead of time (`cache.refresh_ahead`).
    pub ahead: AtomicU64,
    /// Requests that failed because of a fault in makegate.
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
