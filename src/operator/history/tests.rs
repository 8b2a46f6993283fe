//! Bounds of the history.

use jiff::Timestamp;

use super::point::ERRORS_MAX;
use super::*;
use crate::counters::DurationCounts;
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
