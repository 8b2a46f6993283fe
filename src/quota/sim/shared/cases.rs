//! What the replicas together must keep to, and what each caller may expect of them.

use super::*;

const CALM: Trouble = Trouble { unclear: None, kill: None, forget: None };

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    /// Promise 9 over all replicas, whatever goes wrong.
    #[test]
    fn no_minute_holds_more_than_the_limit_over_all_replicas(
        limit in 1_u32..80, replicas in 1_usize..5, callers in 1_usize..5, latency in 0_u64..3_000, seed: u64,
        per_minute in 10_u64..600, unclear in 5_u64..200, kill_in_s in 5_u64..100, forget_in_s in 20_u64..200,
    ) {
        let loads: Vec<_> = (0..callers).map(|caller| random(caller, per_minute, 0..EVER)).collect();
        let in_steps = |seconds: u64| Some(seconds * 1_000 / TICK);
        let trouble = Trouble { unclear: Some(unclear), kill: in_steps(kill_in_s), forget: in_steps(forget_in_s) };
        let sim = SharedSim::new(replicas, limit, callers, latency, seed).in_trouble(trouble);
        let sim = sim.run(4 * MINUTE, &loads, true).seen();
        sim.assert_within_limit();
        prop_assert!(!sim.attempts.is_empty());
    }
}

#[test]
fn a_lone_caller_over_three_replicas_has_97_percent() {
    for (limit, eligible, number, latency) in
        [(60_u32, 1, 8, 50), (60, 50, 8, 50), (240, 1, 16, 300), (240, 50, 32, 50)]
    {
        let sim = SharedSim::new(3, limit, eligible, latency, 1).run(3 * MINUTE, &[clients(0, number, 0..EVER)], true);
        let told =
            format!("limit {limit}, {eligible} eligible: {} swaps, {} lost, {} reads", sim.swaps, sim.lost, sim.reads);
        let sim = sim.seen();
        sim.assert_within_limit();
        let percent = sim.used_percent(0..3 * MINUTE);
        assert!(percent >= 97, "{percent} %, {told}");
    }
}

#[test]
fn polite_callers_are_served_beside_one_that_floods_every_replica() {
    for is_balanced in [true, false] {
        let mut loads = vec![flood(0, 0..EVER)];
        loads.extend((1..5).map(|caller| even(caller, 9, 0..EVER)));
        let sim = SharedSim::new(3, 60, 5, 300, 1).run(3 * MINUTE, &loads, is_balanced).seen();
        sim.assert_within_limit();
        for caller in 1..5 {
            assert_eq!(
                sim.refused(caller, 0..3 * MINUTE - QUOTA_WAIT_MS),
                0,
                "caller {caller}, balanced: {is_balanced}"
            );
        }
        let used = sim.used_percent(MINUTE..3 * MINUTE);
        assert!(used >= 90, "{used} %");
    }
}

#[test]
fn newcomers_at_another_replica_are_served_from_their_first_request() {
    let begin = 2 * MINUTE + 17_000;
    for newcomers in [1, 4] {
        let share = 60 / (newcomers as u64 + 1);
        let mut loads = vec![flood(0, 0..EVER)];
        loads.extend((1..=newcomers).map(|caller| even(caller, share * 8 / 10, begin..EVER)));
        let sim = SharedSim::new(3, 60, newcomers + 1, 300, 2).run(4 * MINUTE, &loads, false).seen();
        sim.assert_within_limit();
        for caller in 1..=newcomers {
            assert_eq!(sim.refused(caller, begin..4 * MINUTE - QUOTA_WAIT_MS), 0, "{newcomers} newcomers");
        }
    }
}

/// A dead replica's waiting requests hold nobody up, and what it had under way counts no longer than it must.
#[test]
fn a_replica_that_dies_while_its_requests_wait_costs_the_others_little() {
    let trouble = Trouble { kill: Some(20_000 / TICK), ..CALM };
    let mut loads = vec![flood(0, 0..EVER)];
    loads.extend((1..4).map(|caller| even(caller, 9, 0..EVER)));
    let sim = SharedSim::new(3, 60, 4, 300, 3).in_trouble(trouble).run(6 * MINUTE, &loads, true).seen();
    sim.assert_within_limit();
    let used = sim.used_percent(MINUTE..6 * MINUTE);
    assert!(used >= 80, "{used} %");
    // Nobody but those whose replica was down went without.
    let starved = sim.starved(1..4, MINUTE..6 * MINUTE - QUOTA_WAIT_MS);
    let asked = (1..4).map(|caller| sim.answer(caller, MINUTE..6 * MINUTE).count()).sum::<usize>();
    assert!(starved * 3 <= asked, "{starved} of {asked}");
}

/// How many swaps a fleet makes. `cargo test --release -- --ignored --nocapture swaps_of_a_fleet`
#[test]
#[ignore = "prints a table"]
fn swaps_of_a_fleet() {
    println!("one organization with 240 a minute; times 1,000 organizations (in thousands a second)");
    println!("replicas | load | used % | swaps/s | lost % | reads/s | state bytes | 1,000 orgs: statements/s");
    let even_over =
        |callers: usize, per_minute: u64| (0..callers).map(|n| even(n, per_minute, 0..EVER)).collect::<Vec<_>>();
    let cases = [
        (3, "1 caller, 40 clients", vec![clients(0, 40, 0..EVER)]),
        (100, "1 caller, 40 clients", vec![clients(0, 40, 0..EVER)]),
        (100, "10 callers, 100 % asked", even_over(10, 24)),
        (100, "100 callers, 80 % asked", even_over(100, 2)),
        (100, "100 callers, 200 % asked", even_over(100, 5)),
        (100, "10 callers, each 10 times its share", even_over(10, 240)),
        (100, "10 callers that flood, 300 requests a second", even_over(10, 1_800)),
    ];
    for (replicas, name, loads) in cases {
        let sim = SharedSim::new(replicas, 240, 100, 200, 1).run(2 * MINUTE, &loads, true);
        let (swaps, lost, reads, bytes) = (sim.swaps, sim.lost, sim.reads, sim.cell.len());
        let used = sim.seen().used_percent(MINUTE..2 * MINUTE);
        let per_second = |n: u64| n as f64 / 120.0;
        println!(
            "{replicas} | {name} | {used} | {:.1} | {:.1} | {:.1} | {bytes} | {:.0}",
            per_second(swaps),
            lost as f64 * 100.0 / (swaps + lost).max(1) as f64,
            per_second(reads),
            per_second(swaps + 2 * lost + reads) * 1_000.0,
        );
    }
}
