//! What a caller asked for in the last minute. Samples of its counters tell, so that no request pays for it.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::counters::AnswerCounts;

const MINUTE: Duration = Duration::from_secs(60);
/// Minimum time between two samples.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(5);
/// The refusal of a caller that is over its rate.
const OVER_RATE: &str = "MG141";

/// Numbers of requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RecentRequests {
    /// All that were answered.
    pub requests: u64,
    /// Of these, those that were refused because the caller was over its rate.
    pub over_rate: u64,
}

impl RecentRequests {
    fn of(answers: &AnswerCounts) -> Self {
        answers.read().iter().fold(Self::default(), |sum, one| Self {
            requests: sum.requests + one.count,
            over_rate: sum.over_rate + if one.kind.code == Some(OVER_RATE) { one.count } else { 0 },
        })
    }
}

/// Samples of one caller's counters, oldest first: the last one that is at least a minute old, and all later ones.
#[derive(Debug, Default)]
pub(super) struct RequestSamples(Mutex<VecDeque<(Instant, RecentRequests)>>);

impl RequestSamples {
    /// Takes a sample, if the last one is old enough.
    pub(super) fn take(&self, answers: &AnswerCounts, now: Instant) {
        let mut samples = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let age = |at: Instant| now.saturating_duration_since(at);
        if samples.back().is_none_or(|(at, _)| age(*at) >= SAMPLE_INTERVAL) {
            samples.push_back((now, RecentRequests::of(answers)));
        }
        while samples.get(1).is_some_and(|(at, _)| age(*at) >= MINUTE) {
            samples.pop_front();
        }
    }

    /// What came since a minute ago, or up to a sample's distance earlier.
    pub(super) fn last_minute(&self, answers: &AnswerCounts, now: Instant) -> RecentRequests {
        self.take(answers, now);
        let samples = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_old = |(at, _): &&(Instant, RecentRequests)| now.saturating_duration_since(*at) >= MINUTE;
        let before = samples.front().filter(is_old).map_or(RecentRequests::default(), |(_, before)| *before);
        let all = RecentRequests::of(answers);
        RecentRequests {
            requests: all.requests.saturating_sub(before.requests),
            over_rate: all.over_rate.saturating_sub(before.over_rate),
        }
    }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;
    use crate::clock::Clock;
    use crate::counters::AnswerKind;
    use crate::vocabulary::Answer;

    #[test]
    fn a_minute_is_a_minute_and_samples_are_few() {
        let (clock, answers, samples) = (Clock::frozen(), AnswerCounts::default(), RequestSamples::default());
        let hit = AnswerKind::new(Answer::Hit, StatusCode::OK, None);
        let over = AnswerKind::new(Answer::Refused, StatusCode::TOO_MANY_REQUESTS, Some(OVER_RATE));
        let told = || samples.last_minute(&answers, clock.now());
        for _ in 0..300 {
            answers.add(None, hit);
            answers.add(None, over);
            clock.advance(Duration::from_secs(1));
            samples.take(&answers, clock.now());
        }
        let RecentRequests { requests, over_rate } = told();
        assert!((120..=130).contains(&requests) && over_rate * 2 == requests, "{requests} {over_rate}");
        assert!(samples.0.lock().unwrap().len() <= 14);
        clock.advance(Duration::from_secs(6));
        samples.take(&answers, clock.now());
        clock.advance(Duration::from_secs(60));
        assert_eq!(told(), RecentRequests::default());
        answers.add(None, hit);
        assert_eq!(told(), RecentRequests { requests: 1, over_rate: 0 });
    }
}
