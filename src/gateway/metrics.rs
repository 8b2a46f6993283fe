//! Metrics of requests that no caller's own counters cover: attempts by ending, durations, unrecorded requests.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::StatusCode;

use crate::counters::{AnswerCounts, DurationCounts, DurationHistogram, GrowingList, UpstreamAnswers};
use crate::upstream::{Ending, EndingKind};
use crate::vocabulary::Answer;

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
    /// Time from reading the whole request to its answer, by where the answer came from.
    durations: [DurationHistogram; Answer::ALL.len()],
    /// The upstream's answers, by operation.
    pub upstream: GrowingList<UpstreamAnswers>,
    /// Time spent waiting for quota.
    pub quota_waits: DurationHistogram,
    /// Requests that were refused because the log had no room for their record.
    pub unrecorded: AtomicU64,
    /// Answers to requests whose caller was not identified.
    pub unidentified: AnswerCounts,
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
    error_run: Mutex<Option<ErrorRun>>,
}

/// Attempts in a row that the upstream answered with a 5xx.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorRun {
    /// When the first of them ended.
    pub since: Instant,
    /// How many there were.
    pub attempts: u64,
    /// The status of the last one.
    pub status: StatusCode,
}

impl GatewayMetrics {
    /// The 5xx answers in a row until now, if the last answer was one.
    pub fn error_run(&self) -> Option<ErrorRun> {
        *self.error_run.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note_status(&self, status: StatusCode, now: Instant) {
        let mut run = self.error_run.lock().unwrap_or_else(PoisonError::into_inner);
        *run = status.is_server_error().then(|| match *run {
            Some(before) => ErrorRun { attempts: before.attempts + 1, status, ..before },
            None => ErrorRun { since: now, attempts: 1, status },
        });
    }

    /// Counts an attempt that ended `now`, and its answer if it got one.
    pub fn attempt(&self, operation: &Arc<str>, ending: &Ending, (taken, now): (Duration, Instant)) {
        if let Some(counter) = self.attempts.get(ending.kind() as usize) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
        if matches!(ending, Ending::NotSent(_)) {
            return;
        }
        let is_it = |one: &UpstreamAnswers| one.operation == *operation;
        let answers = self.upstream.get_or_add(is_it, || UpstreamAnswers::new(operation.clone()));
        answers.durations.add(taken);
        if let Ending::Answered(answered) = ending {
            answers.add(answered.status);
            self.note_status(answered.status, now);
        }
    }

    /// Adds the time that an answer took.
    pub fn add_duration(&self, answer: Answer, taken: Duration) {
        if let Some(durations) = self.durations.get(answer as usize) {
            durations.add(taken);
        }
    }

    /// The time that answers took, by where they came from.
    pub fn durations(&self) -> impl Iterator<Item = (Answer, DurationCounts)> {
        Answer::ALL.iter().copied().zip(self.durations.iter().map(DurationHistogram::read))
    }

    /// Attempts by how they ended.
    pub fn attempts(&self) -> impl Iterator<Item = (EndingKind, u64)> {
        EndingKind::ALL.iter().copied().zip(self.attempts.iter().map(|count| count.load(Ordering::Relaxed)))
    }
}
