//! Bounds of the history.

use jiff::Timestamp;

use super::super::tests::World;
use super::point::ERRORS_MAX;
use super::*;
use crate::counters::DurationCounts;
use crate::quota::LimitSource;
use crate::vocabulary::Answer;

fn point(at: Instant, time: Timestamp) -> HistoryPoint {
    HistoryPoint {
        at,
        time,
        length: INTERVAL,
        answers: [1; Answer::ALL.len()],
        hits: 1,
        misses: 2,
        durations: DurationCounts::default(),
        upstream: DurationCounts::default(),
        errors: vec![(ErrorKind::Code("MG131"), 1); ERRORS_MAX],
        other_errors: 3,
        quota: vec![QuotaUse { organization: Some(11), used: 5, limit: 60 }; QUOTAS_MAX],
    }
}

#[test]
fn a_point_takes_at_most_a_kibibyte() {
    let heap = ERRORS_MAX * size_of::<(ErrorKind, u64)>() + QUOTAS_MAX * size_of::<QuotaUse>();
    let whole = size_of::<HistoryPoint>() + heap;
    assert!(whole <= 1024, "{whole} bytes");
    assert_eq!(POINTS_MAX as u64 * INTERVAL.as_secs(), SPAN.as_secs());
}

#[test]
fn groups_add_up_and_stay_the_same_as_time_goes_on() {
    let clock = Clock::frozen();
    let (start, wall) = (clock.now(), Timestamp::from_second(1_800_000_000).unwrap());
    let history = History::default();
    let times = |history: &History| -> Vec<_> {
        history.grouped(Duration::from_secs(30)).into_iter().map(|group| (group.time, group.answers[0])).collect()
    };
    let mut before = Vec::new();
    for number in 0..9 {
        let after = INTERVAL * number;
        history.0.lock().unwrap().points.push_back(point(start + after, wall + after));
        let now = times(&history);
        let whole = before.len().saturating_sub(1);
        assert_eq!(now[..whole], before[..whole], "{number}");
        before = now;
    }
    assert_eq!(before.iter().map(|(_, answers)| answers).collect::<Vec<_>>(), [&3, &3, &3]);
    let group = history.grouped(Duration::from_secs(30)).pop().unwrap();
    assert_eq!((group.length, group.misses, group.other_errors), (INTERVAL * 3, 6, 9));
    assert_eq!(group.errors, [(ErrorKind::Code("MG131"), 48)]);
    assert_eq!(group.quota, [QuotaUse { organization: Some(11), used: 5, limit: 60 }]);
}

/// The clock may make an hour of any number of looks, as if it had been set: their number is bounded all the same.
#[tokio::test]
async fn however_often_it_is_looked_at_the_points_are_bounded() {
    let world = World::new();
    let history = History::default();
    for _ in 0..POINTS_MAX + 20 {
        history.sample(&world.state.gateway);
    }
    assert_eq!(history.points().len(), POINTS_MAX);
}

#[test]
fn of_many_quotas_the_fullest_are_kept() {
    let bucket = |number: u32| BucketView {
        organization: Some(number.into()),
        limit: 100,
        limit_from: LimitSource::Configured,
        used: number,
        remaining: 100 - number,
        waiting: 0,
        kept: 0,
        closed_for: None,
        closed_because: None,
        callers: Vec::new(),
    };
    let kept = fullest(&(0..20).map(bucket).collect::<Vec<_>>());
    assert_eq!(kept.iter().map(|quota| quota.used).collect::<Vec<_>>(), [19, 18, 17, 16, 15, 14, 13, 12]);
    assert_eq!(fullest(&[bucket(0)]), [], "nothing of it is used");
}
