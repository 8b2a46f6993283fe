//! All that was counted until a moment.

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use jiff::Timestamp;

use super::point::{ERRORS_MAX, ErrorKind, HistoryPoint, QuotaUse};
use crate::counters::{AnswerCount, DurationCounts};
use crate::gateway::Gateway;
use crate::vocabulary::Answer;

/// The lowest status of the upstream's that is an error.
const ERRORS_FROM: u16 = 400;

#[derive(Debug)]
pub(super) struct Totals {
    pub(super) at: Instant,
    /// By the id of the caller's state (0: not known), because one who is taken away takes its counts along.
    callers: HashMap<u64, CallerTotals>,
    hits: u64,
    misses: u64,
    durations: DurationCounts,
    upstream: DurationCounts,
    statuses: BTreeMap<u16, u64>,
}

#[derive(Debug, Default)]
struct CallerTotals {
    answers: [u64; Answer::ALL.len()],
    codes: BTreeMap<&'static str, u64>,
}

impl Totals {
    pub(super) fn read(gateway: &Gateway) -> Self {
        let (metrics, cache, policy) = (&gateway.metrics, gateway.cache.size(), gateway.policy());
        let known = policy.callers.iter().map(|caller| (caller.state.id.get(), caller.state.answers.read()));
        let all = known.chain([(0, metrics.unidentified.read())]);
        let mut statuses = BTreeMap::<u16, u64>::new();
        for one in metrics.upstream.iter() {
            for (status, count) in one.statuses().filter(|(status, _)| *status >= ERRORS_FROM) {
                *statuses.entry(status).or_default() += count;
            }
        }
        let answered = metrics.durations().filter(|(answer, _)| *answer != Answer::Refused);
        Self {
            at: gateway.clock.now(),
            callers: all.map(|(id, counts)| (id, CallerTotals::of(counts))).collect(),
            hits: cache.hits,
            misses: cache.misses,
            durations: answered.map(|(_, counts)| counts).sum(),
            upstream: metrics.upstream.iter().map(|one| one.durations.read()).sum(),
            statuses,
        }
    }

    /// What happened since an earlier moment.
    pub(super) fn since(&self, earlier: &Self, time: Timestamp, quota: Vec<QuotaUse>) -> HistoryPoint {
        let mut answers = [0; Answer::ALL.len()];
        let mut errors = BTreeMap::<ErrorKind, u64>::new();
        let nothing = CallerTotals::default();
        for (id, now) in &self.callers {
            let before = earlier.callers.get(id).unwrap_or(&nothing);
            for ((sum, now), before) in answers.iter_mut().zip(now.answers).zip(before.answers) {
                *sum += now.saturating_sub(before);
            }
            for (code, count) in &now.codes {
                *errors.entry(ErrorKind::Code(code)).or_default() += grown(*count, before.codes.get(code));
            }
        }
        for (status, count) in &self.statuses {
            errors.insert(ErrorKind::Status(*status), grown(*count, earlier.statuses.get(status)));
        }
        let (errors, other_errors) = most_frequent(errors);
        HistoryPoint {
            at: self.at,
            time,
            length: self.at.saturating_duration_since(earlier.at),
            answers,
            hits: self.hits.saturating_sub(earlier.hits),
            misses: self.misses.saturating_sub(earlier.misses),
            durations: self.durations.since(&earlier.durations),
            upstream: self.upstream.since(&earlier.upstream),
            errors,
            other_errors,
            quota,
        }
    }
}

impl CallerTotals {
    fn of(counts: Vec<AnswerCount>) -> Self {
        let mut totals = Self::default();
        for AnswerCount { kind, count, .. } in counts {
            if let Some(answers) = totals.answers.get_mut(kind.answer as usize) {
                *answers += count;
            }
            kind.code.into_iter().for_each(|code| *totals.codes.entry(code).or_default() += count);
        }
        totals
    }
}

fn grown(now: u64, before: Option<&u64>) -> u64 {
    now.saturating_sub(before.copied().unwrap_or(0))
}

/// The most frequent kinds, in the order of their names, and how many others there were.
fn most_frequent(errors: BTreeMap<ErrorKind, u64>) -> (Vec<(ErrorKind, u64)>, u64) {
    let mut errors: Vec<_> = errors.into_iter().filter(|(_, count)| *count > 0).collect();
    errors.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let others = errors.iter().skip(ERRORS_MAX).map(|(_, count)| count).sum();
    errors.truncate(ERRORS_MAX);
    errors.sort_unstable_by_key(|(kind, _)| *kind);
    errors.shrink_to_fit();
    (errors, others)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rarest_of_many_errors_are_counted_together() {
        let many = (400..420).map(|status| (ErrorKind::Status(status), u64::from(status) - 399));
        let (kept, others) = most_frequent(many.chain([(ErrorKind::Code("MG131"), 0)]).collect());
        assert_eq!(kept.len(), ERRORS_MAX);
        assert_eq!((kept[0], others), ((ErrorKind::Status(404), 5), 1 + 2 + 3 + 4));
    }
}
