//! Small quotas, where a share is a few slots.

use super::*;

const LIMITS: [u32; 9] = [6, 10, 12, 20, 24, 30, 36, 48, 60];

/// Promise 9: whoever is below its share gets through, and is not held up for newcomers who may never come.
#[test]
fn a_caller_below_its_share_gets_through_whatever_the_quota() {
    for limit in LIMITS {
        for eligible in [2, 3, 5, 40] {
            // Another caller asked for three slots before, or asks for less than its share all the time.
            let before = even(1, 180, 0..1_000);
            let goes_on = even(1, u64::from(limit) * 4 / 10, 0..EVER);
            let others = [(vec![before], MINUTE), (vec![even(1, 60, 0..1_000), goes_on], 3 * MINUTE)];
            for (which, (mut loads, until)) in others.into_iter().enumerate() {
                loads.push(clients(0, 1, 1_000..EVER));
                let sim = Sim::new(limit, eligible, 300, 1).run(until, &loads);
                sim.assert_within_limit();
                let starved = sim.starved(0..1, 0..until - QUOTA_WAIT_MS);
                assert_eq!(starved, 0, "limit {limit}, {eligible} eligible, other {which}");
                assert!(
                    sim.granted(0, 0..until) >= usize::try_from(limit / 2).unwrap(),
                    "limit {limit}, {eligible} eligible, other {which}"
                );
            }
        }
    }
}
