//! Bounds the rows that an hour has in the ledger of all replicas: paths with ever other organizations must not fill the database.

use std::collections::{BTreeMap, HashSet};

use crate::audit::index::ledger::{LedgerCounts, LedgerKey, LedgerSums, OTHERS};
use crate::replicas::shipping::LedgerGain;

/// Rows that one hour has by caller, operation and organization. Past these, organizations that come new share rows.
const EXACT_ROWS_MAX: usize = 1_000;
/// Rows that one hour has in all but for one. Past these, callers that come new share that one.
const ROWS_MAX: usize = 2_000;
/// How many hours are known at a time; most records are of the newest two.
const HOURS_MAX: usize = 4;
/// The most that one gain adds: no sum overflows, whatever a damaged record says.
const GAIN_MAX: i64 = 1 << 48;

/// The rows of the last hours, as far as this run has added to them.
#[derive(Debug, Default)]
pub(super) struct HourRows(BTreeMap<i64, HashSet<LedgerKey>>);

impl HourRows {
    /// What these counts add to which rows.
    pub(super) fn gains(&mut self, counts: LedgerCounts) -> Vec<LedgerGain> {
        let mut gains = LedgerCounts::default();
        for (key, sums) in counts {
            *gains.entry(self.row_of(key)).or_default() += sums;
        }
        gains.into_iter().map(|(key, sums)| gain(key, &sums)).collect()
    }

    fn row_of(&mut self, key: LedgerKey) -> LedgerKey {
        if self.0.len() >= HOURS_MAX && !self.0.contains_key(&key.hour) {
            self.0.pop_first();
        }
        let rows = self.0.entry(key.hour).or_default();
        let shared = LedgerKey { organization: OTHERS, ..key.clone() };
        for (key, rows_max) in [(key, EXACT_ROWS_MAX), (shared.clone(), ROWS_MAX)] {
            if rows.contains(&key) || rows.len() < rows_max {
                rows.insert(key.clone());
                return key;
            }
        }
        LedgerKey { caller: "".into(), operation: "".into(), ..shared }
    }
}

fn gain(key: LedgerKey, sums: &LedgerSums) -> LedgerGain {
    let LedgerSums { requests, spent, saved, waited_us, refused, out_of_quota } = *sums;
    let LedgerKey { hour, caller, operation, organization } = key;
    let sums = [requests, spent, saved, waited_us, refused, out_of_quota].map(|sum| sum.min(GAIN_MAX));
    LedgerGain { hour, caller, operation, organization, sums }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rows_of_an_hour_are_bounded_and_the_sums_stay_whole() {
        let mut rows = HourRows::default();
        let key = |caller: i64, organization| LedgerKey {
            hour: 7,
            caller: format!("c-{caller}").into(),
            operation: "a".into(),
            organization,
        };
        let one = LedgerSums { requests: 1, waited_us: i64::MAX, ..LedgerSums::default() };
        let (mut all, mut requests) = (HashSet::new(), 0);
        for round in 0..30 {
            let counts = (0..100).map(|n| (key(round * 3 + n % 3, round * 100 + n), one)).collect();
            for gain in rows.gains(counts) {
                requests += gain.sums[0];
                assert!(gain.sums[3] <= GAIN_MAX);
                all.insert((gain.caller, gain.organization));
            }
        }
        assert_eq!(requests, 3_000);
        assert!(all.len() > EXACT_ROWS_MAX && all.len() <= EXACT_ROWS_MAX + 90, "{}", all.len());
        let many = (0..5_000).map(|n| (key(1_000 + n, n), one)).collect();
        let gains = rows.gains(many);
        assert!(gains.iter().any(|gain| gain.caller.is_empty()) && gains.len() <= ROWS_MAX + 1, "{}", gains.len());
    }
}
