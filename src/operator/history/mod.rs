//! What happened within the last hour, in points of 10 s: for charts. A point is the difference between two looks at the counters that
//! there are anyway, so that no request pays for it. It outlives reloads, not restarts: the log has what was before.

mod point;
mod totals;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use self::totals::Totals;
use crate::clock::Clock;
use crate::gateway::Gateway;
use crate::quota::BucketView;

pub(super) use self::point::{ErrorKind, HistoryPoint, QuotaUse};

/// How often the counters are looked at.
pub(super) const INTERVAL: Duration = Duration::from_secs(10);
/// How far back it goes.
pub(super) const SPAN: Duration = Duration::from_secs(3600);
/// The most points: at 1 KiB each, 360 KiB in all.
const POINTS_MAX: usize = 360;
/// The most quotas in a point, the fullest ones.
pub(super) const QUOTAS_MAX: usize = 8;

/// The points of the last hour.
#[derive(Debug, Default)]
pub(super) struct History(Mutex<KeptPoints>);

#[derive(Debug, Default)]
struct KeptPoints {
    points: VecDeque<HistoryPoint>,
    last: Option<Totals>,
}

impl History {
    /// Looks at the counters. The first look makes no point: it is what the next one is compared with.
    pub(super) fn sample(&self, gateway: &Gateway) {
        let totals = Totals::read(gateway);
        let quota = fullest(&gateway.quota.buckets());
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(last) = kept.last.take() {
            kept.points.push_back(totals.since(&last, gateway.clock.wall(), quota));
        }
        let oldest = kept.points.len().saturating_sub(POINTS_MAX);
        kept.points.drain(..oldest);
        kept.points.retain(|point| totals.at.saturating_duration_since(point.at) < SPAN);
        kept.last = Some(totals);
    }

    /// How far back it goes now.
    pub(super) fn age(&self) -> Duration {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let ends = kept.points.front().zip(kept.points.back());
        ends.map_or(Duration::ZERO, |(oldest, newest)| newest.at.saturating_duration_since(oldest.at) + oldest.length)
    }

    /// All points, the oldest first.
    pub(super) fn points(&self) -> Vec<HistoryPoint> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).points.iter().cloned().collect()
    }

    /// The points with those of each such time taken together. A moment stays in the same group as time goes on.
    pub(super) fn grouped(&self, length: Duration) -> Vec<HistoryPoint> {
        let points = self.points();
        let Some(newest) = points.last().map(|point| point.at) else { return Vec::new() };
        // Wall time tells which group a point is in; it is counted back from the newest, because the wall clock may be set.
        let length_ms = length.as_millis().max(1);
        let newest_ms = points.last().map_or(0, |point| point.time.as_millisecond().unsigned_abs());
        let group = |point: &HistoryPoint| {
            let ago = newest.saturating_duration_since(point.at).as_millis();
            u128::from(newest_ms).saturating_sub(ago) / length_ms
        };
        points.chunk_by(|one, next| group(one) == group(next)).filter_map(merged).collect()
    }
}

/// What happened in all of these together.
fn merged(points: &[HistoryPoint]) -> Option<HistoryPoint> {
    let mut sum = points.last()?.clone();
    let (mut errors, mut quota) = (BTreeMap::new(), BTreeMap::new());
    sum.length = points.iter().map(|point| point.length).sum();
    for (place, answers) in sum.answers.iter_mut().enumerate() {
        *answers = points.iter().filter_map(|point| point.answers.get(place)).sum();
    }
    sum.hits = points.iter().map(|point| point.hits).sum();
    sum.misses = points.iter().map(|point| point.misses).sum();
    sum.durations = points.iter().map(|point| point.durations.clone()).sum();
    sum.upstream = points.iter().map(|point| point.upstream.clone()).sum();
    sum.other_errors = points.iter().map(|point| point.other_errors).sum();
    for (kind, count) in points.iter().flat_map(|point| &point.errors) {
        *errors.entry(*kind).or_default() += count;
    }
    for one in points.iter().flat_map(|point| &point.quota) {
        let fullest = quota.entry(one.organization).or_insert(*one);
        *fullest = QuotaUse { used: fullest.used.max(one.used), ..*one };
    }
    sum.errors = errors.into_iter().collect();
    sum.quota = quota.into_values().collect();
    Some(sum)
}

/// The fullest quotas, of those of which something is used.
fn fullest(buckets: &[BucketView]) -> Vec<QuotaUse> {
    let of =
        |bucket: &BucketView| QuotaUse { organization: bucket.organization, used: bucket.used, limit: bucket.limit };
    let mut quota: Vec<_> = buckets.iter().filter(|bucket| bucket.used > 0).map(of).collect();
    quota.sort_by_key(|one| {
        (std::cmp::Reverse(u64::from(one.used) * 1000 / u64::from(one.limit.max(1))), one.organization)
    });
    quota.truncate(QUOTAS_MAX);
    quota.shrink_to_fit();
    quota
}

/// When to look next: every [`INTERVAL`], and none is made up for after a pause.
pub(super) fn next_look(due: Instant, clock: &Clock) -> Instant {
    let next = due + INTERVAL;
    if next > clock.now() { next } else { clock.now() + INTERVAL }
}

#[cfg(test)]
mod tests;
