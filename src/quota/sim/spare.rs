//! Spare slots take nothing from anybody, and foreseeing takes nothing at all.

use super::*;

#[test]
fn looks_take_nothing_from_anybody() {
    // The same as without looks: polite callers next to a flooding one, newcomers after a long flood, and a surge of
    // all quiet callers.
    let mut loads = vec![even(0, 60_000, 0..EVER)];
    loads.extend((1..5).map(|caller| even(caller, 9, 0..EVER)));
    let sim = Sim::new(60, 5, 300, 1).looking().run(3 * MINUTE, &loads);
    sim.assert_within_limit();
    for caller in 1..5 {
        assert_eq!(sim.refused(caller, 0..3 * MINUTE - QUOTA_WAIT_MS), 0, "caller {caller}");
    }
    for (newcomers, eligible, seed) in [(1, 3, 1), (1, 2, 2), (4, 5, 3)] {
        let begin = 3 * MINUTE + 17_000;
        let mut loads = vec![flood(0, MINUTE..EVER)];
        let share = 60 / (newcomers as u64 + 1);
        loads.extend((1..=newcomers).map(|caller| even(caller, share * 8 / 10, begin..EVER)));
        let sim = Sim::new(60, eligible, 300, seed).looking().run(5 * MINUTE, &loads);
        sim.assert_within_limit();
        assert!(sim.spare >= 2, "nothing was spare in the quiet minute");
        for caller in 1..=newcomers {
            let refused = sim.refused(caller, begin..5 * MINUTE - QUOTA_WAIT_MS);
            assert_eq!(refused, 0, "{newcomers} newcomers, seed {seed}");
        }
    }
    let surge = 3 * MINUTE;
    let mut loads: Vec<_> = (1..10).map(|caller| random(caller, 1, 0..surge)).collect();
    loads.extend((1..10).map(|caller| random(caller, 21, surge..EVER)));
    let sim = Sim::new(240, 10, 300, 7).looking().run(6 * MINUTE, &loads);
    sim.assert_within_limit();
    assert_eq!(sim.starved(1..10, 0..6 * MINUTE - QUOTA_WAIT_MS), 0);
    assert!((8..=8 * 7).contains(&sim.spare), "{} looks", sim.spare);
}

#[test]
fn nothing_is_spare_while_somebody_waits() {
    let mut queue = FairQueue::new(240);
    let flooding: Arc<str> = "flood".into();
    let request = SlotRequest {
        caller: &flooding,
        eligible: 10,
        wait_ms: QUOTA_WAIT_MS,
        latest: 60_000,
        queue_max: 50,
        owner: 0,
    };
    while matches!(queue.ask(0, &request), SlotAnswer::Granted(_)) {}
    assert!(queue.used() * 2 < 240 && queue.waiting() == 1, "a request waits although more than half is free");
    assert!(queue.take_spare(0).is_none());
}

#[test]
fn spare_slots_make_no_caller_that_others_make_room_for() {
    let mut queue = FairQueue::new(60);
    let grant = queue.take_spare(0).unwrap();
    queue.end(10, &grant);
    let lone: Arc<str> = "lone".into();
    let request =
        SlotRequest { caller: &lone, eligible: 1, wait_ms: QUOTA_WAIT_MS, latest: 0, queue_max: 50, owner: 0 };
    for slot in 0..59 {
        assert!(matches!(queue.ask(10, &request), SlotAnswer::Granted(_)), "slot {slot}");
    }
}

#[test]
fn few_slots_are_spare_and_none_near_a_429() {
    let mut queue = FairQueue::new(60);
    let grants: Vec<_> = std::iter::from_fn(|| queue.take_spare(0)).collect();
    assert_eq!((grants.len(), queue.used()), (2, 2));
    assert!(queue.spenders().any(|(name, spent, _)| &**name == super::super::fair_queue::SPARE && spent == 2));
    grants.iter().for_each(|grant| queue.end(10, grant));
    assert!(queue.evictable(61_000) != Some(0) && queue.take_spare(61_000).is_none());
    assert!(queue.evictable(61_010) == Some(0) && queue.spenders().count() == 0, "all slots came back");
    queue.close(61_010, 70_000, CloseReason::Throttled(None));
    assert!(
        queue.take_spare(69_999).is_none() && queue.take_spare(70_000).is_none(),
        "someone else may be using the quota"
    );
}
