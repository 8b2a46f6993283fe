//! Counters that requests add to without a lock, and that scrapes and pages read.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::StatusCode;

use crate::vocabulary::Answer;

/// A list that only grows, so it is read without a lock. Meant for few items.
#[derive(Debug)]
pub struct GrowingList<T>(OnceLock<Box<ListItem<T>>>);

#[derive(Debug)]
struct ListItem<T> {
    value: T,
    next: GrowingList<T>,
}

impl<T> Default for GrowingList<T> {
    fn default() -> Self {
        Self(OnceLock::new())
    }
}

impl<T> GrowingList<T> {
    /// The item that `is_it` accepts, or a new one at the end.
    pub fn get_or_add(&self, is_it: impl Fn(&T) -> bool, make: impl Fn() -> T) -> &T {
        let mut place = self;
        loop {
            let item = place.0.get_or_init(|| Box::new(ListItem { value: make(), next: Self::default() }));
            if is_it(&item.value) {
                return &item.value;
            }
            place = &item.next;
        }
    }

    /// All items, in the order in which they came.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        std::iter::successors(self.0.get(), |item| item.next.0.get()).map(|item| &item.value)
    }
}

/// What an answer is counted as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AnswerKind {
    /// Where it came from.
    pub answer: Answer,
    /// Its status; one that no standard names is counted as the first of its class, so that there is an end to them.
    pub status: u16,
    /// The refusal's code, if it is one.
    pub code: Option<&'static str>,
}

impl AnswerKind {
    /// The kind of an answer with this status.
    #[must_use]
    pub fn new(answer: Answer, status: StatusCode, code: Option<&'static str>) -> Self {
        Self { answer, status: counted_status(status), code }
    }
}

fn counted_status(status: StatusCode) -> u16 {
    let number = status.as_u16();
    if status.canonical_reason().is_some() { number } else { number / 100 * 100 }
}

/// Counts answers by operation and kind.
#[derive(Debug, Default)]
pub struct AnswerCounts(GrowingList<OperationAnswers>);

#[derive(Debug)]
struct OperationAnswers {
    /// The operation's id, because its place in the catalogue can change with a reload. `None` if not classified.
    operation: Option<Arc<str>>,
    kinds: GrowingList<(AnswerKind, AtomicU64)>,
}

/// How many answers of one kind there were.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnswerCount {
    /// The operation's id. `None` if not classified.
    pub operation: Option<Arc<str>>,
    /// What is counted.
    pub kind: AnswerKind,
    /// How many there were.
    pub count: u64,
}

impl AnswerCounts {
    /// Counts an answer. `operation` is its id, if the request was classified.
    pub fn add(&self, operation: Option<&Arc<str>>, kind: AnswerKind) {
        let of_operation = self.0.get_or_add(
            |one| one.operation.as_ref() == operation,
            || OperationAnswers { operation: operation.cloned(), kinds: GrowingList::default() },
        );
        let (_, count) = of_operation.kinds.get_or_add(|(one, _)| *one == kind, || (kind, AtomicU64::new(0)));
        count.fetch_add(1, Ordering::Relaxed);
    }

    /// All counts.
    #[must_use]
    pub fn read(&self) -> Vec<AnswerCount> {
        let counts = self.0.iter().flat_map(|one| {
            one.kinds.iter().map(|(kind, count)| AnswerCount {
                operation: one.operation.clone(),
                kind: *kind,
                count: count.load(Ordering::Relaxed),
            })
        });
        counts.collect()
    }
}

/// The upstream's answers to one operation.
#[derive(Debug)]
pub struct UpstreamAnswers {
    /// The operation's id.
    pub operation: Arc<str>,
    /// Time from the beginning of each attempt to its end.
    pub durations: DurationHistogram,
    statuses: GrowingList<(u16, AtomicU64)>,
}

impl UpstreamAnswers {
    /// No answers yet.
    #[must_use]
    pub fn new(operation: Arc<str>) -> Self {
        Self { operation, durations: DurationHistogram::default(), statuses: GrowingList::default() }
    }

    /// Counts an answer.
    pub fn add(&self, status: StatusCode) {
        let status = counted_status(status);
        let (_, count) = self.statuses.get_or_add(|(one, _)| *one == status, || (status, AtomicU64::new(0)));
        count.fetch_add(1, Ordering::Relaxed);
    }

    /// How many answers there were, by status.
    pub fn statuses(&self) -> impl Iterator<Item = (u16, u64)> {
        self.statuses.iter().map(|(status, count)| (*status, count.load(Ordering::Relaxed)))
    }
}

/// Upper bounds of the duration buckets, in microseconds.
pub const DURATION_BOUNDS_US: [u64; 12] =
    [100, 250, 1_000, 2_500, 10_000, 25_000, 100_000, 250_000, 1_000_000, 2_500_000, 10_000_000, 60_000_000];

/// A histogram of durations. A sample costs two relaxed additions.
#[derive(Debug, Default)]
pub struct DurationHistogram {
    buckets: [AtomicU64; DURATION_BOUNDS_US.len() + 1],
    sum_us: AtomicU64,
}

/// What a histogram counted. Counts of several histograms add up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DurationCounts {
    /// Samples up to each bound and beyond the last (not cumulative).
    pub buckets: [u64; DURATION_BOUNDS_US.len() + 1],
    /// The sum of all samples, in microseconds.
    pub sum_us: u64,
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

    /// What was counted so far.
    #[must_use]
    pub fn read(&self) -> DurationCounts {
        let buckets = self.buckets.each_ref().map(|bucket| bucket.load(Ordering::Relaxed));
        DurationCounts { buckets, sum_us: self.sum_us.load(Ordering::Relaxed) }
    }
}

impl DurationCounts {
    /// How many samples there were.
    #[must_use]
    pub fn samples(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// What was counted after `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let mut later = self.clone();
        later
            .buckets
            .iter_mut()
            .zip(earlier.buckets)
            .for_each(|(later, earlier)| *later = later.saturating_sub(earlier));
        later.sum_us = later.sum_us.saturating_sub(earlier.sum_us);
        later
    }

    /// The upper bound, in microseconds, of the bucket that this percentile is in. `None`: no sample, or it is beyond the last bound.
    #[must_use]
    pub fn percentile_us(&self, percent: u64) -> Option<u64> {
        let samples = self.samples();
        let wanted = (samples * percent).div_ceil(100).max(1);
        let mut seen = 0;
        let mut bounds = DURATION_BOUNDS_US.into_iter().zip(&self.buckets);
        bounds
            .find(|(_, count)| {
                seen += **count;
                seen >= wanted
            })
            .map(|(bound, _)| bound)
    }
}

impl std::iter::Sum for DurationCounts {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |mut sum, one| {
            sum.buckets.iter_mut().zip(one.buckets).for_each(|(sum, one)| *sum += one);
            sum.sum_us = sum.sum_us.saturating_add(one.sum_us);
            sum
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_counted_by_operation_and_kind() {
        let counts = AnswerCounts::default();
        let read: Arc<str> = "organizations.get".into();
        let hit = AnswerKind::new(Answer::Hit, StatusCode::OK, None);
        let refused = AnswerKind::new(Answer::Refused, StatusCode::FORBIDDEN, Some("MG132"));
        counts.add(Some(&read), hit);
        counts.add(None, refused);
        counts.add(Some(&"organizations.get".into()), hit);
        counts.add(Some(&read), refused);
        let count =
            |operation: Option<&Arc<str>>, kind, count| AnswerCount { operation: operation.cloned(), kind, count };
        assert_eq!(
            counts.read(),
            [count(Some(&read), hit, 2), count(Some(&read), refused, 1), count(None, refused, 1)]
        );
    }

    #[test]
    fn statuses_that_no_standard_names_are_counted_as_their_class() {
        let answers = UpstreamAnswers::new("usage".into());
        for status in 100..1000 {
            answers.add(StatusCode::from_u16(status).unwrap());
        }
        let counted: Vec<_> = answers.statuses().collect();
        assert!(counted.len() < 75, "{counted:?}");
        assert_eq!(counted.iter().map(|(_, count)| count).sum::<u64>(), 900);
        assert!(counted.iter().all(|(status, count)| *count == 1 || status % 100 == 0), "{counted:?}");
    }

    #[test]
    fn percentiles_are_the_bounds_of_their_buckets() {
        let durations = DurationHistogram::default();
        let percentiles = |counts: &DurationCounts| [50, 95, 99].map(|percent| counts.percentile_us(percent));
        assert_eq!(percentiles(&durations.read()), [None; 3]);
        (0..97).for_each(|_| durations.add(Duration::from_micros(90)));
        (0..3).for_each(|_| durations.add(Duration::from_secs(100)));
        let counts = durations.read();
        assert_eq!((counts.samples(), percentiles(&counts)), (100, [Some(100), Some(100), None]));
        let twice: DurationCounts = [counts.clone(), counts.clone()].into_iter().sum();
        assert_eq!((twice.samples(), percentiles(&twice)), (200, percentiles(&counts)));
        assert_eq!((twice.since(&counts), counts.since(&twice)), (counts, DurationCounts::default()));
    }
}
