//! A lone caller gets what the upstream allows, and still leaves room for whoever comes.

use super::super::window::HOLD_MS;
use super::*;

impl Sim {
    fn sent_in(&self, span: Range<Moment>) -> u64 {
        self.attempts.iter().filter(|(sent, _)| span.contains(sent)).count() as u64
    }

    fn longest_wait(&self, caller: usize) -> Moment {
        let granted = self.fates.iter().filter(|fate| fate.caller == caller);
        granted.filter_map(|fate| Some(fate.granted? - fate.answer)).max().unwrap()
    }
}

/// Promise 9: a lone caller gets at least 97 % of each window.
#[test]
fn a_lone_caller_that_always_asks_has_97_percent_of_every_window() {
    let cases =
        [(1, 1, 50), (1, 64, 300), (2, 1, 300), (2, 8, 3_000), (2, 64, 300), (50, 1, 300), (50, 8, 300), (50, 64, 50)];
    for limit in [30_u32, 60, 240] {
        for (seed, (eligible, clients_of_it, latency)) in (0..).zip(cases) {
            if limit > 60 && clients_of_it == 1 && latency > 50 {
                continue; // one at a time cannot ask for so many
            }
            let what =
                format!("limit {limit}, {eligible} eligible, {clients_of_it} clients, latency {latency}, seed {seed}");
            let sim = Sim::new(limit, eligible, latency, seed).run(5 * MINUTE, &[clients(0, clients_of_it, 0..EVER)]);
            sim.assert_within_limit();
            // A slot comes back one hold after its attempt ended, so no window that holds them all can be shorter.
            let window = HOLD_MS + latency + STEP_MS;
            for begin in (0..5 * MINUTE / window).map(|n| n * window) {
                let sent = sim.sent_in(begin..begin + window);
                assert!(sent * 100 >= u64::from(limit) * 97, "{sent} in the window from {begin}: {what}");
            }
            // Relative to what the upstream allows in 60 seconds, if its answers come quickly.
            let percent = sim.used_percent(0..5 * MINUTE);
            assert!(percent >= 97 || latency > 300, "{percent} %: {what}");
        }
    }
}

#[test]
fn beside_others_who_may_come_it_has_a_third_to_a_half_at_once_and_the_rest_evenly() {
    let sim = Sim::new(60, 50, 300, 1).run(2 * MINUTE, &[clients(0, 40, 0..EVER)]);
    let at_once = sim.granted(0, 0..3_000);
    assert!((20..=30).contains(&at_once), "{at_once}");
    let sent: Vec<_> = sim.attempts.iter().map(|(sent, _)| *sent).collect();
    let pause = sent.windows(2).map(|two| two[1] - two[0]).max().unwrap();
    assert!(pause <= 3_500, "no slot for {pause} ms");
}

#[test]
fn the_only_caller_has_everything_at_once() {
    let sim = Sim::new(60, 1, 300, 1).run(5 * MINUTE, &[flood(0, 0..EVER)]);
    assert_eq!(sim.granted(0, 0..3_000), 60);
    assert!(sim.used_percent(0..5 * MINUTE) >= 98);
}

#[test]
fn a_newcomer_finds_its_share_whenever_it_comes() {
    for limit in [60, 240, 1_000] {
        for (newcomers, begin) in [(1, 3_000), (1, 30_000), (2, 59_000), (1, 61_500), (2, 100_000), (4, 200_000)] {
            let mut loads = vec![clients(0, 40, 0..EVER)];
            let share = u64::from(limit) / (newcomers as u64 + 1);
            loads.extend((1..=newcomers).map(|caller| even(caller, share * 9 / 10, begin..EVER)));
            let sim = Sim::new(limit, 50, 300, begin).run(begin + 2 * MINUTE, &loads);
            sim.assert_within_limit();
            for caller in 1..=newcomers {
                let refused = sim.refused(caller, begin..begin + 2 * MINUTE - QUOTA_WAIT_MS);
                assert_eq!(refused, 0, "{newcomers} newcomers at {begin}, limit {limit}");
                assert!(sim.longest_wait(caller) <= QUOTA_WAIT_MS);
            }
        }
    }
}

#[test]
fn kept_free_slots_are_waited_for_and_never_promised_at_once() {
    let mut queue = FairQueue::new(60);
    let lone: Arc<str> = "lone".into();
    let request = SlotRequest {
        caller: &lone,
        eligible: 50,
        wait_ms: QUOTA_WAIT_MS,
        latest: QUOTA_WAIT_MS,
        queue_max: 50,
        owner: 0,
    };
    while matches!(queue.ask(0, &request), SlotAnswer::Granted(_)) {}
    // One request waits, and so do all further ones while there is any slot for them.
    let free = queue.kept(0);
    assert_eq!(u64::from(free), 60 - queue.used());
    for waiting in 1..free {
        assert!(matches!(queue.ask(0, &request), SlotAnswer::Queued(_)), "{waiting} wait, {free} are free");
    }
    let SlotAnswer::TooLong(outlook) = queue.ask(0, &request) else { panic!("there is no slot left to wait for") };
    assert_eq!(
        (outlook.waits_for, outlook.free, outlook.waiting, outlook.share),
        (WaitsFor::Kept, free, free as usize, 60)
    );
    assert!(outlook.after > Duration::from_secs(40), "it is the last of {free}: {outlook:?}");
}

#[test]
fn a_caller_that_retries_when_told_to_is_sent_at_once() {
    let mut queue = FairQueue::new(60);
    let lone: Arc<str> = "lone".into();
    let (mut now, mut refused) = (0, 0);
    while now < 4 * MINUTE {
        let request =
            SlotRequest { caller: &lone, eligible: 50, wait_ms: QUOTA_WAIT_MS, latest: now, queue_max: 0, owner: 0 };
        match queue.ask(now, &request) {
            SlotAnswer::Granted(grant) => queue.end(now, &grant),
            SlotAnswer::Queued(_) => panic!("its queue has no room"),
            SlotAnswer::TooLong(outlook) | SlotAnswer::Full(outlook) => {
                refused += 1;
                now += u64::try_from(outlook.after.as_millis()).unwrap();
                let request = SlotRequest { latest: now, ..request };
                let SlotAnswer::Granted(grant) = queue.ask(now, &request) else {
                    panic!("{outlook:?}, but not at {now}")
                };
                queue.end(now, &grant);
            }
        }
    }
    assert!(refused > 100, "{refused}");
}

#[test]
fn foreseeing_takes_nothing_and_makes_nobody_active() {
    let mut queue = FairQueue::new(60);
    let [lone, curious]: [Arc<str>; 2] = ["lone".into(), "curious".into()];
    let request = |caller| SlotRequest {
        caller,
        eligible: 3,
        wait_ms: QUOTA_WAIT_MS,
        latest: QUOTA_WAIT_MS,
        queue_max: 50,
        owner: 0,
    };
    assert!(matches!(queue.ask(0, &request(&lone)), SlotAnswer::Granted(_)));
    for _ in 0..100 {
        let outlook = queue.foresee(0, &request(&curious)).unwrap();
        assert_eq!((outlook.after, outlook.free, outlook.share), (Duration::ZERO, 59, 30));
    }
    assert_eq!((queue.used(), queue.waiting(), queue.share(&lone), queue.spenders().count()), (1, 0, 60, 1));
}
